"""How a network learns: the recipe, and an epoch of training. B denotes the batch size."""

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from utils import distributed
from utils.capacity import OneValue, batch_of
from utils.config import OptimState
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.loader import Loader
from utils.optim import Schedule, TimmSchedule, make_optimizer
from utils.runtime import Progress, seed_global, stream
from utils.stopping import check_stop_together, handle_requests, pending_requests


@dataclass(frozen=True)
class Recipe:
    """How a network learns: what is minimised, and how gradients become steps.

    The gradient of a step is the sum of those of its passes.
    """

    criterion: Callable[[Tensor, Tensor], Tensor]  # of logits [B, classes] and targets
    optimizer: torch.optim.Optimizer
    schedule: Schedule | TimmSchedule
    context: DeviceContext
    seed: tuple[int, str]  # names the random streams of the steps
    checkpoint: Path | None  # what a failed run goes back to; errors name it
    clip_grad: float = 0.0  # largest norm of the gradient of a step; 0: any
    pass_share: float = 1.0  # factor of the loss of each pass
    # whether a step moves only what its passes use; without, momentum and decay move the rest, too
    used_only: bool = False
    # keeps small gradients alive in float16
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False)
    )
    # may change a batch
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda images, labels: (images, labels)
    after_step: Callable[[int], None] = lambda steps: None  # gets the number of steps done


@dataclass
class EpochMeter:
    """Sums over an epoch so far, in all processes; in a checkpoint, where to resume within it."""

    steps: int = 0
    passes: int = 0
    losses: float = 0.0
    hits: int = 0
    seen: int = 0

    def add(self, passes: int, losses: float, hits: int, seen: int) -> None:
        """Add a step."""
        self.steps += 1
        self.passes += passes
        self.losses += losses
        self.hits += hits
        self.seen += seen

    @property
    def loss(self) -> float:
        """Mean over the passes."""
        return self.losses / max(self.passes, 1)

    @property
    def top1(self) -> float:
        """Training accuracy in percent."""
        return 100 * self.hits / max(self.seen, 1)


# A batch [B, ...], its labels [B] or [B, classes] and a random stream -> for each pass over the
# batch, or over a part of it, logits and what the criterion compares them with.
Forwards = Callable[[Tensor, Tensor, torch.Generator], Iterable[tuple[Tensor, Tensor]]]


def train_epoch(
    forwards: Forwards,
    recipe: Recipe,
    batches: Loader,
    epoch: int,
    meter: EpochMeter,
    progress: Progress,
) -> None:
    """Train for the rest of an epoch, after its first `meter.steps` steps, and add it to `meter`.

    `forwards` yields one pass after another, under autocast where wanted: one for an ordinary
    network, one for each path of a supernet. All processes call it and share every batch.

    Raises:
        UserError: when the loss or a weight is NaN or infinite.
        Stopped: after a step, when a signal has come to any process.
    """
    optimizer, context, scaler = recipe.optimizer, recipe.context, recipe.scaler
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    clear = partial(optimizer.zero_grad, set_to_none=recipe.used_only)
    if not recipe.used_only:
        # With a gradient of zero, weights that no path has used yet decay from the first step on.
        zero_missing(parameters)
    check_stop_together()
    for images, labels in batches.epoch(epoch, meter.steps):
        # Every step has random streams of its own, so that an epoch can resume anywhere. All
        # processes draw the same paths from `rng`; dropout draws from the global streams.
        names = (*recipe.seed, epoch, meter.steps)
        rng = stream(*names)
        seed_global(stream(*names, distributed.rank()) if distributed.rank() else rng)
        read = len(labels)  # fewer than usual where images are broken
        if read:
            images, labels = context.batch(*recipe.mix(images, labels))
        classes = labels.argmax(dim=1) if labels.ndim == 2 else labels
        recipe.schedule.apply(optimizer, epoch * len(batches) + meter.steps)

        # Each pass is differentiated before the next one starts: one graph is alive at a time.
        clear()
        passes, losses, hits, seen = 0, 0.0, 0, 0
        try:
            with batch_of(read):
                for logits, targets in forwards(images, labels, rng) if len(labels) else ():
                    with context.autocast():
                        loss = recipe.criterion(logits, targets)
                    scaler.scale(recipe.pass_share * loss).backward()
                    losses += float(loss.detach())
                    # a pass over a part of the batch: the parts come in the order of the batch
                    pass_classes = classes[seen % len(labels) :][: len(logits)]
                    hits += int((logits.argmax(dim=1) == pass_classes).sum())
                    passes, seen = passes + 1, seen + len(logits)
        except OneValue:
            passes, losses, hits, seen = 0, 0.0, 0, 0
            clear()
        if not passes:  # a broken image costs a batch, but no run
            say_dropped(progress.title, meter.steps, read)

        # All processes step by the mean of their gradients, and agree on stopping and saving.
        if recipe.used_only:
            zero_missing(used_anywhere(parameters))
        distributed.average(p.grad for p in parameters if p.grad is not None)
        passes, losses, hits, seen, *requests = distributed.totals(
            passes, losses, hits, seen, *pending_requests()
        )
        check_finite(losses, progress.title, meter.steps, recipe.checkpoint)
        if passes:
            if recipe.clip_grad:
                scaler.unscale_(optimizer)  # the norm is that of the true gradients
                nn.utils.clip_grad_norm_(parameters, recipe.clip_grad)
            scaler.step(optimizer)
            scaler.update()

        meter.add(int(passes), losses, int(hits), int(seen))
        recipe.after_step(epoch * len(batches) + meter.steps)
        lr = optimizer.param_groups[0]["lr"]
        progress.update(len(labels) * distributed.size(), loss=meter.loss, top1=meter.top1, lr=lr)
        handle_requests(*map(bool, requests))
    if meter.steps and not meter.passes:
        none = "no batch could be trained on; its images are broken, or too few"
        raise UserError(f"{progress.title}: {none}: batch norms need at least 2 in each process")
    # The loss of the last step was computed before that step changed the weights.
    check_weights(parameters, progress.title, recipe.checkpoint)
    if distributed.size() > 1:  # several processes do not stop while they validate
        handle_requests(stop=False, save=True)


