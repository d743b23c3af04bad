"""From a config and files to objects: the join that the stages share."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.generator import ArchitectureGenerator, PriorPool
from model.lookup_table import LookUpTable
from model.space import Architecture, LayerSpec, UnifiedSpace
from model.supernet import UnifiedSupernet, from_published
from utils import checkpoint
from utils.config import Config, load_config
from utils.data import SMALL
from utils.errors import UserError
from utils.runtime import stream


def build_space(config: Config) -> UnifiedSpace:
    """The search space of a config; UserError when its targets lie outside what the space can reach."""
    layers, channels = [], config.first_channels
    for index, row in enumerate(config.l_cfgs):
        residual = row.stride == 1 and row.out_channels == channels
        may_vanish = row.skip and residual and index not in config.static_layers
        layers.append(
            LayerSpec(channels, row.out_channels, row.stride, row.expansion, row.kernels, row.skip, may_vanish, row.se)
        )
        channels = row.out_channels
    space = UnifiedSpace(
        layers=tuple(layers),
        image_size=config.input_size,
        classes=config.classes,
        stem_channels=config.stem_channels,
        stem_stride=config.stem_stride or (1 if config.input_size < SMALL else 2),
        first_channels=config.first_channels,
        head_channels=config.head_channels,
        min_expansion=config.min_expansion,
    )
    least, most = LookUpTable(space).reach()
    for key in ("low_flops", "high_flops"):
        if not least <= getattr(config, key) <= most:
            raise UserError(f"{key}: {getattr(config, key):g} M; this space reaches {least:.2f} to {most:.2f} M")
    return space


def load_supernet(supernet: UnifiedSupernet, path: str) -> None:
    """Weights of a supernet checkpoint, ours or the published release's; UserError when it is neither."""
    state = checkpoint.weights(checkpoint.load(path), path)
    if any(".depthwise.blocks.0.blocks." in key for key in state):
        state = from_published(supernet.space, state)
    checkpoint.load_into(supernet, state, path)


def load_generator(path: str | Path, low: float, high: float, hc_dim: int) -> ArchitectureGenerator:
    """A generator, ours or the released one. Its own target range counts when the checkpoint says it."""
    payload = checkpoint.load(path)
    generator = ArchitectureGenerator(payload.get("low", low), payload.get("high", high), hc_dim)
    checkpoint.load_into(generator, checkpoint.weights(payload, path), path)
    return generator.eval()


def prior_pool(config: Config, table: LookUpTable, run_file: Path | None) -> PriorPool:
    """The pool of the run being continued, else that in `path_to_prior_pool`, else a new one."""
    for path in (run_file, config.path_to_prior_pool):
        if path and Path(path).exists():
            return PriorPool.load(path, table.space)
    rng = stream(config.seed, "prior pool")
    return PriorPool.build(table, config.low_flops, config.high_flops, config.pool_size, rng)


@dataclass(frozen=True)
class Generated:
    """An architecture that the generator gave for `target`; costs in millions."""

    target: float
    architecture: Architecture
    macs_m: float
    params_m: float

    def to_dict(self) -> dict:
        return {
            "target": self.target,
            "macs_m": round(self.macs_m, 6),
            "params_m": round(self.params_m, 6),
            "choices": self.architecture.choices,
            "kernels": self.architecture.kernels,
        }


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator on any device with all it needs to answer, and where it comes from; the table is on the CPU."""

    generator: ArchitectureGenerator
    pool: PriorPool
    table: LookUpTable
    source: str

    @torch.no_grad()
    def generate(self, targets: Tensor) -> list[Generated]:
        """One architecture for each of `targets [N]` (M), all in one forward pass."""
        space, device = self.table.space, self.generator.tail[0].weight.device
        targets = targets.to(device)
        paths = space.discretize(self.generator(self.pool.nearest(targets), targets)).cpu()
        costs, parameters = self.table(paths).tolist(), self.table.parameters_m(paths).tolist()
        return [
            Generated(target, space.decode(path), macs, params)
            for target, path, macs, params in zip(targets.tolist(), paths, costs, parameters, strict=True)
        ]


GENERATOR_FILE = "generator_best_avg"


def find_generator(config: Config, run: Path | None = None) -> TrainedGenerator:
    """The generator of the folder `run`; else the config's; else that of the newest run with the config's space."""
    space = build_space(config)
    if run is None and config.generator_pretrained and Path(config.generator_pretrained).exists():
        pool = config.path_to_prior_pool
        if not pool or not Path(pool).exists():
            raise UserError(
                f"path_to_prior_pool: {pool}: no such file, and {config.generator_pretrained} needs its pool"
            )
        return _trained(config, space, Path(config.generator_pretrained), Path(pool))
    runs = [run] if run is not None else _newest_runs(Path(config.log_dir), space)
    for folder in runs:
        file = folder / "checkpoints" / f"{GENERATOR_FILE}.pth"
        if file.exists():
            return _trained(config, space, file, folder / "prior_pool.json")
    raise UserError(
        f"no trained generator: generator_pretrained is {config.generator_pretrained}, and "
        f"{run or config.log_dir} holds no run of this space with one; run search.py first"
    )


def _trained(config: Config, space: UnifiedSpace, file: Path, pool: Path) -> TrainedGenerator:
    generator = load_generator(file, config.low_flops, config.high_flops, config.hc_dim)
    return TrainedGenerator(generator, PriorPool.load(pool, space), LookUpTable(space), str(file))


def newest_config(log_dir: Path) -> Config:
    """The config of the newest run under `log_dir` that has a generator."""
    for folder in _run_folders(log_dir):
        return run_config(folder)
    raise UserError(f"{log_dir}: it holds no run with a trained generator; run search.py first, or give --cfg")


def run_config(run: Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The resolved config of a run folder."""
    if not (run / "config.yml").is_file():
        raise UserError(f"{run}: it is no run folder (it has no config.yml)")
    return load_config(run / "config.yml", overrides)


def _run_folders(log_dir: Path) -> list[Path]:
    """Runs with a generator, newest first."""
    found = log_dir.glob(f"**/checkpoints/{GENERATOR_FILE}.pth")
    return [file.parent.parent for file in sorted(found, key=lambda f: f.stat().st_mtime, reverse=True)]


def _newest_runs(log_dir: Path, space: UnifiedSpace) -> list[Path]:
    return [folder for folder in _run_folders(log_dir) if build_space(run_config(folder)) == space]


def read_generated(path: Path) -> list[Generated]:
    """The file that `tools.generate` writes; UserError when it is none."""
    try:
        return [
            Generated(row["target"], Architecture.of(row["choices"]), row["macs_m"], row["params_m"])
            for row in json.loads(path.read_text())
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: no list of generated architectures ({error})") from None
