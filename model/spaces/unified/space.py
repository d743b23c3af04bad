"""What is searched: the layers, the choices in each, and how an architecture is written down.

The layout of a path, here and in `model/spaces/nasbench201/space.py`. Its axes, everywhere in the project:

    N paths, L searchable layers, E sub-blocks of a layer, K choices of a sub-block
    (kernel sizes in ascending order, then skip, which is always the last).

A *path* is a float tensor `[L, E, K]` whose rows sum to 1 over K: one-hot when discrete, a mixture
when soft. Layers may differ in expansion and kernels; E and K are the largest of all layers, and
`SearchSpace.mask` says which entries a layer really has. A sub-block that a layer lacks can only
skip.

Source: Huang and Chu, "Searching by Generating", CVPR 2021, section 3 (the unified block).
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from utils.checkpoint import write_text
from utils.errors import UserError

Choice = int | str | None  # a kernel size, or the name of an operation; None is skip
Choices = tuple[tuple[Choice, ...], ...]


@dataclass(frozen=True)
class LayerSpec:
    """One searchable layer: up to `expansion` sub-blocks of `in_channels` channels, each with a
    kernel or skipped.
    """

    in_channels: int
    out_channels: int
    stride: int
    expansion: int
    kernels: tuple[int, ...]
    skip: bool = True
    may_vanish: bool = False
    se: bool = False

    def __post_init__(self):
        for name in ("in_channels", "out_channels", "stride", "expansion"):
            if getattr(self, name) < 1:
                raise UserError(f"layer: {name} is {getattr(self, name)}; it must be at least 1")
        if not self.kernels or any(k < 1 or k % 2 == 0 for k in self.kernels):
            raise UserError(
                f"layer: kernels are {list(self.kernels)}; they must be odd, positive numbers"
            )
        if len(set(self.kernels)) < len(self.kernels):
            raise UserError(f"layer: kernels are {list(self.kernels)}; each may stand there once")
        if self.may_vanish and not (self.residual and self.skip):
            raise UserError(
                "layer: only a layer with a residual connection and a skip choice may vanish"
            )

    @property
    def residual(self) -> bool:
        return self.stride == 1 and self.in_channels == self.out_channels

    def least_active(self, min_expansion: int) -> int:
        """Fewest sub-blocks that a proposed path activates here."""
        return min(min_expansion, self.expansion) if self.skip else self.expansion


@dataclass(frozen=True)
class Architecture:
    """One choice per (layer, sub-block): a kernel size, or None for skip.

    Positions matter: weights inherited from a supernet are sliced by them. Hashable and comparable
    by position; compare `canonical()` forms to ask whether two architectures are the same
    stand-alone network.
    """

    choices: Choices

    @classmethod
    def of(cls, rows) -> "Architecture":
        """From any nested sequence of kernel sizes, names and None (or "skip")."""
        return cls(tuple(tuple(_choice(c) for c in row) for row in rows))

    @property
    def kernels(self) -> tuple[tuple[int | str, ...], ...]:
        """Choices of the stand-alone network, layer by layer; the length of a row is its expansion
        ratio.
        """
        return tuple(tuple(c for c in row if c is not None) for row in self.choices)

    def canonical(self) -> "Architecture":
        """The same stand-alone network with its active sub-blocks packed to the left of each layer."""
        return Architecture(
            tuple(
                kept + (None,) * (len(row) - len(kept))
                for row, kept in zip(self.choices, self.kernels, strict=True)
            )
        )


def _choice(value) -> Choice:
    if value in (None, "skip"):
        return None
    return value if isinstance(value, str) and not value.isdigit() else int(value)


@runtime_checkable
class SearchSpace(Protocol):
    """What the generator, the cost table and the evolutionary search need to know of a space."""

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def mask(self) -> Tensor: ...
    @property
    def exists(self) -> Tensor: ...
    @property
    def expansions(self) -> Tensor: ...
    def sample(self, count: int, rng: torch.Generator) -> Tensor: ...
    def sample_fair(self, count: int, rng: torch.Generator) -> Tensor: ...
    def extremes(self, min_expansion: int = ...) -> Tensor: ...
    def active(self, path: Tensor) -> Tensor: ...
    def check(self, architecture: Architecture) -> None: ...
    def to_dict(self) -> dict: ...
    def neighbours(self, path: Tensor) -> Tensor: ...
    def relax(
        self, logits: Tensor, temperature: float, rng: torch.Generator | None = None
    ) -> Tensor: ...
    def discretize(self, logits: Tensor) -> Tensor: ...
    def encode(self, architecture: Architecture) -> Tensor: ...
    def decode(self, path: Tensor) -> Architecture: ...


class Paths:
    """What can be said of paths in any space that has a `mask`."""

    mask: Tensor

    def fits(self, other: "SearchSpace") -> bool:
        """Whether the architectures of `other` are architectures of this space."""
        return type(self) is type(other)

    def relax(
        self, logits: Tensor, temperature: float, rng: torch.Generator | None = None
    ) -> Tensor:
        """Legal mixtures from logits `[..., L, E, K]`: Gumbel softmax with `rng`, plain softmax
        without.

        Jang et al., "Categorical reparameterization with Gumbel-softmax", ICLR 2017. Illegal
        entries get exactly 0.
        """
        if rng is not None:
            exponential = torch.empty(logits.shape).exponential_(generator=rng)
            # minus the log of Exp(1) is Gumbel noise
            logits = logits - exponential.to(logits).log()
        masked = (logits / temperature).masked_fill(~self.mask.to(logits.device), float("-inf"))
        return masked.softmax(dim=-1)

    def discretize(self, logits: Tensor) -> Tensor:
        """The legal one-hot path of the largest logits, `[..., L, E, K]`."""
        masked = logits.masked_fill(~self.mask.to(logits.device), float("-inf"))
        return one_hot(masked.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)

    def active(self, path: Tensor) -> Tensor:
        """Number of active sub-blocks per layer, `[..., L]`; fractional for soft paths."""
        return (1 - path[..., -1]).sum(dim=-1)


@dataclass(frozen=True)
class UnifiedSpace(Paths):
    """The SGNAS space: a stem, a first block, `layers` to search, and a head.

    `image_size` is in pixels; `min_expansion` is the least number of active sub-blocks in a layer
    of a proposed path.
    """

    layers: tuple[LayerSpec, ...]
    image_size: int
    classes: int
    stem_channels: int = 32
    stem_stride: int = 2
    first_channels: int = 16
    head_channels: int = 1280
    min_expansion: int = 2

    def __post_init__(self):
        if not self.layers:
            raise UserError("space: it has no searchable layer")
        widths = (self.first_channels, *(layer.out_channels for layer in self.layers))
        for index, layer in enumerate(self.layers):
            if layer.in_channels != widths[index]:
                raise UserError(
                    f"space: layer {index} takes {layer.in_channels} channels, but gets {widths[index]} from before it"
                )

    def fits(self, other: SearchSpace) -> bool:
        return super().fits(other) and self.layers == other.layers

    # -- the layout of a path ----------------------------------------------------------------------

    @cached_property
    def kernels(self) -> tuple[int, ...]:
        """All kernel sizes of the space in ascending order: the first K - 1 choices."""
        return tuple(sorted({k for layer in self.layers for k in layer.kernels}))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, E, K)."""
        return (
            len(self.layers),
            max(layer.expansion for layer in self.layers),
            len(self.kernels) + 1,
        )

    @cached_property
    def expansions(self) -> Tensor:
        """int64 `[L]`: number of sub-blocks that each layer really has."""
        return torch.tensor([layer.expansion for layer in self.layers])

    @cached_property
    def exists(self) -> Tensor:
        """bool `[L, E]`: whether the layer has this sub-block."""
        return torch.arange(self.shape[1]) < self.expansions[:, None]

    @cached_property
    def mask(self) -> Tensor:
        """bool `[L, E, K]`: legal entries. Where a layer may not vanish its first sub-block may not
        skip.
        """
        offered = torch.tensor(
            [[k in layer.kernels for k in self.kernels] for layer in self.layers]
        )
        kernels = offered[:, None, :] & self.exists[:, :, None]
        skips = torch.tensor([layer.skip for layer in self.layers])[:, None].repeat(
            1, self.shape[1]
        )
        skips[:, 0] &= torch.tensor([layer.may_vanish for layer in self.layers])
        return torch.cat([kernels, (skips | ~self.exists)[:, :, None]], dim=2)

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Side of the feature map in pixels before and after each layer ('same' padding, odd
        kernels).
        """
        size, sizes = -(-self.image_size // self.stem_stride), []
        for layer in self.layers:
            after = -(-size // layer.stride)
            sizes.append((size, after))
            size = after
        return tuple(sizes)

    # -- paths -------------------------------------------------------------------------------------

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` random legal paths `[N, L, E, K]`, each layer with at least `min_expansion`
        active sub-blocks.
        """
        L, E, _ = self.shape
        counts = self._shuffled_counts(count, rng, fair=False)
        keys = torch.rand(count, L, E, generator=rng)
        # a first sub-block that may not skip is active always
        keys[:, :, 0][:, ~self.mask[:, 0, -1]] = -1.0
        return self._assemble(counts, keys, rng, fair=False)

    def sample_fair(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` single paths of one training step `[N, L, E, K]`, sampled fairly within the step.

        Per layer the number of active sub-blocks runs through a shuffle of min_expansion..expansion
        before any number comes again; which sub-blocks are active is uniform; each sub-block runs
        through a shuffle of its kernels before any kernel comes again. The rule for first
        sub-blocks does not bind here (SGNAS, section 3.2).
        """
        L, E, _ = self.shape
        counts = self._shuffled_counts(count, rng, fair=True)
        return self._assemble(counts, torch.rand(count, L, E, generator=rng), rng, fair=True)

    def extremes(self, min_expansion: int = 1) -> Tensor:
        """The paths `[2, L, E, K]` of least and greatest cost; at least `min_expansion` active
        sub-blocks a layer.
        """
        vanishes = [spec.may_vanish and min_expansion <= 1 for spec in self.layers]
        least = [
            0 if gone else s.least_active(min_expansion)
            for gone, s in zip(vanishes, self.layers, strict=True)
        ]
        paths = []
        for rows, count in (
            (self._kernel_index[:, 0], torch.tensor(least)),
            (self._largest_kernel, self.expansions),
        ):
            active = torch.arange(self.shape[1]) < count[:, None]
            paths.append(
                one_hot(torch.where(active, rows[:, None], self.shape[2] - 1), self.shape[2])
            )
        return torch.stack(paths)

    def _shuffled_counts(self, count: int, rng: torch.Generator, fair: bool) -> Tensor:
        """int64 `[N, L]`: numbers of active sub-blocks; with `fair`, no repetition before all have
        come.
        """
        least = torch.tensor([layer.least_active(self.min_expansion) for layer in self.layers])
        options = self.expansions - least + 1
        if not fair:
            return least + (torch.rand(count, len(self.layers), generator=rng) * options).long()
        rounds = -(-count // int(options.min()))
        order = shuffles((rounds, len(self.layers)), options, rng)
        turn = torch.arange(count)[:, None]
        rows, layers = turn // options, torch.arange(len(self.layers))[None, :]
        return least + order[rows, layers, turn % options]

    def _assemble(self, counts: Tensor, keys: Tensor, rng: torch.Generator, fair: bool) -> Tensor:
        """Paths from the number of active sub-blocks `[N, L]`; those with the lowest `keys [N, L,
        E]` are active.
        """
        keys = keys.masked_fill(~self.exists, 2.0)
        active = keys.argsort(dim=2).argsort(dim=2) < counts[:, :, None]
        options = torch.tensor([len(layer.kernels) for layer in self.layers])
        count, L, E = active.shape
        if fair:
            turn = active.long().cumsum(dim=0) - 1
        else:
            # a new shuffle for each path
            turn = torch.arange(count)[:, None, None] * options[:, None].expand(L, E)
        turn = turn.clamp(min=0)
        rounds = int((turn // options[:, None]).max()) + 1
        order = shuffles((rounds, L, E), options[:, None].expand(L, E), rng)
        layers, blocks = torch.arange(L)[None, :, None], torch.arange(E)[None, None, :]
        picked = order[turn // options[:, None], layers, blocks, turn % options[:, None]]
        kernel = self._kernel_index[layers, picked]
        return one_hot(torch.where(active, kernel, self.shape[2] - 1), self.shape[2])

    @cached_property
    def _kernel_index(self) -> Tensor:
        """int64 `[L, most kernels of a layer]`: choice index of a layer's own j-th kernel in
        ascending order.
        """
        rows = [[self.kernels.index(k) for k in sorted(layer.kernels)] for layer in self.layers]
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])

    @cached_property
    def _largest_kernel(self) -> Tensor:
        """int64 `[L]`: choice index of each layer's largest kernel."""
        return torch.tensor([self.kernels.index(max(layer.kernels)) for layer in self.layers])

    def neighbours(self, path: Tensor) -> Tensor:
        """All paths `[M, L, E, K]` one choice away from a one-hot `path` that obey the mask.

        None of them takes a layer below `min_expansion` active sub-blocks, or further below it.
        """
        L, E, K = self.shape
        changed = path.repeat(L * E * K, 1, 1, 1).view(L, E, K, L, E, K)
        l, e, k = torch.meshgrid(torch.arange(L), torch.arange(E), torch.arange(K), indexing="ij")
        changed[l, e, k, l, e] = torch.eye(K)[k]
        least = torch.tensor([spec.least_active(self.min_expansion) for spec in self.layers])
        least = torch.minimum(least, self.active(path))
        enough = (self.active(changed) >= least - 0.5).all(dim=-1)
        return changed[enough & self.mask & (path == 0)]

    # -- architectures -----------------------------------------------------------------------------

    def encode(self, architecture: Architecture) -> Tensor:
        """The one-hot path `[L, E, K]` of an architecture; UserError if it is none of this space."""
        self.check(architecture)
        L, E, K = self.shape
        index = torch.full((L, E), K - 1)
        for layer, row in enumerate(architecture.choices):
            for block, choice in enumerate(row):
                if choice is not None:
                    index[layer, block] = self.kernels.index(choice)
        return one_hot(index, K)

    def decode(self, path: Tensor) -> Architecture:
        """The architecture of a discrete path `[L, E, K]` (of a soft one: that of its largest
        entries).
        """
        names = (*self.kernels, None)
        index = path.argmax(dim=-1).tolist()
        return Architecture(
            tuple(
                tuple(names[k] for k in row[: spec.expansion])
                for row, spec in zip(index, self.layers, strict=True)
            )
        )

    def check(self, architecture: Architecture) -> None:
        """Raise a UserError that names the layer unless the architecture is one of this space.

        A layer may lose its first sub-block, since warm-up trains such paths, but may vanish only
        if its spec says so.
        """
        if len(architecture.choices) != len(self.layers):
            raise UserError(
                f"architecture: it has {len(architecture.choices)} layers; the space has {len(self.layers)}"
            )
        for index, (row, spec) in enumerate(zip(architecture.choices, self.layers, strict=True)):
            if len(row) != spec.expansion:
                raise UserError(
                    f"architecture: layer {index} has {len(row)} sub-blocks; the space {spec.expansion}"
                )
            allowed = {*spec.kernels, None} if spec.skip else set(spec.kernels)
            if not set(row) <= allowed:
                raise UserError(
                    f"architecture: layer {index} is {list(row)}; allowed are {sorted(spec.kernels)}"
                    + (" and null" if spec.skip else "")
                )
            if not spec.may_vanish and all(choice is None for choice in row):
                raise UserError(
                    f"architecture: layer {index} skips every sub-block, but may not vanish"
                )

    # -- JSON --------------------------------------------------------------------------------------

    def to_dict(self) -> dict:
        return {"kind": "unified", **asdict(self)}

    @classmethod
    def from_dict(cls, payload: dict) -> "UnifiedSpace":
        """Inverse of `to_dict`; UserError when the payload is no description."""
        payload = {key: value for key, value in payload.items() if key != "kind"}
        try:
            layers = [
                LayerSpec(**{**layer, "kernels": tuple(layer["kernels"])})
                for layer in payload.pop("layers")
            ]
            return cls(layers=tuple(layers), **payload)
        except (KeyError, TypeError) as error:
            raise UserError(f"space: not a description of a unified space ({error})") from None


def one_hot(index: Tensor, choices: int) -> Tensor:
    """float32 `[..., K]` from indices `[...]`."""
    return torch.zeros(*index.shape, choices, device=index.device).scatter_(
        -1, index[..., None], 1.0
    )


def shuffles(batch: tuple[int, ...], lengths: Tensor, rng: torch.Generator) -> Tensor:
    """Random orders of 0..length-1 in the first `length` entries of each row, `[*batch,
    max(lengths)]`.
    """
    widest = int(lengths.max())
    keys = torch.rand(*batch, widest, generator=rng)
    return keys.masked_fill(torch.arange(widest) >= lengths[..., None], 2.0).argsort(dim=-1)


ARCHITECTURE_FORMAT = "architecture/1"


def save_architecture(
    path: Path, space: SearchSpace, architecture: Architecture, costs: dict, provenance: dict
):
    """Write `architecture.json`, what every stage hands to the next."""
    record = {
        "format": ARCHITECTURE_FORMAT,
        "space": space.to_dict(),
        "choices": architecture.choices,
        "costs": costs,
        "provenance": provenance,
    }
    write_text(path, json.dumps(record, indent=1) + "\n")


# by the kind that `to_dict` says; others add themselves
SPACES: dict[str, type] = {"unified": UnifiedSpace}


def space_from_dict(payload: dict) -> SearchSpace:
    """Inverse of a space's `to_dict`, whatever its kind; UserError when it describes none."""
    kind = payload.get("kind") if isinstance(payload, dict) else None
    if kind not in SPACES:
        raise UserError(f"space: kind is {kind!r}; known are {', '.join(SPACES)}")
    return SPACES[kind].from_dict(payload)


def load_architecture(path: Path) -> tuple[SearchSpace, Architecture, dict]:
    """Read `architecture.json`: the space, the checked architecture, and the whole record;
    UserError if it is none.
    """
    try:
        record = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an architecture ({error})") from None
    if not isinstance(record, dict) or record.get("format") != ARCHITECTURE_FORMAT:
        raise UserError(f"{path}: no architecture file (its format is not {ARCHITECTURE_FORMAT!r})")
    try:
        space = space_from_dict(record["space"])
        architecture = Architecture.of(record["choices"])
        space.check(architecture)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: no valid architecture ({error})") from None
    return space, architecture, record
