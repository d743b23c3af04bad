"""Makes a small folder to share: what a search and its networks are, without training state.

    python3 -m tools.release logs/digits_config logs/digits_5.5M --out release/digits

Of a search: config, supernet, generator and its prior pool; of a network: its checkpoint and
architecture. Weights are rounded to 16 bits, batch norms and biases stay as they are; result.json
of a network holds the accuracy of the rounded weights on the test images.
"""

import json
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
import yaml
from torch import Tensor

from model.sgnas.runs import GENERATOR_FILE, LATENCY_FILE, run_config, supernet_of
from model.spaces.registry import costs_of, describes_network
from model.trained import open_own
from model.training.from_scratch import ScratchTraining
from utils import checkpoint
from utils.command import Parser, command
from utils.engine import DeviceContext, evaluate
from utils.errors import UserError
from utils.json_file import read_json
from utils.places import output_folder
from utils.table import format_table

T = TypeVar("T")


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    what = {"nargs": "+", "type": Path, "metavar": "RUN_DIR"}
    parser.add_argument("runs", **what, help="of search.py, or of a trained network")
    where = {"required": True, "type": output_folder, "metavar": "DIR"}
    parser.add_argument("--out", **where, help="gets a folder of each run's name")
    args = parser.parse_args(argv)
    released: dict[Path, Callable[[Path], float | None]] = {}
    for run in args.runs:
        folder = args.out / run.resolve().name
        if folder.exists() or folder in released:
            raise UserError(f"--out {args.out}: {folder} is there already")
        is_search = (run / "checkpoints" / f"{GENERATOR_FILE}.pth").exists()
        released[folder] = partial(release_search if is_search else release_network, run)
    rows = []
    for folder, top1 in all_or_none(args.out, released).items():
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        rows.append([str(folder), f"{size / 1e6:.3f}", None if top1 is None else f"{top1:.2f}"])
    print(format_table(["folder", "MB", "test top-1 %"], rows))


def all_or_none(out: Path, writers: dict[Path, Callable[[Path], T]]) -> dict[Path, T]:
    """Let each writer fill its folder in `out`; they appear only when all are complete."""
    unfinished = {folder: folder.with_name(f".{folder.name}.unfinished") for folder in writers}
    made, results = [folder for folder in (out, *out.parents) if not folder.exists()], {}
    try:
        for folder, write in writers.items():
            shutil.rmtree(unfinished[folder], ignore_errors=True)
            unfinished[folder].mkdir(parents=True)
            results[folder] = write(unfinished[folder])
        for folder in writers:
            unfinished[folder].rename(folder)
        return results
    finally:
        for folder in unfinished.values():
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # not empty: it holds what is released
            for folder in made:
                folder.rmdir()


@dataclass(frozen=True)
class _Environment:
    """What is released of environment.json."""

    stage: str | None = None
    python: str | None = None
    torch: str | None = None
    commit: str | None = None


def copy_records(run: Path, folder: Path, *names: str) -> None:
    """How the run was started, without the machine, and what it measured."""
    read = read_json(run / "environment.json", _Environment, "the record of a run")
    kept = {key: value for key, value in asdict(read).items() if value is not None}
    checkpoint.write_text(folder / "environment.json", json.dumps(kept, indent=1) + "\n")
    for name in ("metrics.jsonl", *names):
        if (run / name).exists():
            checkpoint.copy(run / name, folder / name)


def release_search(run: Path, folder: Path) -> None:
    """What `tools.generate --run`, `msunas.py` and `tools.report` need."""
    config = run_config(run).to_dict()
    places = [key for key in config if key.startswith("path_to_") or key.endswith("_pretrained")]
    config |= {**dict.fromkeys(places), "log_dir": "./logs/", "write_dir": None}
    if (run / LATENCY_FILE).exists():  # by which a run folder is read, wherever it lies
        checkpoint.copy(run / LATENCY_FILE, folder / LATENCY_FILE)
        config["latency_table"] = LATENCY_FILE
    checkpoint.write_text(folder / "config.yml", yaml.safe_dump(config, sort_keys=False))
    for file in (supernet_of(run), run / "checkpoints" / f"{GENERATOR_FILE}.pth"):
        checkpoint.save(folder / "checkpoints" / file.name, small(checkpoint.load(file)))
    names = ("prior_pool.json", "architectures.json", "split.json", "supernet_evaluate.csv")
    copy_records(run, folder, *names)


def release_network(run: Path, folder: Path) -> float:
    """Its last weights, and their average when there is one; test top-1 of the last in %."""
    payload = checkpoint.load(run / "checkpoints" / "last.pth")
    if not describes_network(payload):
        raise UserError(f"{run}: no run of search.py with a generator, nor of a trained network")
    file = folder / "last.pth"
    checkpoint.save(file, small(payload))
    if (average := run / "checkpoints" / "ema.pth").exists():
        checkpoint.save(folder / "ema.pth", small(checkpoint.load(average)))
    trained, context = open_own(file), DeviceContext(torch.device("cpu"))
    score = evaluate(trained.network, trained.batches(trained.test_images(), 256), context)
    costs = costs_of(trained.spec, trained.network, trained.image_size)
    result = {**score.to_dict(), **costs, "checkpoint": file.name}
    checkpoint.write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
    copy_records(run, folder, "architecture.json", "config.yml")
    return score.top1


def small(payload: dict) -> dict:
    """A checkpoint without training state, its weights of two axes and more rounded to 16 bits."""
    keys = payload.keys() - set(ScratchTraining.RESUME_KEYS)
    return {key: rounded(value) for key, value in payload.items() if key in keys}


def rounded(value):
    """Tensors rounded where they are weights, in a nested dictionary."""
    if isinstance(value, Tensor):
        return value.half() if value.is_floating_point() and value.ndim > 1 else value.clone()
    return {key: rounded(part) for key, part in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
