"""The tables of tools.rank: supernet accuracy compared with test accuracy after training."""

import hashlib
import json
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.spaces.paths import Architecture
from utils.statistics import CONFIDENCE, kendall, kendall_difference, kendall_tau, spread
from utils.table import format_table

RANDOM, GENERATOR, EVOLVED = "random", "generator", "msunas"


@dataclass(frozen=True)
class Answer:
    """An architecture and the method that gave it for a target; those to rank have no target."""

    method: str
    target: float | None
    architecture: Architecture
    cost: float  # in the unit of the target
    params_m: float

    @property
    def blocks(self) -> int:
        """Number of choices that are no skip."""
        return sum(map(len, self.architecture.kernels))

    @property
    def name(self) -> str:
        """The same for the same architecture, however it was found."""
        return hashlib.sha256(json.dumps(self.architecture.choices).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Judged:
    """What the supernet says of an answer, and its test accuracy in % after each training.

    Args:
        supernet: top-1 in % on held-out images.
        loss: cross entropy on these.
    """

    answer: Answer
    supernet: float
    loss: float
    tests: tuple[float, ...]

    @classmethod
    def of(cls, answer: Answer, signals: dict[str, float], tests: tuple[float, ...]) -> "Judged":
        return cls(answer, signals["supernet"], signals["supernet_loss"], tests)

    @property
    def test(self) -> float:
        """The mean over the trainings."""
        return float(np.mean(self.tests))


@dataclass(frozen=True)
class RankedTraining:
    """A line of results.jsonl: a training of an answer from scratch. Top-1 in %."""

    method: str
    target: float | None
    network: str
    cost: float
    params_m: float
    epochs: int
    lr: float
    batch_size: int
    supernet_top1: float
    seed: int
    test_top1: float
    kind: str | None = None
    architecture: Any = None
    choices: Any = None  # the architecture, in older files
    supernet_loss: float | None = None  # older files do not say it


def print_tables(judged: list[Judged], unit: str, epochs: int, folder: Path) -> None:
    """All tables, apart from `print_standing`."""
    ranked = [one for one in judged if one.answer.target is None]
    answered = [one for one in judged if one.answer.target is not None]
    print(f"\ntop-1 on the test images after {epochs} epochs from scratch")
    if len(ranked) > 2:
        print_ranking(ranked, unit)
    if answered:
        print_answers(answered, unit)
        different = _different(judged)
        if len(different) > 2:
            title = f"all {len(different)} networks together, answers and random ones"
            print(f"{title} (no random sample):")
            print_taus(different)
    trainings = sum(len(one.tests) for one in judged)
    print(f"\n{trainings} trainings, each in a folder of {folder}; {folder}/results.jsonl")


def _different(judged: list[Judged]) -> list[Judged]:
    """One of each architecture: the last, which has all its trainings."""
    return list({one.answer.name: one for one in judged}.values())


def print_ranking(ranked: list[Judged], unit: str) -> None:
    """The random architectures by cost, and how well they are predicted."""
    rows = [
        [one.answer.name, f"{one.answer.cost:.3f}", f"{one.supernet:.2f}", f"{one.test:.2f}"]
        for one in sorted(ranked, key=lambda one: one.answer.cost)
    ]
    print(format_table(["random", f"cost {unit}", "supernet top-1 %", "test top-1 %"], rows))
    print_taus(ranked)


def print_taus(judged: list[Judged]) -> None:
    """Whether the supernet's loss predicts test accuracy, and better than what costs nothing."""
    rows = [
        (one.test, -one.loss, one.supernet, one.answer.cost, one.answer.blocks) for one in judged
    ]
    tests, loss, supernet, costs, blocks = np.array(rows, dtype=float).T
    gained = kendall_difference(loss, costs, tests)
    print(f"Kendall tau of the supernet's loss: {with_interval(kendall(loss, tests))}")
    print(f"Kendall tau of its accuracy: {with_interval(kendall(supernet, tests))}")
    print(f"Kendall tau of cost alone: {with_interval(kendall(costs, tests))}")
    print(f"Kendall tau of the number of blocks: {with_interval(kendall(blocks, tests))}")
    print(f"the loss's above that of cost: {with_interval(gained)}")


def with_interval(found: tuple[float, float, float]) -> str:
    """A value and the bounds of its interval, in words."""
    value, low, high = found
    if np.isnan(low):
        return f"{value:.3f}; too few architectures for an interval"
    return f"{value:.3f}, {100 * CONFIDENCE:g} % interval {low:.3f} to {high:.3f}"


def print_answers(answered: list[Judged], unit: str) -> None:
    """The mean of each method at each target, with the spread of networks and that of seeds."""
    rows = []
    for target, here in by_target(answered).items():
        for method in dict.fromkeys(one.answer.method for one in here):
            own = [one for one in here if one.answer.method == method]
            cost = np.mean([one.answer.cost for one in own])
            tests = [one.test for one in own]
            numbers = [np.mean([one.supernet for one in own]), np.mean(tests)]
            numbers += [spread(tests), seed_noise(own)]
            shown = [None if np.isnan(number) else f"{number:.2f}" for number in numbers]
            costs = [f"{cost:.3f}", f"{100 * (cost / target - 1):+.1f}"]
            rows.append([f"{target:g}", method, len(own), *costs, *shown])
    columns = [f"target {unit}", "method", "networks", f"cost {unit}", "miss %"]
    columns += ["supernet top-1 %", "test top-1 %", "sd of networks", "sd of seeds"]
    print(format_table(columns, rows))
    print_agreement(answered)


def by_target(answered: list[Judged]) -> dict[float, list[Judged]]:
    """Those of each target, in the order of their targets."""
    targets = dict.fromkeys(one.answer.target for one in answered)
    return {target: [one for one in answered if one.answer.target == target] for target in targets}


def print_agreement(answered: list[Judged]) -> None:
    """Kendall tau among different answers to a target: the mean over targets and trainings.

    Their costs differ little. How well one training predicts another measures their noise, and is
    no upper limit: the true accuracy would predict a training better than a noisy one does.
    """
    whole, one_training, trainings = [], [], []
    for here in map(_different, by_target(answered).values()):
        supernet = np.array([one.supernet for one in here])
        tests = np.array([one.tests for one in here]).T  # [seeds, networks]
        whole.append(kendall_tau(supernet, tests.mean(axis=0)))
        one_training.extend(kendall_tau(supernet, tests))
        trainings.extend(kendall_tau(*pair) for pair in combinations(tests, 2))
    print("Kendall tau among the answers to a target, mean over targets:")
    for what, taus in (
        ("of the supernet with the mean of all trainings", whole),
        ("of the supernet with one training", one_training),
        ("of one training with another", trainings),
    ):
        if not np.isnan(taus).all():
            print(f"  {np.nanmean(taus):.3f} {what}")


def print_standing(judged: list[Judged], others: dict[float, NDArray]) -> None:
    """Whether a search found what its supernet prefers.

    That is the share of random architectures of equal cost with a lower supernet accuracy than its
    answer; `others` are the supernet accuracies of these by target.
    """
    for target, scores in others.items():
        here = [one for one in judged if one.answer.target == target]
        found = {one.answer.method: one for one in here if one.answer.method != RANDOM}
        below = ", ".join(
            f"{method}'s answer is above {np.mean(scores < one.supernet):.0%}"
            for method, one in found.items()
        )
        random = f"{len(scores)} random ones of {target:g}"
        have = f"have {scores.mean():.2f} +- {spread(scores):.2f} %"
        print(f"by the supernet, {random} {have}; {below} of them")


def seed_noise(judged: list[Judged]) -> float:
    """Standard deviation over the seeds of one network, pooled; NaN for one seed each."""
    variances = [spread(one.tests) ** 2 for one in judged if len(one.tests) > 1]
    return float(np.sqrt(np.mean(variances))) if variances else float("nan")
