"""shim"""

from utils.engine import *  # noqa
from utils.engine import (
    Recipe,
)  # noqa
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from utils.config import OptimState
from utils.engine import DeviceContext
from utils.optim import Schedule, make_optimizer


@dataclass(frozen=True)
class LearningRecipe:
    """The keys by which a supernet, or a network from scratch, learns."""

    optim_state: OptimState
    lr_scheduler: str
    epochs: int
    step_size: int
    decay_ratio: float
    lr_warmup_steps: int
    label_smoothing: float
    clip_grad: float
    seed: int

    def build(
        self,
        parameters: Iterable[nn.Parameter],
        steps_per_epoch: int,
        context: DeviceContext,
        purpose: str,
        checkpoint: Path,
        **more,
    ) -> Recipe:
        """The recipe of `train_epoch`; `purpose` names its random streams."""
        schedule = Schedule(
            self.lr_scheduler,
            self.optim_state.lr,
            self.epochs,
            steps_per_epoch,
            self.step_size,
            self.decay_ratio,
            self.lr_warmup_steps,
        )
        return Recipe(
            nn.CrossEntropyLoss(label_smoothing=self.label_smoothing),
            make_optimizer(parameters, self.optim_state),
            schedule,
            context,
            (self.seed, purpose),
            checkpoint,
            self.clip_grad,
            **more,
        )
