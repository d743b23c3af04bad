"""Paths: how architectures of choices are written as tensors, and what all spaces of them share.

    N paths, L searchable layers, E sub-blocks of a layer, K choices of a sub-block
    (the names of `PathSpace.names` in their order, then skip, which is always the last).

A *path* is a float tensor `[L, E, K]` whose rows sum to 1 over K: one-hot when hard, a mixture when
soft. Layers may differ in sub-blocks and choices; E and K are the largest of all layers, and the
masks say which entries a layer really has. A sub-block that a layer lacks can only skip.

A space needs `names`, `mask` and `cost_terms`, a supernet `stem` and `mix`; all else here has a
default. Source: Huang and Chu, "Searching by Generating", CVPR 2021, section 3.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.costs.lookup_table import NEGLIGIBLE, CostTerms, LookUpTable
from model.layers.blocks import new_classifier
from model.spaces.contracts import CostTable, Design, Forward, Genes, NetworkSpec, SpaceKind
from utils import checkpoint
from utils.config import Config
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.json_file import as_type
from utils.ranges import Ranged, check_parameters

Choice = int | str | None  # a kernel size, or the name of an operation; None is skip
Choices = tuple[tuple[Choice, ...], ...]


@dataclass(frozen=True)
class Architecture:
    """One choice per (layer, sub-block): a kernel size or a name, or None for skip.

    Positions matter: weights inherited from a supernet are sliced by them. Compare `canonical()`
    forms to ask whether two architectures are the same stand-alone network.
    """

    choices: Choices

    @classmethod
    def of(cls, rows) -> "Architecture":
        """From any nested sequence of kernel sizes, names and None (or "skip")."""
        return cls(tuple(tuple(_choice(c) for c in row) for row in rows))

    @property
    def kernels(self) -> tuple[tuple[int | str, ...], ...]:
        """The choices of each layer without skips; the length of a row is its expansion ratio."""
        return tuple(tuple(c for c in row if c is not None) for row in self.choices)

    @property
    def text(self) -> str:
        """As a CSV cell: layers apart by spaces, sub-blocks by dashes, 0 for skip."""
        return " ".join("-".join(str(choice or 0) for choice in row) for row in self.choices)

    @classmethod
    def of_text(cls, text: str) -> "Architecture":
        """The inverse of `text`."""
        rows = [row.split("-") for row in text.split(" ")]
        return cls.of([[None if choice == "0" else choice for choice in row] for row in rows])

    def canonical(self) -> "Architecture":
        """The same stand-alone network, its active sub-blocks packed to the left of each layer."""
        rows = zip(self.choices, self.kernels, strict=True)
        return Architecture(tuple(kept + (None,) * (len(row) - len(kept)) for row, kept in rows))


def _choice(value) -> Choice:
    if value in (None, "skip"):
        return None
    if isinstance(value, str) and not (value.isdecimal() and len(value) < 9):
        return value
    return int(value)


class PathSpace(Ranged):
    """A space whose architectures are paths; its subclasses are frozen dataclasses."""

    what = "space: "

    kind: ClassVar[str]
    min_expansion: int = 0  # fewest active sub-blocks in a layer of a proposed path
    image_size: int  # pixels
    classes: int

    names: tuple[int | str, ...]  # the first K - 1 choices
    mask: Tensor  # bool [L, E, K]: what a proposed path may choose

    def cost_terms(self) -> CostTerms:
        """What `LookUpTable` adds up."""
        raise NotImplementedError

    def check_parameters(self) -> None:
        """UserError when its largest network would fit no machine."""
        terms, (_, E, _) = self.cost_terms(), self.shape
        choices = sum(E * max(row) for row in terms.choice_parameters)
        others = sum(max(row) for row in terms.other_parameters or ())
        check_parameters(terms.base_parameters + choices + others)

    # -- the layout of a path --------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, E, K)."""
        return tuple(self.mask.shape)

    @cached_property
    def exists(self) -> Tensor:
        """bool `[L, E]`: whether the layer has this sub-block."""
        return self.mask[..., :-1].any(dim=-1)

    @cached_property
    def expansions(self) -> Tensor:
        """int64 `[L]`: number of sub-blocks that each layer has."""
        return self.exists.sum(dim=1)

    @property
    def allowed(self) -> Tensor:
        """bool `[L, E, K]`: what an architecture may have, which may be more than `mask`."""
        return self.mask

    @property
    def may_vanish(self) -> Tensor:
        """bool `[L]`: whether all sub-blocks of a layer may skip."""
        return torch.ones(self.shape[0], dtype=torch.bool)

    def least_active(self, min_expansion: int) -> Tensor:
        """int64 `[L]`: fewest active sub-blocks of each layer, where `min_expansion` are wanted."""
        return torch.zeros(self.shape[0], dtype=torch.long)

    def active(self, path: Tensor) -> Tensor:
        """Number of active sub-blocks per layer, `[..., L]`; fractional for soft paths."""
        return (1 - path[..., -1]).sum(dim=-1)

    def fits(self, other: "PathSpace") -> bool:
        """Whether the architectures of `other` are architectures of this space."""
        return type(self) is type(other) and self.shape == other.shape

    # -- paths -----------------------------------------------------------------------------------

    def of_index(self, index: Tensor) -> Tensor:
        """Paths `[..., L, E, K]` of the numbers of choices `[..., L, E]`."""
        return one_hot(index, self.shape[2])

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` random paths `[N, L, E, K]`, each sub-block uniform over what it may choose."""
        keys = torch.rand(count, *self.shape, generator=rng)
        return self.of_index(keys.masked_fill(~self.mask, -1.0).argmax(dim=-1))

    def sample_fair(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` paths of one training step: no choice comes again before all have come.

        Strict fairness, as in Chu et al., "FairNAS", ICCV 2021.
        """
        L, E, _ = self.shape
        options = self.mask.sum(dim=-1)
        own = (~self.mask).long().argsort(dim=-1, stable=True)  # the legal choices first
        order = shuffles((-(-count // int(options.min())), L, E), options, rng)
        turn = torch.arange(count)[:, None, None]
        l, e = torch.arange(L)[:, None], torch.arange(E)
        return self.of_index(own[l, e, order[turn // options, l, e, turn % options]])

    def extremes(self, min_expansion: int = 1) -> Tensor:
        """The paths `[2, L, E, K]` of least and greatest cost."""
        price = torch.tensor(self.cost_terms().choice, dtype=torch.float64)[:, None]
        price = price.expand(self.shape)
        least = price.masked_fill(~self.mask, float("inf")).argmin(dim=-1)
        return self.of_index(
            torch.stack([least, price.masked_fill(~self.mask, float("-inf")).argmax(dim=-1)])
        )

    def neighbours(self, path: Tensor) -> Tensor:
        """All paths `[M, L, E, K]` one choice away from a hard `path` that obey the mask.

        None of them takes a layer below `min_expansion` active sub-blocks, or further below it.
        """
        L, E, K = self.shape
        changed = path.repeat(L * E * K, 1, 1, 1).view(L, E, K, L, E, K)
        l, e, k = torch.meshgrid(torch.arange(L), torch.arange(E), torch.arange(K), indexing="ij")
        changed[l, e, k, l, e] = torch.eye(K)[k]
        least = torch.minimum(self.least_active(self.min_expansion), self.active(path))
        enough = (self.active(changed) >= least - 0.5).all(dim=-1)
        return changed[enough & self.mask & (path == 0)]

    def relax(
        self, logits: Tensor, temperature: float, rng: torch.Generator | None = None
    ) -> Tensor:
        """Legal mixtures of logits `[..., L, E, K]`: Gumbel softmax with `rng`, else plain softmax.

        Jang et al., "Categorical reparameterization with Gumbel-softmax", ICLR 2017. Illegal
        entries get exactly 0.
        """
        if rng is not None:
            exponential = torch.empty(logits.shape).exponential_(generator=rng)
            logits = logits - exponential.to(logits).log()  # -log Exp(1) is Gumbel noise
        masked = (logits / temperature).masked_fill(~self.mask.to(logits.device), float("-inf"))
        return masked.softmax(dim=-1)

    def discretize(self, logits: Tensor) -> Tensor:
        """The legal one-hot path of the largest logits, `[..., L, E, K]`."""
        masked = logits.masked_fill(~self.mask.to(logits.device), float("-inf"))
        return one_hot(masked.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)

    # -- architectures ---------------------------------------------------------------------------

    def encode(self, architecture: Architecture) -> Tensor:
        """The one-hot path `[L, E, K]` of an architecture; UserError if it is of another space."""
        self.check(architecture)
        index = torch.full(self.shape[:2], self.shape[2] - 1)
        for layer, row in enumerate(architecture.choices):
            for block, choice in enumerate(row):
                if choice is not None:
                    index[layer, block] = self.names.index(choice)
        return self.of_index(index)

    def decode(self, path: Tensor) -> Architecture:
        """The architecture of a hard path `[L, E, K]` (of a soft one: of its largest entries)."""
        names, rows = (*self.names, None), path.argmax(dim=-1).tolist()
        blocks = self.expansions.tolist()
        return Architecture(
            tuple(tuple(names[k] for k in row[:n]) for row, n in zip(rows, blocks, strict=True))
        )

    def check(self, architecture: Architecture) -> None:
        """Raise a UserError that names the layer unless the architecture is one of this space."""
        rows, names = architecture.choices, (*self.names, None)
        if len(rows) != self.shape[0]:
            raise UserError(
                f"architecture: it has {len(rows)} layers; the space has {self.shape[0]}"
            )
        for layer, (row, blocks) in enumerate(zip(rows, self.expansions.tolist(), strict=True)):
            if len(row) != blocks:
                raise UserError(
                    f"architecture: layer {layer} has {len(row)} sub-blocks; the space {blocks}"
                )
            for choice, mask in zip(row, self.allowed[layer].tolist(), strict=False):
                allowed = [name for name, legal in zip(names, mask, strict=True) if legal]
                if choice not in allowed:
                    shown = ", ".join("null" if name is None else str(name) for name in allowed)
                    raise UserError(
                        f"architecture: layer {layer} is {list(row)}; allowed are {shown}"
                    )

    def to_dict(self) -> dict:
        """Plain values, as JSON and checkpoints hold them."""
        return asdict(self)


def one_hot(index: Tensor, choices: int) -> Tensor:
    """float32 `[..., K]` from indices `[...]`."""
    hot = torch.zeros(*index.shape, choices, device=index.device)
    return hot.scatter_(-1, index[..., None], 1.0)


def hard_rows(path: Tensor) -> list[list[list[float]]]:
    """A hard path `[L, E, K]` as nested lists; an AssertionError for a soft one.

    The path is read once, which costs at most one copy from a GPU.
    """
    assert not path.requires_grad, "a path that needs a gradient is soft: use the soft supernet"
    path = path.cpu()
    hard = ((path == 0) | (path == 1)).all() and (path.sum(dim=-1) == 1).all()
    assert hard, "a path that is not one-hot is soft: use the soft supernet"
    return path.tolist()


def shuffles(batch: tuple[int, ...], lengths: Tensor, rng: torch.Generator) -> Tensor:
    """Random orders of 0..length-1 in the first `length` entries of a row, `[*batch, longest]`."""
    widest = int(lengths.max())
    keys = torch.rand(*batch, widest, generator=rng)
    return keys.masked_fill(torch.arange(widest) >= lengths[..., None], 2.0).argsort(dim=-1)


# -- networks ------------------------------------------------------------------------------------

Shares = list[list[list[float | Tensor]]]  # how much each choice counts, [L][E][K]; of a path


def mixture(
    x: Tensor,
    row: list[float | Tensor],
    names: Sequence[int | str],
    operation: Callable[[int | str], Callable[[Tensor], Tensor]],
) -> Tensor | None:
    """The sum of share * operation(name)(x) over the choices of a sub-block; None for skip alone.

    `row [K]` holds the shares. A share that learns is computed even when it is negligible, since
    it may have to grow from nothing.
    """
    pairs = zip(names, row, strict=False)  # skip, the last, gives nothing
    counted = [(n, p) for n, p in pairs if isinstance(p, Tensor) or p > NEGLIGIBLE]
    parts = [(operation(name)(x), share) for name, share in counted]
    parts = [y if isinstance(share, float) and share == 1 else share * y for y, share in parts]
    return sum(parts[1:], parts[0]) if parts else None


class PathSupernet(nn.Module):
    """`supernet(images [B, 3, H, W], path [L, E, K]) -> logits [B, classes]` of a hard path."""

    space: PathSpace
    network_type: type[nn.Module]  # of its stand-alone networks
    stem: Callable[[Tensor], Tensor]  # images -> features that all paths share

    def mix(self, features: Tensor, shares: Shares) -> Tensor:
        """Logits `[B, classes]` of a path, hard or soft, from the features of `stem`."""
        raise NotImplementedError

    def classify(self, features: Tensor, path: Tensor) -> Tensor:
        """Logits `[B, classes]` of a hard path from the features of `stem`."""
        return self.mix(features, hard_rows(path))

    def forward(self, images: Tensor, path: Tensor) -> Tensor:
        return self.classify(self.stem(images), path)

    @torch.no_grad()
    def extract(self, path: Tensor, **options) -> nn.Module:
        """The stand-alone network of a hard path, which inherits the weights of the same keys.

        It equals the supernet in evaluation mode.
        """
        network = self.network_type(self.space, self.space.decode(path), **options)
        ours = self.state_dict()
        network.load_state_dict({key: ours[key] for key in network.state_dict()})
        return network.to(next(self.parameters()).device).train(self.training)


class PathNetwork(nn.Module):
    """`network(images [B, 3, H, W]) -> logits [B, classes]` of one architecture.

    A subclass names its layers after it, `class Network(PathNetwork, Layers)`. They have `stem`,
    `mix` and `classifier`, and are built by `Layers(space, choices of each layer, rng)`.
    """

    def __init__(
        self,
        space: PathSpace,
        architecture: Architecture,
        rng: torch.Generator | None = None,
        **options,
    ):
        super().__init__(space, architecture.kernels, rng, **options)
        self.shares: Shares = space.encode(architecture).tolist()

    def forward(self, images: Tensor) -> Tensor:
        return self.mix(self.stem(images), self.shares)

    def reset_classifier(self, classes: int, rng: torch.Generator) -> None:
        """A new classifier at random, N(0, 0.01), for `classes`."""
        self.classifier = new_classifier(self.classifier, classes, rng)


class SoftPathSupernet(nn.Module):
    """`soft(images, path) -> logits`: the supernet, differentiable in the path alone.

    Each batch is normalised by its own statistics. The running ones are those of all paths
    together, with which a single path scores unlike it does once its batch norms are re-estimated:
    here that gap would be what is learned.
    """

    def __init__(self, supernet: PathSupernet):
        super().__init__()
        assert not supernet.training, "soft paths run in evaluation mode: call eval() first"
        self.space = supernet.space
        self.supernet = copy.deepcopy(supernet).requires_grad_(False).train()
        for module in self.supernet.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.0  # nothing is learned of the batches

    def forward(self, images: Tensor, path: Tensor) -> Tensor:
        soft = path.requires_grad
        shares = [[list(row) for row in layer] for layer in path] if soft else path.tolist()
        return self.supernet.mix(self.supernet.stem(images), shares)


@dataclass(frozen=True)
class PathSpec(NetworkSpec):
    """A network of a space of paths."""

    space: PathSpace
    architecture: Architecture
    supernet_type: ClassVar[type[PathSupernet]]

    @property
    def macs_m(self) -> float:
        return float(LookUpTable(self.space)(self.space.encode(self.architecture)))

    @property
    def blocks(self) -> int:
        return sum(map(len, self.architecture.kernels))

    def network(self, options: dict, rng: torch.Generator | None = None) -> nn.Module:
        return self.supernet_type.network_type(self.space, self.architecture, **options, rng=rng)

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        source = self.supernet_type(self.space)
        state = checkpoint.weights(checkpoint.load(supernet), supernet)
        checkpoint.load_into(source, state, supernet)
        return source.extract(self.space.encode(self.architecture), **options, rng=rng)

    def to_json(self) -> list:
        return [list(row) for row in self.architecture.choices]


# -- genes ---------------------------------------------------------------------------------------


class PathGenome:
    """A gene for each sub-block: the number of its choice among those it may have, skip last.

    All genes are expressed. Those of a network with too few active sub-blocks are mended.
    """

    def __init__(self, space: PathSpace, kind: "PathKind"):
        self.space, self.kind, self.table = space, kind, LookUpTable(space)
        exists, allowed = space.exists, space.allowed
        self._exists = exists.numpy()
        self._choices = [row.nonzero().flatten().numpy() for row in allowed[exists]]
        self.largest_genes = np.array([len(choices) - 1 for choices in self._choices])
        self._can_skip = allowed[..., -1].numpy() & self._exists

    def sample(self, count: int, rng: np.random.Generator) -> Genes:
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        return self.of_paths(self.space.sample(count, torch_rng))

    def extremes(self) -> Genes:
        return self.canonical(self.of_paths(self.space.extremes()))

    def canonical(self, genes: Genes) -> Genes:
        """The first sub-blocks that skip get the first choice where a layer has too few active."""
        space = self.space
        grid = np.zeros((len(genes), *self._exists.shape), dtype=genes.dtype)
        largest = np.zeros(self._exists.shape, dtype=genes.dtype)
        grid[:, self._exists], largest[self._exists] = genes, self.largest_genes
        skips = self._can_skip & (grid == largest)
        active = (self._exists & ~skips).sum(axis=2)
        least = space.least_active(max(2, space.min_expansion)).numpy()
        missing = np.where(space.may_vanish.numpy() & (active == 0), 0, least - active)
        grid[skips & (skips.cumsum(axis=2) <= missing[:, :, None])] = 0
        return grid[:, self._exists]

    def expressed(self, genes: Genes) -> NDArray[np.bool_]:
        return np.ones(genes.shape, dtype=bool)

    def costs(self, genes: Genes) -> tuple[NDArray, NDArray]:
        paths = self.paths(genes)
        return self.table(paths).double().numpy(), self.table.parameters_m(paths).numpy()

    def cost_by(self, table: CostTable, genes: Genes) -> NDArray:
        return table(self.paths(genes)).double().numpy()

    def paths(self, genes: Genes) -> Tensor:
        """One-hot paths `[N, L, E, K]`; a sub-block that a layer lacks skips."""
        L, E, K = self.space.shape
        index = np.full((len(genes), L, E), K - 1)
        columns = zip(self._choices, genes.T, strict=True)
        index[:, self._exists] = np.stack([choices[column] for choices, column in columns], axis=1)
        return one_hot(torch.from_numpy(index), K)

    def of_paths(self, paths: Tensor) -> Genes:
        """The inverse of `paths`."""
        index = paths.argmax(dim=-1).numpy()[:, self._exists]
        columns = zip(self._choices, index.T, strict=True)
        return np.stack([np.searchsorted(choices, column) for choices, column in columns], axis=1)

    def choice(self, row: Genes) -> Tensor:
        return self.paths(np.asarray(row)[None])[0]

    def spec(self, row: Genes) -> NetworkSpec:
        return self.kind.spec(self.space, self.space.decode(self.choice(row)))

    def to_json(self, row: Genes):
        return self.spec(row).to_json()

    def from_json(self, record) -> list[int]:
        architecture = self.kind.architecture(self.space, record)
        return self.of_paths(self.space.encode(architecture)[None])[0].tolist()


# -- the kind ------------------------------------------------------------------------------------


class PathKind(SpaceKind):
    """What all kinds of path spaces share: they are warmed up by single paths, and generated."""

    has_generator, paper = True, "sgnas"
    space_type: type[PathSpace]
    genome_type: type[PathGenome] = PathGenome
    spec_type: type[PathSpec]

    def space(self, config: Config) -> PathSpace:
        """Its fields are those of `keys`, image_size and classes of the config where they lack."""
        config.require("low_flops", "high_flops")
        given = {"image_size": config.input_size, "classes": config.classes}
        given |= asdict(self.space_keys(config))
        return self.space_type(
            **{field.name: given[field.name] for field in fields(self.space_type)}
        )

    def space_from_dict(self, record: dict) -> PathSpace:
        return as_type(record, self.space_type, "space", f"a space of kind {self.name}")

    def table(self, space: PathSpace, config: Config) -> CostTable:
        if config.cost == "flops":
            return LookUpTable(space)
        raise self.cannot(f"cost: {config.cost}: latency tables are for other kinds of space")

    # -- supernets -------------------------------------------------------------------------------

    def supernet(self, space: PathSpace, config: Config, rng: torch.Generator) -> PathSupernet:
        return self.spec_type.supernet_type(space, rng)

    def supernet_of_checkpoint(self, path: str, payload: dict) -> PathSupernet:
        supernet = self.spec_type.supernet_type(self.space_from_dict(payload["space"]))
        checkpoint.load_into(supernet, checkpoint.weights(payload, path), path)
        return supernet

    def soft(self, supernet: PathSupernet) -> nn.Module:
        return SoftPathSupernet(supernet)

    def forward(self, supernet: PathSupernet, choice: Tensor) -> Forward:
        return lambda images: supernet(images, choice)

    def step_choices(
        self, space: PathSpace, count: int, sampling: str, rng: torch.Generator
    ) -> Tensor:
        """`count` single paths `[N, L, E, K]`, sampled fairly or uniformly (section 3.2)."""
        return space.sample_fair(count, rng) if sampling == "fair" else space.sample(count, rng)

    def passes(
        self,
        supernet: PathSupernet,
        choices: Tensor,
        context: DeviceContext,
        images: Tensor,
        labels: Tensor,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One path after another.

        All paths share the stem, which is computed once, and differentiated once all paths are.
        """
        with context.autocast():
            features = supernet.stem(images)
        shared = features.detach().requires_grad_()
        for path in choices:
            with context.autocast():
                logits = supernet.classify(shared, path)
            yield logits, labels
        if shared.grad is not None:  # a path may connect nothing to its output
            features.backward(shared.grad)

    # -- architectures ---------------------------------------------------------------------------

    def parse(self, record) -> Architecture:
        """From rows of choices, or from {"choices": rows}, as older archives have it."""
        rows = record.get("choices", record) if isinstance(record, dict) else record
        kind, what = list[list[int | str | None]], "the choices of each layer"
        return Architecture.of(as_type(rows, kind, "architecture", what))

    def architecture(self, space: PathSpace, record) -> Architecture:
        architecture = self.parse(record)
        space.check(architecture)
        return architecture

    def spec(self, space: PathSpace, architecture: Architecture) -> PathSpec:
        return self.spec_type(space, architecture)

    def adopt(self, space: PathSpace, stored: NetworkSpec) -> PathSpec:
        if not space.fits(stored.space):
            raise UserError("its space is not that of the config")
        return self.spec(space, stored.architecture)

    def genome(self, space: PathSpace) -> PathGenome:
        return self.genome_type(space, self)

    def design(self, architecture: Architecture) -> Design:
        return Design(choices=architecture.choices)
