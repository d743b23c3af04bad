"""What latency tables are made of: the parts that networks of a space can have, by key.

Keys of elastic spaces are the published ones; those of unified spaces name the kernel of each
sub-block.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, singledispatch
from itertools import combinations_with_replacement

from torch import Tensor, nn

from model.layers.blocks import ConvBN, InvertedBottleneck, conv, head_stage
from model.spaces.elastic.network import Block, ConvNorm
from model.spaces.elastic.space import ElasticSpace, Layer
from model.spaces.unified.space import LayerSpec, SearchSpace, UnifiedSpace


@dataclass(frozen=True)
class Part:
    """A part of a network, built when it is asked for, and the shape of what enters it, `[C, H, W]`
    or `[C]`.
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


@singledispatch
def parts_of(space: SearchSpace | ElasticSpace, **options) -> dict[str, Part]:
    """All parts that networks of the space can have, by key; `options` are `se` and `activation` of
    unified ones.

    TypeError for a space of another kind.
    """
    raise TypeError(f"no parts are known of {type(space).__name__}")


# -- elastic spaces --------------------------------------------------------------------------------


@parts_of.register
def _(space: ElasticSpace) -> dict[str, Part]:
    parts = {}
    for r in space.resolutions:
        parts |= fixed_parts(space, r)
        for stage in range(len(space.stages)):
            for position in range(min(2, space.most_layers)):  # all but the first are alike
                size = size_before(space, r, stage, position)
                layers = [
                    space.layer(stage, position, k, e)
                    for k in space.kernels
                    for e in space.expansions
                ]
                parts |= {layer_key(layer, size): _layer_part(layer, size) for layer in layers}
    return parts


def fixed_parts(space: ElasticSpace, r: int) -> dict[str, Part]:
    """What all networks have at a resolution, by key."""
    (wide, last), stem, out = space.head_channels, space.channels[0], space.channels[-1]
    first, size = -(-r // space.stem_stride), size_before(space, r, len(space.stages), 0)
    block = Layer(stem, stem, 3, 1, 1, "relu", False)
    return {
        f"first_conv-input:{r}x{r}x3-output:{first}x{first}x{stem}": Part(
            lambda: ConvNorm(conv(3, stem, 3, space.stem_stride), "h_swish"), (3, r, r)
        ),
        layer_key(block, first): _layer_part(block, first),
        f"final_expand_layer-input:{size}x{size}x{out}-output:{size}x{size}x{wide}": Part(
            lambda: ConvNorm(conv(out, wide), "h_swish"), (out, size, size)
        ),
        f"feature_mix_layer-input:1x1x{wide}-output:1x1x{last}": Part(
            lambda: nn.Sequential(conv(wide, last), nn.Hardswish()), (wide, 1, 1)
        ),
        _classifier_key(last, space.classes): Part(lambda: nn.Linear(last, space.classes), (last,)),
    }


def size_before(space: ElasticSpace, r: int, stage: int, position: int) -> int:
    """Pixels along a side of what enters a layer, at resolution r."""
    size = -(-r // space.stem_stride)
    for stride in space.strides[: stage + (position > 0)]:
        size = -(-size // stride)
    return size


def layer_key(layer: Layer, size: int) -> str:
    """The key of a layer whose input has `size` pixels a side."""
    after = -(-size // layer.stride)
    return (
        f"MBConv-input:{size}x{size}x{layer.in_channels}-output:{after}x{after}x{layer.out_channels}"
        f"-expand:{layer.expansion}-kernel:{layer.kernel}-stride:{layer.stride}"
        f"-idskip:{int(layer.residual)}-se:{int(layer.se)}"
    )


def _layer_part(layer: Layer, size: int) -> Part:
    return Part(partial(Block, layer), (layer.in_channels, size, size))


def _classifier_key(channels: int, classes: int) -> str:
    return f"classifier-input:{channels}-output:{classes}"


# -- unified spaces --------------------------------------------------------------------------------


@parts_of.register
def _(space: UnifiedSpace, se: bool = False, activation: str = "relu6") -> dict[str, Part]:
    parts = ends(space, se, activation)
    for spec, (size, _) in zip(space.layers, space.sizes, strict=True):
        for count in range(1, spec.expansion + 1):
            for kernels in combinations_with_replacement(sorted(spec.kernels), count):
                part = Part(
                    partial(_bottleneck, spec, kernels, se, activation),
                    (spec.in_channels, size, size),
                )
                parts[mixed_key(spec, kernels, size, se, activation)] = part
    return parts


def ends(space: UnifiedSpace, se: bool, activation: str) -> dict[str, Part]:
    """What all networks have: stem, first block, head and classifier, by key."""
    stem, first, head, classes = (
        space.stem_channels,
        space.first_channels,
        space.head_channels,
        space.classes,
    )
    size, (_, last), out = space.image_size, space.sizes[-1], space.layers[-1].out_channels
    after = space.sizes[0][0]
    block = LayerSpec(stem, first, 1, 1, (3,))
    return {
        f"first-input:{size}x{size}x3-output:{after}x{after}x{stem}-act:{activation}": Part(
            lambda: ConvBN(3, stem, 3, space.stem_stride, activation), (3, size, size)
        ),
        mixed_key(block, (3,), after, se, activation, residual=False): Part(
            lambda: InvertedBottleneck(stem, first, (3,), se=se, activation=activation),
            (stem, after, after),
        ),
        f"last_stage-input:{last}x{last}x{out}-output:1x1x{head}-act:{activation}": Part(
            lambda: nn.Sequential(head_stage(out, head, activation), _Pool()), (out, last, last)
        ),
        _classifier_key(head, classes): Part(lambda: nn.Linear(head, classes), (head,)),
    }


def mixed_key(
    spec: LayerSpec,
    kernels: tuple[int, ...],
    size: int,
    se: bool,
    activation: str,
    residual: bool | None = None,
) -> str:
    """The key of a layer with these sub-blocks, in any order, whose input has `size` pixels a side."""
    after = -(-size // spec.stride)
    return (
        f"MixConv-input:{size}x{size}x{spec.in_channels}-output:{after}x{after}x{spec.out_channels}"
        f"-kernels:{'.'.join(map(str, sorted(kernels)))}-stride:{spec.stride}"
        f"-idskip:{int(spec.residual if residual is None else residual)}-se:{int(se or spec.se)}-act:{activation}"
    )


def _bottleneck(spec: LayerSpec, kernels: tuple[int, ...], se: bool, activation: str) -> nn.Module:
    channels = (spec.in_channels, spec.out_channels)
    return InvertedBottleneck(
        *channels, kernels, spec.stride, spec.residual, se or spec.se, activation
    )


class _Pool(nn.Module):
    """The global mean, as `SubNet` takes it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))
