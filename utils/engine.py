"""How a network is scored: where its numbers live, and a pass over a data set."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils import distributed
from utils.capacity import batch_of
from utils.loader import Loader
from utils.stopping import check_stop


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
    """The device of all numbers, their memory format, and their type under mixed precision."""

    device: torch.device
    channels_last: bool = True
    amp: bool = False  # mixed precision
    amp_dtype: torch.dtype = torch.bfloat16

    def batch(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """A batch on the device."""
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

    With `together`, all processes call it, each on some of the batches: every image counts once.
    """
    top1 = top5 = loss = torch.zeros((), dtype=torch.float64)
    images_seen = 0
    first, every = (distributed.rank(), distributed.size()) if together else (0, 1)
    for images, labels in batches.epoch(0, first, every):
        check_stop()
        images, labels = context.batch(images, labels)
        with context.autocast(), batch_of(len(labels)):
            logits = forward(images).float()
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        top1 = top1 + ranked[:, 0].sum().cpu()
        top5 = top5 + ranked.sum().cpu()
        loss = loss + F.cross_entropy(logits, labels, reduction="sum").cpu()
        images_seen += len(labels)
    sums = [float(top1), float(top5), float(loss), images_seen]
    *sums, images_seen = distributed.totals(*sums) if together else sums
    top1, top5, loss = (total / max(images_seen, 1) for total in sums)
    return Score(100 * top1, 100 * top5, loss, int(images_seen))
