"""From a trained generator, or a file, to architectures: what comes after a search."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.costs.lookup_table import CostTable, LookUpTable
from model.sgnas.generator import ArchitectureGenerator, PriorPool
from model.sgnas.repair import Demand, repair
from model.spaces.nasbench201.space import CellSpace
from model.spaces.registry import build_cost_table, build_space
from model.spaces.unified.space import Architecture, UnifiedSpace, load_architecture
from utils import checkpoint
from utils.config import Config, load_config
from utils.errors import UserError


@dataclass(frozen=True)
class Generated:
    """An architecture that a generator gave for `target`; costs in millions, and in ms where the
    target is.
    """

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

    def to_dict(self) -> dict:
        return {
            "target": self.target,
            "macs_m": round(self.macs_m, 6),
            "params_m": round(self.params_m, 6),
            **({} if self.latency_ms is None else {"latency_ms": round(self.latency_ms, 6)}),
            "choices": self.architecture.choices,
            "kernels": self.architecture.kernels,
        }


# Answers of the generator in one forward pass, so that memory stays bounded.
MOST_AT_ONCE = 2048


@dataclass(frozen=True)
class ReadyGenerator:
    """A generator on any device with all it needs to answer, and where it comes from; the table is
    on the CPU.
    """

    generator: ArchitectureGenerator
    pool: PriorPool
    table: CostTable
    source: str
    priors_per_target: int = 1

    def logits(self, targets: Tensor) -> Tensor:
        """Logits `[N, L, E, K]` for `targets [N]` on the CPU, in one forward pass for each
        `MOST_AT_ONCE` answers.

        Each target is answered from each of its `priors_per_target` nearest priors; the answer that
        costs nearest to it counts.
        """
        parts = targets.split(max(1, MOST_AT_ONCE // self.priors_per_target))
        return torch.cat([self._logits(part) for part in parts])

    @torch.no_grad()
    def _logits(self, targets: Tensor) -> Tensor:
        on_device = targets.to(self.generator.tail[0].weight)
        priors = self.pool.near(on_device, self.priors_per_target)
        count = priors.shape[1]
        answers = self.generator(priors.flatten(0, 1), on_device.repeat_interleave(count))
        answers = answers.cpu().unflatten(0, (-1, count))
        misses = (
            self.table(self.table.space.discretize(answers)).double() - targets[:, None]
        ).abs()
        return answers[torch.arange(len(targets)), misses.argmin(dim=1)]

    def generate(self, targets: Tensor) -> list[Generated]:
        """The architecture of the largest logits for each of `targets [N]`."""
        return self._described(targets, self.table.space.discretize(self.logits(targets)))

    def repaired(self, targets: Tensor, **demand) -> tuple[list[Generated], list[float]]:
        """As `generate`, with the least change that meets `Demand(target, **demand)`; and the
        targets not met.
        """
        logits = self.logits(targets)
        paths = self.table.space.discretize(logits)
        pairs = zip(targets.tolist(), logits, paths, strict=True)
        results = [
            repair(self.table, row, path, Demand(target, **demand)) for target, row, path in pairs
        ]
        unmet = [
            target for target, (_, met) in zip(targets.tolist(), results, strict=True) if not met
        ]
        return self._described(targets, torch.stack([path for path, _ in results])), unmet

    def _described(self, targets: Tensor, paths: Tensor) -> list[Generated]:
        space, parameters = self.table.space, self.table.parameters_m(paths).tolist()
        macs = LookUpTable(space)(paths).tolist()
        latencies = self.table(paths).tolist() if self.table.unit == "ms" else [None] * len(paths)
        columns = (targets.tolist(), map(space.decode, paths), macs, parameters, latencies)
        return [Generated(*row) for row in zip(*columns, strict=True)]

    def check(self, targets: Tensor, at_most: bool = False) -> None:
        """UserError naming the first of `targets` that no architecture can meet (with `at_most`:
        stay below).
        """
        (least, most), unit = self.table.reach(), self.table.unit
        for target in targets.tolist():
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


# -- finding a generator ---------------------------------------------------------------------------

# The checkpoint of a run that answers for it: the generator of least total hardware loss.
GENERATOR_FILE = "generator_best_avg"


def load_generator(
    path: str | Path, low: float, high: float, hc_dim: int, unit: str = "M", table: str = ""
) -> ArchitectureGenerator:
    """A generator, ours or the released one; UserError when it was trained for another unit or
    another table's digest.

    Its own range of targets counts when the checkpoint says it.
    """
    payload = checkpoint.load(path)
    if payload.get("unit", "M") != unit:
        raise UserError(
            f"{path}: its targets are in {payload.get('unit', 'M')}; those of the config are in {unit}"
        )
    if payload.get("table", "") != table:
        raise UserError(f"{path}: it was trained for another latency table than the config's")
    low, high = payload.get("low", low), payload.get("high", high)
    generator = ArchitectureGenerator(low, high, hc_dim)
    checkpoint.load_into(generator, checkpoint.weights(payload, path), path)
    return generator.eval()


def find_generator(config: Config, run: Path | None = None) -> ReadyGenerator:
    """The generator of the folder `run`; else the config's; else that of the newest run with the
    config's space.
    """
    space = build_space(config)
    if run is None and config.generator_pretrained and Path(config.generator_pretrained).exists():
        pool = config.path_to_prior_pool
        if not pool or not Path(pool).exists():
            raise UserError(
                f"path_to_prior_pool: {pool}: no such file; {config.generator_pretrained} needs its pool"
            )
        return _ready(config, space, Path(config.generator_pretrained), Path(pool))
    for folder in (
        [run]
        if run is not None
        else _runs_of(space, build_cost_table(config, space), Path(config.log_dir))
    ):
        file = folder / "checkpoints" / f"{GENERATOR_FILE}.pth"
        if file.exists():
            return _ready(config, space, file, folder / "prior_pool.json")
    raise UserError(
        f"no trained generator: generator_pretrained is {config.generator_pretrained}, and "
        f"{run or config.log_dir} holds no run of this space and cost with one; run search.py first"
    )


def _ready(
    config: Config, space: UnifiedSpace | CellSpace, file: Path, pool: Path
) -> ReadyGenerator:
    table = build_cost_table(config, space)
    generator = load_generator(
        file, config.low_flops, config.high_flops, config.hc_dim, table.unit, table.digest
    )
    return ReadyGenerator(
        generator, PriorPool.load(pool, space), table, str(file), config.priors_per_target
    )


# The copy of its latency table that a run keeps.
LATENCY_FILE = "latency_table.yaml"


def run_config(run: Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The resolved config of a run folder."""
    if not (run / "config.yml").is_file():
        raise UserError(f"{run}: it is no run folder (it has no config.yml)")
    config = load_config(run / "config.yml", overrides)
    return (
        replace(config, latency_table=str(run / LATENCY_FILE))
        if (run / LATENCY_FILE).exists()
        else config
    )


