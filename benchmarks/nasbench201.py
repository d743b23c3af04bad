"""NAS-Bench-201: does the search find what is there to find?

    python3 -m benchmarks.nasbench201 rank RUN [--count 500] [--ranking NAME] [--set KEY=VALUE]
    python3 -m benchmarks.nasbench201 report RUN [RUN ...] --table FILE [--searches DIR ...] [--json FILE] [--count 500]

`rank` scores random cells with the supernet of a run of search.py, on its held-out images, into RUN/ranking.jsonl;
the same command goes on where it stopped. `report` looks up what the cells, the answers of the generators, those of
msunas.py searches on the same supernets and the best of the ranked cells are really worth. Only this report knows of
the table.
"""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import kendalltau
from torch import Tensor

from model.build import build_supernet, load_supernet
from model.cell_space import CellSpace, from_string, to_string
from model.cell_table import CellTable
from model.generation import GENERATOR_FILE, find_generator, run_config
from model.generator_training import evaluated_targets
from model.lookup_table import LookUpTable
from model.search_folder import last_archive
from model.warm_up import PathValidation, top1_of_all
from utils import distributed
from utils.command import Parser, command, positive
from utils.config import Config
from utils.data import load_dataset, split_for_search
from utils.engine import Placement
from utils.errors import UserError
from utils.runtime import Progress, pick_device, stream
from utils.table import format_table

