"""What a search and its networks are, without what only training needs: a small folder to give away.

    python3 -m tools.release logs/digits_config logs/digits_5.5M --out release/digits

Of a search: config, supernet, generator and its prior pool; of a network: its checkpoint and architecture. Weights are
rounded to 16 bits, batch norms and biases stay as they are; the result.json of a network is what the rounded weights
reach on the test images.
"""

import json
from pathlib import Path

import torch
import yaml
from torch import Tensor

from model.blueprint import KINDS, costs_of
from model.generation import GENERATOR_FILE, run_config, supernet_of
from model.trained import open_own
from utils import checkpoint
from utils.command import Parser, command
from utils.engine import Placement, evaluate
from utils.errors import UserError
from utils.table import format_table

TRAINING = ("optimizer", "scaler", "average", "tally", "scores", "best_top1", "batch_size")


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="of search.py, or of a trained network")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="gets a folder of each run's name")
    args = parser.parse_args(argv)
    rows = []
    for run in args.runs:
        folder = args.out / run.resolve().name
        if folder.exists():
            raise UserError(f"--out {args.out}: {folder} is there already")
        if (run / "checkpoints" / f"{GENERATOR_FILE}.pth").exists():
            release_search(run, folder)
            reached = None
        else:
            reached = f"{release_network(run, folder):.2f}"
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        rows.append([str(folder), f"{size / 1e6:.3f}", reached])
    print(format_table(["folder", "MB", "test top-1 %"], rows))


def release_search(run: Path, folder: Path) -> None:
    """What `tools.generate --run` and `msunas.py` need."""
    config = run_config(run).to_dict()
    for key in config:
        config[key] = None if key.startswith("path_to_") else config[key]
    config |= {"log_dir": "./logs/", "write_dir": None, "model_pretrained": None, "generator_pretrained": None}
    checkpoint.write_text(folder / "config.yml", yaml.safe_dump(config, sort_keys=False))
    for file in (supernet_of(run), run / "checkpoints" / f"{GENERATOR_FILE}.pth"):
        checkpoint.save(folder / "checkpoints" / file.name, small(checkpoint.load(file)))
    for name in ("prior_pool.json", "architectures.json", "split.json"):
        checkpoint.copy(run / name, folder / name)


def release_network(run: Path, folder: Path) -> float:
    """Its last weights; top-1 in % of the test images."""
    payload = checkpoint.load(run / "checkpoints" / "last.pth")
    if payload.get("kind") not in KINDS:
        raise UserError(f"{run}: no run of search.py with a generator, and none of a trained network")
    file = folder / "last.pth"
    checkpoint.save(file, small(payload))
    trained = open_own(file)
    network, place = trained.network, Placement(torch.device("cpu"))
    score = evaluate(network, trained.batches(trained.test_images(), 256), place)
    result = {**score.to_dict(), **costs_of(trained.blueprint, network, trained.image_size), "checkpoint": file.name}
    checkpoint.write_text(folder / "result.json", json.dumps(result, indent=1) + "\n")
    checkpoint.copy(run / "architecture.json", folder / "architecture.json")
    return score.top1


def small(payload: dict) -> dict:
    """A checkpoint without the state of its training, its weights of two axes and more rounded to 16 bits."""
    return {key: rounded(value) for key, value in payload.items() if key not in TRAINING}


def rounded(value):
    if isinstance(value, Tensor):
        return value.half() if value.is_floating_point() and value.ndim > 1 else value.clone()
    return {key: rounded(part) for key, part in value.items()} if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
