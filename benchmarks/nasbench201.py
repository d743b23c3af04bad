"""NAS-Bench-201: does the search find the good cells?

    python3 -m benchmarks.nasbench201 rank RUN [--count 500] [--ranking NAME] [--set KEY=VALUE]
    python3 -m benchmarks.nasbench201 report RUN [RUN ...] --table FILE [--searches DIR ...]
        [--json FILE] [--count 500]

`rank` scores random cells with the supernet of a run of search.py, on its held-out images, into
RUN/ranking.jsonl; the same command resumes, and several processes share the cells. `report` looks
up the true accuracies of the ranked cells, of the answers of the generators, of msunas.py searches
on the same supernets, and of the best ranked cells. Only this report knows of the table.
"""

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.nsganetv2.answers import searched_paths
from model.ranking.score_file import DIGITS, ScoreFile
from model.sgnas.answers import evaluated_targets
from model.sgnas.runs import GENERATOR_FILE, find_generator, run_config, supernet_of
from model.sgnas.supernet_scores import supernet_scores
from model.spaces.nasbench201.benchmark_table import CellTable
from model.spaces.nasbench201.space import CellSpace, from_string, to_string
from model.spaces.registry import open_problem
from utils import checkpoint
from utils.command import Parser, command, positive
from utils.config import Config
from utils.data import load_dataset
from utils.errors import UserError
from utils.runtime import stream
from utils.statistics import kendall_tau
from utils.table import format_table

BINS = 5  # of cost, of as many cells each
DRAWN = 4096  # random cells, of which the first different ones are ranked
DRAWS = 10  # random cells, of which the best counts
METHODS = ("generator", "msunas", "best ranked")


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("what", choices=("rank", "report"))
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folder of search.py")
    add("--count", type=positive, default=500, help="random cells (default 500)")
    name = {"default": "ranking.jsonl", "metavar": "NAME"}
    add("--ranking", **name, help="file of the scores in RUN (default ranking.jsonl)")
    add("--table", metavar="FILE", help="true accuracies (docs/nasbench201.md)")
    folders = {"nargs": "*", "type": Path, "default": [], "metavar": "DIR"}
    add("--searches", **folders, help="msunas.py, one for each RUN")
    add("--json", type=Path, metavar="FILE", help="add a line of numbers for each run to FILE")
    pairs = {"nargs": "+", "default": [], "metavar": "KEY=VALUE"}
    add("--set", **pairs, help="override the config of the runs")
    args = parser.parse_args(argv)
    configs = [config_of(run, args.set) for run in args.runs]
    if args.what == "rank":
        for run, config in zip(args.runs, configs, strict=True):
            rank(run, config, args.count, args.ranking)
    elif args.table is None:
        raise UserError("--table: report needs the true accuracies; see docs/nasbench201.md")
    elif args.searches and len(args.searches) != len(args.runs):
        raise UserError(f"--searches: {len(args.searches)} for {len(args.runs)} runs")
    else:
        report(args, configs)


def config_of(run: Path, overrides: list[str]) -> Config:
    """The config of a run on the published cells; UserError when it is of another space."""
    config = run_config(run, overrides)
    if open_problem(config).space != CellSpace():
        raise UserError(f"{run}: it is not a run on the published cells of NAS-Bench-201")
    return config


def targets_of(config: Config) -> Tensor:
    return evaluated_targets(config.low_flops, config.high_flops, config.eval_step)


