"""Optimisers, learning-rate schedules and averaged weights."""

import math
from collections.abc import Iterable

import torch
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from utils.config import OptimState


def make_optimizer(parameters: Iterable[nn.Parameter], state: OptimState) -> torch.optim.Optimizer:
    """Adam with betas (`beta`, 0.999), or SGD with momentum; both with weight decay."""
    if state.optimizer == "adam":
        return torch.optim.Adam(
            parameters, state.lr, (state.beta, 0.999), weight_decay=state.weight_decay
        )
    return torch.optim.SGD(parameters, state.lr, state.momentum, weight_decay=state.weight_decay)


class Schedule:
    """The learning rate as a function of the step, so that a resumed run needs no state of it.

    "constant" stays at `lr`; "cosine" falls to 0 over `epochs`, and stays there; "step" multiplies
    by `decay_ratio` every `step_size` epochs. In the first `warmup_steps` steps all that is reached
    linearly.
    """

    def __init__(
        self,
        kind: str,
        lr: float,
        epochs: int,
        steps_per_epoch: int,
        step_size: int = 80,
        decay_ratio: float = 0.1,
        warmup_steps: int = 0,
    ):
        self.kind, self.lr, self.epochs, self.steps_per_epoch = kind, lr, epochs, steps_per_epoch
        self.step_size, self.decay_ratio, self.warmup_steps = step_size, decay_ratio, warmup_steps

    def at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        return self._decayed(step) * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def _decayed(self, step: int) -> float:
        if self.kind == "constant":
            return self.lr
        if self.kind == "cosine":
            return (
                self.lr
                * 0.5
                * (1 + math.cos(math.pi * min(step / (self.epochs * self.steps_per_epoch), 1.0)))
            )
        return self.lr * self.decay_ratio ** (step // self.steps_per_epoch // self.step_size)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.at(step)


class TimmSchedule:
    """A schedule of timm, as a function of the step."""

    def __init__(self, scheduler: Scheduler, steps_per_epoch: int):
        self.scheduler, self.steps_per_epoch = scheduler, steps_per_epoch

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """One value for each epoch, as published, or for each step, as the schedule was made."""
        self.scheduler.step(step // self.steps_per_epoch)
        self.scheduler.step_update(step)


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of the weights and buffers of `network`, which begins as they
    are now.

    `update_parameters(network)` after each step moves it, faster in the first ones: after n steps
    the old average counts min(decay, n / (n + 9)). With decay 0 it is a copy. The averaged network
    is its `module`.
    """

    def move(averages: list[Tensor], values: list[Tensor], steps: Tensor) -> None:
        keep = min(decay, float(steps) / (float(steps) + 9))
        for average, value in zip(averages, values, strict=True):
            average.lerp_(value, 1 - keep) if average.is_floating_point() else average.copy_(value)

    return AveragedModel(network, multi_avg_fn=torch.no_grad()(move), use_buffers=True)
