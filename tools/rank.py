"""Does the supernet know? Architectures trained from scratch, beside what the search said of them.

    python3 -m tools.rank logs/small --out ranking --set epochs=4
    python3 -m tools.rank logs/small --out ranking --set epochs=4 --targets 4,5.5,7 --search DIR --seeds 2

Random architectures of the run's space: Kendall tau of what its supernet says of them, on all
images that did not train it, with the accuracy on the test images after training from scratch by
one recipe: the run's config, changed by --set. With targets also the generator's answer to each,
that of an msunas.py search on the same supernet, and random architectures of equal cost; with
--scored also where answers stand among more of these, by the supernet alone: a search may fail to
find what its supernet likes, or the supernet may like what is not good. Trainings are seeded 0, 1,
...; each has a run folder of its own in OUT. The same command goes on where it stopped, all numbers
may grow, and under torchrun the processes share the networks. Nothing is chosen by test images.
"""

import argparse
import hashlib
import json
import time
from dataclasses import dataclass, replace
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import torch
from model.spaces.network_spec import spec_of
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from model.costs.lookup_table import CostTable
from model.nsganetv2.archive import last_archive
from model.sgnas.answers import find_generator, run_config, supernet_of
from model.sgnas.warm_up import PathValidation, top1_of_all
from model.spaces.nasbench201.space import from_string
from model.spaces.registry import build_cost_table, build_space, build_supernet, load_supernet
from model.spaces.unified.space import Architecture
from model.training.from_scratch import build_network, train_from_scratch
from tools.generate import parse_targets
from tools.reporting.statistics import CONFIDENCE, kendall, kendall_difference, spread, tau_b
from utils import checkpoint, distributed
from utils.command import Parser, add_config_options, command, not_negative, positive
from utils.config import Config
from utils.data import Dataset, load_dataset, split_for_search
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.run_folder import RunFolder
from utils.runtime import pick_device, stream
from utils.stopping import check_stop
from utils.table import format_table

EQUAL = 0.005  # costs that differ from a target by this share of it count as equal
DRAWN, DRAWS = 4096, 64  # random architectures at once, and how often, to find some of equal cost
RANDOM, GENERATOR, EVOLVED = "random", "generator", "msunas"


