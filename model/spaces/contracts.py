"""What a kind of search space answers, and what everything else may ask of it.

A kind is a folder beside this file and a line in `registry.py`. Nothing outside `model/spaces/`
asks which kind it has: what differs between kinds is a method here. What a kind cannot do, its
method refuses in one line.

Axes, everywhere in the project: B images of a batch, N architectures, L searchable layers, E
sub-blocks of a layer, K choices of a sub-block, G genes.

A *choice* is an architecture as a supernet takes it: a path `[L, E, K]`, or a row of genes `[G]`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.costs.latency import Latencies, Part
from utils import checkpoint
from utils.config import Config, as_record
from utils.engine import DeviceContext
from utils.errors import UserError

Genes = NDArray[np.int64]
Choice = Tensor | Genes
Forward = Callable[[Tensor], Tensor]  # images [B, 3, S, S] -> logits [B, classes]


class SearchSpace(Protocol):
    """What can be searched: a frozen dataclass of plain values."""

    kind: ClassVar[str]  # its name in KINDS
    classes: int

    def extremes(self) -> Sequence[Choice]:
        """The architectures of least and greatest cost."""


class CostTable(Protocol):
    """What architectures cost: `table(choices [N, ...]) -> cost [N]` in its `unit`."""

    space: SearchSpace
    unit: str  # "M" (millions of multiply-adds) or "ms"
    digest: str  # tells tables of one unit apart

    def __call__(self, choices): ...
    def parameters_m(self, choices):
        """Millions of parameters of the stand-alone networks `[N]`."""

    def reach(self, min_expansion: int = 1) -> tuple[float, float]:
        """Least and greatest cost of an architecture."""


class Genome(Protocol):
    """A space as the evolutionary search sees it: genes from 0 to `largest_genes [G]`."""

    space: SearchSpace
    largest_genes: Genes

    def sample(self, count: int, rng: np.random.Generator) -> Genes:
        """Canonical genes `[count, G]` of random architectures."""

    def extremes(self) -> Genes:
        """The smallest and the largest architecture `[2, G]`."""

    def canonical(self, genes: Genes) -> Genes:
        """One row for each network: genes that are not expressed are fixed, illegal ones mended."""

    def expressed(self, genes: Genes) -> NDArray[np.bool_]:
        """`[N, G]`: which genes the networks express."""

    def costs(self, genes: Genes) -> tuple[NDArray, NDArray]:
        """Multiply-adds and parameters `[N]`, both in millions."""

    def cost_by(self, table: CostTable, genes: Genes) -> NDArray:
        """Costs `[N]` by another table of the same space."""

    def choice(self, row: Genes) -> Choice:
        """The architecture as the supernet takes it."""

    def spec(self, row: Genes) -> "NetworkSpec":
        """The network of an architecture."""

    def to_json(self, row: Genes):
        """An architecture as an archive stores it."""

    def from_json(self, record) -> list[int]:
        """The inverse of `to_json`; UserError when it is no architecture of this space."""


@dataclass(frozen=True)
class NetworkSpec:
    """A network that can be built: an architecture in its space.

    Every kind gives `macs_m`, `network` and `to_json`.
    """

    space: SearchSpace
    architecture: Any  # hashable
    options: ClassVar[tuple[str, ...]] = ()  # of `network`, by name

    @property
    def kind(self) -> str:
        return self.space.kind

    @property
    def image_size(self) -> int:
        """Side of its images in pixels."""
        return self.space.image_size

    @property
    def classes(self) -> int:
        return self.space.classes

    def with_classes(self, classes: int) -> "NetworkSpec":
        return replace(self, space=replace(self.space, classes=classes))

    def fitted_to(self, state: dict[str, Tensor]) -> "NetworkSpec":
        """With as many classes as the weights `state`, where they alone say how many."""
        return self

    @property
    def name(self) -> str:
        """The published name where its kind has one, else a digest of its architecture."""
        return sha256(json.dumps(self.to_json()).encode()).hexdigest()[:8]

    @property
    def macs_m(self) -> float:
        """Multiply-adds in M, by the convention of its space."""
        raise NotImplementedError

    @property
    def blocks(self) -> int:
        """Number of blocks that compute something: the simplest predictor of accuracy there is."""
        raise UserError(f"space: networks of kind {self.kind} do not count their blocks")

    def network(self, options: dict, rng: torch.Generator | None = None) -> nn.Module:
        """With initial weights; `options` are those that `options` names."""
        raise NotImplementedError

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        """With the weights of a supernet checkpoint."""
        raise UserError(f"inherit: networks of kind {self.kind} do not take a supernet's weights")

    def to_json(self):
        """The architecture as JSON holds it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Design:
    """What can be drawn of an architecture: `choices`, `stages` or `cell`.

    `choices` hold the kernel of each sub-block of each layer, None where it is skipped; `stages`
    (kernel, expansion ratio) of each block; `cell` is the name of a cell, which has no picture.
    """

    choices: tuple[tuple[int | str | None, ...], ...] = ()
    stages: tuple[tuple[tuple[int, int], ...], ...] = ()
    resolution: int | None = None  # pixels
    cell: str = ""

    @property
    def has_blocks(self) -> bool:
        """Whether there is a picture to draw, of kernels."""
        sizes = [kernel for row in self.choices for kernel in row]
        sizes += [number for row in self.stages for pair in row for number in pair]
        return bool(sizes) and all(
            size is None or (isinstance(size, int) and 0 < size < 100) for size in sizes
        )


