"""A search space as the evolutionary search sees it: rows of integers, with costs in closed form.

`ElasticGenome` is the once-for-all space, `UnifiedGenome` that of SGNAS, whose genes are the
choices of the sub-blocks, `CellGenome` that of NAS-Bench-201. Axes: N architectures, G genes.
"""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from model.costs.lookup_table import LookUpTable
from model.spaces.elastic.space import ElasticSpace, Genes
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.nasbench201.space import EDGES, OPERATIONS, from_string, to_string
from model.spaces.nasbench201.supernet import CellSupernet
from model.spaces.network_spec import CellSpec, ElasticSpec, NetworkSpec, UnifiedSpec
from model.spaces.registry import build_supernet, load_published_elastic, load_supernet
from model.spaces.unified.space import Architecture
from model.spaces.unified.supernet import UnifiedSupernet
from utils.config import Config
from utils.errors import UserError


class Genome(Protocol):
    """What the search asks of a space and its supernet; genes run from 0 to `largest_genes [G]`."""

    largest_genes: Genes

    def sample(self, count: int, rng: np.random.Generator) -> Genes:
        """Canonical genes `[count, G]` of random architectures."""

    def extremes(self) -> Genes:
        """The smallest and the largest architecture `[2, G]`."""

    def canonical(self, genes: Genes) -> Genes:
        """One row for each network: what a network does not express is fixed, what it must not be
        is mended.
        """

    def expressed(self, genes: Genes) -> NDArray[np.bool_]:
        """`[N, G]`: which genes the networks express; the others tell nothing of them."""

    def costs(self, genes: Genes) -> tuple[NDArray, NDArray]:
        """Multiply-adds and parameters `[N]`, both in millions."""

    def record(self, row: Genes) -> dict:
        """An architecture as JSON: `net.subnet`."""

    def genes(self, record: dict) -> list[int]:
        """The inverse of `record`; UserError when it is no architecture of this space."""

    def spec(self, row: Genes) -> NetworkSpec:
        """The architecture as the other stages know it."""

    def network(self, row: Genes) -> tuple[nn.Module, int]:
        """The stand-alone network with inherited weights, and its resolution in pixels."""


def features(genome: Genome, genes: Genes) -> NDArray[np.float64]:
    """`[N, F]` for models that learn from few architectures: each gene one-hot, and its value from
    0 to 1.

    A gene that is not expressed has no one-hot, and a half for its value.
    """
    largest, expressed = genome.largest_genes, genome.expressed(genes)
    values = np.arange(largest.max() + 1)
    one_hot = (genes[:, :, None] == values) & expressed[:, :, None]
    level = np.where(expressed, genes / np.maximum(largest, 1), 0.5)
    return np.concatenate([one_hot[:, values <= largest[:, None]], level], axis=1)


def open_genome(
    config: Config | None,
    kind: str | None,
    supernet_path: str,
    classes: int | None = None,
    fine_tuned: bool = True,
) -> Genome:
    """The space of a trained supernet: that of a config, or without one of an elastic checkpoint by
    itself.

    `kind` is unified, elastic, or what the config says. UserError when all this does not fit
    together; see `load_published_elastic` for `fine_tuned`.
    """
    if config is None:
        if kind == "unified":
            raise UserError("--space unified: --cfg must name the config of the supernet")
        supernet = load_published_elastic(supernet_path, classes, fine_tuned)
        return ElasticGenome(supernet.space, supernet)
    if classes not in (None, config.classes) and not fine_tuned:
        raise UserError(
            f"--n_classes {classes}: the config has {config.classes}; --n_epochs above 0 fine-tunes for others"
        )
    if kind not in (None, config.supernet):
        raise UserError(
            f"--space {kind}: the config describes a supernet of kind {config.supernet}"
        )
    supernet = build_supernet(config)
    load_supernet(supernet, supernet_path)
    supernet.eval()
    if config.supernet == "elastic":
        return ElasticGenome(supernet.space, supernet)
    return CellGenome(supernet) if config.supernet == "nasbench201" else UnifiedGenome(supernet)


