"""How far can the ranking of a supernet be trusted? What its own held-out images say of that.

No network is trained for it, so that a supernet that is consistently wrong is not found out; one
that has learned little, or whose ranking is noise, is. Training a few networks says more
(`tools.rank`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from model.ranking.supernet_accuracy import AccuracyRecipe, SupernetAccuracy
from model.spaces.contracts import Choice
from utils.images import Images
from utils.runtime import stream
from utils.statistics import kendall_tau

RANKED = 16  # architectures
MOST_IMAGES = 2000  # of each half
LEARNED = 0.1  # of the way from chance to 100 %
AGREED = 0.5  # least Kendall tau of two halves


@dataclass(frozen=True)
class Reliability:
    """What two halves of the held-out images say of some random architectures.

    Args:
        top1: their mean accuracy in %; `chance` is that of guessing.
        halves: Kendall tau between the rankings by the two halves.
        cost: Kendall tau of the ranking by both with that by cost.
        count: how many architectures.
    """

    top1: float
    chance: float
    halves: float
    cost: float
    count: int

    @classmethod
    def of(cls, top1: NDArray, losses: NDArray, costs: NDArray, classes: int) -> "Reliability":
        """From top-1 and cross entropies `[2, N]` on both halves, and costs `[N]`."""
        first, second = losses
        halves = float(kendall_tau(first, second, constant=0))
        cost = float(kendall_tau(-losses.mean(axis=0), costs, constant=0))
        return cls(float(np.mean(top1)), 100 / classes, halves, cost, len(costs))

    @property
    def doubts(self) -> list[str]:
        """Why answers that follow this ranking cannot be trusted; empty when nothing was found."""
        found = []
        if self.top1 < self.chance + LEARNED * (100 - self.chance):
            found.append(
                f"the supernet has learned little: its networks have {self.top1:.1f} % top-1, "
                f"where guessing has {self.chance:.1f} %; a longer warm-up helps"
            )
        if self.halves < AGREED:
            found.append(
                "its ranking is mostly noise: two halves of the held-out images rank networks with "
                f"a Kendall tau of {self.halves:.2f}"
            )
        elif self.cost >= self.halves:
            found.append(
                "it ranks no better than cost: with cost its ranking has a Kendall tau of "
                f"{self.cost:.2f}, and its two halves with each other {self.halves:.2f}"
            )
        return found

    def __str__(self) -> str:
        return (
            f"supernet: {self.count} random networks have {self.top1:.1f} % top-1 (guessing "
            f"{self.chance:.1f} %); Kendall tau of their ranking by two halves of the held-out "
            f"images {self.halves:.2f}, with cost {self.cost:.2f}"
        )


def reliability_of(
    accuracy: SupernetAccuracy,
    images: Images,
    recipe: AccuracyRecipe,
    choices: Sequence[Choice],
    costs: NDArray,
) -> Reliability:
    """That of a supernet which scores `choices` on two halves of `images`; all processes call it.

    Args:
        accuracy: of the supernet, on other images.
        costs: of the choices, `[N]`.
    """
    drawn = torch.randperm(len(images.labels), generator=stream(recipe.seed, "halves"))
    count, losses, top1 = min(len(drawn) // 2, MOST_IMAGES), [], []
    for half in drawn[: 2 * count].view(2, count):
        batches = recipe.batches(images.subset(half.sort().values), "validate", training=False)
        scores = replace(accuracy, validation=batches).scores(choices)
        losses.append([score.loss for score in scores])
        top1.append([score.top1 for score in scores])
    classes = accuracy.supernet.space.classes
    return Reliability.of(np.array(top1), np.array(losses), costs, classes)
