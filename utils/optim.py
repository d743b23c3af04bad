"""Optimisers, learning-rate schedules and averaged weights."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from utils.config import LEAST_RATE, OptimState
from utils.errors import UserError

if TYPE_CHECKING:  # slow to import
    from timm.scheduler.scheduler import Scheduler


def make_optimizer(parameters: Iterable[nn.Parameter], state: OptimState) -> torch.optim.Optimizer:
    """Adam with betas (`beta`, 0.999), or SGD with momentum; both with weight decay."""
    if state.optimizer == "adam":
        return torch.optim.Adam(
            parameters, state.lr, (state.beta, 0.999), weight_decay=state.weight_decay
        )
    return torch.optim.SGD(parameters, state.lr, state.momentum, weight_decay=state.weight_decay)


# entries of an optimiser's state that are numbers, or have the shape of their parameter
ELEMENTWISE = frozenset({"step", "momentum_buffer", "exp_avg", "exp_avg_sq", "square_avg"})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Continue from the `state_dict` of an optimiser of the same parameters.

    ValueError when it would fail at a step: PyTorch itself compares neither shapes nor options.
    """
    options = [
        {name: type(value) for name, value in group.items() if name != "params"}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state)
    for known, group in zip(options, optimizer.param_groups, strict=True):
        for name, kind in known.items():
            if not isinstance(group.get(name), (int, float) if kind in (int, float) else kind):
                raise ValueError(f"the {name} of the optimizer is {group.get(name)!r}")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    entries = {tuple(sorted(optimizer.state[p])) for p in parameters if optimizer.state.get(p)}
    # optimisers that factor their statistics keep others for vectors than for matrices
    if len(entries) > 1 and all(set(names) <= ELEMENTWISE for names in entries):
        raise ValueError(f"the state of the optimizer has {' and '.join(map(str, entries))}")
    for parameter in parameters:
        for name, value in optimizer.state.get(parameter, {}).items():
            if value is None:
                continue
            shapes = ((), parameter.shape)
            fits = name not in ELEMENTWISE or torch.as_tensor(value).shape in shapes
            if not fits or not torch.as_tensor(value).isfinite().all():
                raise ValueError(f"{name} of the optimizer does not fit its parameter")


@dataclass(frozen=True)
class Schedule:
    """The learning rate as a function of the step, so that a resumed run needs no state of it.

    "constant" stays at `lr`; "cosine" and "linear" fall to 0 over `epochs`, and stay there, so that
    no training may be longer; "step" multiplies by `decay_ratio` every `step_size` epochs. All rise
    linearly over the first `warmup_steps`.
    """

    name: str
    lr: float
    epochs: int
    steps_per_epoch: int
    step_size: int = 80
    decay_ratio: float = 0.1
    warmup_steps: int = 0

    def at(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        return self._decayed(step) * min(1.0, (step + 1) / (self.warmup_steps + 1))

    def _decayed(self, step: int) -> float:
        if self.name == "constant":
            return self.lr
        done = min(step / (self.epochs * self.steps_per_epoch), 1.0)
        if self.name == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        if self.name == "linear":
            return self.lr * (1 - done)
        return self.lr * self.decay_ratio ** (step // self.steps_per_epoch // self.step_size)

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.at(step)

    def check(self, epochs: int) -> None:
        """UserError when training of so many `epochs` has one without a usable learning rate."""
        if self.at(0) < LEAST_RATE:
            raise UserError(f"lr_warmup_steps: {self.warmup_steps} begin below {LEAST_RATE:g}")
        if self.name == "step":
            decays = (epochs - 1) // self.step_size
            exponent = math.log10(self.lr) + decays * math.log10(self.decay_ratio)
            if not math.log10(LEAST_RATE) - 1e-6 <= exponent < 300:
                keys = f"step_size, decay_ratio: {self.step_size}, {self.decay_ratio:g}"
                rate = f"the learning rate of epoch {epochs} would be 1e{exponent:+.0f}"
                raise UserError(f"{keys}: {rate}; it must be at least {LEAST_RATE:g}")


@dataclass(frozen=True)
class TimmSchedule:
    """A schedule of timm, as a function of the step."""

    scheduler: "Scheduler"
    steps_per_epoch: int

    def apply(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Set a value for each epoch, as published, or for each step, as the schedule was made."""
        self.scheduler.step(step // self.steps_per_epoch)
        self.scheduler.step_update(step)

    def check(self, optimizer: torch.optim.Optimizer, epochs: int) -> None:
        """UserError when training of so many `epochs` has one without a usable learning rate."""
        for epoch in range(epochs):
            self.apply(optimizer, epoch * self.steps_per_epoch)
            rate = optimizer.param_groups[0]["lr"]
            if not LEAST_RATE <= rate < math.inf:
                said = f"the learning rate of epoch {epoch + 1} of {epochs} would be {rate:g}"
                flags = "see --min-lr, --warmup-lr, --decay-rate"
                raise UserError(f"{said}; it must be at least {LEAST_RATE:g} ({flags})")
        self.apply(optimizer, 0)


def moving_average(network: nn.Module, decay: float) -> AveragedModel:
    """The exponential moving average of the weights and buffers of `network`, as its `module`.

    `update_parameters(network)` after each step moves it, faster in the first ones: after n steps
    the old average has the weight min(decay, n / (n + 9)). With decay 0 it is a copy.
    """

    def move(averages: list[Tensor], values: list[Tensor], steps: Tensor) -> None:
        keep = min(decay, float(steps) / (float(steps) + 9))
        for average, value in zip(averages, values, strict=True):
            average.lerp_(value, 1 - keep) if average.is_floating_point() else average.copy_(value)

    return AveragedModel(network, multi_avg_fn=torch.no_grad()(move), use_buffers=True)