class ElasticGenome:
    """The genes of `model/spaces/elastic/space.py`, with a supernet to inherit from where networks are
    asked for.
    """

    def __init__(self, space: ElasticSpace, supernet: ElasticSupernet | None = None):
        self.space, self.supernet = space, supernet
        self.largest_genes = self.space.largest_genes
        self.sample, self.extremes = self.space.sample, self.space.extremes
        self.canonical, self.expressed = self.space.canonical, self.space.expressed

    def costs(self, genes: Genes) -> tuple[NDArray, NDArray]:
        macs, parameters = self.space.costs(genes)
        return macs / 1e6, parameters / 1e6

    def record(self, row: Genes) -> dict:
        return self.space.decode(row).to_json()

    def genes(self, record: dict) -> list[int]:
        return self.space.encode(self.space.architecture(record))

    def spec(self, row: Genes) -> NetworkSpec:
        return ElasticSpec(self.space, self.space.decode(row))

    def network(self, row: Genes) -> tuple[nn.Module, int]:
        architecture = self.space.decode(row)
        return self.supernet.extract(architecture), architecture.r


class CellGenome:
    """A gene for each edge of a NAS-Bench-201 cell: the number of its operation, none last.

    All count as expressed, and cells that compute the same by different edges as different ones, as
    in the benchmark.
    """

    def __init__(self, supernet: CellSupernet):
        self.supernet, self.space, self.table = (
            supernet,
            supernet.space,
            LookUpTable(supernet.space),
        )
        self.largest_genes = np.full(len(EDGES), len(OPERATIONS))

    def sample(self, count: int, rng: np.random.Generator) -> Genes:
        return rng.integers(0, self.largest_genes + 1, (count, len(self.largest_genes)))

    def extremes(self) -> Genes:
        return self.space.extremes().argmax(dim=-1)[..., 0].numpy()

    def canonical(self, genes: Genes) -> Genes:
        return genes

    def expressed(self, genes: Genes) -> NDArray[np.bool_]:
        return np.ones(genes.shape, dtype=bool)

    def costs(self, genes: Genes) -> tuple[NDArray, NDArray]:
        paths = self.space.of_index(torch.from_numpy(genes))
        return self.table(paths).double().numpy(), self.table.parameters_m(paths).numpy()

    def record(self, row: Genes) -> dict:
        return {"cell": to_string(self._architecture(row))}

    def genes(self, record: dict) -> list[int]:
        try:
            path = self.space.encode(from_string(record["cell"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f'architecture: expected {{"cell": "|op~0|+..."}} ({error})') from None
        return path.argmax(dim=-1).flatten().tolist()

    def spec(self, row: Genes) -> NetworkSpec:
        return CellSpec(self.space, self._architecture(row))

    def network(self, row: Genes) -> tuple[nn.Module, int]:
        return self.supernet.extract(self._path(row)), self.supernet.image_size

    def _architecture(self, row: Genes) -> Architecture:
        return self.space.decode(self._path(row))

    def _path(self, row: Genes) -> torch.Tensor:
        return self.space.of_index(torch.from_numpy(np.asarray(row)[None]))[0]


class UnifiedGenome:
    """A gene for each sub-block that a layer has: the index of its choice, skip last. All of them
    are expressed.
    """

    def __init__(self, supernet: UnifiedSupernet):
        self.supernet, self.space, self.table = (
            supernet,
            supernet.space,
            LookUpTable(supernet.space),
        )
        E = self.space.shape[1]
        self._exists = np.array(
            [[e < spec.expansion for e in range(E)] for spec in self.space.layers]
        )
        self._choices = [
            self._choices_of(spec) for spec in self.space.layers for _ in range(spec.expansion)
        ]
        self.largest_genes = np.array([len(choices) - 1 for choices in self._choices])
        self._layers = np.array(
            [i for i, spec in enumerate(self.space.layers) for _ in range(spec.expansion)]
        )

    def _choices_of(self, spec) -> list[int]:
        """Indices along K of what a sub-block of the layer may choose, in ascending order."""
        skip = [self.space.shape[2] - 1] if spec.skip else []
        return sorted(self.space.kernels.index(kernel) for kernel in spec.kernels) + skip

    def sample(self, count: int, rng: np.random.Generator) -> Genes:
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return self._of_paths(self.space.sample(count, torch_rng))

    def extremes(self) -> Genes:
        """Layer by layer the fewest sub-blocks of the smallest kernel, and all of the largest."""
        skips = np.array([spec.skip for spec, _ in self._specs()])
        smallest = np.where(skips, self.largest_genes, 0)
        return self.canonical(np.stack([smallest, self.largest_genes - skips]))

    def _specs(self) -> list[tuple]:
        return [
            (self.space.layers[layer], choices)
            for layer, choices in zip(self._layers, self._choices, strict=True)
        ]

    def canonical(self, genes: Genes) -> Genes:
        """Layers with too few active sub-blocks get more: their first ones that skip, with the
        smallest kernel.
        """
        genes = genes.copy()
        skips = np.array([spec.skip for spec, _ in self._specs()]) & (genes == self.largest_genes)
        for layer, spec in enumerate(self.space.layers):
            own = self._layers == layer
            active = (~skips[:, own]).sum(axis=1, keepdims=True)
            missing = np.where(
                spec.may_vanish & (active == 0),
                0,
                spec.least_active(max(2, self.space.min_expansion)) - active,
            )
            genes[:, own] = np.where(
                skips[:, own] & (skips[:, own].cumsum(axis=1) <= missing), 0, genes[:, own]
            )
        return genes

    def expressed(self, genes: Genes) -> NDArray[np.bool_]:
        return np.ones(genes.shape, dtype=bool)

    def costs(self, genes: Genes) -> tuple[NDArray, NDArray]:
        paths = self.paths(genes)
        return self.table(paths).double().numpy(), self.table.parameters_m(paths).numpy()

    def paths(self, genes: Genes) -> torch.Tensor:
        """One-hot paths `[N, L, E, K]`; a sub-block that a layer lacks skips."""
        L, E, K = self.space.shape
        index = np.full((len(genes), L, E), K - 1)
        index[:, self._exists] = np.stack(
            [
                np.array(choices)[column]
                for choices, column in zip(self._choices, genes.T, strict=True)
            ],
            axis=1,
        )
        return nn.functional.one_hot(torch.from_numpy(index), K).float()

    def _of_paths(self, paths: torch.Tensor) -> Genes:
        index = paths.argmax(dim=-1).numpy()[:, self._exists]
        columns = [
            np.searchsorted(choices, column)
            for choices, column in zip(self._choices, index.T, strict=True)
        ]
        return np.stack(columns, axis=1)

    def record(self, row: Genes) -> dict:
        return {"choices": [list(layer) for layer in self.architecture(row).choices]}

    def architecture(self, row: Genes) -> Architecture:
        return self.space.decode(self.paths(np.asarray(row)[None])[0])

    def genes(self, record: dict) -> list[int]:
        try:
            architecture = Architecture.of(record["choices"])
            self.space.check(architecture)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f'architecture: expected {{"choices": [...]}} of this space ({error})'
            ) from None
        return self._of_paths(self.space.encode(architecture)[None])[0].tolist()

    def spec(self, row: Genes) -> NetworkSpec:
        return UnifiedSpec(self.space, self.architecture(row))

    def network(self, row: Genes) -> tuple[nn.Module, int]:
        path = self.paths(np.asarray(row)[None])[0]
        return self.supernet.extract(path, dropout=0.0), self.space.image_size