# -- ranking ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Cells `[N, L, E, K]`, and what the supernet says of each on held-out images.

    Args:
        accuracy: top-1 in % `[N]`.
        loss: cross entropy `[N]`, by which cells are ranked; NaN in older files.
    """

    paths: Tensor
    accuracy: NDArray
    loss: NDArray

    @property
    def predicted(self) -> NDArray:
        """What ranks `[N]`, more is better."""
        return self.accuracy if np.isnan(self.loss).any() else -self.loss

    @classmethod
    def read(cls, file: Path, count: int) -> "Ranking":
        """The first `count` cells of a ranking; UserError when there are fewer."""
        scores = ScoreFile.open(file).values
        if len(scores) < count:
            rank = f"python3 -m benchmarks.nasbench201 rank {file.parent} --count {count}"
            has = f"it has {len(scores)} cells"
            raise UserError(f"{file}: {has}; {rank} ranks more, or give --count")
        try:
            first = list(scores.items())[:count]
            paths = torch.stack([CellSpace().encode(from_string(cell)) for cell, _ in first])
            rows = [(values["supernet"], values.get("supernet_loss")) for _, values in first]
            return cls(paths, *np.array(rows, dtype=float).T)
        except (UserError, KeyError) as error:
            raise UserError(f"{file}: not scores of cells ({error})") from None


def rank(run: Path, config: Config, count: int, name: str) -> None:
    """Score those of `count` random cells, the same for all runs, that RUN/`name` does not have."""
    drawn = CellSpace().sample(DRAWN, stream(0, "ranking"))
    cells = {to_string(CellSpace().decode(path)): path for path in drawn}
    if count > len(cells):
        raise UserError(f"--count {count}: at most {len(cells)}")
    dataset = load_dataset(config.dataset, config.dataset_dir, config.input_size, config.classes)
    first = dict(list(cells.items())[:count])
    supernet_scores(run, open_problem(config), config, dataset, first, run / name)
    print(f"{run / name}: {len(ScoreFile.open(run / name).values)} cells")


def taus(ranking: Ranking, table: CellTable) -> dict[str, float]:
    """Kendall tau with the true accuracy of supernet accuracy, and of cost; 0 for constants.

    Over all cells, and the mean inside bins of cost. `top1` is the mean supernet accuracy.
    """
    true, costs = table.accuracy(ranking.paths).numpy(), table.cost(ranking.paths).numpy()
    bins = np.array_split(np.argsort(costs, kind="stable"), BINS)
    found = {"cells": len(true), "top1": float(ranking.accuracy.mean())}
    for name, inside, values in (
        ("tau", "inside bins", ranking.predicted),
        ("cost", "cost inside bins", costs),
    ):
        found[name] = float(kendall_tau(values, true, constant=0))
        parts = [kendall_tau(values[part], true[part], constant=0) for part in bins]
        found[inside] = float(np.mean(parts))
    return found


# -- true accuracies of answers --------------------------------------------------------------------


def expected_best(accuracies: Tensor, draws: int) -> float:
    """The mean of the best of `draws` random cells of `accuracies [n]`, in closed form."""
    ordered = accuracies.double().sort().values
    below = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    return float((ordered * (below[1:] ** draws - below[:-1] ** draws)).sum())


def generated(run: Path, config: Config, targets: Tensor) -> Tensor:
    """The generator's cells `[N, L, E, K]`, each repaired to stay below its target."""
    ready = find_generator(config, open_problem(config), run)
    found, unmet = ready.repaired(targets, at_most=True)
    assert not unmet, unmet
    return torch.stack([ready.table.space.encode(g.architecture) for g in found])


def best_within(paths: Tensor, scores: NDArray, targets: Tensor, table: CellTable) -> Tensor:
    """For each of `targets [N]` the one of `paths [P, L, E, K]` of the best score within it."""
    allowed = table.cost(paths) <= targets[:, None]
    expanded = torch.from_numpy(scores).double().expand(allowed.shape)
    return paths[expanded.masked_fill(~allowed, float("-inf")).argmax(dim=1)]


def true_accuracies(paths: Tensor, targets: Tensor, table: CellTable) -> list[float | None]:
    """True accuracies of answers `[N, L, E, K]`; None for one that costs more than its target."""
    answers = zip(table.accuracy(paths).tolist(), table.cost(paths) <= targets, strict=True)
    return [accuracy if allowed else None for accuracy, allowed in answers]


