"""Supernet warm-up (SGNAS, section 3.2): the stage that trains all architectures at once.

Which architectures a step trains is a method of the kind of space: single paths sampled fairly, or
the sandwich rule of an elastic supernet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.spaces.contracts import Choice, CostTable
from model.spaces.registry import Problem, supernet_record
from utils.engine import DeviceContext
from utils.loader import Loader
from utils.optim import load_optimizer
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
    lr_by_complexity: bool = False
    step_used_only: bool = False
    warmup_epochs: int = 1

    @property
    def length(self) -> int:
        return max(1, self.warmup_epochs)


STEEPEST, FLATTEST = 3.0, 1 / 3  # exponents of the smallest and of the largest network


@dataclass(frozen=True)
class ComplexityAwareRate:
    """Learning rates of steps by the size of the networks they train: small ones converge early.

        lr(t, P) = lr_0 (lr(t) / lr_0) ** g(P)

    for a schedule lr(t) that falls from lr_0, and networks of P parameters; g is linear in log P,
    from 3 for the smallest of the space to 1/3 for the largest. With a linear schedule this is the
    published lr_0 (1 - t / T) ** g(P). Several networks in a step share the mean of their rates.
    Source: Jeon et al., "Subnet-Aware Dynamic Supernet Training for Neural Architecture Search",
    CVPR 2025.

    Args:
        table: its parameters count.
        lr: lr_0.
        smallest, largest: log P of the extremes of the space.
    """

    table: CostTable
    lr: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, table: CostTable, lr: float) -> "ComplexityAwareRate":
        ends = np.log(np.asarray(table.parameters_m(table.space.extremes()), dtype=float))
        return cls(table, lr, float(ends.min()), float(ends.max()))

    def exponents(self, choices: Sequence[Choice]) -> NDArray:
        """g `[N]` of architectures."""
        sizes = np.log(np.asarray(self.table.parameters_m(choices), dtype=float))
        place = (sizes - self.smallest) / max(self.largest - self.smallest, 1e-12)
        return STEEPEST + place.clip(0, 1) * (FLATTEST - STEEPEST)

    def apply(self, optimizer: torch.optim.Optimizer, choices: Sequence[Choice]) -> None:
        """Give the step that trains `choices` its rate; the schedule has set lr(t)."""
        exponents = self.exponents(choices)
        for group in optimizer.param_groups:
            group["lr"] = float(self.lr * np.mean((group["lr"] / self.lr) ** exponents))


class WarmUp:
    """The supernet and what trains it.

    The gradients of `paths_per_step` architectures on a batch add up before a step.
    """

    def __init__(
        self,
        problem: Problem,
        supernet: nn.Module,
        steps_per_epoch: int,
        recipe: WarmUpRecipe,
        context: DeviceContext,
        checkpoint: Path,
    ):
        self.kind, self.supernet, self.context = problem.kind, supernet, context
        self.sampled = (recipe.paths_per_step, recipe.path_sampling)
        parameters = supernet.parameters()
        self.recipe = recipe.build(
            parameters,
            steps_per_epoch,
            context,
            "warm-up",
            checkpoint,
            used_only=recipe.step_used_only,
        )
        lr, table = recipe.optim_state.lr, problem.table
        self.complexity = ComplexityAwareRate.of(table, lr) if recipe.lr_by_complexity else None
        self.epochs, self.meter, self.best_top1 = 0, EpochMeter(), -1.0

    def forwards(
        self, images: Tensor, labels: Tensor, rng: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The passes of a step, whose learning rate may depend on what it samples."""
        choices = self.kind.step_choices(self.supernet.space, *self.sampled, rng)
        if self.complexity is not None:
            self.complexity.apply(self.recipe.optimizer, choices)
        return self.kind.passes(self.supernet, choices, self.context, images, labels)

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
        load_optimizer(self.recipe.optimizer, state["optimizer"])
        self.epochs, self.best_top1 = state["epoch"], state["best_top1"]
        self.meter = EpochMeter(**state["tally"])


def supernet_payload(supernet: nn.Module, epochs: int) -> dict:
    """The checkpoint of a supernet."""
    return {**supernet_record(supernet), "epoch": epochs, "model": supernet.state_dict()}
