"""NAS-Bench-Macro: are answers better than random networks of equal cost?

    python3 -m benchmarks.nasbench_macro rank RUN [--count 600] [--free FILE]
    python3 -m benchmarks.nasbench_macro report RUN [RUN ...] --table FILE [--searches DIR ...]
        [--free FILE] [--trained FILE] [--predictions FILE] [--answers FILE]

`rank` scores networks into RUN/ranking.jsonl with the supernet of a run of search.py, on its
held-out images, and all 3,969 without training into FILE (default RUN/free.jsonl), which several
runs may share. `report` looks up what rankings and answers are worth; it alone knows of the table,
which may lack networks: they are counted, and left out. With `--trained`, results.jsonl of
tools.rank, the ranking `calibrated` learns from these networks how much each signal counts. A
target is a ceiling, and a network is of equal cost when it costs 0.9 to 1 times as much.
"""

import json
from argparse import Namespace
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.nasbench201 import expected_best
from model.nsganetv2.answers import searched_paths
from model.ranking.architecture_files import read_trained
from model.ranking.combined import WAYS, Columns, calibrated, sum_of_log_ranks
from model.ranking.score_file import ScoreFile, Values
from model.ranking.signals import SIZES, SUPERNET, Signals
from model.ranking.training_free import TERMS, TrainingFree
from model.sgnas.answer_ranking import answer_ranking
from model.sgnas.runs import find_generator, run_config, supernet_of
from model.sgnas.supernet_scores import accuracy_of, held_out_images, scored_by
from model.spaces.nasbench_macro.benchmark_table import BlockTable
from model.spaces.nasbench_macro.kind import KIND
from model.spaces.nasbench_macro.space import BlockSpace
from model.spaces.registry import open_problem
from utils import checkpoint
from utils.command import Parser, command, positive
from utils.config import Config
from utils.data import load_dataset
from utils.errors import UserError
from utils.places import output_file
from utils.runtime import pick_device, stream
from utils.statistics import kendall_tau
from utils.table import format_table

SPACE = BlockSpace()
GENOME = KIND.genome(SPACE)
FREE = (*TERMS, *SIZES)  # signals that need no training
BANDS = (40, 50, 60, 80)  # ceilings in M
TARGETS = tuple(range(30, 91, 2))
EQUAL = 0.9  # least cost of a network of equal cost, in ceilings
DRAWS = 10


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("what", choices=("rank", "report"))
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folder of search.py")
    add("--count", type=positive, default=600, help="networks for the supernet (default 600)")
    add("--free", type=Path, metavar="FILE", help="training-free scores (default RUN/free.jsonl)")
    add("--table", metavar="FILE", help="the published accuracies")
    add("--trained", type=Path, metavar="FILE", help="networks trained here, by tools.rank")
    folders = {"nargs": "*", "type": Path, "default": [], "metavar": "DIR"}
    add("--searches", **folders, help="msunas.py, one for each RUN")
    add("--predictions", type=output_file, metavar="FILE", help="write the scores of the first RUN")
    add("--answers", type=output_file, metavar="FILE", help="write the answers of all runs")
    pairs = {"nargs": "+", "default": [], "metavar": "KEY=VALUE"}
    add("--set", **pairs, help="override the config of the runs")
    args = parser.parse_args(argv)
    if args.what == "report" and args.table is None:
        raise UserError("--table: report needs the published accuracies")
    if args.searches and len(args.searches) != len(args.runs):
        raise UserError(f"--searches: {len(args.searches)} for {len(args.runs)} runs")
    configs = [config_of(run, args.set) for run in args.runs]
    if args.what == "rank":
        for run, config in zip(args.runs, configs, strict=True):
            rank(run, config, args)
    else:
        report(args, configs)


def config_of(run: Path, overrides: list[str]) -> Config:
    """The config of a run on the published space; UserError when it is of another one."""
    config = run_config(run, overrides)
    if open_problem(config).space != SPACE:
        raise UserError(f"{run}: it is not a run on the networks of NAS-Bench-Macro")
    return config


# -- ranking ---------------------------------------------------------------------------------------


@cache
def all_genes() -> dict[str, NDArray]:
    """All networks by their digits, in an order drawn by seed 0."""
    paths = SPACE.all()
    paths = paths[torch.randperm(len(paths), generator=stream(0, "ranking"))]
    return dict(zip(SPACE.digits(paths), GENOME.of_paths(paths), strict=True))


def rank(run: Path, config: Config, args: Namespace) -> None:
    """Score those networks that the files do not have yet."""
    genes, problem = all_genes(), open_problem(config)
    if args.count > len(genes):
        raise UserError(f"--count {args.count}: at most {len(genes)}")
    terms = TrainingFree(device=pick_device(config.cuda))
    fill(Signals(GENOME, problem.table, terms), genes, args.free or run / "free.jsonl", {"seed": 0})
    dataset = load_dataset(config.dataset, config.dataset_dir, config.input_size, config.classes)
    images = held_out_images(run, config, dataset)
    accuracy = accuracy_of(run, problem, config, images)
    first = dict(list(genes.items())[: args.count])
    by = scored_by(run, config, images)
    fill(Signals(GENOME, problem.table, None, accuracy), first, run / "ranking.jsonl", by)