def numbers_of(
    run: Path, config: Config, search: Path | None, table: CellTable, args: Namespace
) -> dict:
    """What is found out of one run: its Kendall taus, and the true accuracies of its answers."""
    targets, digest = targets_of(config), checkpoint.digest(supernet_of(run))
    ranking = Ranking.read(run / args.ranking, args.count)
    answers = {}
    if (run / "checkpoints" / f"{GENERATOR_FILE}.pth").exists():
        answers["generator"] = generated(run, config, targets)
    if search is not None:
        paths, errors = searched_paths(search, CellSpace(), digest)
        answers["msunas"] = best_within(paths, -errors.numpy(), targets, table)
    answers["best ranked"] = best_within(ranking.paths, ranking.predicted, targets, table)
    numbers = {"run": run.name, "seed": config.seed, "ranking": args.ranking}
    numbers |= {"supernet": digest[:DIGITS], **taus(ranking, table), "targets": targets.tolist()}
    return numbers | {
        name: true_accuracies(cells, targets, table) for name, cells in answers.items()
    }


def report(args: Namespace, configs: list[Config]) -> None:
    """Tables over all runs; each run's numbers as a line of JSON where asked for."""
    table, targets = CellTable.load(args.table), targets_of(configs[0])
    for run, config in zip(args.runs, configs, strict=True):
        if not torch.equal(targets_of(config), targets):
            raise UserError(f"{run}: its targets are not those of {args.runs[0]}")
    searches = args.searches or len(configs) * [None]
    runs = zip(args.runs, configs, searches, strict=True)
    lines = [numbers_of(run, config, search, table, args) for run, config, search in runs]
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
        [line["run"], line["cells"], f"{line['top1']:.2f}", *(f"{line[n]:.3f}" for n in names)]
        for line in lines
    ]
    means = [f"{np.mean([line['top1'] for line in lines]):.2f}"]
    means += [f"{np.mean([line[name] for line in lines]):.3f}" for name in names]
    columns = ["run", "cells", "mean top-1 %", "Kendall tau", f"inside {BINS} bins of cost"]
    columns += ["of cost alone", "inside bins"]
    print(format_table(columns, [*rows, ["mean", "", *means]]))


def print_answers(lines: list[dict], table: CellTable) -> None:
    """True accuracies by target, mean and deviation over the runs, and the mean regret.

    The regret is what a method lacks to the optimum; one that fails a target in a run has none.
    """
    targets = lines[0]["targets"]
    methods = [name for name in METHODS if name in lines[0]]
    found = {name: np.array([line[name] for line in lines], dtype=float) for name in methods}
    allowed = [table.accuracies[table.within(target)] for target in targets]
    known = {
        "random": np.array([float(part.mean()) for part in allowed]),
        f"best of {DRAWS}": np.array([expected_best(part, DRAWS) for part in allowed]),
        "optimum": np.array([table.optimum(target) for target in targets]),
    }
    columns = [_spans(runs, ddof=len(lines) > 1) for runs in found.values()]
    columns += [[f"{value:.2f}" for value in values] for values in known.values()]
    rows = [[f"{target:g}", *row] for target, *row in zip(targets, *columns, strict=True)]
    regrets = [np.mean(known["optimum"] - column) for column in (*found.values(), *known.values())]
    means = ["mean regret", *(f"{regret:.2f}" for regret in regrets)]
    print(format_table(["target M", *found, *known], [*rows, means]))
    for name, runs in found.items():
        wins = int((runs.mean(axis=0) > known[f"best of {DRAWS}"]).sum())
        better = f"better than the best of {DRAWS} random cells"
        print(f"{name}: {better} at {wins} of {len(targets)} targets")


def _spans(runs: NDArray, ddof: int) -> list[str]:
    """Mean and deviation over the runs `[R, targets]`."""
    spans = zip(runs.mean(axis=0), runs.std(axis=0, ddof=ddof), strict=True)
    return [f"{mean:.2f} +- {deviation:.2f}" for mean, deviation in spans]


if __name__ == "__main__":
    main()
