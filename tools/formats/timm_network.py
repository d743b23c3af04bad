"""Networks as timm would describe them.

A block of SGNAS is timm's InvertedResidual with one depthwise convolution for each sub-block, or
without expansion its DepthwiseSeparableConv; the whole is an EfficientNet. A network of NSGANetV2
is a MobileNetV3 of timm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from model.layers.blocks import InvertedBottleneck
from model.spaces.elastic.network import MobileNetV3
from model.spaces.unified.network import SubNet
from utils.errors import UserError

# Beyond this product of strides timm's networks dilate, unless an EfficientNet is told otherwise.
MOST_STRIDE = 32

ACTIVATIONS = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hard_swish"}
CODES = {"relu": "re", "relu6": "r6", "hard_swish": "hs"}  # in timm's descriptions of blocks


@dataclass(frozen=True)
class TimmBlock:
    """A block with a depthwise convolution of each of `kernels`.

    `middle` channels are None where nothing expands.
    """

    kernels: tuple[int, ...]
    stride: int
    in_channels: int
    middle: int | None
    out_channels: int
    se: bool
    activation: str
    skip: bool

    @property
    def may_skip(self) -> bool:
        """Whether timm would give it a residual."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def text(self) -> str:
        """The block in timm's notation."""
        kind = "ds" if self.middle is None else "ir"
        parts = [kind, "r1", f"k{'.'.join(map(str, self.kernels))}", f"s{self.stride}"]
        parts += [f"e{self.middle / self.in_channels!r}"] if self.middle is not None else []
        parts += [f"c{self.out_channels}", f"n{CODES[self.activation]}"] + ["se0.25"] * self.se
        return "_".join(parts + ["noskip"] * (self.may_skip and not self.skip))


@dataclass(frozen=True)
class TimmNetwork:
    """A network as timm describes it.

    Args:
        base, base_class: the module of timm, and the class in it.
        options: arguments of the class.
        stages: the blocks.
        stem_stride: of the first convolution; timm's is 2.
        squeezed: source text of the width inside a squeeze-excite of `channels`.
        last: one more stage, in timm's notation.
    """

    base: str
    base_class: str
    options: dict
    stages: list[list[TimmBlock]]
    stem_stride: int
    squeezed: str
    last: str | None = None

    @property
    def texts(self) -> list[list[str]]:
        stages = [[block.text for block in stage] for stage in self.stages]
        return stages + ([[self.last]] if self.last else [])

    @property
    def levels(self) -> int:
        """Sizes at which timm gives features: before each stride but the stem's, and at the end."""
        return 1 + sum(stage[0].stride > 1 for stage in self.stages)

    @property
    def odd_widths(self) -> dict[str, int]:
        """Middle channels that timm would round to a multiple of 8, by the name of the block."""
        return {
            f"blocks.{stage}.{index}": block.middle
            for stage, blocks in enumerate(self.stages)
            for index, block in enumerate(blocks)
            if block.middle is not None and block.middle % 8
        }


def described(network: nn.Module) -> TimmNetwork:
    """Describe a network; UserError for one that timm cannot express."""
    describe = {SubNet: _efficientnet, MobileNetV3: _mobilenetv3}.get(type(network))
    if describe is None:
        name = type(network).__name__
        raise UserError(f"--format timm: timm has no network like {name}; use onnx or torch-export")
    return describe(network)


def _efficientnet(network: SubNet) -> TimmNetwork:
    blocks = [_unified_block(block) for block in (network.first_mb, *network.stages)]
    stem = network.first.conv
    options = {"stem_size": stem.out_channels, "num_features": network.last_stage[0].out_channels}
    options |= {"act_layer": ACTIVATIONS[type(network.first.act)], **_norm_options(network)}
    reached = _check_strides(blocks) * 2  # timm takes a stride of 2 for granted in the stem
    if reached > MOST_STRIDE:
        options["output_stride"] = reached
    names, squeezed = ("efficientnet", "EfficientNet"), "max(1, channels // 4)"
    return TimmNetwork(*names, options, _stages(blocks), stem.stride[0], squeezed)


def _unified_block(block: InvertedBottleneck) -> TimmBlock:
    depthwise, last = block.depthwise, block.point_wise_1.conv
    return TimmBlock(
        kernels=tuple(conv.kernel_size[0] for conv in depthwise.blocks),
        stride=depthwise.blocks[0].stride[0],
        in_channels=depthwise.channels,
        middle=None if block.point_wise is None else last.in_channels,
        out_channels=last.out_channels,
        se=block.se is not None,
        activation=ACTIVATIONS[type(depthwise.act)],
        skip=block.residual,
    )


def _mobilenetv3(network: MobileNetV3) -> TimmNetwork:
    blocks = []
    for block, layer in zip(network.blocks, network.layers, strict=True):
        act = type(block.mobile_inverted_conv["depth_conv"].act)
        if act not in ACTIVATIONS:
            raise UserError("--format timm: timm has no block without an activation, as one here")
        middle = layer.middle if layer.expansion > 1 else None
        sizes = ((layer.kernel,), layer.stride, layer.in_channels, middle, layer.out_channels)
        blocks.append(TimmBlock(*sizes, layer.se, ACTIVATIONS[act], layer.residual))
    (wide, last), stem = network.head_channels, network.first_conv.conv
    options = {"stem_size": stem.out_channels, "num_features": last, "head_bias": False}
    options |= {"act_layer": "hard_swish", **_norm_options(network)}
    if _check_strides(blocks) * 2 > MOST_STRIDE:
        most = f"timm's MobileNetV3 has strides up to {MOST_STRIDE}, this network has more"
        raise UserError(f"--format timm: {most}")
    names, squeezed = ("mobilenetv3", "MobileNetV3"), "make_divisible(channels // 4)"
    head = f"cn_r1_k1_s1_c{wide}"
    return TimmNetwork(*names, options, _stages(blocks), stem.stride[0], squeezed, head)


def _norm_options(network: nn.Module) -> dict[str, float]:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    found = {(norm.eps, norm.momentum) for norm in norms}
    if len(found) > 1:
        raise UserError("--format timm: batch norms of timm are of one kind, those here of several")
    eps, momentum = found.pop()
    return {"bn_eps": eps, "bn_momentum": momentum}


def _check_strides(blocks: Sequence[TimmBlock]) -> int:
    """The product of all strides; UserError for one that timm does not have."""
    for block in blocks:
        if block.stride not in (1, 2):
            has = f"a block has a stride of {block.stride}; timm's have 1 or 2"
            raise UserError(f"--format timm: {has}")
    return prod(block.stride for block in blocks)


def _stages(blocks: Sequence[TimmBlock]) -> list[list[TimmBlock]]:
    """Blocks in stages, which start where size or width change: timm strides in first blocks."""
    stages = []
    for block in blocks:
        if not stages or block.stride > 1 or block.out_channels != stages[-1][-1].out_channels:
            stages.append([])
        stages[-1].append(block)
    return stages