class SpaceKind:
    """A kind of search space.

    Every kind gives the methods that raise NotImplementedError here. The others it overrides where
    it can do what they ask; here they refuse it in one line.
    """

    name: str
    keys: type | None = None  # a dataclass: what the config's key `space` holds
    paper: str  # the entry of hubconf.py that loads its networks
    has_generator = False
    kinds_of_steps = 1  # how many warm-up steps differ in what they cost
    published_latency: str | None = None  # a latency table of the published space

    def cannot(self, what: str) -> UserError:
        return UserError(f"supernet: {self.name}: {what}")

    # -- spaces and what is paid in them ---------------------------------------------------------

    def space_keys(self, config: Config):
        """What a config says of its space, as a record of `keys`; None for a kind without any."""
        if self.keys is None:
            return None
        config.require("space")
        return as_record(self.keys, config.space, config.where, "space.")

    def space(self, config: Config) -> SearchSpace:
        """The space of a config; UserError naming the key that is wrong."""
        raise self.cannot("this needs a config of a search space")

    def space_from_dict(self, record: dict) -> SearchSpace:
        """The inverse of a space's `to_dict`; UserError when it describes none."""
        raise self.cannot("it has no search space")

    def table(self, space: SearchSpace, config: Config) -> CostTable:
        """The costs that the targets of a config are in."""
        raise NotImplementedError

    def latency_options(self, config: Config) -> dict:
        """The options of networks that change what they cost, as a config has them."""
        return {}

    def latency_parts(self, space: SearchSpace, options: dict) -> dict[str, Part]:
        """The parts that networks of a space are made of, by their key in latency tables."""
        raise self.cannot("no latency tables are made for this kind of space")

    def latency_table(self, latencies: Latencies, space: SearchSpace, options: dict) -> CostTable:
        """Costs in ms: sums over the parts of each network."""
        raise self.cannot("no latency tables are made for this kind of space")

    def benchmark(self, file: str, space: SearchSpace):
        """The published accuracies of all architectures, for looking answers up."""
        raise UserError(f"--table {file}: there is no benchmark of spaces of kind {self.name}")

    # -- supernets -------------------------------------------------------------------------------

    def supernet(self, space: SearchSpace, config: Config, rng: torch.Generator) -> nn.Module:
        """The supernet of a space, with initial weights."""
        raise self.cannot("this needs a config of a supernet")

    def supernet_of_checkpoint(self, path: str, payload: dict) -> nn.Module:
        """The trained supernet of a checkpoint that says its space; UserError when it cannot."""
        raise UserError(f"{path}: a supernet of kind {self.name} needs its config")

    def released_weights(self, space: SearchSpace, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the published release in our layout; ours stays as it is."""
        return state

    def load(self, supernet: nn.Module, path: str) -> None:
        """Load a supernet checkpoint, ours or a released one; UserError when it is neither."""
        state = checkpoint.weights(checkpoint.load(path), path)
        checkpoint.load_into(supernet, self.released_weights(supernet.space, state), path)

    def largest(self, supernet: nn.Module) -> nn.Module:
        """The stand-alone network of the largest architecture, with inherited weights."""
        return self.extract(supernet, supernet.space.extremes()[1])

    def extract(self, supernet: nn.Module, choice: Choice) -> nn.Module:
        """The stand-alone network of an architecture, with inherited weights."""
        return supernet.extract(choice)

    def image_size(self, supernet: nn.Module) -> int:
        """Side in pixels of the largest images that the supernet is trained on."""
        return supernet.space.image_size

    def sample(self, space: SearchSpace, count: int, rng: torch.Generator) -> Sequence[Choice]:
        """`count` random architectures."""
        return space.sample(count, rng)

    def choices(self, space: SearchSpace, count: int, rng: torch.Generator) -> Sequence[Choice]:
        """`count` architectures by which a supernet is validated."""
        return self.sample(space, count, rng)

    def forward(self, supernet: nn.Module, choice: Choice) -> Forward:
        """One architecture of a supernet, on its shared weights."""
        raise NotImplementedError

    def step_choices(
        self, space: SearchSpace, count: int, sampling: str, rng: torch.Generator
    ) -> Sequence[Choice]:
        """The architectures of a warm-up step; `sampling` is that of the config."""
        raise NotImplementedError

    def passes(
        self,
        supernet: nn.Module,
        choices: Sequence[Choice],
        context: DeviceContext,
        images: Tensor,
        labels: Tensor,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The passes of a warm-up step: logits and targets for each of `choices`."""
        raise NotImplementedError

    def soft(self, supernet: nn.Module) -> nn.Module:
        """`soft(images, path) -> logits`, differentiable in the path; for generator training."""
        raise self.cannot("a generator needs a supernet that takes soft paths")

    # -- architectures ---------------------------------------------------------------------------

    def parse(self, record):
        """The architecture of its JSON form, whatever its space; UserError when it is none."""
        raise NotImplementedError

    def architecture(self, space: SearchSpace, record):
        """As `parse`; UserError also when the space has no such architecture."""
        raise NotImplementedError

    def spec(self, space: SearchSpace, architecture) -> NetworkSpec:
        """The network of an architecture."""
        raise NotImplementedError

    def adopt(self, space: SearchSpace, stored: NetworkSpec) -> NetworkSpec:
        """The network of a file for a config of `space`; UserError when it is of another space."""
        if stored.kind != space.kind:
            raise UserError("its space is not that of the config")
        return stored

    def spec_of_config(self, config: Config) -> NetworkSpec | None:
        """The network of a config that describes a single one; None where there is a space."""
        return None

    def genome(self, space: SearchSpace) -> Genome:
        """The space as the evolutionary search sees it."""
        raise NotImplementedError

    def design(self, architecture) -> Design:
        """What can be drawn of an architecture."""
        raise NotImplementedError

    def design_of(self, spec: NetworkSpec) -> Design:
        """As `design`, of a network whose space is known."""
        return self.design(spec.architecture)

    def block_modules(self, network: nn.Module) -> list[nn.Module]:
        """Stem and blocks of a stand-alone network, as a forward pass calls them: the first on the
        images, each other one on the output of the one before.
        """
        raise self.cannot("it does not say which modules are blocks; training-free terms need them")

    def published_files(self, network: nn.Module) -> dict[str, str]:
        """Files by which the published code describes a network: name -> text."""
        return {}