BINS = 5  # of cost, of as many cells each
TOGETHER = 8  # cells that are scored before any is written
MOST = 4096  # random cells, of which the first ones are ranked
DRAWS = 10  # random cells, of which the best counts


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("what", choices=("rank", "report"))
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folder of search.py")
    parser.add_argument("--count", type=positive, default=500, help="random cells to rank (default 500)")
    parser.add_argument(
        "--ranking", default="ranking.jsonl", metavar="NAME", help="file of the scores in RUN (default ranking.jsonl)"
    )
    parser.add_argument("--table", metavar="FILE", help="true accuracies (docs/nasbench201.md)")
    parser.add_argument(
        "--searches", nargs="*", type=Path, default=[], metavar="DIR", help="msunas.py, one for each RUN"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the numbers of each run to FILE, one line each")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="override the config of the runs")
    args = parser.parse_args(argv)
    if args.what == "rank":
        for run in args.runs:
            rank(run, run_config(run, args.set), args.count, args.ranking)
    elif args.table is None:
        raise UserError("--table: report needs the true accuracies; docs/nasbench201.md says how to make the file")
    elif args.searches and len(args.searches) != len(args.runs):
        raise UserError(f"--searches: {len(args.searches)} for {len(args.runs)} runs")
    else:
        report(args)


# -- ranking ---------------------------------------------------------------------------------------------------------


def rank(run: Path, config: Config, count: int, name: str = "ranking.jsonl") -> None:
    """Score `count` random cells, the same for all runs; only those that RUN/`name` does not have yet.

    On all images that did not train the supernet; several processes share the cells.
    """
    file, known = run / name, read_ranking(run / name)
    place = Placement(pick_device(config.cuda), config.channels_last, config.amp)
    supernet = build_supernet(config).to(place.device)
    load_supernet(supernet, run / "checkpoints" / "supernet_best.pth")
    dataset = load_dataset(config.dataset, config.dataset_dir, config.input_size, config.classes)
    images = split_for_search(dataset, config.train_portion, config.seed, run / "split.json")
    images = replace(images, validate=images.held_out)
    validation = PathValidation(supernet.eval(), images, config, place)
    cells = {to_string(CellSpace().decode(path)): path for path in CellSpace().sample(MOST, stream(0, "ranking"))}
    left = [(cell, path) for cell, path in list(cells.items())[:count] if cell not in known]
    with Progress(f"{run.name}: cells", len(left)) as progress, file.open("a") as out:
        for start in range(0, len(left), TOGETHER):
            some, paths = zip(*left[start : start + TOGETHER], strict=True)
            for cell, top1 in zip(some, top1_of_all(validation, torch.stack(paths)), strict=True):
                if distributed.rank() == 0:
                    out.write(json.dumps({"cell": cell, "top1": top1}) + "\n")
                progress.update(top1=top1)
            out.flush()
    print(f"{file}: {count} cells")


def read_ranking(file: Path) -> dict[str, float]:
    """Validation top-1 in % by cell; a line that was cut off is dropped."""
    found = {}
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    if whole != lines:
        file.write_text("".join(whole))
    for line in whole:
        record = json.loads(line)
        found[record["cell"]] = record["top1"]
    return found


def ranked(file: Path, count: int) -> tuple[Tensor, NDArray]:
    """The first `count` cells `[N, L, E, K]` of a ranking and what the supernet says of each.

    UserError when there are fewer.
    """
    ranking = read_ranking(file)
    if len(ranking) < count:
        rank = f"python3 -m benchmarks.nasbench201 rank {file.parent} --count {count}"
        raise UserError(f"{file}: it has {len(ranking)} cells; {rank} ranks more, or give --count")
    paths = torch.stack([CellSpace().encode(from_string(cell)) for cell in ranking])[:count]
    return paths, np.array(list(ranking.values()))[:count]


def taus(paths: Tensor, said: NDArray, table: CellTable) -> dict[str, float]:
    """Kendall tau between supernet and truth: over all ranked cells, and the mean inside bins of cost."""
    true, costs = table.accuracy(paths).numpy(), LookUpTable(table.space)(paths).numpy()
    bins = np.array_split(np.argsort(costs, kind="stable"), BINS)
    inside = [kendalltau(said[part], true[part]).statistic for part in bins]
    of_cost = kendalltau(costs, true).statistic
    return {"cells": len(paths), "tau": _tau(said, true), "inside bins": float(np.mean(inside)), "cost": of_cost}


def _tau(a: NDArray, b: NDArray) -> float:
    return float(kendalltau(a, b).statistic)


# -- what answers are worth ------------------------------------------------------------------------------------------


def expected_best(accuracies: Tensor, draws: int) -> float:
    """The mean of the best of `draws` random cells out of those with `accuracies [n]`, in closed form."""
    ordered = accuracies.double().sort().values
    below = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return float((ordered * (below[1:] ** draws - below[:-1] ** draws)).sum())


def generated(run: Path, config: Config, targets: Tensor) -> Tensor:
    """The generator's cells `[N, L, E, K]`, each repaired to stay below its target."""
    ready = find_generator(config, run)
    found, unmet = ready.repaired(targets, at_most=True)
    assert not unmet, unmet
    return torch.stack([ready.table.space.encode(g.architecture) for g in found])


def evolved(folder: Path, targets: Tensor) -> Tensor:
    """Of a search's archive, for each target the cell of the best validation accuracy that costs no more."""
    records = last_archive(folder)
    paths = torch.stack([CellSpace().encode(from_string(record["cell"])) for record, _, _ in records])
    return best_within(paths, [-error for _, error, _ in records], targets)


def best_within(paths: Tensor, said: list[float], targets: Tensor) -> Tensor:
    """For each of `targets [N]` that of `paths [M, L, E, K]` which costs no more and of which the most is `said`."""
    costs, said = LookUpTable(CellSpace())(paths), torch.as_tensor(said)
    chosen = [said.masked_fill(costs > target + 1e-3, float("-inf")).argmax() for target in targets.tolist()]
    return paths[torch.stack(chosen)]


def worth(paths: Tensor, targets: Tensor, table: CellTable) -> list[float]:
    """True accuracies of answers `[N, L, E, K]`; one that costs more than its target is worth nothing (NaN)."""
    too_dear = LookUpTable(table.space)(paths) > targets + 1e-3
    return table.accuracy(paths).masked_fill(too_dear, float("nan")).tolist()


def report(args: Namespace) -> None:
    """Tables over all runs; each run's numbers as a line of JSON where asked for."""
    table, lines = CellTable.load(args.table), []
    for index, run in enumerate(args.runs):
        config = run_config(run, args.set)
        targets = evaluated_targets(config)
        ranking = ranked(run / args.ranking, args.count)
        line = {"run": run.name, "seed": config.seed, **taus(*ranking, table), "targets": targets.tolist()}
        found = {"ranked": best_within(*ranking, targets)}
        if (run / "checkpoints" / f"{GENERATOR_FILE}.pth").exists():
            found["generator"] = generated(run, config, targets)
        if args.searches:
            found["msunas"] = evolved(args.searches[index], targets)
        lines.append({**line, **{name: worth(paths, targets, table) for name, paths in found.items()}})
    if args.json:
        with args.json.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    print_taus(lines)
    print_answers(lines, table)


def print_taus(lines: list[dict]) -> None:
    names = ("tau", "inside bins", "cost")
    rows = [[line["run"], line["cells"], *(f"{line[name]:.3f}" for name in names)] for line in lines]
    means = [f"{np.mean([line[name] for line in lines]):.3f}" for name in names]
    columns = ["run", "cells", "Kendall tau", f"inside {BINS} bins of cost", "of cost alone"]
    print(format_table(columns, [*rows, ["mean", "", *means]]))


def print_answers(lines: list[dict], table: CellTable) -> None:
    """True accuracies by target, means over the runs; and of each method the mean regret to the optimum."""
    targets = lines[0]["targets"]
    methods = [name for name in ("generator", "msunas", "ranked") if name in lines[0]]
    found = {name: np.mean([line[name] for line in lines], axis=0) for name in methods}
    allowed = [table.accuracies[table.within(target)] for target in targets]
    found["random"] = np.array([float(part.mean()) for part in allowed])
    found[f"best of {DRAWS}"] = np.array([expected_best(part, DRAWS) for part in allowed])
    optimum = np.array([table.optimum(target) for target in targets])
    rows = [
        [f"{target:g}", *(f"{column[i]:.2f}" for column in found.values()), f"{optimum[i]:.2f}"]
        for i, target in enumerate(targets)
    ]
    regrets = ["mean regret", *(f"{(optimum - column).mean():.2f}" for column in found.values()), "0.00"]
    print(format_table(["target M", *found, "optimum"], [*rows, regrets]))
    for name in methods:
        wins = int((found[name] > found[f"best of {DRAWS}"]).sum())
        print(f"{name}: better than the best of {DRAWS} random cells at {wins} of {len(targets)} targets")


if __name__ == "__main__":
    main()
