"""Latency in elastic spaces, under the published keys. Axes: N architectures, G genes."""

from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import nn

from model.costs.latency import Latencies, Part
from model.layers.blocks import conv
from model.spaces.elastic.network import Block, ConvNorm
from model.spaces.elastic.space import ElasticSpace, ElasticTable, Genes, Layer


def parts_of(space: ElasticSpace) -> dict[str, Part]:
    """All parts that networks of the space can have, by key."""
    parts = {}
    for r in space.resolutions:
        parts |= fixed_parts(space, r)
        for stage in range(len(space.stages)):
            for position in range(min(2, space.most_layers)):  # all except the first are alike
                size = size_before(space, r, stage, position)
                for kernel in space.kernels:
                    for expansion in space.expansions:
                        layer = space.layer(stage, position, kernel, expansion)
                        parts[layer_key(layer, size)] = _layer_part(layer, size)
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
        f"classifier-input:{last}-output:{space.classes}": Part(
            lambda: nn.Linear(last, space.classes), (last,)
        ),
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
        f"MBConv-input:{size}x{size}x{layer.in_channels}"
        f"-output:{after}x{after}x{layer.out_channels}"
        f"-expand:{layer.expansion}-kernel:{layer.kernel}-stride:{layer.stride}"
        f"-idskip:{int(layer.residual)}-se:{int(layer.se)}"
    )


def _layer_part(layer: Layer, size: int) -> Part:
    return Part(partial(Block, layer), (layer.in_channels, size, size))


class ElasticLatency(ElasticTable):
    """`table(genes [N, G]) -> milliseconds [N]`; UserError naming a key that the table lacks."""

    unit = "ms"

    def __init__(self, latencies: Latencies, space: ElasticSpace):
        super().__init__(space)
        self._latencies, self.digest = latencies, latencies.digest
        fixed = [sum(map(latencies, fixed_parts(space, r))) for r in space.resolutions]
        self._fixed = np.array(fixed)
        self._layers = [
            self._of_layer(stage, position)
            for stage in range(len(space.stages))
            for position in range(space.most_layers)
        ]

    def __call__(self, genes: Genes) -> NDArray:
        resolution = genes[:, -1]
        total = self._fixed[resolution]
        positions = zip(self.space.positions(genes), self._layers, strict=True)
        for (_, _, (there, kernel, expansion)), layers in positions:
            total = total + np.where(there, layers[resolution, kernel, expansion], 0.0)
        return total

    def _of_layer(self, stage: int, position: int) -> NDArray:
        """Milliseconds of a layer `[resolutions, kernels, expansions]`."""
        space = self.space

        def milliseconds(r: int, kernel: int, expansion: int) -> float:
            layer = space.layer(stage, position, kernel, expansion)
            return self._latencies(layer_key(layer, size_before(space, r, stage, position)))

        return np.array(
            [
                [[milliseconds(r, k, e) for e in space.expansions] for k in space.kernels]
                for r in space.resolutions
            ]
        )
