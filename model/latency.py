"""Latency of elastic networks from a table of measured layers, in the published format.

A YAML file of `key: {mean: milliseconds, ...}`; a network's latency is the sum over its layers. Axes: N architectures.
"""

from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from model.elastic_space import ElasticSpace, Genes, Layer
from utils.errors import UserError


class LatencyTable:
    """`table(genes [N, G]) -> milliseconds [N]`; UserError naming a key of the space that the file lacks."""

    def __init__(self, path: str | Path, space: ElasticSpace):
        self.path, self.space = Path(path), space
        try:
            entries = yaml.load(self.path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            self.entries = {key: float(entry["mean"]) for key, entry in entries.items()}
        except OSError as error:
            raise UserError(f"--lut {path}: cannot be read ({error.strerror})") from None
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--lut {path}: no table of KEY: {{mean: milliseconds}} ({reason})") from None
        self._fixed = np.array([sum(map(self._milliseconds, fixed_parts(space, r))) for r in space.resolutions])
        self._layers = [
            self._of_layer(stage, position)
            for stage in range(len(space.stages))
            for position in range(space.most_layers)
        ]

    def __call__(self, genes: Genes) -> NDArray:
        resolution = genes[:, -1]
        total = self._fixed[resolution]
        for (_, _, (there, kernel, expansion)), layers in zip(self.space.positions(genes), self._layers, strict=True):
            total = total + np.where(there, layers[resolution, kernel, expansion], 0.0)
        return total

    def _milliseconds(self, key: str) -> float:
        if key not in self.entries:
            raise UserError(f"--lut {self.path}: it lacks {key}")
        if not 0 <= self.entries[key] < float("inf"):
            raise UserError(f"--lut {self.path}: {key}: {self.entries[key]} is no time")
        return self.entries[key]

    def _of_layer(self, stage: int, position: int) -> NDArray:
        """Milliseconds of a layer `[resolutions, kernels, expansions]`."""
        space = self.space
        sizes = [size_before(space, r, stage, position) for r in space.resolutions]
        layers = [[space.layer(stage, position, k, e) for e in space.expansions] for k in space.kernels]
        return np.array(
            [[[self._milliseconds(layer_key(layer, size)) for layer in row] for row in layers] for size in sizes]
        )


# A part of a network by its kind and sizes: what a table's key stands for.
Part = tuple


def parts_of(space: ElasticSpace) -> dict[str, Part]:
    """All parts that networks of the space can have, by key."""
    parts = {}
    for r in space.resolutions:
        parts |= fixed_parts(space, r)
        for stage in range(len(space.stages)):
            for position in range(min(2, space.most_layers)):  # all but the first are alike
                size = size_before(space, r, stage, position)
                layers = [space.layer(stage, position, k, e) for k in space.kernels for e in space.expansions]
                parts |= {layer_key(layer, size): ("block", size, layer) for layer in layers}
    return parts


def fixed_parts(space: ElasticSpace, r: int) -> dict[str, Part]:
    """What all networks have at a resolution, by key."""
    (wide, last), stem, out = space.head_channels, space.channels[0], space.channels[-1]
    first, size = -(-r // space.stem_stride), size_before(space, r, len(space.stages), 0)
    block = Layer(stem, stem, 3, 1, 1, "relu", False)
    return {
        f"first_conv-input:{r}x{r}x3-output:{first}x{first}x{stem}": ("conv", r, 3, stem, 3, space.stem_stride),
        layer_key(block, first): ("block", first, block),
        f"final_expand_layer-input:{size}x{size}x{out}-output:{size}x{size}x{wide}": ("conv", size, out, wide, 1, 1),
        f"feature_mix_layer-input:1x1x{wide}-output:1x1x{last}": ("mix", 1, wide, last, 1, 1),
        f"classifier-input:{last}-output:{space.classes}": ("linear", 1, last, space.classes),
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
