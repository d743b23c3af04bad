"""Run folders of searches: config, supernet, and which generator answers for a config."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from model.sgnas.answers import ReadyGenerator
from model.sgnas.generator import ArchitectureGenerator
from model.sgnas.prior_pool import PriorPool
from model.spaces.contracts import CostTable
from model.spaces.registry import Problem, kind_of
from utils import checkpoint
from utils.config import Config, load_config
from utils.errors import UserError
from utils.json_file import as_type
from utils.ranges import Positive, Ranged

# The checkpoint of a run that answers for it: the generator of least total hardware loss.
GENERATOR_FILE = "generator_best_avg"
# The copy of its latency table that a run keeps.
LATENCY_FILE = "latency_table.yaml"


def run_config(run: Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The resolved config of a run folder."""
    if not (run / "config.yml").is_file():
        raise UserError(f"{run}: it is no run folder (it has no config.yml)")
    config, kept = load_config(run / "config.yml", overrides), run / LATENCY_FILE
    return replace(config, latency_table=str(kept)) if kept.exists() else config


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


@dataclass(frozen=True)
class _Generator(Ranged):
    """What the checkpoint of a generator says beside its weights."""

    unit: str = "M"
    table: str = ""  # the digest of the latency table
    low: Positive | None = None
    high: Positive | None = None


def load_generator(
    path: str | Path, low: float, high: float, hc_dim: int, table: CostTable | None = None
) -> ArchitectureGenerator:
    """A generator, ours or the released one, for targets `low` to `high` unless it says its own.

    UserError when it was trained for another unit than that of `table` (M without one), or for
    another latency table.
    """
    payload, unit = checkpoint.load(path), table.unit if table else "M"
    about = as_type(payload, _Generator, str(path), "a generator")
    if about.unit != unit:
        raise UserError(
            f"{path}: its targets are in {about.unit}; those of the config are in {unit}"
        )
    if about.table != (table.digest if table else ""):
        raise UserError(f"{path}: it was trained for another latency table than the config's")
    low, high = about.low or low, about.high or high
    if not low < high:
        raise UserError(f"{path}: its targets are {low:g} to {high:g}, which is no range")
    generator = ArchitectureGenerator(low, high, hc_dim)
    checkpoint.load_into(generator, checkpoint.weights(payload, path), path)
    return generator.eval()


def find_generator(config: Config, problem: Problem, run: Path | None = None) -> ReadyGenerator:
    """The generator of the folder `run`; else the config's; else of the newest run of its space."""
    named, pool = config.generator_pretrained, config.path_to_prior_pool
    if run is None and named and Path(named).exists():
        if not pool or not Path(pool).exists():
            raise UserError(f"path_to_prior_pool: {pool}: no such file; {named} needs its pool")
        return _ready(config, problem, Path(named), Path(pool))
    for folder in [run] if run is not None else _runs_of(problem, Path(config.log_dir)):
        file = folder / "checkpoints" / f"{GENERATOR_FILE}.pth"
        if file.exists():
            return _ready(config, problem, file, folder / "prior_pool.json", folder)
    raise UserError(
        f"no trained generator: generator_pretrained is {named}, and {run or config.log_dir} "
        "holds no run of this space and cost with one; run search.py first"
    )


def _ready(
    config: Config, problem: Problem, file: Path, pool: Path, run: Path | None = None
) -> ReadyGenerator:
    ends = (config.low_flops, config.high_flops)
    generator = load_generator(file, *ends, config.hc_dim, problem.table)
    priors = PriorPool.load(pool, problem.space)
    how = (problem.table, str(file), config.priors_per_target, run)
    return ReadyGenerator(generator, priors, *how)


def _runs_with_generator(log_dir: Path) -> list[Path]:
    """Newest first; not those in folders whose names start with a dot."""
    found = log_dir.glob(f"**/checkpoints/{GENERATOR_FILE}.pth")
    shown = [f for f in found if not any(p.startswith(".") for p in f.relative_to(log_dir).parts)]
    newest = sorted(shown, key=lambda file: file.stat().st_mtime, reverse=True)
    return [file.parent.parent for file in newest]


def _runs_of(problem: Problem, log_dir: Path) -> Iterator[Path]:
    """The runs of the same space and, where costs are latencies, of the same table."""
    for folder in _runs_with_generator(log_dir):
        try:
            config = run_config(folder)
            timed = config.cost == "latency"
            digest = checkpoint.digest(config.latency_table) if timed else ""
            same_space = kind_of(config).space(config) == problem.space
        except UserError as error:
            print(f"passed over {folder}: {error}", file=sys.stderr)
            continue
        if same_space and digest == problem.table.digest:
            yield folder