def zero_missing(parameters: Iterable[nn.Parameter]) -> None:
    """Give those that have no gradient one of zeros."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def used_anywhere(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Those that have a gradient in any process; all call it."""
    uses = distributed.totals(*(parameter.grad is not None for parameter in parameters))
    return [parameter for parameter, count in zip(parameters, uses, strict=True) if count]


def say_dropped(what: str, step: int, images: int) -> None:
    """Say that a step was left out, whose batch has too few images that can be read."""
    left = f"{images} images could be read, too few to train on"
    print(f"{what}: step {step + 1} is left out: {left}", file=sys.stderr, flush=True)


def average_norms(*networks: nn.Module) -> None:
    """Give batch norms the mean statistics of all processes; all call it."""
    distributed.average(_statistics(*networks))


def mean_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict with the mean statistics of all processes, which all call it.

    The network keeps those of its own process: saving changes nothing.
    """
    state = network.state_dict()
    if distributed.size() == 1:
        return state
    own = {tensor.data_ptr() for tensor in _statistics(network)}
    means = {key: value.clone() for key, value in state.items() if value.data_ptr() in own}
    distributed.average(means.values())
    return {key: means.get(key, value) for key, value in state.items()}


def norms_of_all(*networks: nn.Module) -> list[Tensor]:
    """The statistics of each process, for `restore_norms`; all call it. One process has none."""
    own = _statistics(*networks)
    if distributed.size() == 1 or not own:
        return []
    return distributed.gathered(torch.cat([tensor.flatten() for tensor in own]))


def restore_norms(of_all: list[Tensor], *networks: nn.Module) -> None:
    """Give this process its own statistics again, unless there were more or fewer processes."""
    if len(of_all) != distributed.size() or len(of_all) == 1:
        return
    own = _statistics(*networks)
    parts = of_all[distributed.rank()].split([tensor.numel() for tensor in own])
    for tensor, part in zip(own, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


def _statistics(*networks: nn.Module) -> list[Tensor]:
    """The running means and variances of all batch norms."""
    modules = (module for network in networks for module in network.modules())
    norms = [module for module in modules if hasattr(module, "running_mean")]
    return [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]


def check_finite(loss: float, what: str, step: int, checkpoint: Path | None) -> None:
    """UserError with the step and the last good checkpoint when the loss is NaN or infinite."""
    if not math.isfinite(loss):
        raise UserError(f"{what}: the loss is {loss} at step {step}; {_way_out(checkpoint)}")


def check_weights(weights: Iterable[Tensor], what: str, checkpoint: Path | None) -> None:
    """UserError with the last good checkpoint when a weight is NaN or infinite."""
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise UserError(f"{what}: a weight is NaN or infinite; {_way_out(checkpoint)}")


def _way_out(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "try a lower lr"
    good = f"{checkpoint} is the last good checkpoint" if checkpoint.exists() else None
    return f"{good or 'there is no checkpoint yet'}; try a lower lr"


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

    def __post_init__(self):
        """UserError when the keys leave an epoch without a learning rate."""
        self.schedule(1).check(self.length)

    @property
    def length(self) -> int:
        """Epochs of the training."""
        return self.epochs

    def schedule(self, steps_per_epoch: int) -> Schedule:
        """The learning rates; a schedule does not end before the training."""
        return Schedule(
            self.lr_scheduler,
            self.optim_state.lr,
            max(self.epochs, self.length),
            steps_per_epoch,
            self.step_size,
            self.decay_ratio,
            self.lr_warmup_steps,
        )

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
        steps = self.length * steps_per_epoch
        if self.lr_warmup_steps >= steps:
            never = f"in {steps} steps of training lr {self.optim_state.lr:g} is never reached"
            print(f"lr_warmup_steps: {self.lr_warmup_steps}: {never}", flush=True)
        return Recipe(
            nn.CrossEntropyLoss(label_smoothing=self.label_smoothing),
            make_optimizer(parameters, self.optim_state),
            self.schedule(steps_per_epoch),
            context,
            (self.seed, purpose),
            checkpoint,
            self.clip_grad,
            **more,
        )
