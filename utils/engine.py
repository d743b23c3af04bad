"""How any network is trained for an epoch, and how any network is scored."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils import distributed
from utils.errors import UserError
from utils.loader import Loader
from utils.optim import Schedule, TimmSchedule
from utils.runtime import Progress, seed_global, stream
from utils.stopping import check_stop, check_stop_together, handle_requests, pending_requests


@dataclass(frozen=True)
class Score:
    """Accuracy in percent and mean cross entropy over `images` images."""

    top1: float
    top5: float
    loss: float
    images: int

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class DeviceContext:
    """Where and in which form numbers live: device, channels-last or not, mixed precision or not,
    and which.
    """

    device: torch.device
    channels_last: bool = True
    amp: bool = False
    amp_dtype: torch.dtype = torch.bfloat16

    def batch(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        images = images.to(self.device, non_blocking=True, memory_format=layout)
        return images, labels.to(self.device, non_blocking=True)

    def put(self, network: nn.Module) -> nn.Module:
        """The network on the device, in its memory format."""
        network = network.to(self.device)
        return network.to(memory_format=torch.channels_last) if self.channels_last else network

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, dtype=self.amp_dtype) if self.amp else nullcontext()


@torch.no_grad()
def evaluate(
    forward: Callable[[Tensor], Tensor],
    batches: Loader,
    context: DeviceContext,
    together: bool = False,
) -> Score:
    """Score `forward(images [B, 3, H, W]) -> logits [B, classes]` over `batches`.

    With `together`, all processes do so, each on some of the batches: every image counts once.
    """
    top1 = top5 = loss = torch.zeros((), dtype=torch.float64)
    images_seen = 0
    first, every = (distributed.rank(), distributed.size()) if together else (0, 1)
    for images, labels in batches.epoch(0, first, every):
        check_stop()
        images, labels = context.batch(images, labels)
        with context.autocast():
            logits = forward(images).float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        top1 = top1 + ranked[:, 0].sum().cpu()
        top5 = top5 + ranked.sum().cpu()
        loss = loss + F.cross_entropy(logits, labels, reduction="sum").cpu()
        images_seen += len(labels)
    if together:
        top1, top5, loss, images_seen = distributed.totals(
            float(top1), float(top5), float(loss), images_seen
        )
    top1, top5, loss = (float(total) / max(images_seen, 1) for total in (top1, top5, loss))
    return Score(100 * top1, 100 * top5, loss, int(images_seen))


@contextmanager
def recalibrated(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    context: DeviceContext,
) -> Iterator[None]:
    """Within, the batch norms that `forward` uses hold the mean statistics of `batches`;
    afterwards, the old ones.

    The running statistics of a supernet are those of all paths together; a single path needs its
    own (Yu and Huang, "Universally slimmable networks", ICCV 2019, section 3.3). Without batches
    nothing changes.
    """
    norms = [module for module in network.modules() if hasattr(module, "running_mean")]
    momenta, buffers = (
        [norm.momentum for norm in norms],
        {name: b.clone() for name, b in network.named_buffers()},
    )
    try:
        network.train()
        with torch.no_grad():
            for count, (images, labels) in enumerate(batches, start=1):
                for norm in norms:
                    norm.momentum = 1 / count  # the running mean of all batches so far
                with context.autocast():
                    forward(context.batch(images, labels)[0])
        network.eval()
        yield
    finally:
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def reset_norms(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], context: DeviceContext
) -> None:
    """Give the batch norms of `network` the mean statistics of `batches`; it is left in evaluation
    mode.

    As published with once-for-all networks: means and biased variances of the batches, each
    normalised by its own, weighted by their numbers of images. Without batches nothing changes.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    means, variances = ([torch.zeros_like(norm.running_mean) for norm in norms] for _ in range(2))
    momenta, values = [norm.momentum for norm in norms], [1] * len(norms)

    def count_values(index: int, x: Tensor) -> None:
        values[index] = x.numel() // x.shape[1]

    hooks = [
        norm.register_forward_pre_hook(
            lambda _, inputs, index=index: count_values(index, inputs[0])
        )
        for index, norm in enumerate(norms)
    ]
    network.train()
    seen = 0
    try:
        for norm in norms:
            norm.momentum = 1.0  # the running statistics are those of the last batch
        for images, labels in batches:
            check_stop()
            if len(images) == 1 and seen:  # one image has no variance where maps have one pixel
                continue
            with context.autocast():
                network(context.batch(images, labels)[0])
            seen += len(images)
            for norm, mean, variance, count in zip(norms, means, variances, values, strict=True):
                mean += len(images) * norm.running_mean
                variance += len(images) * norm.running_var * ((count - 1) / count)
    finally:
        for hook in hooks:
            hook.remove()
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if seen:
        for norm, mean, variance in zip(norms, means, variances, strict=True):
            norm.running_mean.copy_(mean / seen)
            norm.running_var.copy_(variance / seen)
    network.eval()


