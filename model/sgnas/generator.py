"""The architecture generator and its prior pool.

Axes: N constraints, L layers, E sub-blocks, K choices. Source: SGNAS, section 3.4.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from model.costs.lookup_table import CostTable
from model.spaces.unified.space import SearchSpace
from utils.checkpoint import write_text
from utils.errors import UserError


class ConvReLU(nn.Module):
    """3x3 convolution without bias, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class ArchitectureGenerator(nn.Module):
    """`generator(priors [N, L, E, K], targets [N]) -> logits [N, L, E, K]`, targets in the unit of
    its cost table.

    Fully convolutional over the image `L x (E K)` of the prior, so one set of weights fits any
    space. `low` and `high` are the range of targets; the network sees a target as its place in that
    range, in `hc_dim` constant maps.
    """

    WIDTH = 32

    def __init__(self, low: float, high: float, hc_dim: int = 10):
        super().__init__()
        if not low < high:
            raise UserError(f"low_flops, high_flops: {low} is not below {high}")
        width = self.WIDTH
        self.low, self.high, self.hc_dim = low, high, hc_dim
        self.hc_head = nn.Sequential(
            ConvReLU(hc_dim, width), ConvReLU(width, width), ConvReLU(width, width)
        )
        self.bb_head = nn.Sequential(ConvReLU(1, width), ConvReLU(width, width))
        self.head = ConvReLU(width, width)
        self.body = nn.Sequential()
        for index in (1, 2, 3):
            self.body.add_module(f"block{index}", ConvReLU(width, width))
        self.tail = nn.Sequential(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, priors: Tensor, targets: Tensor) -> Tensor:
        N, L, E, K = priors.shape
        features = self.bb_head(priors.reshape(N, 1, L, E * K)) + self._hardware(
            targets.to(priors), L, E * K
        )
        return self.tail(self.body(self.head(features)) + features).view(N, L, E, K)

    def _hardware(self, targets: Tensor, height: int, width: int) -> Tensor:
        """`hc_head` of constant maps of the targets `[N]`: `[N, 32, height, width]`.

        What comes of a constant map differs from pixel to pixel only within reach of the border, so
        that a small map has all there is to compute.
        """
        reach = len(self.hc_head)
        rows, columns = (_fold(size, reach, targets.device) for size in (height, width))
        place = (targets - self.low) / (self.high - self.low)
        least = 2 * reach + 1
        small = place.view(-1, 1, 1, 1).expand(
            -1, self.hc_dim, min(height, least), min(width, least)
        )
        return self.hc_head(small)[:, :, rows][:, :, :, columns]


def _fold(size: int, reach: int, device: torch.device) -> Tensor:
    """For each of `size` pixels, that of a line of 2 `reach` + 1 which lies as far from both ends,
    up to `reach`.
    """
    pixels = torch.arange(size, device=device)
    return (
        pixels.clamp(max=reach) + (pixels - (size - 1 - reach)).clamp(min=0)
        if size > 2 * reach
        else pixels
    )


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
        """`size` architectures at costs evenly spaced inside (low, high), each `within` that much
        or `tolerance(mark)`.

        Published: each begins as a random path of its own. With `chain`, each begins as its
        neighbour, from the middle outwards, so that neighbouring targets start from architectures
        that differ in a few choices.
        """
        space = table.space
        marks = torch.linspace(low, high, size + 2, dtype=torch.float64)[1:-1].tolist()
        marks = [round(mark, 6) for mark in marks]
        paths: dict[int, Tensor] = {}
        middle = size // 2
        for index in [*range(middle, size), *reversed(range(middle))]:
            neighbour = paths.get(index - 1 if index > middle else index + 1)
            start = neighbour if chain and neighbour is not None else space.sample(1, rng)[0]
            paths[index] = _architecture_at(
                table, marks[index], start, rng, within or tolerance(marks[index])
            )
        return cls(
            torch.tensor(marks, dtype=torch.float64), torch.stack([paths[i] for i in range(size)])
        )

    def nearest(self, targets: Tensor) -> Tensor:
        """The priors `[N, L, E, K]` whose marks are nearest `targets [N]`."""
        return self.near(targets, 1)[:, 0]

    def near(self, targets: Tensor, count: int) -> Tensor:
        """The `count` priors (all, if there are fewer) of marks nearest each of `targets [N]`: `[N,
        P, L, E, K]`.
        """
        distance = (targets[:, None] - self.marks.to(targets)).abs()
        index = distance.argsort(dim=1, stable=True)[:, :count]
        return self.paths.to(targets.device)[index]

    def check(self, table: CostTable, where: str) -> None:
        """UserError when the marks are nowhere near the costs of their architectures: they are of
        another unit.

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
        rows = {
            repr(mark): prior.flatten(1).tolist()
            for mark, prior in zip(marks, self.paths, strict=True)
        }
        write_text(path, json.dumps(rows) + "\n")

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> "PriorPool":
        """Read the published JSON format; UserError when the file does not hold architectures of
        this space.
        """
        L, E, K = space.shape
        try:
            rows = json.loads(Path(path).read_text())
            marks = torch.tensor([float(mark) for mark in rows], dtype=torch.float64)
            paths = torch.tensor(list(rows.values()), dtype=torch.float32)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: no prior pool in JSON ({error})") from None
        if len(marks) == 0:
            raise UserError(f"{path}: no prior pool in JSON (it holds no architectures)")
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
    """A path `[L, E, K]` that costs `mark`, or `within` that much of it, by a random walk from
    `start`.

    Each step changes one sub-block, drawn among the changes that bring the cost nearer; when some
    of them meet the mark, among those. A walk that ends too far away starts anew from a random
    path; UserError when none gets there.
    """
    space = table.space
    least, most = table.reach(space.min_expansion)
    if not least - within <= mark <= most + within:
        raise UserError(
            f"prior pool: no architecture costs {mark:g} {table.unit}; with {space.min_expansion} active sub-blocks "
            f"in each layer the space reaches {least:.2f} to {most:.2f} {table.unit}"
        )
    nearest = float("inf")
    for _ in range(restarts):
        path, cost = _walk(table, mark, start, rng, within)
        if abs(cost - mark) <= within:
            return path
        nearest = min(nearest, cost, key=lambda c: abs(c - mark))
        start = space.sample(1, rng)[0]
    unit = table.unit
    raise UserError(
        f"prior pool: found no architecture within {within:g} {unit} of {mark:g} {unit}; nearest {nearest:.3f}"
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