@dataclass(frozen=True)
class Answer:
    """An architecture and the method that gave it, for a target or, among those to rank, for none."""

    method: str
    target: float | None
    architecture: Architecture
    cost: float  # in the unit of the target
    params_m: float

    @property
    def name(self) -> str:
        """The same for the same architecture, however it was found."""
        return hashlib.sha256(json.dumps(self.architecture.choices).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Judged:
    """What the supernet says of an answer, and what its trainings from scratch reached: top-1 in %."""

    answer: Answer
    supernet: float
    tests: tuple[float, ...]

    @property
    def test(self) -> float:
        return float(np.mean(self.tests))


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    config = recipe_of(args)
    table = build_cost_table(config, build_space(config))
    answers = drawn(table, args.count, args.seed)
    for target in parse_targets(args.targets) if args.targets else ():
        answers += answers_for(float(target), table, config, args)
    if not answers:
        raise UserError("--count 0: there is nothing to train without --targets")
    targets = dict.fromkeys(answer.target for answer in answers if answer.target)
    others = (
        {target: drawn(table, args.scored, args.seed, target) for target in targets}
        if args.scored
        else {}
    )
    dataset = load_dataset(config.dataset, config.dataset_dir, config.input_size, config.classes)
    said = supernet_scores([*answers, *chain(*others.values())], table, dataset, config, args)
    reached = train_all(answers, table, dataset, config, args)
    judged = [
        Judged(answer, said[answer.name], reached[index]) for index, answer in enumerate(answers)
    ]
    write_results(judged, config, args.out)
    report(judged, table.unit, config, args.out)
    print_standing(
        judged, {target: np.array([said[a.name] for a in own]) for target, own in others.items()}
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of search.py")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="where networks and results go"
    )
    parser.add_argument(
        "--count", type=not_negative, default=12, help="random architectures to rank (default 12)"
    )
    parser.add_argument("--targets", help="at which answers are compared: a,b,c or start:stop:step")
    parser.add_argument(
        "--search", type=Path, metavar="DIR", help="an msunas.py search on the run's supernet"
    )
    parser.add_argument(
        "--random", type=positive, default=3, help="random architectures of a target (default 3)"
    )
    parser.add_argument(
        "--scored", type=not_negative, default=0, help="of these, only by the supernet (default 0)"
    )
    parser.add_argument(
        "--seeds", type=positive, default=2, help="trainings of each answer to a target (default 2)"
    )
    parser.add_argument(
        "--seed", type=not_negative, default=0, help="of all that is drawn (default 0)"
    )
    add_config_options(parser)
    return parser.parse_args(argv)


def recipe_of(args: argparse.Namespace) -> Config:
    """The run's config with what changes the training; its networks go to OUT."""
    config = run_config(args.run, args.set)
    return replace(
        config, log_dir=str(args.out), write_dir=None, path_to_save_scratch=None, inherit=None
    )


# -- which architectures ---------------------------------------------------------------------------


def described(method: str, target: float | None, paths: Tensor, table: CostTable) -> list[Answer]:
    """The answers of paths `[N, L, E, K]`."""
    columns = (
        map(table.space.decode, paths),
        table(paths).tolist(),
        table.parameters_m(paths).tolist(),
    )
    return [Answer(method, target, *row) for row in zip(*columns, strict=True)]


def drawn(table: CostTable, count: int, seed: int, target: float | None = None) -> list[Answer]:
    """`count` different random architectures, with a target only those of equal cost; UserError if
    there are fewer.
    """
    rng, found = stream(seed, "rank", "any" if target is None else f"{target:g}"), {}
    for _ in range(DRAWS):
        paths = table.space.sample(DRAWN, rng)
        if target is not None:
            paths = paths[(table(paths) / target - 1).abs() <= EQUAL]
        found |= {
            answer.name: answer for answer in described(RANDOM, target, paths[: 2 * count], table)
        }
        if len(found) >= count:
            return list(found.values())[:count]
    asked = (
        f"--count {count}: of"
        if target is None
        else f"--random {count}: of {target:g} {table.unit}, of"
    )
    raise UserError(
        f"{asked} {DRAWN * DRAWS} random architectures {len(found)} are such; choose a target nearer the mean"
    )


def answers_for(
    target: float, table: CostTable, config: Config, args: argparse.Namespace
) -> list[Answer]:
    """Those of the run's generator, of the evolutionary search when there is one, and of chance."""
    asked, ready = torch.tensor([target], dtype=torch.float64), find_generator(config, args.run)
    ready.check(asked)
    answers = described(GENERATOR, target, table.space.discretize(ready.logits(asked)), table)
    if args.search:
        answers += described(EVOLVED, target, evolved(target, table, args)[None], table)
    return answers + drawn(table, args.random, args.seed, target)


def evolved(target: float, table: CostTable, args: argparse.Namespace) -> Tensor:
    """Of a search's archive, the path of the best validation accuracy that costs as the
    target, or less.

    UserError when the search was on another supernet, or knew test images.
    """
    try:
        settings = json.loads((args.search / "search.json").read_text())["settings"]
        if (
            settings["supernet_path"] != checkpoint.digest(supernet_of(args.run))
            or settings["test"]
        ):
            raise UserError(
                f"--search {args.search}: it was on another supernet than the run's, or knew test images"
            )
        rows = [(architecture_of(record), error) for record, error, _ in last_archive(args.search)]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"--search {args.search}: no search of this space by msunas.py ({error})"
        ) from None
    paths = torch.stack([table.space.encode(architecture) for architecture, _ in rows])
    errors = torch.tensor([error for _, error in rows])
    errors[table(paths) > target * (1 + EQUAL)] = float("inf")
    if not errors.isfinite().any():
        raise UserError(
            f"--search {args.search}: it has no architecture of at most {target:g} {table.unit}"
        )
    return paths[errors.argmin()]


def architecture_of(record: dict) -> Architecture:
    """What an archive stores, of either space with a generator."""
    return from_string(record["cell"]) if "cell" in record else Architecture.of(record["choices"])


# -- what the supernet says, and what is true ------------------------------------------------------


def supernet_scores(
    answers: list[Answer],
    table: CostTable,
    dataset: Dataset,
    config: Config,
    args: argparse.Namespace,
) -> dict[str, float]:
    """Top-1 in % of each by its name, on all images that did not train the supernet; kept in
    OUT/supernet.json.
    """
    weights, kept = supernet_of(args.run), args.out / "supernet.json"
    images = split_for_search(dataset, config.train_portion, config.seed, args.run / "split.json")
    images = replace(images, validate=images.held_out)
    by = {"supernet": checkpoint.digest(weights), "images": len(images.validate.labels)}
    by |= {"norms": config.bn_recalibration_images, "seed": config.seed}
    known = read_scores(kept, by)
    paths = {a.name: table.space.encode(a.architecture) for a in answers if a.name not in known}
    if paths:
        context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
        supernet = build_supernet(config).to(context.device).eval()
        load_supernet(supernet, str(weights))
        print(f"the supernet of {args.run} scores {len(paths)} architectures", flush=True)
        scores = top1_of_all(
            PathValidation(supernet, images, config, context), torch.stack(list(paths.values()))
        )
        known |= dict(zip(paths, scores, strict=True))
        if distributed.rank() == 0:
            checkpoint.write_text(kept, json.dumps({**by, "top1": known}, indent=1) + "\n")
    return known


