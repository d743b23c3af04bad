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
        self._fixed = np.array([sum(map(self._milliseconds, self._fixed_keys(r))) for r in space.resolutions])
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
        sizes = [self._size(r, stage, position) for r in space.resolutions]
        layers = [[space.layer(stage, position, k, e) for e in space.expansions] for k in space.kernels]
        return np.array(
            [[[self._milliseconds(layer_key(layer, size)) for layer in row] for row in layers] for size in sizes]
        )

    def _fixed_keys(self, r: int) -> list[str]:
        space, (wide, last) = self.space, self.space.head_channels
        stem, out = space.channels[0], space.channels[-1]
        first = -(-r // space.stem_stride)
        size = self._size(r, len(space.stages), 0)
        return [
            f"first_conv-input:{r}x{r}x3-output:{first}x{first}x{stem}",
            layer_key(Layer(stem, stem, 3, 1, 1, "relu", False), first),
            f"final_expand_layer-input:{size}x{size}x{out}-output:{size}x{size}x{wide}",
            f"feature_mix_layer-input:1x1x{wide}-output:1x1x{last}",
            f"classifier-input:{last}-output:{space.classes}",
        ]

    def _size(self, r: int, stage: int, position: int) -> int:
        """Pixels along a side of what enters a layer."""
        size = -(-r // self.space.stem_stride)
        for stride in self.space.strides[: stage + (position > 0)]:
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
