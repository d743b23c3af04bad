"""Supernet warm-up (SGNAS, section 3.2): the stage that trains all architectures at once.

Which architectures a step trains is a method of the kind of space: single paths sampled fairly, or
the sandwich rule of an elastic supernet.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import nn

from model.spaces.contracts import SpaceKind
from model.spaces.registry import supernet_record
from utils.engine import DeviceContext
from utils.loader import Loader
from utils.recipe import (
    EpochMeter,
    LearningRecipe,
    average_norms,
    mean_state,
    norms_of_all,
    restore_norms,
    train_epoch,
)
from utils.runtime import Progress


@dataclass(frozen=True)
class WarmUpRecipe(LearningRecipe):
    """How a supernet learns; see `LearningRecipe` for the other keys."""

    paths_per_step: int = 4
    path_sampling: str = "fair"
    warmup_epochs: int = 1

    @property
    def length(self) -> int:
        return max(1, self.warmup_epochs)


class WarmUp:
    """The supernet and what trains it.

    The gradients of `paths_per_step` architectures on a batch add up before a step.
    """

    def __init__(
        self,
        kind: SpaceKind,
        supernet: nn.Module,
        steps_per_epoch: int,
        recipe: WarmUpRecipe,
        context: DeviceContext,
        checkpoint: Path,
    ):
        self.supernet = supernet
        sampled = (recipe.paths_per_step, recipe.path_sampling)
        self.forwards = partial(kind.passes, supernet, *sampled, context)
        parameters = supernet.parameters()
        self.recipe = recipe.build(parameters, steps_per_epoch, context, "warm-up", checkpoint)
        self.epochs, self.meter, self.best_top1 = 0, EpochMeter(), -1.0

    def epoch(self, batches: Loader, epoch: int, progress: Progress) -> EpochMeter:
        """What is left of an epoch, after the steps in `meter`."""
        self.supernet.train()
        train_epoch(self.forwards, self.recipe, batches, epoch, self.meter, progress)
        average_norms(self.supernet)
        return self.meter

    def state(self) -> dict:
        return {
            **supernet_payload(self.supernet, self.epochs),
            "model": mean_state(self.supernet),
            "norms": norms_of_all(self.supernet),
            "optimizer": self.recipe.optimizer.state_dict(),
            "tally": asdict(self.meter),
            "best_top1": self.best_top1,
        }

    def load_state(self, state: dict) -> None:
        self.supernet.load_state_dict(state["model"])
        restore_norms(state.get("norms", []), self.supernet)
        self.recipe.optimizer.load_state_dict(state["optimizer"])
        self.epochs, self.best_top1 = state["epoch"], state["best_top1"]
        self.meter = EpochMeter(**state["tally"])


def supernet_payload(supernet: nn.Module, epochs: int) -> dict:
    """The checkpoint of a supernet."""
    return {**supernet_record(supernet), "epoch": epochs, "model": supernet.state_dict()}
