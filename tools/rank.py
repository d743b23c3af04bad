"""Does the supernet rank architectures as training does? It is compared with training from scratch.

    python3 -m tools.rank logs/small --out ranking --set epochs=4
    python3 -m tools.rank logs/small --out ranking --set epochs=4 --targets 4,5.5,7 \\
        --search DIR --seeds 2

Random architectures of the run's space: Kendall tau of their supernet accuracy, on all images that
did not train the supernet, with their accuracy on the test images after training from scratch by
one recipe: the run's config, changed by --set. With targets also the generator's answer to each,
that of an msunas.py search on the same supernet, and random architectures of equal cost; with
--scored also where answers stand among more of these, by the supernet alone: a search may fail to
find what its supernet prefers, or the supernet may prefer what is not good. Trainings are seeded 0,
1, ...; each has a run folder of its own in OUT. The same command resumes, all numbers may grow, and
under torchrun the processes share the networks. Nothing is chosen by test images.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from model.nsganetv2.answers import searched_paths
from model.sgnas.runs import find_generator, run_config, supernet_of
from model.sgnas.supernet_scores import supernet_scores
from model.spaces.contracts import CostTable, NetworkSpec
from model.spaces.registry import Problem, open_problem, spec_of
from model.training.from_scratch import ScratchRecipe, train_from_scratch
from tools.generate import parse_targets
from tools.reporting.rank_tables import (
    EVOLVED,
    GENERATOR,
    RANDOM,
    Answer,
    Judged,
    RankedTraining,
    print_standing,
    print_tables,
)
from utils import checkpoint, distributed
from utils.command import Parser, add_config_options, command, not_negative, positive
from utils.config import Config
from utils.data import Dataset, load_dataset
from utils.data_record import DataRecord
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.json_file import read_json
from utils.places import output_folder
from utils.run_folder import RunFolder
from utils.runtime import pick_device, stream
from utils.stopping import check_stop

EQUAL = 0.005  # costs that differ from a target by this share of it count as equal
DRAWN, DRAWS = 4096, 64  # random architectures at once, and how often, to find some of equal cost


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    config = recipe_of(args)
    problem = open_problem(config)
    table = problem.table
    answers = drawn(table, args.count, args.seed)
    targets = parse_targets(args.targets).tolist() if args.targets else []
    for target in targets:
        answers += answers_for(target, problem, config, args)
    if not answers:
        raise UserError("--count 0: there is nothing to train without --targets")
    scored_at = targets if args.scored else []
    scored = {target: drawn(table, args.scored, args.seed, target) for target in scored_at}
    dataset = load_dataset(config.dataset, config.dataset_dir, config.input_size, config.classes)
    paths = {a.name: table.space.encode(a.architecture) for a in chain(answers, *scored.values())}
    file = args.out / "supernet.jsonl"
    supernet = supernet_scores(args.run, problem, config, dataset, paths, file)
    tests = train_all(answers, args.seeds, table, dataset, config)
    pairs = zip(answers, tests, strict=True)
    judged = [Judged.of(answer, supernet[answer.name], reached) for answer, reached in pairs]
    write_results(judged, table, config, args.out)
    print_tables(judged, table.unit, config.epochs, args.out)
    others = {
        target: np.array([supernet[a.name]["supernet"] for a in own])
        for target, own in scored.items()
    }
    print_standing(judged, others)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add, folder = parser.add_argument, {"type": Path, "metavar": "DIR"}
    add("run", type=Path, metavar="RUN", help="run folder of search.py")
    add(
        "--out",
        required=True,
        type=output_folder,
        metavar="DIR",
        help="where networks and results go",
    )
    count = {"type": not_negative, "default": 12}
    add("--count", **count, help="random architectures to rank (default 12)")
    add("--targets", help="at which answers are compared: a,b,c or start:stop:step")
    add("--search", **folder, help="an msunas.py search on the run's supernet")
    random = {"type": positive, "default": 3}
    add("--random", **random, help="random architectures of a target (default 3)")
    scored = {"type": not_negative, "default": 0}
    add("--scored", **scored, help="of these, only by the supernet (default 0)")
    seeds = {"type": positive, "default": 2}
    add("--seeds", **seeds, help="trainings of each answer to a target (default 2)")
    add("--seed", type=not_negative, default=0, help="of all that is drawn (default 0)")
    add_config_options(parser)
    return parser.parse_args(argv)


def recipe_of(args: argparse.Namespace) -> Config:
    """The run's config with what changes the training; its networks go to OUT."""
    config = run_config(args.run, args.set)
    unused = dict.fromkeys(("write_dir", "path_to_save_scratch", "inherit"))
    return replace(config, log_dir=str(args.out), **unused)


# -- which architectures ---------------------------------------------------------------------------


def described(method: str, target: float | None, paths: Tensor, table: CostTable) -> list[Answer]:
    """The answers of paths `[N, L, E, K]`."""
    costs, parameters = table(paths).tolist(), table.parameters_m(paths).tolist()
    rows = zip(map(table.space.decode, paths), costs, parameters, strict=True)
    return [Answer(method, target, *row) for row in rows]


