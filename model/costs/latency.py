"""Latency from a table of measured layers: a network's is the sum over its layers.

The published format: a YAML file of `key: {mean: milliseconds, ...}`; `tools/profile_latency.py`
writes it. Axes: N architectures; of paths see `model/spaces/unified/space.py`.
"""

import hashlib
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from model.costs.latency_parts import ends, fixed_parts, layer_key, mixed_key, size_before
from model.costs.lookup_table import LookUpTable
from model.spaces.elastic.space import ElasticSpace, Genes
from model.spaces.unified.space import UnifiedSpace
from utils.errors import UserError


@dataclass(frozen=True)
class Latencies:
    """`latencies(key) -> milliseconds` of a part; UserError naming what the table `where` lacks."""

    entries: dict[str, float]
    where: str
    digest: str = ""  # of the file, so that another device's table is noticed

    @classmethod
    def read(cls, path: str | Path) -> "Latencies":
        """From a file; UserError when it is no table."""
        where = f"latency table {path}"
        try:
            text = Path(path).read_text()
            entries = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            found = {key: float(entry["mean"]) for key, entry in entries.items()}
        except OSError as error:
            raise UserError(f"{where}: cannot be read ({error.strerror})") from None
        except (
            yaml.YAMLError,
            UnicodeDecodeError,
            AttributeError,
            TypeError,
            KeyError,
            ValueError,
        ) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{where}: no table of KEY: {{mean: milliseconds}} ({reason})"
            ) from None
        return cls(found, where, hashlib.sha256(text.encode()).hexdigest())

    def __call__(self, key: str) -> float:
        if key not in self.entries:
            raise UserError(f"{self.where}: it lacks {key}")
        if not 0 <= self.entries[key] < float("inf"):
            raise UserError(f"{self.where}: {key}: {self.entries[key]} is no time")
        return self.entries[key]


class ElasticLatency:
    """`table(genes [N, G]) -> milliseconds [N]`; UserError naming a key of the space that the table
    lacks.
    """

    def __init__(self, latencies: Latencies, space: ElasticSpace):
        self.space, self._latencies = space, latencies
        self._fixed = np.array(
            [sum(map(self._latencies, fixed_parts(space, r))) for r in space.resolutions]
        )
        self._layers = [
            self._of_layer(stage, position)
            for stage in range(len(space.stages))
            for position in range(space.most_layers)
        ]

    def __call__(self, genes: Genes) -> NDArray:
        resolution = genes[:, -1]
        total = self._fixed[resolution]
        for (_, _, (there, kernel, expansion)), layers in zip(
            self.space.positions(genes), self._layers, strict=True
        ):
            total = total + np.where(there, layers[resolution, kernel, expansion], 0.0)
        return total

    def _of_layer(self, stage: int, position: int) -> NDArray:
        """Milliseconds of a layer `[resolutions, kernels, expansions]`."""
        space = self.space
        sizes = [size_before(space, r, stage, position) for r in space.resolutions]
        layers = [
            [space.layer(stage, position, k, e) for e in space.expansions] for k in space.kernels
        ]
        return np.array(
            [
                [[self._latencies(layer_key(layer, size)) for layer in row] for row in layers]
                for size in sizes
            ]
        )


class UnifiedLatency(nn.Module):
    """`table(paths [..., L, E, K]) -> milliseconds [...]` of stand-alone networks, differentiable.

    A layer's latency depends on how many of its sub-blocks have each kernel, its *state*: there are
    S = (E + 1)^(K - 1) states. That of a mixture is the expectation over sub-blocks that choose
    independently, by the distribution of states, which grows sub-block by sub-block; for one-hot
    paths it is the entry of the table. `se` and `activation` are those of the networks. UserError
    naming a key of the space that the table lacks.
    """

    unit = "ms"

    def __init__(
        self, latencies: Latencies, space: UnifiedSpace, se: bool = False, activation: str = "relu6"
    ):
        super().__init__()
        self.space, self.macs, self.digest = space, LookUpTable(space), latencies.digest
        _, E, K = space.shape
        self.base = sum(map(latencies, ends(space, se, activation)))
        # [S, K - 1], the last kernel runs fastest
        states = torch.tensor(list(product(range(E + 1), repeat=K - 1)))
        rows = [
            [
                _of_state(counts, spec, size, space.kernels, latencies, se, activation)
                for counts in states.tolist()
            ]
            for spec, (size, _) in zip(space.layers, space.sizes, strict=True)
        ]
        layers = torch.tensor(rows, dtype=torch.float64)
        self._active, self._possible = states.sum(dim=1), layers.isfinite()
        self.register_buffer("layers", layers.nan_to_num(posinf=0.0).float(), persistent=False)
        self.register_buffer("steps", (E + 1) ** torch.arange(K - 2, -1, -1), persistent=False)

    def forward(self, paths: Tensor) -> Tensor:
        if not paths.requires_grad and bool(((paths == 0) | (paths == 1)).all()):
            states = (paths[..., :-1].sum(dim=-2).long() * self.steps).sum(dim=-1)
            return self.base + self.layers[torch.arange(len(self.layers)), states].sum(dim=-1)
        likely = torch.zeros(*paths.shape[:-2], self.layers.shape[1], device=paths.device)
        likely[..., 0] = 1
        for block in paths.unbind(dim=-2):  # a state that gains a sub-block lies `steps` further on
            gained = torch.stack(
                [likely.roll(step, dims=-1) for step in self.steps.tolist()], dim=-1
            )
            likely = likely * block[..., -1:] + (gained * block[..., None, :-1]).sum(dim=-1)
        return self.base + (likely * self.layers).sum(dim=(-2, -1))

    def parameters_m(self, paths: Tensor) -> Tensor:
        """Millions of parameters, as `LookUpTable`."""
        return self.macs.parameters_m(paths)

    def reach(self, min_expansion: int = 1) -> tuple[float, float]:
        """Least and greatest latency of an architecture with at least `min_expansion` active
        sub-blocks a layer.
        """
        smallest, _ = self.space.extremes(min_expansion)
        allowed = (self._active >= self.space.active(smallest)[:, None]) & self._possible
        layers = self.layers.cpu()
        least = layers.masked_fill(~allowed, float("inf")).amin(dim=1).sum()
        return self.base + float(least), self.base + float(
            layers.masked_fill(~allowed, 0.0).amax(dim=1).sum()
        )


def _of_state(counts, spec, size, kernels, latencies, se, activation) -> float:
    """Milliseconds of a layer with `counts` sub-blocks of each of `kernels`; infinite where it
    cannot have them.
    """
    chosen = tuple(
        kernel for kernel, count in zip(kernels, counts, strict=True) for _ in range(count)
    )
    if len(chosen) > spec.expansion or not set(chosen) <= set(spec.kernels):
        return float("inf")
    return latencies(mixed_key(spec, chosen, size, se, activation)) if chosen else 0.0