def fill(signals: Signals, genes: dict[str, NDArray], file: Path, by: dict) -> None:
    scores = ScoreFile.open(file, by, signals.names)

    def score(ids: list[str]) -> list[Values]:
        return signals.of_all(np.stack([genes[name] for name in ids]))

    scores.fill(genes, score, file.stem)
    print(f"{file}: {len(scores.values)} networks")


@dataclass(frozen=True)
class Scored:
    """Networks by their digits, and scores `[N]` by what gives them; more is better.

    `signals` are as they were measured; those of the supernet are NaN where it scored no network.
    """

    names: list[str]
    paths: Tensor
    costs: NDArray
    signals: Columns
    scores: Columns

    @classmethod
    def read(cls, free: Path, ranking: Path) -> "Scored":
        """All networks; `supernet` and `combined` are NaN where the supernet did not score one.

        Log-ranks of `training_free` are those among all, of `combined` those among the scored.
        """
        every, own = ScoreFile.open(free).values, ScoreFile.open(ranking).values
        genes = all_genes()
        lacking = [name for name in genes if name not in every]
        if lacking or not own:
            run = f"python3 -m benchmarks.nasbench_macro rank {ranking.parent}"
            raise UserError(f"{free}, {ranking}: networks have no scores yet; {run} scores them")
        names = list(genes)
        known = np.array([name in own for name in names])
        signals = {n: np.array([every[i][n] for i in names], float) for n in FREE}
        for signal in SUPERNET:
            signals[signal] = np.full(len(names), np.nan)
            signals[signal][known] = [own[name][signal] for name in names if name in own]
        combined = np.full(len(names), np.nan)
        combined[known] = sum_of_log_ranks({n: signals[n][known] for n in WAYS["combined"]})
        free = sum_of_log_ranks({n: signals[n] for n in WAYS["training-free"]})
        scores = {"supernet": -signals["supernet_loss"], "training_free": free}
        scores |= {"combined": combined, "cost": signals["cost"], "blocks": signals["blocks"]}
        paths = GENOME.paths(np.stack(list(genes.values())))
        return cls(names, paths, signals["cost"], signals, scores)

    def calibrated(self, trained: dict[str, float]) -> "Scored":
        """With the score that networks of known accuracy, by their digits, make of all signals."""
        known = ~np.isnan(self.signals["supernet_loss"])
        place = {name: i for i, name in enumerate(np.array(self.names)[known].tolist())}
        lacking = [name for name in trained if name not in place]
        if lacking:
            raise UserError(f"--trained: the supernet has not scored {', '.join(lacking)}")
        signals = {name: values[known] for name, values in self.signals.items()}
        index, reached = [place[name] for name in trained], np.array(list(trained.values()))
        scores = np.full(len(self.names), np.nan)
        scores[known] = calibrated(signals, index, reached).scores
        return replace(self, scores={**self.scores, "calibrated": scores})


# -- what they are worth ---------------------------------------------------------------------------


def taus(scored: Scored, truth: NDArray) -> dict[str, dict[str, float]]:
    """Kendall tau with the truth `[N]` of each score: of all networks, and the mean of the bands.

    Over the networks that the supernet scored and the table has.
    """
    known = ~np.isnan(truth) & ~np.isnan(scored.scores["supernet"])
    bands = [known & in_band(scored.costs, ceiling) for ceiling in BANDS]
    found = {"all": {}, "bands": {}}
    for name, values in scored.scores.items():
        found["all"][name] = float(kendall_tau(values[known], truth[known], constant=0))
        parts = [kendall_tau(values[band], truth[band], constant=0) for band in bands]
        found["bands"][name] = float(np.mean(parts))
    found["networks"] = {"all": int(known.sum()), "bands": int(sum(band.sum() for band in bands))}
    return found


def in_band(costs: NDArray, ceiling: float) -> NDArray:
    """bool `[N]`: the networks of equal cost."""
    return (costs <= ceiling) & (costs >= EQUAL * ceiling)


def answers_of(run: Path, config: Config, search: Path | None, scored: Scored) -> dict:
    """The architecture `[L, 1, K]` that each method answers a target with, by its name."""
    problem, targets = open_problem(config), torch.tensor(TARGETS, dtype=torch.float64)
    ready, found = find_generator(config, problem, run), {}
    rank_by = answer_ranking(config, problem, run)
    if rank_by is not None:
        found["generator, ranked"] = _encoded(ready.within(targets, rank_by)[0])
    found["generator"] = _encoded(ready.within(targets, None)[0])
    found["training-free"] = best_within(scored.paths, scored.scores["training_free"])
    if search is not None:
        paths, errors = searched_paths(search, SPACE, checkpoint.digest(supernet_of(run)))
        found["msunas"] = best_within(paths, -errors.numpy())
    return found