def check_finite(loss: float, what: str, step: int, checkpoint: Path) -> None:
    """UserError when the loss is no number, naming the step and the checkpoint that is still good."""
    if not math.isfinite(loss):
        raise UserError(f"{what}: the loss is {loss} at step {step}; {last_good(checkpoint)}")


def average_norms(*networks: nn.Module) -> None:
    """Give the batch norms of `networks` the mean statistics of all processes, each of which saw
    images of its own.

    All processes call it.
    """
    norms = [
        module
        for network in networks
        for module in network.modules()
        if hasattr(module, "running_mean")
    ]
    distributed.average(
        buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)
    )


def check_weights(weights: Iterable[Tensor], what: str, checkpoint: Path) -> None:
    """UserError when a weight has become infinite or no number, which the loss of the last step
    cannot show.
    """
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise UserError(
            f"{what}: a weight has become infinite or no number; {last_good(checkpoint)}"
        )


def last_good(checkpoint: Path | None) -> str:
    if checkpoint is None:
        return "try a lower lr"
    good = (
        f"{checkpoint} is the last good checkpoint"
        if checkpoint.exists()
        else "there is no checkpoint yet"
    )
    return f"{good}; try a lower lr"


@dataclass
class EpochMeter:
    """What an epoch has added up so far, in all processes.

    In a checkpoint, it lets a stopped epoch go on in its middle.
    """

    steps: int = 0
    passes: int = 0
    losses: float = 0.0
    hits: int = 0
    seen: int = 0

    def add(self, passes: int, losses: float, hits: int, seen: int) -> None:
        """What a step has added."""
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


@dataclass(frozen=True)
class Recipe:
    """How a network learns: what is minimised, and how gradients become steps.

    `seed` names the random streams of its steps. The gradient of a step is the sum of those of its
    passes, each multiplied by `pass_share`; its norm is at most `clip_grad`, unless that is 0.
    `mix` may change a batch, and `after_step(steps)` is called after each step, with the number of
    those done. `checkpoint` is what a broken-off run goes back to. `scaler` keeps small gradients
    alive in float16.
    """

    criterion: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    schedule: Schedule | TimmSchedule
    context: DeviceContext
    seed: tuple[int, str]
    checkpoint: Path | None
    clip_grad: float = 0.0
    pass_share: float = 1.0
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False)
    )
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda images, labels: (images, labels)
    after_step: Callable[[int], None] = lambda step: None


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
    """Train for what is left of an epoch after `meter.steps` steps, and add it to `meter`.

    `forwards` yields one pass after another, under autocast where it is wanted: one for an ordinary
    network, one for each path of a supernet. Each is differentiated before the next is asked for,
    so that only one graph lives at a time, and the gradients add up before the optimiser steps.
    Every step has a random stream of its own, for `forwards` and for the global streams, so that an
    epoch can go on anywhere.

    Of several processes each sees its share of every batch, draws the same paths, and steps by the
    mean of all gradients; they stop, and save, together.
    """
    optimizer, context, scaler = recipe.optimizer, recipe.context, recipe.scaler
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    # one that no path has used yet decays all the same, as it does after the first step
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    check_stop_together()
    for images, labels in batches.epoch(epoch, meter.steps):
        names = (*recipe.seed, epoch, meter.steps)
        rng = stream(*names)
        seed_global(stream(*names, distributed.rank()) if distributed.rank() else rng)
        images, labels = context.batch(*recipe.mix(images, labels))
        likeliest = labels.argmax(dim=1) if labels.ndim == 2 else labels
        recipe.schedule.apply(optimizer, epoch * len(batches) + meter.steps)
        optimizer.zero_grad(set_to_none=False)
        passes, losses, hits, seen = 0, 0.0, 0, 0
        for logits, targets in forwards(images, labels, rng):
            with context.autocast():
                loss = recipe.criterion(logits, targets)
            scaler.scale(recipe.pass_share * loss).backward()
            losses += float(loss.detach())
            # parts of a batch come in its order
            of_pass = likeliest[seen % len(labels) :][: len(logits)]
            hits += int((logits.argmax(dim=1) == of_pass).sum())
            passes, seen = passes + 1, seen + len(logits)
        distributed.average(parameter.grad for parameter in parameters)
        passes, losses, hits, seen, *agreed = distributed.totals(
            passes, losses, hits, seen, *pending_requests()
        )
        check_finite(losses, progress.title, meter.steps, recipe.checkpoint)
        if recipe.clip_grad:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, recipe.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        meter.add(int(passes), losses, int(hits), int(seen))
        recipe.after_step(epoch * len(batches) + meter.steps)
        progress.update(
            len(labels) * distributed.size(),
            loss=meter.loss,
            top1=meter.top1,
            lr=optimizer.param_groups[0]["lr"],
        )
        handle_requests(*map(bool, agreed))
    check_weights(parameters, progress.title, recipe.checkpoint)
    if distributed.size() > 1:  # several processes do not stop while they validate
        handle_requests(stop=False, save=True)
