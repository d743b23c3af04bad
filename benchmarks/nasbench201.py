"""NAS-Bench-201: does the search find what is there to find?

    python3 -m benchmarks.nasbench201 rank RUN [--count 500] [--ranking NAME] [--set KEY=VALUE]
    python3 -m benchmarks.nasbench201 report RUN [RUN ...] --table FILE [--searches DIR ...] [--json FILE] [--count 500]

`rank` scores random cells with the supernet of a run of search.py, on its held-out images, into
RUN/ranking.jsonl; the same command goes on where it stopped. `report` looks up what the cells, the
answers of the generators, those of msunas.py searches on the same supernets and the best of the
ranked cells are really worth. Only this report knows of the table.
"""

import json
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch import Tensor

from model.nsganetv2.archive import last_archive
from model.sgnas.answers import evaluated_targets
from model.sgnas.runs import GENERATOR_FILE, find_generator, run_config, supernet_of
from model.sgnas.warm_up import PathValidation, top1_of_all
from model.spaces.nasbench201.benchmark_table import CellTable
from model.spaces.nasbench201.space import CellSpace, from_string, to_string
from model.spaces.registry import build_supernet, load_supernet, open_problem
from utils import checkpoint, distributed
from utils.command import Parser, command, positive
from utils.config import Config
from utils.data import load_dataset, split_for_search
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.runtime import Progress, pick_device, stream
from utils.table import format_table

BINS = 5  # of cost, of as many cells each
TOGETHER = 8  # cells that are scored before any is written
DRAWN = 4096  # random cells, of which the first different ones are ranked
DRAWS = 10  # random cells, of which the best counts
METHODS = ("generator", "msunas", "best ranked")


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("what", choices=("rank", "report"))
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder of search.py")
    parser.add_argument("--count", type=positive, default=500, help="random cells (default 500)")
    parser.add_argument(
        "--ranking",
        default="ranking.jsonl",
        metavar="NAME",
        help="file of the scores in RUN (default ranking.jsonl)",
    )
    parser.add_argument("--table", metavar="FILE", help="true accuracies (docs/nasbench201.md)")
    parser.add_argument(
        "--searches",
        nargs="*",
        type=Path,
        default=[],
        metavar="DIR",
        help="msunas.py, one for each RUN",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="add the numbers of each run to FILE, one line each",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="override the config of the runs"
    )
    args = parser.parse_args(argv)
    configs = [config_of(run, args.set) for run in args.runs]
    if args.what == "rank":
        for run, config in zip(args.runs, configs, strict=True):
            rank(run, config, args.count, args.ranking)
    elif args.table is None:
        raise UserError(
            "--table: report needs the true accuracies; docs/nasbench201.md says how to make the file"
        )
    elif args.searches and len(args.searches) != len(args.runs):
        raise UserError(f"--searches: {len(args.searches)} for {len(args.runs)} runs")
    else:
        report(args, configs)


def config_of(run: Path, overrides: list[str]) -> Config:
    """That of a run on the published cells; UserError when it is of another space."""
    config = run_config(run, overrides)
    if config.supernet != "nasbench201" or open_problem(config).space != CellSpace():
        raise UserError(f"{run}: it is no run on the published cells of NAS-Bench-201")
    return config


# -- ranking ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Cells `[N, L, E, K]`, and what a supernet says of each (`[N]`, validation top-1 in %)."""

    paths: Tensor
    said: NDArray

    @classmethod
    def read(cls, file: Path, count: int) -> "Ranking":
        """The first `count` cells of a ranking; UserError when there are fewer."""
        records = read_records(file)
        if len(records) < count:
            rank = f"python3 -m benchmarks.nasbench201 rank {file.parent} --count {count}"
            raise UserError(
                f"{file}: it has {len(records)} cells; {rank} ranks more, or give --count"
            )
        paths = [CellSpace().encode(from_string(record["cell"])) for record in records[:count]]
        return cls(torch.stack(paths), np.array([record["top1"] for record in records[:count]]))


