"""The cell space of NAS-Bench-201: what is on each edge of a cell that is repeated through the
network.

A path has the axes of `model/spaces/unified/space.py`: L = 6 edges, E = 1, K = 5 operations, of which `none`, the
last, plays the part of skip. Costs are those of the network that the benchmark trained, whatever
the supernet looks like. Source: Dong and Yang, "NAS-Bench-201: Extending the Scope of Reproducible
Neural Architecture Search", ICLR 2020.
"""

import itertools
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from model.costs.lookup_table import CostTerms, cost_terms
from model.spaces.unified.space import SPACES, Architecture, Paths, one_hot, shuffles
from utils.errors import UserError

CONV_1X1, CONV_3X3 = "nor_conv_1x1", "nor_conv_3x3"
OPERATIONS = ("skip_connect", "avg_pool_3x3", CONV_1X1, CONV_3X3)  # and none
# (to, from) node, in the order of the published strings
EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))
NODES = 4


@dataclass(frozen=True)
class CellSpace(Paths):
    """All 15,625 cells. `channels` of the first of three stages, doubled in the others; `cells` in
    each stage.
    """

    channels: int = 16
    cells: int = 5
    image_size: int = 32
    classes: int = 10
    min_expansion: ClassVar[int] = 0  # every edge may be none

    def __post_init__(self):
        for name, value in asdict(self).items():
            if not isinstance(value, int) or value < 1:
                raise UserError(
                    f"space: {name} is {value!r}; it must be a whole number of at least 1"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(L, E, K)."""
        return len(EDGES), 1, len(OPERATIONS) + 1

    @cached_property
    def mask(self) -> Tensor:
        """bool `[L, E, K]`: all is legal."""
        return torch.ones(self.shape, dtype=torch.bool)

    @cached_property
    def exists(self) -> Tensor:
        """bool `[L, E]`."""
        return torch.ones(self.shape[:2], dtype=torch.bool)

    @cached_property
    def expansions(self) -> Tensor:
        """int64 `[L]`."""
        return torch.ones(len(EDGES), dtype=torch.long)

    # -- paths -------------------------------------------------------------------------------------

    def all(self) -> Tensor:
        """Every path `[5 ** 6, L, E, K]`; the last edge changes fastest."""
        return self.of_index(torch.cartesian_prod(*len(EDGES) * [torch.arange(self.shape[2])]))

    def of_index(self, index: Tensor) -> Tensor:
        """`[N, L]`, the number of the choice on each edge -> paths `[N, L, E, K]`."""
        return one_hot(index, self.shape[2]).unsqueeze(2)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` paths `[N, L, E, K]`, uniform."""
        return self.of_index(torch.randint(self.shape[2], (count, len(EDGES)), generator=rng))

    def sample_fair(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` paths of one training step `[N, L, E, K]`: each edge runs through a shuffle of
        its choices.

        Strict fairness, as in Chu et al., "FairNAS", ICCV 2021.
        """
        L, _, K = self.shape
        order = shuffles((-(-count // K), L), torch.tensor(K).expand(L), rng)
        return self.of_index(order.transpose(1, 2).flatten(0, 1)[:count])

    def extremes(self, min_expansion: int = 0) -> Tensor:
        """No operation anywhere, and 3x3 convolutions everywhere, `[2, L, E, K]`."""
        ends = torch.tensor([[self.shape[2] - 1], [OPERATIONS.index(CONV_3X3)]])
        return self.of_index(ends.expand(2, len(EDGES)))

    def neighbours(self, path: Tensor) -> Tensor:
        """All 24 paths `[M, L, E, K]` one choice away from a one-hot `path`."""
        L, _, K = self.shape
        edge, choice = (
            part.flatten()
            for part in torch.meshgrid(torch.arange(L), torch.arange(K), indexing="ij")
        )
        changed = path.argmax(dim=-1).view(1, L).repeat(L * K, 1)
        changed[torch.arange(L * K), edge] = choice
        return self.of_index(changed)[path[edge, 0, choice] == 0]

    # -- architectures -----------------------------------------------------------------------------

    def encode(self, architecture: Architecture) -> Tensor:
        """The one-hot path `[L, E, K]`; UserError when it is no architecture of this space."""
        self.check(architecture)
        return self.of_index(
            torch.tensor([[_CHOICES.index(choice) for (choice,) in architecture.choices]])
        )[0]

    def decode(self, path: Tensor) -> Architecture:
        """The architecture of a discrete path `[L, E, K]` (of a soft one: that of its largest
        entries).
        """
        return Architecture(
            tuple((_CHOICES[index],) for index in path.argmax(dim=-1).flatten().tolist())
        )

    def check(self, architecture: Architecture) -> None:
        rows = architecture.choices
        if len(rows) != len(EDGES):
            raise UserError(f"architecture: it has {len(rows)} edges; a cell has {len(EDGES)}")
        for edge, row in enumerate(rows):
            if len(row) != 1 or row[0] not in _CHOICES:
                allowed = ", ".join(OPERATIONS)
                raise UserError(
                    f"architecture: edge {edge} is {list(row)}; it must be one of {allowed} or null"
                )

    # -- JSON --------------------------------------------------------------------------------------

    def to_dict(self) -> dict:
        return {"kind": "nasbench201", **asdict(self)}

    @classmethod
    def from_dict(cls, payload: dict) -> "CellSpace":
        """Inverse of `to_dict`; UserError when the payload is no description."""
        try:
            return cls(**{key: value for key, value in payload.items() if key != "kind"})
        except TypeError as error:
            raise UserError(f"space: not a description of a cell space ({error})") from None


SPACES["nasbench201"] = CellSpace
_CHOICES = (*OPERATIONS, None)


def to_string(architecture: Architecture) -> str:
    """As the benchmark writes it: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
    nodes = [
        "".join(
            f"|{choice or 'none'}~{source}"
            for (to, source), (choice,) in zip(EDGES, architecture.choices, strict=True)
            if to == node
        )
        for node in range(1, NODES)
    ]
    return "+".join(f"{node}|" for node in nodes)


def from_string(text: str) -> Architecture:
    """The inverse of `to_string`; UserError when it is no cell."""
    parts = [part for node in text.split("+") for part in node.strip("|").split("|")]
    names = [part.split("~")[0] for part in parts]
    architecture = Architecture(tuple((None if name == "none" else name,) for name in names))
    CellSpace().check(architecture)
    if to_string(architecture) != text:
        raise UserError(
            f"architecture: {text!r} is not written as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
        )
    return architecture


# -- costs -----------------------------------------------------------------------------------------


@cost_terms.register
def _(space: CellSpace) -> CostTerms:
    """Convolutions and the final linear layer with its bias, as the benchmark counts multiply-adds.

    An operation costs the same on every edge; skips and pools cost nothing.
    """
    stages = [(space.channels << stage, -(-space.image_size >> stage)) for stage in range(3)]
    macs, parameters = [], []
    for k in (1, 3):
        macs.append(space.cells * sum((C * k * size) ** 2 for C, size in stages))
        parameters.append(space.cells * sum((C * k) ** 2 + 2 * C for C, _ in stages))
    base, base_parameters = 27 * stages[0][0] * stages[0][1] ** 2, 29 * stages[0][0]
    # two 3x3 convolutions, and a 1x1 beside them
    for (before, _), (C, size) in itertools.pairwise(stages):
        base += size**2 * (9 * before * C + 9 * C * C + before * C)
        base_parameters += 9 * before * C + 9 * C * C + before * C + 4 * C
    last = stages[-1][0]
    classifier = (last + 1) * space.classes
    L, zeros = len(EDGES), len(EDGES) * [0]
    return CostTerms(
        choice=L * [[0, 0, *macs, 0]],
        expand=zeros,
        project=zeros,
        se=L * [[0, 0]],
        base=base + classifier,
        choice_parameters=L * [[0, 0, *parameters, 0]],
        other_parameters=L * [[0, 0]],
        base_parameters=base_parameters + 2 * last + classifier,
    )