def read_scores(file: Path, by: dict) -> dict[str, float]:
    """What was scored before; UserError when it was by another supernet or on other images."""
    if not file.exists():
        return {}
    try:
        record = json.loads(file.read_text())
        known = {name: float(top1) for name, top1 in record["top1"].items()}
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: it holds no scores ({error})") from None
    if any(record.get(key) != value for key, value in by.items()):
        raise UserError(
            f"--out {file.parent}: its networks were scored by another supernet, or otherwise; choose another folder"
        )
    return known


def train_all(
    answers: list[Answer],
    table: CostTable,
    dataset: Dataset,
    config: Config,
    args: argparse.Namespace,
) -> list[tuple[float, ...]]:
    """Test top-1 in % of each answer, by seed; an architecture that several methods gave is trained
    once.
    """
    seeds = [range(args.seeds if answer.target else 1) for answer in answers]
    trials = {
        (answer.name, seed): answer.architecture
        for answer, own in zip(answers, seeds, strict=True)
        for seed in own
    }
    folders = [args.out / title(*trial) / "result.json" for trial in trials]
    began, done_before = time.monotonic(), sum(file.exists() for file in folders)

    def trained(index: int) -> float:
        check_stop()
        (name, seed), architecture = list(trials.items())[index]
        top1 = train_one(name, seed, architecture, table, dataset, config)
        done = sum(file.exists() for file in folders)
        line = f"{done} of {len(trials)} networks: {name} seed {seed} has {top1:.2f} %"
        if done > done_before:
            left = (time.monotonic() - began) / (done - done_before) * (len(trials) - done)
            line += f", left {tqdm.format_interval(left)}"
        print(line, flush=True)
        return top1

    reached = dict(
        zip(trials, distributed.results(distributed.divided(len(trials), trained)), strict=True)
    )
    return [
        tuple(reached[answer.name, seed] for seed in own)
        for answer, own in zip(answers, seeds, strict=True)
    ]


def title(name: str, seed: int) -> str:
    return f"{name}-seed{seed}"


def train_one(
    name: str,
    seed: int,
    architecture: Architecture,
    table: CostTable,
    dataset: Dataset,
    config: Config,
) -> float:
    """Top-1 in % of the test images, with the last weights; from its run folder when it is trained
    already.
    """
    config = replace(config, seed=seed)
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    run = RunFolder.open("train_cifar", config, title(name, seed))
    if run.continues and run.file("result.json").exists():
        return json.loads(run.file("result.json").read_text())["top1"]
    spec = spec_of(table.space, architecture)
    provenance = {"source": "tools.rank", "target": None, "unit": config.unit}
    network = build_network(spec, config)
    return train_from_scratch(spec, network, dataset, config, run, context, provenance)["top1"]


# -- what it comes to ------------------------------------------------------------------------------


def write_results(judged: list[Judged], config: Config, folder: Path) -> None:
    """OUT/results.jsonl: a line for each training."""
    recipe = {"epochs": config.epochs, "lr": config.optim_state.lr, "batch_size": config.batch_size}
    lines = [
        {
            **{
                "method": one.answer.method,
                "target": one.answer.target,
                "network": one.answer.name,
            },
            **{
                "cost": round(one.answer.cost, 6),
                "params_m": round(one.answer.params_m, 6),
                **recipe,
            },
            **{"supernet_top1": one.supernet, "seed": seed, "test_top1": test},
            "choices": one.answer.architecture.choices,
        }
        for one in judged
        for seed, test in enumerate(one.tests)
    ]
    if distributed.rank() == 0:
        checkpoint.write_text(
            folder / "results.jsonl", "".join(json.dumps(line) + "\n" for line in lines)
        )


def report(judged: list[Judged], unit: str, config: Config, folder: Path) -> None:
    ranked = [one for one in judged if one.answer.target is None]
    answered = [one for one in judged if one.answer.target is not None]
    print(f"\ntop-1 on the test images after {config.epochs} epochs from scratch")
    if len(ranked) > 2:
        print_ranking(ranked, unit)
    if answered:
        print_answers(answered, unit)
        # of a network that is there twice, all its trainings
        trained = {one.answer.name: one for one in judged}
        if len(trained) > 2:
            print(
                f"all {len(trained)} networks together, answers and random ones (no random sample):"
            )
            print_taus(list(trained.values()))
    print(
        f"\n{sum(len(one.tests) for one in judged)} trainings, each in a folder of {folder}; {folder}/results.jsonl"
    )