def supernet_of(run: Path) -> Path:
    """The supernet checkpoint of a run folder; UserError when it has none."""
    file = run / "checkpoints" / "supernet_best.pth"
    if not file.exists():
        raise UserError(f"{file}: no such file; search.py writes it in the warm-up")
    return file


def newest_config(log_dir: Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The config of the newest run under `log_dir` that has a generator."""
    for folder in _runs_with_generator(log_dir):
        return run_config(folder, overrides)
    raise UserError(
        f"{log_dir}: it holds no run with a trained generator; run search.py first, or give --cfg"
    )


def _runs_with_generator(log_dir: Path) -> list[Path]:
    """Newest first."""
    found = log_dir.glob(f"**/checkpoints/{GENERATOR_FILE}.pth")
    found = [
        file
        for file in found
        if not any(part.startswith(".") for part in file.relative_to(log_dir).parts)
    ]
    return [
        file.parent.parent for file in sorted(found, key=lambda f: f.stat().st_mtime, reverse=True)
    ]


def _runs_of(space: UnifiedSpace | CellSpace, table: CostTable, log_dir: Path) -> list[Path]:
    runs = []
    for folder in _runs_with_generator(log_dir):
        try:
            config = run_config(folder)
            if (
                build_space(config) == space
                and build_cost_table(config, space).digest == table.digest
            ):
                runs.append(folder)
        except UserError as error:
            print(f"passed over {folder}: {error}", file=sys.stderr)
    return runs


# -- choosing one architecture ---------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """The architecture to train or validate, the target that it answers when there is one, and
    where it comes from.
    """

    architecture: Architecture
    target: float | None
    source: str


def choose(
    config: Config, space: UnifiedSpace | CellSpace, target: float | None, file: Path | None
) -> Chosen:
    """The architecture in `file` (of a list, the one nearest the target), else the generator's for
    `target`.
    """
    if file is not None:
        return choose_from_file(space, target, file, config.unit)
    ready, targets = find_generator(config), torch.tensor([target], dtype=torch.float64)
    ready.check(targets)
    return Chosen(ready.generate(targets)[0].architecture, target, ready.source)


def choose_from_file(
    space: UnifiedSpace | CellSpace, target: float | None, file: Path, unit: str = "M"
) -> Chosen:
    """The architecture in `file`, which `save_architecture` or `tools.generate` wrote; UserError
    when it is none.

    A `target` in `unit` chooses from a list.
    """
    if _is_list(file):
        found = read_generated(file)
        if target is not None and found[0].unit != unit:
            raise UserError(
                f"{file}: its targets are in {found[0].unit}; those of the config are in {unit}"
            )
        if target is None and len(found) != 1:
            raise UserError(
                f"{file}: it holds {len(found)} architectures; a target must choose one"
            )
        nearest = min(found, key=lambda g: abs(g.target - target) if target is not None else 0)
        if target is not None and abs(nearest.target / target - 1) > 0.01:
            raise UserError(
                f"{file}: its target nearest to {target:g} {unit} is {nearest.target:g} {unit}"
            )
        space.check(nearest.architecture)
        return Chosen(nearest.architecture, nearest.target, str(file))
    stored_space, architecture, record = load_architecture(file)
    if not space.fits(stored_space):
        raise UserError(f"{file}: its space is not that of the config")
    return Chosen(architecture, target or record.get("provenance", {}).get("target"), str(file))


def _is_list(file: Path) -> bool:
    try:
        return file.read_text(encoding="utf-8").lstrip().startswith("[")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as an architecture ({error})") from None


def read_generated(path: Path) -> list[Generated]:
    """The file that `tools.generate` writes; UserError when it is none."""
    try:
        found = [
            Generated(
                float(row["target"]),
                Architecture.of(row["choices"]),
                float(row["macs_m"]),
                float(row["params_m"]),
                float(row["latency_ms"]) if "latency_ms" in row else None,
            )
            for row in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no list of generated architectures ({error})") from None
    if not found:
        raise UserError(f"{path}: the list of architectures is empty")
    return found