def _encoded(answers) -> Tensor:
    return torch.stack([SPACE.encode(answer.architecture) for answer in answers])


def best_within(paths: Tensor, scores: NDArray) -> Tensor:
    """For each target the path of the best score that costs no more."""
    costs = BlockTable({}).cost(paths).numpy()
    chosen = [np.where(costs <= target, scores, -np.inf).argmax() for target in TARGETS]
    return paths[chosen]


def worth(paths: Tensor, table: BlockTable) -> dict[str, float]:
    """What answers to `TARGETS` are worth, next to random networks of equal cost, in points.

    Answers that the table lacks, and those over their ceiling, are counted and left out.
    """
    accuracies, costs = table.accuracy(paths).numpy(), table.cost(paths).numpy()
    above, regret, wins, lacking, over = [], [], [], 0, 0
    for target, accuracy, cost in zip(TARGETS, accuracies, costs, strict=True):
        if cost > target + 1e-3:
            over += 1
        elif np.isnan(accuracy):
            lacking += 1
        else:
            band = table.accuracies[torch.from_numpy(in_band(table.costs.numpy(), target))]
            above.append(accuracy - float(band.mean()))
            regret.append(float(band.max()) - accuracy)
            wins.append(accuracy >= expected_best(band, DRAWS))
    mean = lambda values: float(np.mean(values)) if values else float("nan")  # noqa: E731
    return {
        "above random": mean(above), "regret": mean(regret), "wins": mean(wins),
        "judged": len(above), "lacking": lacking, "over": over,
    }  # fmt: skip


def report(args: Namespace, configs: list[Config]) -> None:
    """Tables over all runs; scores and answers as lines of JSON where asked for."""
    table, lines = BlockTable.load(args.table), []
    all_taus, all_worth = [], []
    searches = args.searches or len(configs) * [None]
    for run, config, search in zip(args.runs, configs, searches, strict=True):
        scored = Scored.read(args.free or run / "free.jsonl", run / "ranking.jsonl")
        if args.trained:
            reached = read_trained(args.trained, GENOME)
            scored = scored.calibrated({name: top1 for name, (_, top1) in reached.items()})
        truth = table.accuracy(scored.paths).numpy()
        all_taus.append(taus(scored, truth))
        answers = answers_of(run, config, search, scored)
        all_worth.append({name: worth(paths, table) for name, paths in answers.items()})
        lines += answer_lines(answers, config.seed)
        if args.predictions and run == args.runs[0]:
            args.predictions.write_text("".join(prediction_lines(scored)))
    if args.answers:
        args.answers.write_text("".join(lines))
    lacking = len(scored.names) - len(table.known)
    print(f"the table has {len(table.known)} of {len(scored.names)} networks; {lacking} it lacks")
    print_taus(all_taus)
    print_worth(all_worth)


def prediction_lines(scored: Scored) -> list[str]:
    """A line for each network; null where the supernet did not score it."""
    columns = ("supernet", "training_free", "combined")
    lines = []
    for index, (name, cost) in enumerate(zip(scored.names, scored.costs, strict=True)):
        values = {column: float(scored.scores[column][index]) for column in columns}
        values = {c: None if np.isnan(v) else round(v, 6) for c, v in values.items()}
        lines.append(json.dumps({"arch": name, "cost_m": round(float(cost), 6), **values}) + "\n")
    return lines


def answer_lines(answers: dict[str, Tensor], seed: int) -> list[str]:
    lines = []
    for method, paths in answers.items():
        for target, name in zip(TARGETS, SPACE.digits(paths), strict=True):
            record = {"target": target, "method": method, "arch": name}
            lines.append(json.dumps({**record, "seed": seed}) + "\n")
    return lines


def print_taus(found: list[dict]) -> None:
    """Kendall tau of each score, of each run."""
    rows = []
    for name in found[0]["all"]:
        numbers = [f"{one[part][name]:.3f}" for part in ("all", "bands") for one in found]
        rows.append([name, *numbers])
    runs = len(found)
    networks = found[0]["networks"]
    columns = [f"all {networks['all']}, run {n + 1}" for n in range(runs)]
    columns += [f"in bands, run {n + 1}" for n in range(runs)]
    print(format_table(["ranked by, Kendall tau", *columns], rows))


def print_worth(found: list[dict]) -> None:
    """What each method's answers are worth, the mean over the runs."""
    rows = []
    for name in found[0]:
        own = [one[name] for one in found]
        mean = {key: float(np.nanmean([one[key] for one in own])) for key in own[0]}
        counts = [f"{sum(one[key] for one in own)}" for key in ("judged", "lacking", "over")]
        rows.append(
            [name, f"{mean['above random']:+.2f}", f"{mean['regret']:.2f}",
             f"{100 * mean['wins']:.0f} %", *counts]
        )  # fmt: skip
    columns = ["answers by", "above random of equal cost", "regret", f"best of {DRAWS} or better"]
    print(format_table([*columns, "judged", "not in the table", "over the ceiling"], rows))


if __name__ == "__main__":
    main()
