"""The architecture generator and its prior pool.

Axes: N constraints, L layers, E sub-blocks, K choices. Source: SGNAS, section 3.4.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from model.lookup_table import LookUpTable
from model.space import UnifiedSpace
from utils.errors import UserError


class ConvReLU(nn.Module):
    """3x3 convolution without bias, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()


class ArchitectureGenerator(nn.Module):
    """`generator(priors [N, L, E, K], targets [N]) -> logits [N, L, E, K]`, targets in millions of multiply-adds.

    Fully convolutional over the image `L x (E K)` of the prior, so one set of weights fits any space. `low` and `high`
    (M) are the range of targets; the network sees a target as its place in that range, in `hc_dim` constant maps.
    """

    WIDTH = 32

    def __init__(self, low: float, high: float, hc_dim: int = 10):
        super().__init__()
        if not low < high:
            raise UserError(f"low_flops, high_flops: {low} is not below {high}")
        width = self.WIDTH
        self.low, self.high, self.hc_dim = low, high, hc_dim
        self.hc_head = nn.Sequential(ConvReLU(hc_dim, width), ConvReLU(width, width), ConvReLU(width, width))
        self.bb_head = nn.Sequential(ConvReLU(1, width), ConvReLU(width, width))
        self.head = ConvReLU(width, width)
        self.body = nn.Sequential()
        for index in (1, 2, 3):
            self.body.add_module(f"block{index}", ConvReLU(width, width))
        self.tail = nn.Sequential(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, priors: Tensor, targets: Tensor) -> Tensor:
        N, L, E, K = priors.shape
        place = (targets.to(priors) - self.low) / (self.high - self.low)
        hardware = place.view(N, 1, 1, 1).expand(N, self.hc_dim, L, E * K)
        features = self.bb_head(priors.reshape(N, 1, L, E * K)) + self.hc_head(hardware)
        return self.tail(self.body(self.head(features)) + features).view(N, L, E, K)


class PriorPool:
    """Architectures of known cost that the generator starts from.

    `marks [P]` are costs in millions of multiply-adds, `paths [P, L, E, K]` one-hot architectures near them.
    """

    def __init__(self, marks: Tensor, paths: Tensor):
        assert len(marks) == len(paths) > 0
        self.marks, self.paths = marks, paths

    @classmethod
    def build(cls, table: LookUpTable, low: float, high: float, size: int, rng: torch.Generator) -> "PriorPool":
        """`size` random architectures at costs evenly spaced inside (low, high), each within `tolerance(mark)`."""
        marks = torch.linspace(low, high, size + 2, dtype=torch.float64)[1:-1]
        marks = marks.mul(1000).round().div(1000)  # marks are written as decimal keys
        return cls(marks, torch.stack([_architecture_at(table, mark, rng) for mark in marks.tolist()]))

    def nearest(self, targets: Tensor) -> Tensor:
        """The priors `[N, L, E, K]` whose marks are nearest `targets [N]`."""
        marks = self.marks.to(targets)
        index = (targets[:, None] - marks).abs().argmin(dim=1)
        return self.paths.to(targets.device)[index]

    def save(self, path: Path) -> None:
        """Published JSON format: {mark: L rows of E K numbers}."""
        rows = {f"{mark:g}": prior.flatten(1).tolist() for mark, prior in zip(self.marks, self.paths, strict=True)}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(rows))

    @classmethod
    def load(cls, path: Path, space: UnifiedSpace) -> "PriorPool":
        """Read the published JSON format; UserError when the file does not hold architectures of this space."""
        L, E, K = space.shape
        try:
            rows = json.loads(Path(path).read_text())
            marks = torch.tensor([float(mark) for mark in rows], dtype=torch.float64)
            paths = torch.tensor(list(rows.values()), dtype=torch.float32)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: no prior pool in JSON ({error})") from None
        if paths.shape[1:] != (L, E * K) or len(marks) == 0:
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
    """How far in M the cost of a prior may be from its mark: 1 M, and 1 % where that is less."""
    return min(1.0, 0.01 * mark)


def _architecture_at(table: LookUpTable, mark: float, rng: torch.Generator, restarts: int = 64) -> Tensor:
    """A random path `[L, E, K]` that costs `mark` within `tolerance(mark)`.

    A random walk from a random path: each step changes one sub-block, drawn among the changes that bring the cost
    nearer; when one of them meets the mark, that one is taken. UserError when no walk gets there.
    """
    space = table.space
    least, most = table.reach(space.min_expansion)
    if not least - tolerance(mark) <= mark <= most + tolerance(mark):
        raise UserError(
            f"prior pool: no architecture costs {mark:g} M; with {space.min_expansion} active sub-blocks in each layer "
            f"the space reaches {least:.2f} to {most:.2f} M"
        )
    nearest = float("inf")
    for _ in range(restarts):
        path = space.sample(1, rng)[0]
        cost = float(table(path))
        while abs(cost - mark) > tolerance(mark):
            changed = _single_changes(space, path)
            costs = table(changed)
            misses = (costs - mark).abs()
            better = (misses < abs(cost - mark)).nonzero().flatten()
            if len(better) == 0:
                break
            if misses.min() <= tolerance(mark):
                better = (misses <= tolerance(mark)).nonzero().flatten()
            pick = better[torch.randint(len(better), (), generator=rng)]
            path, cost = changed[pick], float(costs[pick])
        if abs(cost - mark) <= tolerance(mark):
            return path
        nearest = min(nearest, cost, key=lambda c: abs(c - mark))
    raise UserError(
        f"prior pool: found no architecture within {tolerance(mark):g} M of {mark:g} M; nearest {nearest:.3f}"
    )


def _single_changes(space: UnifiedSpace, path: Tensor) -> Tensor:
    """All paths `[M, L, E, K]` one choice away that obey the mask and keep `min_expansion` in every layer."""
    L, E, K = space.shape
    changed = path.repeat(L * E * K, 1, 1, 1).view(L, E, K, L, E, K)
    l, e, k = torch.meshgrid(torch.arange(L), torch.arange(E), torch.arange(K), indexing="ij")
    changed[l, e, k, l, e] = torch.eye(K)[k]
    least = torch.tensor([spec.least_active(space.min_expansion) for spec in space.layers])
    enough = (space.active(changed) >= least - 0.5).all(dim=-1)
    return changed[enough & space.mask & (path == 0)]
