"""What a config says of an elastic space."""

from dataclasses import dataclass

from utils.config import NEEDED, key
from utils.ranges import Channels, Depth, Expansion, KernelSize, Pixels, Stride, Width


@dataclass(frozen=True)
class ElasticKeys:
    """The key `space` of an elastic supernet; lists of stages have an entry for each.

    `model.spaces.elastic.space.ElasticSpace` says what the values may be.
    """

    stages: tuple[Channels, ...] = key(NEEDED, "output channels of the stages")
    strides: tuple[Stride, ...] = key(NEEDED, "of the stages")
    activations: tuple[str, ...] = key(NEEDED, "of the stages: relu, relu6 or h_swish")
    se: tuple[bool, ...] = key(NEEDED, "whether the stages have squeeze-excite")
    head: tuple[Channels, Channels] = key(NEEDED, "the two widths of the head")
    resolutions: tuple[Pixels, ...] = key(NEEDED, "sides of images in pixels")
    stem_channels: Channels = key(16, "of the stem")
    stem_stride: Stride = key(2, "of the stem")
    kernels: tuple[KernelSize, ...] = key((3, 5, 7), "kernel sizes of a layer")
    expansions: tuple[Expansion, ...] = key((3, 4, 6), "expansion ratios of a layer")
    depths: tuple[Depth, ...] = key((2, 3, 4), "layers of a stage")
    width: Width = key(1.0, "factor of all widths")
