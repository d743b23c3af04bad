"""What a config says of a space of blocks."""

from dataclasses import dataclass

from utils.config import key
from utils.ranges import Channels, Depth, Pixels, Stride, Width


@dataclass(frozen=True)
class BlockKeys:
    """The key `space` of a supernet of blocks; the defaults are the space of NAS-Bench-Macro.

    Costs and accuracies are those of the network on images of `image_size`; the supernet may be
    narrower, and sees images of `input_size`.
    """

    blocks: tuple[tuple[int, int], ...] = key(
        ((3, 3), (6, 5)), "what a layer may be: (expansion ratio, kernel size); identity is another"
    )
    widths: tuple[Channels, ...] = key((64, 128, 256), "output channels of the stages")
    depths: tuple[Depth, ...] = key((2, 3, 3), "layers of the stages")
    strides: tuple[Stride, ...] = key((2, 2, 2), "of the first layer of each stage")
    stem_channels: Channels = key(32, "of the stem")
    stem_stride: Stride = key(1, "of the stem")
    head_channels: Channels = key(1280, "before the mean over pixels")
    image_size: Pixels = key(32, "side of the network's images; the supernet's is `input_size`")
    supernet_width: Width = key(1.0, "factor of the supernet's channels")
    supernet_affine: bool = key(True, "whether its batch norms learn scales and shifts")