def rank(run: Path, config: Config, count: int, name: str) -> None:
    """Score `count` random cells, the same for all runs; only those that RUN/`name` does not have
    yet.

    On all images that did not train the supernet; several processes share the cells.
    """
    drawn = CellSpace().sample(DRAWN, stream(0, "ranking"))
    cells = {to_string(CellSpace().decode(path)): path for path in drawn}
    if count > len(cells):
        raise UserError(f"--count {count}: at most {len(cells)}")
    file, weights = run / name, supernet_of(run)
    dataset = load_dataset(config.dataset, config.dataset_dir, config.input_size, config.classes)
    images = split_for_search(dataset, config.train_portion, config.seed, run / "split.json")
    images = replace(images, validate=images.held_out)
    by = {"supernet": checkpoint.digest(weights)[:16], "images": len(images.validate.labels)}
    by["norms"] = config.bn_recalibration_images
    records = read_records(file)
    if any({key: record.get(key) for key in by} != by for record in records):
        raise UserError(
            f"{file}: it was scored in another way, or by another supernet; give --ranking NAME"
        )
    if distributed.rank() == 0:  # without a line that a kill cut off
        checkpoint.write_text(file, "".join(json.dumps(record) + "\n" for record in records))
    known = {record["cell"] for record in records}
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    supernet = build_supernet(config).to(context.device)
    load_supernet(supernet, weights)
    validation = PathValidation(supernet.eval(), images, config, context)
    left = [(cell, path) for cell, path in list(cells.items())[:count] if cell not in known]
    with Progress(f"{run.name}: cells", len(left)) as progress, file.open("a") as out:
        for start in range(0, len(left), TOGETHER):
            some, paths = zip(*left[start : start + TOGETHER], strict=True)
            for cell, top1 in zip(some, top1_of_all(validation, torch.stack(paths)), strict=True):
                if distributed.rank() == 0:
                    out.write(json.dumps({"cell": cell, "top1": top1, **by}) + "\n")
                progress.update(top1=top1)
            out.flush()
    print(f"{file}: {max(count, len(known))} cells")


def read_records(file: Path) -> list[dict]:
    """The lines of a ranking, but for a last one that was cut off; UserError when it is none."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
            from_string(record["cell"])
            float(record["top1"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: line {number}: no score of a cell ({error})") from None
        records.append(record)
    return records


def taus(ranking: Ranking, table: CellTable) -> dict[str, float]:
    """Kendall tau with the truth of what the supernet says, and of cost: over all cells, and the
    mean inside bins.

    `top1` is the mean of what it says.
    """
    said, true, costs = (
        ranking.said,
        table.accuracy(ranking.paths).numpy(),
        table.cost(ranking.paths).numpy(),
    )
    bins = np.array_split(np.argsort(costs, kind="stable"), BINS)
    return {
        "cells": len(said),
        "top1": float(said.mean()),
        "tau": _tau(said, true),
        "inside bins": float(np.mean([_tau(said[part], true[part]) for part in bins])),
        "cost": _tau(costs, true),
        "cost inside bins": float(np.mean([_tau(costs[part], true[part]) for part in bins])),
    }


def _tau(a: NDArray, b: NDArray) -> float:
    """Kendall's tau-b; 0 where one of the two says nothing."""
    return float(kendalltau(a, b).statistic) if len(np.unique(a)) > 1 < len(np.unique(b)) else 0.0


# -- what answers are worth ------------------------------------------------------------------------


def expected_best(accuracies: Tensor, draws: int) -> float:
    """The mean of the best of `draws` random cells out of those with `accuracies [n]`, in closed
    form.
    """
    ordered = accuracies.double().sort().values
    below = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return float((ordered * (below[1:] ** draws - below[:-1] ** draws)).sum())


def generated(run: Path, config: Config, targets: Tensor) -> Tensor:
    """The generator's cells `[N, L, E, K]`, each repaired to stay below its target."""
    ready = find_generator(config, run)
    found, unmet = ready.repaired(targets, at_most=True)
    assert not unmet, unmet
    return torch.stack([ready.table.space.encode(g.architecture) for g in found])


