"""What judges the candidates of an evolutionary search: accuracies, or signals that need no images.

An evaluation measures a candidate, and turns what it measured of some into errors, which the search
minimises. Accuracies give top-1 errors in %, signals the penalties of `FixedScale`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from model.ranking.combined import WAYS, FixedScale
from model.ranking.signals import Signals
from model.spaces.contracts import Genes
from utils.engine import Score
from utils.errors import UserError

Measured = dict[str, float]


class Evaluation(Protocol):
    """How candidates are judged."""

    needed: tuple[str, ...]  # what `errors` wants to know of a candidate
    title: str  # of what is shown to people
    scale: FixedScale | None  # what a search has to keep, so that it can resume

    def measure(self, row: Genes, name: str) -> Measured:
        """What is measured of a candidate, whose name says which random numbers it draws."""

    def errors(self, measured: list[Measured]) -> list[float]:
        """The errors of candidates; the first ones that are asked for may fix the scale."""

    def shown(self, error: float) -> float:
        """The number under `title`."""


@dataclass
class ByAccuracy:
    """By top-1 on held-out images.

    Args:
        score: measures a row of genes; its second argument is the name of the candidate.
    """

    score: Callable[[Genes, str], Score]
    needed = ("top1",)
    title = "top-1 %"
    scale: None = None

    def measure(self, row: Genes, name: str) -> Measured:
        score = self.score(row, name)
        if not math.isfinite(score.loss):
            raise UserError(f"its loss is {score.loss}")
        return {key: getattr(score, key) for key in ("loss", "top1", "top5")}

    def errors(self, measured: list[Measured]) -> list[float]:
        return [100 - found["top1"] for found in measured]

    def shown(self, error: float) -> float:
        return 100 - error


@dataclass
class BySignals:
    """By signals, whose scale the first candidates fix.

    Args:
        way: a key of `WAYS`.
    """

    signals: Signals
    way: str
    scale: FixedScale | None = None
    needed: tuple[str, ...] = field(init=False)
    title = "penalty"

    def __post_init__(self):
        self.needed = WAYS[self.way]

    def measure(self, row: Genes, name: str) -> Measured:
        return self.signals.of(row)

    def errors(self, measured: list[Measured]) -> list[float]:
        columns = {name: np.array([found[name] for found in measured]) for name in self.needed}
        self.scale = self.scale or FixedScale.of(columns)
        return self.scale.penalties(columns).tolist()

    def shown(self, error: float) -> float:
        return error
