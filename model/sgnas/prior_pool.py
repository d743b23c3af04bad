"""The prior pool: architectures of known cost that the generator starts from (SGNAS, section 3.4).

Axes: P priors, N targets, L layers, E sub-blocks, K choices.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.spaces.contracts import CostTable
from model.spaces.paths import PathSpace
from utils.errors import UserError
from utils.json_file import read_json, write_json
from utils.runtime import stream


@dataclass(frozen=True)
class PoolRecipe:
    """The keys that say which priors there are."""

    low_flops: float
    high_flops: float
    pool_size: int
    pool_chain: bool
    pool_tolerance: float
    path_to_prior_pool: str | None
    seed: int


class PriorPool:
    """Architectures of known cost that the generator starts from.

    `marks [P]` are costs in the unit of a cost table, `paths [P, L, E, K]` one-hot architectures
    near them.
    """

    def __init__(self, marks: Tensor, paths: Tensor):
        assert len(marks) == len(paths) > 0
        self.marks, self.paths = marks, paths

    @classmethod
    def build(
        cls,
        table: CostTable,
        low: float,
        high: float,
        size: int,
        rng: torch.Generator,
        chain: bool = False,
        within: float = 0.0,
    ) -> "PriorPool":
        """`size` architectures at costs evenly spaced inside (low, high).

        Published: each starts as a random path of its own. With `chain`, each starts as its
        neighbour, from the middle outwards, so that neighbouring targets have priors that differ
        in a few choices. `within`: how far a cost may be from its mark; 0: `tolerance(mark)`.
        """
        space = table.space
        marks = torch.linspace(low, high, size + 2, dtype=torch.float64)[1:-1].tolist()
        marks = [round(mark, 6) for mark in marks]
        paths: dict[int, Tensor] = {}
        middle = size // 2
        for index in [*range(middle, size), *reversed(range(middle))]:
            neighbour = paths.get(index - 1 if index > middle else index + 1)
            start = neighbour if chain and neighbour is not None else space.sample(1, rng)[0]
            most = within or tolerance(marks[index])
            paths[index] = _architecture_at(table, marks[index], start, rng, most)
        stacked = torch.stack([paths[index] for index in range(size)])
        return cls(torch.tensor(marks, dtype=torch.float64), stacked)

    def nearest(self, targets: Tensor) -> Tensor:
        """The priors `[N, L, E, K]` whose marks are nearest `targets [N]`."""
        return self.near(targets, 1)[:, 0]

    def near(self, targets: Tensor, count: int) -> Tensor:
        """The `count` priors (or all) of marks nearest each of `targets [N]`: `[N, P, L, E, K]`."""
        distance = (targets[:, None] - self.marks.to(targets)).abs()
        index = distance.argsort(dim=1, stable=True)[:, :count]
        return self.paths.to(targets.device)[index]

    def check(self, table: CostTable, where: str) -> None:
        """UserError when the marks are of another unit, nowhere near the costs of the priors.

        A median of half the mark: priors of coarse spaces may lie far from their marks, another
        unit far further.
        """
        misses = (table(self.paths).double() / self.marks - 1).abs()
        if misses.median() > 0.5:
            raise UserError(
                f"{where}: its marks are no costs in {table.unit} by this table; name another file"
            )

    def save(self, path: Path) -> None:
        """Published JSON format: {mark: L rows of E K numbers}."""
        marks = [int(mark) if mark.is_integer() else mark for mark in self.marks.tolist()]
        rows = [prior.flatten(1).tolist() for prior in self.paths]
        write_json(path, dict(zip(map(repr, marks), rows, strict=True)))

    @classmethod
    def load(cls, path: str | Path, space: PathSpace) -> "PriorPool":
        """Read the published JSON format; UserError if it holds no architectures of this space."""
        L, E, K = space.shape
        rows = read_json(path, dict[str, list[list[float]]], "a prior pool in JSON")
        try:
            marks = torch.tensor([float(mark) for mark in rows], dtype=torch.float64)
            paths = torch.tensor(list(rows.values()), dtype=torch.float32)
        except ValueError as error:
            raise UserError(f"{path}: not a prior pool in JSON ({error})") from None
        if len(marks) == 0:
            raise UserError(f"{path}: not a prior pool in JSON (it holds no architectures)")
        if not (marks.isfinite() & (marks > 0)).all():
            raise UserError(f"{path}: every mark must be a finite number above 0")
        if paths.shape[1:] != (L, E * K):
            shape = " x ".join(map(str, paths.shape[1:]))
            raise UserError(f"{path}: its architectures are {shape}; the space has {L} x {E * K}")
        paths = paths.view(-1, L, E, K)
        if not (((paths == 0) | (paths == 1)).all() and (paths.sum(dim=-1) == 1).all()):
            raise UserError(f"{path}: every group of {K} numbers must be one 1 and else 0")
        for mark, prior in zip(rows, paths, strict=True):
            try:
                space.check(space.decode(prior))
            except UserError as error:
                raise UserError(f"{path}: mark {mark}: {error}") from None
        return cls(marks, paths)


def tolerance(mark: float) -> float:
    """How far the cost of a prior may be from its mark: 1 (M or ms), and 1 % where that is less."""
    return min(1.0, 0.01 * mark)


def _architecture_at(
    table: CostTable,
    mark: float,
    start: Tensor,
    rng: torch.Generator,
    within: float,
    restarts: int = 64,
) -> Tensor:
    """A path `[L, E, K]` that costs `mark`, `within` so much, by a random walk from `start`.

    Each step changes one sub-block, drawn among the changes that bring the cost nearer; when some
    of them meet the mark, among those. A walk that ends too far away starts again from a random
    path; UserError when none gets there.
    """
    space = table.space
    least, most = table.reach(space.min_expansion)
    if not least - within <= mark <= most + within:
        raise UserError(
            f"prior pool: no architecture costs {mark:g} {table.unit}; with {space.min_expansion} "
            f"active sub-blocks in each layer the space reaches {least:.2f} to {most:.2f} "
            f"{table.unit}"
        )
    nearest = float("inf")
    for _ in range(restarts):
        path, cost = _walk(table, mark, start, rng, within)
        if abs(cost - mark) <= within:
            return path
        nearest = min(nearest, cost, key=lambda c: abs(c - mark))
        start = space.sample(1, rng)[0]
    raise UserError(
        f"prior pool: found no architecture within {within:g} {table.unit} of {mark:g} "
        f"{table.unit}; nearest {nearest:.3f}"
    )


def _walk(
    table: CostTable, mark: float, path: Tensor, rng: torch.Generator, within: float
) -> tuple[Tensor, float]:
    """Where a walk towards `mark` ends, and the cost there."""
    cost = float(table(path))
    while abs(cost - mark) > within:
        changed = table.space.neighbours(path)
        costs = table(changed)
        misses = (costs - mark).abs()
        good = misses <= within
        better = (good if good.any() else misses < abs(cost - mark)).nonzero().flatten()
        if len(better) == 0:
            break
        pick = better[torch.randint(len(better), (), generator=rng)]
        path, cost = changed[pick], float(costs[pick])
    return path, cost


def open_pool(recipe: PoolRecipe, table: CostTable, run_file: Path | None) -> PriorPool:
    """The pool of the run that is resumed, else that in `path_to_prior_pool`, else a new one."""
    for path in (run_file, recipe.path_to_prior_pool):
        if path and Path(path).exists():
            print(f"prior pool from {path}")
            pool = PriorPool.load(path, table.space)
            pool.check(table, str(path))
            return pool
    rng = stream(recipe.seed, "prior pool")
    low, high, size = recipe.low_flops, recipe.high_flops, recipe.pool_size
    return PriorPool.build(table, low, high, size, rng, recipe.pool_chain, recipe.pool_tolerance)