def evolved(folder: Path, supernet: str, targets: Tensor, table: CellTable) -> Tensor:
    """Of a search's archive, for each target the cell of the best validation accuracy that costs no
    more.

    UserError when the search was on another supernet than that of the digest, or knew test images.
    """
    try:
        settings = json.loads((folder / "search.json").read_text())["settings"]
        foreign, tested = settings["supernet_path"] != supernet, settings["test"]
        records = last_archive(folder)
        paths = torch.stack(
            [CellSpace().encode(from_string(record["cell"])) for record, _, _ in records]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--searches {folder}: no search of cells by msunas.py ({error})") from None
    if foreign or tested:
        reason = (
            "was on another supernet than this run's" if foreign else "was guided by test images"
        )
        raise UserError(f"--searches {folder}: this search {reason}")
    return best_within(
        Ranking(paths, np.array([-error for _, error, _ in records])), targets, table
    )


def best_within(ranking: Ranking, targets: Tensor, table: CellTable) -> Tensor:
    """For each of `targets [N]` the cell that costs no more and of which the most is said."""
    allowed = table.cost(ranking.paths) <= targets[:, None]
    said = torch.from_numpy(ranking.said).double().expand(allowed.shape)
    return ranking.paths[said.masked_fill(~allowed, float("-inf")).argmax(dim=1)]


def worth(paths: Tensor, targets: Tensor, table: CellTable) -> list[float | None]:
    """True accuracies of answers `[N, L, E, K]`; None for one that costs more than its target."""
    answers = zip(table.accuracy(paths).tolist(), table.cost(paths) <= targets, strict=True)
    return [accuracy if allowed else None for accuracy, allowed in answers]


def report(args: Namespace, configs: list[Config]) -> None:
    """Tables over all runs; each run's numbers as a line of JSON where asked for."""
    table, lines = CellTable.load(args.table), []
    targets = evaluated_targets(configs[0])
    for index, (run, config) in enumerate(zip(args.runs, configs, strict=True)):
        if not torch.equal(evaluated_targets(config), targets):
            raise UserError(f"{run}: its targets are not those of {args.runs[0]}")
        ranking, supernet = (
            Ranking.read(run / args.ranking, args.count),
            checkpoint.digest(supernet_of(run)),
        )
        found = {"best ranked": best_within(ranking, targets, table)}
        if (run / "checkpoints" / f"{GENERATOR_FILE}.pth").exists():
            found["generator"] = generated(run, config, targets)
        if args.searches:
            found["msunas"] = evolved(args.searches[index], supernet, targets, table)
        origin = {
            "run": run.name,
            "seed": config.seed,
            "ranking": args.ranking,
            "supernet": supernet[:16],
        }
        values = {name: worth(found[name], targets, table) for name in METHODS if name in found}
        lines.append({**origin, **taus(ranking, table), "targets": targets.tolist(), **values})
    if any(line.keys() != lines[0].keys() for line in lines):
        raise UserError("some of these runs have a generator, and some have none")
    if args.json:
        with args.json.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    print_taus(lines)
    print_answers(lines, table)


def print_taus(lines: list[dict]) -> None:
    names = ("tau", "inside bins", "cost", "cost inside bins")
    rows = [
        [
            line["run"],
            line["cells"],
            f"{line['top1']:.2f}",
            *(f"{line[name]:.3f}" for name in names),
        ]
        for line in lines
    ]
    means = [f"{np.mean([line['top1'] for line in lines]):.2f}"]
    means += [f"{np.mean([line[name] for line in lines]):.3f}" for name in names]
    columns = [
        "run",
        "cells",
        "mean top-1 %",
        "Kendall tau",
        f"inside {BINS} bins of cost",
        "of cost alone",
        "inside bins",
    ]
    print(format_table(columns, [*rows, ["mean", "", *means]]))


def print_answers(lines: list[dict], table: CellTable) -> None:
    """True accuracies by target, mean and deviation over the runs; and of each method the mean
    regret to the optimum.

    A method that fails a target in one run has no mean there.
    """
    targets = lines[0]["targets"]
    found = {
        name: np.array([line[name] for line in lines], dtype=float)
        for name in METHODS
        if name in lines[0]
    }
    allowed = [table.accuracies[table.within(target)] for target in targets]
    known = {
        "random": np.array([float(part.mean()) for part in allowed]),
        f"best of {DRAWS}": np.array([expected_best(part, DRAWS) for part in allowed]),
        "optimum": np.array([table.optimum(target) for target in targets]),
    }
    rows = [
        [
            f"{target:g}",
            *(
                f"{of_runs[:, i].mean():.2f} +- {of_runs[:, i].std(ddof=len(lines) > 1):.2f}"
                for of_runs in found.values()
            ),
            *(f"{column[i]:.2f}" for column in known.values()),
        ]
        for i, target in enumerate(targets)
    ]
    regrets = [
        (known["optimum"] - column).mean(axis=-1) for column in (*found.values(), *known.values())
    ]
    means = ["mean regret", *(f"{np.mean(regret):.2f}" for regret in regrets)]
    print(format_table(["target M", *found, *known], [*rows, means]))
    for name, of_runs in found.items():
        wins = int((of_runs.mean(axis=0) > known[f"best of {DRAWS}"]).sum())
        print(
            f"{name}: better than the best of {DRAWS} random cells at {wins} of {len(targets)} targets"
        )


if __name__ == "__main__":
    main()