def print_ranking(ranked: list[Judged], unit: str) -> None:
    ordered = sorted(ranked, key=lambda one: one.answer.cost)
    rows = [
        [one.answer.name, f"{one.answer.cost:.3f}", f"{one.supernet:.2f}", f"{one.test:.2f}"]
        for one in ordered
    ]
    print(format_table(["random", f"cost {unit}", "supernet top-1 %", "test top-1 %"], rows))
    print_taus(ranked)


def print_taus(judged: list[Judged]) -> None:
    """Of different networks: does the supernet foretell their test accuracy, and more than cost
    does?
    """
    tests, said, costs = np.array([(one.test, one.supernet, one.answer.cost) for one in judged]).T
    print(f"Kendall tau of the supernet: {with_interval(kendall(said, tests))}")
    print(f"Kendall tau of cost alone: {with_interval(kendall(costs, tests))}")
    print(
        f"the supernet's above that of cost: {with_interval(kendall_difference(said, costs, tests))}"
    )


def with_interval(found: tuple[float, float, float]) -> str:
    value, low, high = found
    if np.isnan(low):
        return f"{value:.3f}; too few architectures for an interval"
    return f"{value:.3f}, {100 * CONFIDENCE:g} % interval {low:.3f} to {high:.3f}"


def print_answers(answered: list[Judged], unit: str) -> None:
    """Means over the architectures of a method; their spread, and that of the trainings of one, are
    apart.
    """
    rows = []
    for target, here in by_target(answered).items():
        for method in dict.fromkeys(one.answer.method for one in here):
            own = [one for one in here if one.answer.method == method]
            cost = np.mean([one.answer.cost for one in own])
            numbers = [
                np.mean([one.supernet for one in own]),
                np.mean([one.test for one in own]),
                spread(one.test for one in own),
                seed_noise(own),
            ]
            shown = [None if np.isnan(number) else f"{number:.2f}" for number in numbers]
            rows.append(
                [
                    f"{target:g}",
                    method,
                    len(own),
                    f"{cost:.3f}",
                    f"{100 * (cost / target - 1):+.1f}",
                    *shown,
                ]
            )
    columns = [
        f"target {unit}",
        "method",
        "networks",
        f"cost {unit}",
        "miss %",
        "supernet top-1 %",
        "test top-1 %",
    ]
    print(format_table([*columns, "sd of networks", "sd of seeds"], rows))
    print_agreement(answered)


def by_target(answered: list[Judged]) -> dict[float, list[Judged]]:
    groups: dict[float, list[Judged]] = {}
    for one in answered:
        groups.setdefault(one.answer.target, []).append(one)
    return groups


def print_agreement(answered: list[Judged]) -> None:
    """Kendall tau among the different answers to a target, whose costs differ little: means over
    targets and trainings.

    How well one training foretells another is a measure of their noise, and no limit: who knew how
    good each network is would foretell a training better than another noisy one does.
    """
    taus: dict[str, list[float]] = {}
    for here in by_target(answered).values():
        different = list({one.answer.name: one for one in here}.values())
        said, tests = (
            np.array([one.supernet for one in different]),
            np.array([one.tests for one in different]).T,
        )
        taus.setdefault("of the supernet with the mean of all trainings", []).append(
            tau_b(said, tests.mean(axis=0))
        )
        taus.setdefault("of the supernet with one training", []).extend(tau_b(said, tests))
        pairs = combinations(tests, 2)
        taus.setdefault("of one training with another", []).extend(
            tau_b(one, other) for one, other in pairs
        )
    print("Kendall tau among the answers to a target, mean over targets:")
    for what, found in taus.items():
        known = [tau for tau in found if not np.isnan(tau)]
        if known:
            print(f"  {np.mean(known):.3f} {what}")


def print_standing(judged: list[Judged], others: dict[float, NDArray]) -> None:
    """Did a search find what its supernet likes? The share of random architectures of equal cost
    below its answer.
    """
    for target, scores in others.items():
        here = [one for one in judged if one.answer.target == target]
        found = {one.answer.method: one for one in here if one.answer.method != RANDOM}
        below = [
            f"{method}'s answer is above {np.mean(scores < one.supernet):.0%}"
            for method, one in found.items()
        ]
        spans = f"{len(scores)} random ones of {target:g} have {scores.mean():.2f} +- {spread(scores):.2f} %"
        print(f"by the supernet, {spans}; {', '.join(below)} of them")


def seed_noise(judged: list[Judged]) -> float:
    """Standard deviation of the trainings of one network by seed, pooled; not a number for one seed
    each.
    """
    variances = [spread(one.tests) ** 2 for one in judged if len(one.tests) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else float("nan")


if __name__ == "__main__":
    main()
