"""What a trained generator answers: architectures for targets, and how near they come to them.

Axes: N targets, P priors, L layers, E sub-blocks, K choices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from model.costs.lookup_table import LookUpTable
from model.sgnas.generator import ArchitectureGenerator
from model.sgnas.hardware_loss import HardwareLoss
from model.sgnas.prior_pool import PriorPool
from model.sgnas.repair import Demand, repair
from model.spaces.contracts import CostTable
from model.spaces.paths import Architecture
from model.spaces.registry import parse_architecture, spec_of
from utils.errors import UserError
from utils.json_file import read_json
from utils.statistics import kendall_tau

Rank = Callable[[Tensor], NDArray]  # paths [M, L, E, K] -> scores [M], more is better
# Answers of the generator in one forward pass, so that memory stays bounded.
MOST_AT_ONCE = 2048


@dataclass(frozen=True)
class Generated:
    """An architecture for `target`; costs in millions, and in ms where the target is."""

    target: float
    architecture: Architecture
    macs_m: float
    params_m: float
    latency_ms: float | None = None

    @property
    def cost(self) -> float:
        """In the unit of the target."""
        return self.macs_m if self.latency_ms is None else self.latency_ms

    @property
    def unit(self) -> str:
        """Of the target."""
        return "M" if self.latency_ms is None else "ms"


@dataclass(frozen=True)
class ReadyGenerator:
    """A generator on any device with all it needs to answer; the table is on the CPU.

    `source` says where it comes from, `run` is the folder of its run, if any. Each target is
    answered from each of its `priors_per_target` nearest priors; the answer that costs nearest to
    it counts, or of those that meet it the one that is ranked best.
    """

    generator: ArchitectureGenerator
    pool: PriorPool
    table: CostTable
    source: str
    priors_per_target: int = 1
    run: Path | None = None

    def candidates(self, targets: Tensor) -> Tensor:
        """Logits `[N, P, L, E, K]` on the CPU, a forward pass for each `MOST_AT_ONCE` answers."""
        parts = targets.split(max(1, MOST_AT_ONCE // self.priors_per_target))
        return torch.cat([self._candidates(part) for part in parts])

    @torch.no_grad()
    def _candidates(self, targets: Tensor) -> Tensor:
        on_device = targets.to(self.generator.tail[0].weight)
        priors = self.pool.near(on_device, self.priors_per_target)
        count = priors.shape[1]
        answers = self.generator(priors.flatten(0, 1), on_device.repeat_interleave(count))
        return answers.cpu().unflatten(0, (-1, count))

    def logits(self, targets: Tensor) -> Tensor:
        """Logits `[N, L, E, K]` of the candidates that cost nearest to `targets [N]`."""
        answers = self.candidates(targets)
        costs = self.table(self.table.space.discretize(answers)).double()
        nearest = (costs - targets[:, None]).abs().argmin(dim=1)
        return answers[torch.arange(len(targets)), nearest]

    def generate(self, targets: Tensor) -> list[Generated]:
        """The architecture of the largest logits for each of `targets [N]`."""
        return self._described(targets, self.table.space.discretize(self.logits(targets)))

    def repaired(self, targets: Tensor, **demand) -> tuple[list[Generated], list[float]]:
        """As `generate`, with the least change that meets `Demand(target, **demand)`.

        Second: the targets that are not met.
        """
        logits = self.logits(targets)
        paths = self.table.space.discretize(logits)
        pairs = zip(targets.tolist(), logits, paths, strict=True)
        results = [
            repair(self.table, row, path, Demand(target, **demand)) for target, row, path in pairs
        ]
        met = zip(targets.tolist(), results, strict=True)
        unmet = [target for target, (_, is_met) in met if not is_met]
        return self._described(targets, torch.stack([path for path, _ in results])), unmet

    def answer(
        self, targets: Tensor, rank: Rank | None, tolerance: float = 0.005
    ) -> list[Generated]:
        """As `generate`; with `rank` the best of what costs each target within `tolerance`."""
        if rank is None:
            return self.generate(targets)
        return self.ranked(targets, rank, tolerance=tolerance)[0]

    def within(
        self, targets: Tensor, rank: Rank | None, max_params: float | None = None
    ) -> tuple[list[Generated], list[float]]:
        """Answers to targets that are ceilings, ranked where `rank` is given.

        Second: the targets that are not met.
        """
        demand = {"at_most": True, "max_params": max_params}
        if rank is None:
            return self.repaired(targets, **demand)
        return self.ranked(targets, rank, **demand)

    def ranked(self, targets: Tensor, rank: Rank, **demand) -> tuple[list[Generated], list[float]]:
        """Of the candidates that meet `Demand(target, **demand)`, repaired, the best by `rank`.

        Second: the targets that none meets; they are answered by the nearest in cost.
        """
        space, chosen, unmet = self.table.space, [], []
        for target, logits in zip(targets.tolist(), self.candidates(targets), strict=True):
            paths, asked = space.discretize(logits), Demand(target, **demand)
            pairs = zip(logits, paths, strict=True)
            results = [repair(self.table, row, path, asked) for row, path in pairs]
            met = [path for path, is_met in results if is_met]
            if met:
                different = torch.stack(met).unique(dim=0)
                best = int(rank(different).argmax()) if len(different) > 1 else 0
                chosen.append(different[best])
            else:
                costs = self.table(torch.stack([path for path, _ in results])).double()
                chosen.append(results[int((costs - target).abs().argmin())][0])
                unmet.append(target)
        return self._described(targets, torch.stack(chosen)), unmet

    def _described(self, targets: Tensor, paths: Tensor) -> list[Generated]:
        space, parameters = self.table.space, self.table.parameters_m(paths).tolist()
        macs = LookUpTable(space)(paths).tolist()
        latencies = self.table(paths).tolist() if self.table.unit == "ms" else [None] * len(paths)
        columns = (targets.tolist(), map(space.decode, paths), macs, parameters, latencies)
        return [Generated(*row) for row in zip(*columns, strict=True)]

    def check(self, targets: Tensor, at_most: bool = False) -> None:
        """UserError naming the first target that no architecture can meet; see `check_reach`."""
        for target in targets.tolist():
            check_reach(self.table, target, at_most)


def check_reach(table: CostTable, target: float, at_most: bool = False) -> None:
    """UserError for a target that no architecture can meet (with `at_most`: stay below)."""
    (least, most), unit = table.reach(), table.unit
    if target < least or (target > most and not at_most):
        raise UserError(
            f"target {target:g} {unit}: no architecture meets it; "
            f"this space reaches {least:.2f} to {most:.2f} {unit}"
        )


def miss_table(found: list[Generated]) -> tuple[list[str], list[list]]:
    """Columns and rows that say how far each architecture is from its target."""
    unit = found[0].unit
    timed = unit == "ms"
    rows = [
        [
            *(f"{g.target:g}", f"{g.cost:.3f}", f"{100 * (g.cost / g.target - 1):+.1f}"),
            *[f"{g.macs_m:.3f}"] * timed,
            f"{g.params_m:.3f}",
        ]
        for g in found
    ]
    return [f"target {unit}", f"cost {unit}", "miss %", *["cost M"] * timed, "params M"], rows


# -- how well it answers -------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """The architectures for the evaluated targets, and what they say of the generator.

    `hardware_loss` is the total over the targets, `kendall_tau` that between targets and costs,
    `mean_miss` the mean of |cost - target| / target, `prior_kept` the share of choices that are
    those of a prior.
    """

    found: list[Generated]
    hardware_loss: float
    kendall_tau: float
    mean_miss: float
    prior_kept: float

    @property
    def middle(self) -> Generated:
        return self.found[len(self.found) // 2]


def answers(
    ready: ReadyGenerator,
    hardware_loss: HardwareLoss,
    targets: Tensor,
    rank: Rank | None = None,
    tolerance: float = 0.005,
) -> Answers:
    """What `ready` answers to `targets [N]`; see `ReadyGenerator.answer`."""
    found = ready.answer(targets, rank, tolerance)
    costs = torch.tensor([g.cost for g in found], dtype=torch.float64)
    return Answers(
        found,
        hardware_loss=float(hardware_loss(costs, targets).sum()),
        kendall_tau=float(kendall_tau(targets, costs, constant=0.0)),
        mean_miss=float(((costs - targets).abs() / targets).mean()),
        prior_kept=_prior_kept(ready, found),
    )


def evaluated_targets(low: float, high: float, step: float) -> Tensor:
    """`low` to `high` in steps of `step`, float64 `[N]`."""
    steps = int((high - low) / step + 1e-6)
    return low + step * torch.arange(steps + 1, dtype=torch.float64)


def _prior_kept(ready: ReadyGenerator, found: list[Generated]) -> float:
    """Share of the choices that are those of the most similar prior of each answer."""
    space = ready.table.space
    priors = ready.pool.near(torch.tensor([g.target for g in found]), ready.priors_per_target)
    paths = torch.stack([space.encode(g.architecture) for g in found])
    same = (paths[:, None] * priors).sum(dim=-1)[:, :, space.exists].mean(dim=2)
    return float(same.max(dim=1).values.mean())


# -- lists of answers as files -------------------------------------------------------------------


def rows_of(found: list[Generated], space) -> list[dict]:
    """What a file of generated architectures holds."""
    return [
        {
            "target": g.target,
            "macs_m": round(g.macs_m, 6),
            "params_m": round(g.params_m, 6),
            **({} if g.latency_ms is None else {"latency_ms": round(g.latency_ms, 6)}),
            "kind": space.kind,
            "architecture": spec_of(space, g.architecture).to_json(),
        }
        for g in found
    ]


@dataclass(frozen=True)
class _Row:
    """A row of such a file; in older ones `choices` are the architecture."""

    target: float
    macs_m: float
    params_m: float
    latency_ms: float | None = None
    kind: str | None = None
    architecture: Any = None
    choices: Any = None

    def read(self, kind: str | None) -> Generated:
        if kind is not None and self.kind not in (None, kind):
            raise UserError(f"architecture: of kind {self.kind}, not {kind}")
        written = self.choices if self.architecture is None else self.architecture
        _, architecture = parse_architecture(written, self.kind or kind)
        return Generated(self.target, architecture, self.macs_m, self.params_m, self.latency_ms)


def read_generated(path: str | Path, kind: str | None = None) -> list[Generated]:
    """The file that `tools.generate` writes; UserError when it is none, or of another `kind`."""
    what = "a list of generated architectures"
    rows = read_json(path, list[_Row], what)
    if not rows:
        raise UserError(f"{path}: the list of architectures is empty")
    try:
        return [row.read(kind) for row in rows]
    except UserError as error:
        raise UserError(f"{path}: not {what} ({error})") from None
