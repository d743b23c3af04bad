"""The cell space of NAS-Bench-201: what is on each edge of a cell that is repeated in the network.

A path has the axes of `model/spaces/paths.py`: L = 6 edges, E = 1, K = 5 operations, of which
`none`, the last, plays the part of skip. Costs are those of the network that the benchmark trained,
whatever the supernet looks like. Source: Dong and Yang, "NAS-Bench-201: Extending the Scope of
Reproducible Neural Architecture Search", ICLR 2020.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import ClassVar

import torch
from torch import Tensor

from model.costs.lookup_table import CostTerms
from model.spaces.paths import Architecture, PathSpace
from utils.errors import UserError
from utils.ranges import Channels, Classes, Depth, Pixels

CONV_1X1, CONV_3X3 = "nor_conv_1x1", "nor_conv_3x3"
OPERATIONS = ("skip_connect", "avg_pool_3x3", CONV_1X1, CONV_3X3)  # and none
EDGES = ((1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2))  # (to, from) node, in published order
NODES = 4


@dataclass(frozen=True)
class CellSpace(PathSpace):
    """All 15,625 cells; `channels` of the first of three stages, doubled in the others.

    `cells` are those of each stage.
    """

    kind: ClassVar[str] = "nasbench201"
    names: ClassVar[tuple[str, ...]] = OPERATIONS

    channels: Channels = 16
    cells: Depth = 5
    image_size: Pixels = 32
    classes: Classes = 10

    def __post_init__(self):
        super().__post_init__()
        self.check_parameters()

    @cached_property
    def mask(self) -> Tensor:
        """All is legal."""
        return torch.ones(len(EDGES), 1, len(OPERATIONS) + 1, dtype=torch.bool)

    # -- paths -----------------------------------------------------------------------------------

    def all(self) -> Tensor:
        """Every path `[5 ** 6, L, E, K]`; the last edge changes fastest."""
        numbers = len(EDGES) * [torch.arange(self.shape[2])]
        return self.of_index(torch.cartesian_prod(*numbers)[..., None])

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` paths `[N, L, E, K]`, uniform."""
        return self.of_index(torch.randint(self.shape[2], (count, len(EDGES), 1), generator=rng))

    def extremes(self, min_expansion: int = 0) -> Tensor:
        """No operation anywhere, and 3x3 convolutions everywhere, `[2, L, E, K]`."""
        ends = torch.tensor([self.shape[2] - 1, OPERATIONS.index(CONV_3X3)])
        return self.of_index(ends[:, None, None].expand(2, len(EDGES), 1))

    # -- costs -----------------------------------------------------------------------------------

    def cost_terms(self) -> CostTerms:
        """Convolutions and the final linear layer with its bias, as the benchmark counts them.

        An operation costs the same on every edge; skips and pools cost nothing.
        """
        stages = [(self.channels << stage, -(-self.image_size >> stage)) for stage in range(3)]
        macs, parameters = [], []
        for k in (1, 3):
            macs.append(self.cells * sum((C * k * size) ** 2 for C, size in stages))
            parameters.append(self.cells * sum((C * k) ** 2 + 2 * C for C, _ in stages))
        base, base_parameters = 27 * stages[0][0] * stages[0][1] ** 2, 29 * stages[0][0]
        for (before, _), (C, size) in itertools.pairwise(stages):
            convs = 9 * before * C + 9 * C * C + before * C  # two of 3x3, and a 1x1 next to them
            base, base_parameters = base + size**2 * convs, base_parameters + convs + 4 * C
        last = stages[-1][0]
        classifier = (last + 1) * self.classes
        return CostTerms(
            choice=len(EDGES) * [[0, 0, *macs, 0]],
            choice_parameters=len(EDGES) * [[0, 0, *parameters, 0]],
            base=base + classifier,
            base_parameters=base_parameters + 2 * last + classifier,
        )


def to_string(architecture: Architecture) -> str:
    """As the benchmark writes it: `|op~0|+|op~0|op~1|+|op~0|op~1|op~2|`."""
    return _written([choice or "none" for (choice,) in architecture.choices])


def _written(operations: Sequence[str]) -> str:
    edges = [
        (to, f"|{name}~{source}") for (to, source), name in zip(EDGES, operations, strict=True)
    ]
    nodes = ("".join(text for to, text in edges if to == node) for node in range(1, NODES))
    return "+".join(f"{node}|" for node in nodes)


@cache
def positions() -> dict[str, int]:
    """Where each cell, as the benchmark writes it, stands in `CellSpace.all`."""
    cells = itertools.product((*OPERATIONS, "none"), repeat=len(EDGES))
    return {_written(cell): position for position, cell in enumerate(cells)}


def from_string(text: str) -> Architecture:
    """The inverse of `to_string`; UserError when it is no cell."""
    parts = [part for node in text.split("+") for part in node.strip("|").split("|")]
    names = [part.split("~")[0] for part in parts]
    architecture = Architecture.of([[None if name == "none" else name] for name in names])
    CellSpace().check(architecture)
    if to_string(architecture) != text:
        raise UserError(
            f"architecture: {text!r} is not written as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|"
        )
    return architecture
