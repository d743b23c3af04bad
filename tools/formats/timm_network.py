"""Networks as timm would describe them.

A block of SGNAS is timm's InvertedResidual with one depthwise convolution for each sub-block, or
without expansion its DepthwiseSeparableConv; the whole is an EfficientNet. A network of NSGANetV2
is a MobileNetV3 of timm.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from model.layers.blocks import InvertedBottleneck
from model.spaces.elastic.network import MobileNetV3
from model.spaces.unified.network import SubNet
from utils.errors import UserError

# Beyond this product of strides timm's networks dilate instead, unless an EfficientNet is told
# otherwise.
MOST_STRIDE = 32

ACTIVATIONS = {nn.ReLU: "relu", nn.ReLU6: "relu6", nn.Hardswish: "hard_swish"}
CODES = {"relu": "re", "relu6": "r6", "hard_swish": "hs"}  # in timm's descriptions of blocks


@dataclass(frozen=True)
class TimmBlock:
    """A block with a depthwise convolution of each of `kernels`; `middle` channels are None where
    nothing expands.
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
        """In timm's notation."""
        kind = "ds" if self.middle is None else "ir"
        parts = [kind, "r1", f"k{'.'.join(map(str, self.kernels))}", f"s{self.stride}"]
        parts += [f"e{self.middle / self.in_channels!r}"] if self.middle is not None else []
        parts += [f"c{self.out_channels}", f"n{CODES[self.activation]}"] + ["se0.25"] * self.se
        return "_".join(parts + ["noskip"] * (self.may_skip and not self.skip))


@dataclass(frozen=True)
class TimmNetwork:
    """A network as timm describes it: the class in its module, its arguments, and the stages of its
    blocks.

    `squeezed` is the width inside of a squeeze-excite of `channels`, as source text.
    """

    base: str
    base_class: str
    options: dict
    stages: list[list[TimmBlock]]
    stem_stride: int
    squeezed: str
    last: str | None = None  # one more stage, in timm's notation

    @property
    def texts(self) -> list[list[str]]:
        stages = [[block.text for block in stage] for stage in self.stages]
        return stages + ([[self.last]] if self.last else [])

    @property
    def levels(self) -> int:
        """At how many sizes timm gives features: before each stride but the stem's, and at the end."""
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
    """UserError for a network that timm cannot express."""
    if isinstance(network, SubNet):
        return _efficientnet(network)
    if isinstance(network, MobileNetV3):
        return _mobilenetv3(network)
    raise UserError(
        "--format timm: cells of NAS-Bench-201 are no network of timm's; use onnx or torch-export"
    )


def _efficientnet(network: SubNet) -> TimmNetwork:
    blocks = [_unified_block(block) for block in (network.first_mb, *network.stages)]
    options = {
        "stem_size": network.first.conv.out_channels,
        "num_features": network.last_stage[0].out_channels,
        "act_layer": ACTIVATIONS[type(network.first.act)],
        **_norm_options(network),
    }
    stride = network.first.conv.stride[0]
    reached = _check_strides(blocks) * 2  # timm takes a stride of 2 for granted in the stem
    if reached > MOST_STRIDE:
        options["output_stride"] = reached
    return TimmNetwork(
        "efficientnet", "EfficientNet", options, _stages(blocks), stride, "max(1, channels // 4)"
    )


def _unified_block(block: InvertedBottleneck) -> TimmBlock:
    depthwise, last = block.depthwise, block.point_wise_1.conv
    return TimmBlock(
        tuple(conv.kernel_size[0] for conv in depthwise.blocks),
        depthwise.blocks[0].stride[0],
        depthwise.channels,
        None if block.point_wise is None else last.in_channels,
        last.out_channels,
        block.se is not None,
        ACTIVATIONS[type(depthwise.act)],
        block.residual,
    )


def _mobilenetv3(network: MobileNetV3) -> TimmNetwork:
    blocks = []
    for block, layer in zip(network.blocks, network.layers, strict=True):
        act = type(block.mobile_inverted_conv["depth_conv"].act)
        if act not in ACTIVATIONS:
            raise UserError(
                "--format timm: a block has no activation, which timm's networks cannot be without"
            )
        middle = layer.middle if layer.expansion > 1 else None
        widths = (layer.in_channels, middle, layer.out_channels)
        blocks.append(
            TimmBlock(
                (layer.kernel,), layer.stride, *widths, layer.se, ACTIVATIONS[act], layer.residual
            )
        )
    wide, last = network.head_channels
    stem = network.first_conv.conv
    options = {
        "stem_size": stem.out_channels,
        "num_features": last,
        "head_bias": False,
        "act_layer": "hard_swish",
    }
    options |= _norm_options(network)
    if _check_strides(blocks) * 2 > MOST_STRIDE:
        raise UserError(
            f"--format timm: its MobileNetV3 has no stride beyond {MOST_STRIDE}, which this network has"
        )
    head = f"cn_r1_k1_s1_c{wide}"
    squeezed = "make_divisible(channels // 4)"
    return TimmNetwork(
        "mobilenetv3", "MobileNetV3", options, _stages(blocks), stem.stride[0], squeezed, head
    )


def _norm_options(network: nn.Module) -> dict[str, float]:
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    found = {(norm.eps, norm.momentum) for norm in norms}
    if len(found) > 1:
        raise UserError(
            "--format timm: its networks have batch norms of one kind, this one has several"
        )
    eps, momentum = found.pop()
    return {"bn_eps": eps, "bn_momentum": momentum}


def _check_strides(blocks: Sequence[TimmBlock]) -> int:
    """The product of all strides; UserError for one that timm has not."""
    product = 1
    for block in blocks:
        if block.stride not in (1, 2):
            raise UserError(
                f"--format timm: a block has a stride of {block.stride}; timm's have 1 or 2"
            )
        product *= block.stride
    return product


def _stages(blocks: Sequence[TimmBlock]) -> list[list[TimmBlock]]:
    """Blocks in stages: one begins wherever size or width change, since timm strides in the first
    block alone.
    """
    stages = []
    for block in blocks:
        if not stages or block.stride > 1 or block.out_channels != stages[-1][-1].out_channels:
            stages.append([])
        stages[-1].append(block)
    return stages