def drawn(table: CostTable, count: int, seed: int, target: float | None = None) -> list[Answer]:
    """`count` different random architectures, with a target only those of equal cost.

    UserError if there are fewer.
    """
    rng, found = stream(seed, "rank", "any" if target is None else f"{target:g}"), {}
    for _ in range(DRAWS):
        paths = table.space.sample(DRAWN, rng)
        if target is not None:
            paths = paths[(table(paths) / target - 1).abs() <= EQUAL]
        answers = described(RANDOM, target, paths[: 2 * count], table)
        found |= {answer.name: answer for answer in answers}
        if len(found) >= count:
            return list(found.values())[:count]
    what = f"--count {count}:"
    if target is not None:
        what = f"--random {count}: of {target:g} {table.unit},"
    counts = f"of {DRAWN * DRAWS} random architectures {len(found)} are such"
    raise UserError(f"{what} {counts}; choose a target nearer the mean")


def answers_for(
    target: float, problem: Problem, config: Config, args: argparse.Namespace
) -> list[Answer]:
    """The answers of the run's generator, of the evolutionary search if given, and of chance."""
    asked, table = torch.tensor([target], dtype=torch.float64), problem.table
    ready = find_generator(config, problem, args.run)
    ready.check(asked)
    answers = described(GENERATOR, target, table.space.discretize(ready.logits(asked)), table)
    if args.search:
        answers += described(EVOLVED, target, evolved(target, table, args)[None], table)
    return answers + drawn(table, args.random, args.seed, target)


def evolved(target: float, table: CostTable, args: argparse.Namespace) -> Tensor:
    """The path of a search's archive of best validation accuracy that costs at most `target`."""
    supernet = checkpoint.digest(supernet_of(args.run))
    paths, errors = searched_paths(args.search, table.space, supernet)
    errors[table(paths) > target * (1 + EQUAL)] = float("inf")
    if not errors.isfinite().any():
        limit = f"{target:g} {table.unit}"
        raise UserError(f"--search {args.search}: it has no architecture of at most {limit}")
    return paths[errors.argmin()]


# -- training --------------------------------------------------------------------------------------


def train_all(
    answers: list[Answer], seeds: int, table: CostTable, dataset: Dataset, config: Config
) -> list[tuple[float, ...]]:
    """Test top-1 in % of each answer by seed; what several methods gave is trained once."""
    pairs = [(answer, range(seeds if answer.target else 1)) for answer in answers]
    trials = {(answer.name, seed): answer for answer, own in pairs for seed in own}
    titles = [f"{name}-seed{seed}" for name, seed in trials]
    files = [Path(config.log_dir) / title / "result.json" for title in titles]
    record = DataRecord.of(config.dataset, config.dataset_dir, dataset)
    started, done_before = time.monotonic(), sum(file.exists() for file in files)

    def trained(index: int) -> float:
        check_stop()
        (name, seed), answer = list(trials.items())[index]
        spec = spec_of(table.space, answer.architecture)
        top1 = train_one(titles[index], spec, dataset, record, replace(config, seed=seed))
        done = sum(file.exists() for file in files)
        line = f"{done} of {len(trials)} networks: {name} seed {seed} has {top1:.2f} %"
        if done > done_before:
            left = (time.monotonic() - started) / (done - done_before) * (len(trials) - done)
            line += f", left {tqdm.format_interval(left)}"
        print(line, flush=True)
        return top1

    top1 = distributed.results(distributed.divided(len(trials), trained))
    reached = dict(zip(trials, top1, strict=True))
    return [tuple(reached[answer.name, seed] for seed in own) for answer, own in pairs]


@dataclass(frozen=True)
class _Result:
    """What is read of the result.json of a finished training."""

    top1: float


def train_one(
    title: str, spec: NetworkSpec, dataset: Dataset, record: DataRecord, config: Config
) -> float:
    """Top-1 in % on the test images, with the last weights; a finished training is only read."""
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    run = RunFolder.open("train_cifar", config, title)
    run.check_data(record)
    if run.continues and run.file("result.json").exists():
        return read_json(run.file("result.json"), _Result, "the result of a training").top1
    provenance = {"source": "tools.rank", "target": None, "unit": config.unit}
    recipe = config.part(ScratchRecipe)
    run.begin(config, context.device)
    parts = (spec, recipe.network(spec), dataset, recipe, run, context, provenance)
    return train_from_scratch(*parts)["top1"]


def write_results(judged: list[Judged], table: CostTable, config: Config, folder: Path) -> None:
    """OUT/results.jsonl: a line for each training."""
    recipe = {"epochs": config.epochs, "lr": config.optim_state.lr, "batch_size": config.batch_size}
    text = ""
    for one in judged:
        answer, spec = one.answer, spec_of(table.space, one.answer.architecture)
        record = {"method": answer.method, "target": answer.target, "network": answer.name}
        record |= {"cost": round(answer.cost, 6), "params_m": round(answer.params_m, 6), **recipe}
        for seed, test in enumerate(one.tests):
            top1 = {"supernet_top1": one.supernet, "supernet_loss": one.loss, "test_top1": test}
            line = RankedTraining(
                **record, **top1, seed=seed, kind=spec.kind, architecture=spec.to_json()
            )
            text += json.dumps(asdict(line)) + "\n"
    if distributed.rank() == 0:
        checkpoint.write_text(folder / "results.jsonl", text)


if __name__ == "__main__":
    main()
