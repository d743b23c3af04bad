"""A small space of blocks that tests share."""

from model.spaces.nasbench_macro.space import BlockSpace

SMALL = BlockSpace(
    ((2, 3), (3, 5)), (4, 6), (1, 3), (2, 1),
    stem_channels=5, head_channels=12, image_size=9, classes=4,
)  # fmt: skip
