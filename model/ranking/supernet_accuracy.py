"""The accuracy of an architecture with the weights of a supernet, on held-out images.

Batch norms are re-estimated on training images for each architecture, since the running statistics
of a supernet are those of all architectures together. Source: SGNAS, section 3.2; Lu et al.,
"NSGANetV2", ECCV 2020, section 3.2.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from model.ranking.bn_recalibration import recalibrated
from model.spaces.contracts import Choice, SpaceKind
from utils.data import SearchImages
from utils.distributed import divided, results
from utils.engine import DeviceContext, Score, evaluate
from utils.loader import BatchRecipe, Loader
from utils.runtime import stream


@dataclass(frozen=True)
class AccuracyRecipe(BatchRecipe):
    """How architectures are validated; see `BatchRecipe` for the other keys."""

    bn_recalibration_images: int = 0


@dataclass(frozen=True)
class SupernetAccuracy:
    """Scores architectures of `supernet` on the batches of `validation`.

    `recalibration` are the batches that re-estimate batch norms; empty: they stay as they are.
    """

    kind: SpaceKind
    supernet: nn.Module
    validation: Loader
    recalibration: Loader
    context: DeviceContext

    @classmethod
    def on_search_images(
        cls,
        kind: SpaceKind,
        supernet: nn.Module,
        images: SearchImages,
        recipe: AccuracyRecipe,
        context: DeviceContext,
    ) -> "SupernetAccuracy":
        """By the validation part of a search; batch norms by some images of its training part."""
        rng = stream(recipe.seed, "recalibrate")
        drawn = torch.randperm(len(images.train.labels), generator=rng)
        used = images.train.subset(drawn[: recipe.bn_recalibration_images])
        validation = recipe.batches(images.validate, "validate", training=False)
        recalibration = recipe.batches(used, "recalibrate", training=False)
        return cls(kind, supernet, validation, recalibration, context)

    def score(self, choice: Choice) -> Score:
        """The score of one architecture; the supernet is left as it was, but in evaluation mode."""
        forward = self.kind.forward(self.supernet, choice)
        with recalibrated(self.supernet, forward, self.recalibration.epoch(), self.context):
            return evaluate(forward, self.validation, self.context)

    def scores(self, choices: Sequence[Choice]) -> list[Score]:
        """The score of each of `choices`, divided among all processes, which call it together."""
        return results(divided(len(choices), lambda index: self.score(choices[index])))

    def top1_of_all(self, choices: Sequence[Choice]) -> list[float]:
        """Their top-1 in %."""
        return [score.top1 for score in self.scores(choices)]
