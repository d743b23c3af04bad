"""Batch-norm statistics of a sub-network, re-estimated on training images.

The running statistics of a supernet are those of all paths together; a single path needs its own
(Yu and Huang, "Universally slimmable networks", ICCV 2019, section 3.3).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from utils.capacity import batch_of
from utils.engine import DeviceContext
from utils.stopping import check_stop

Batches = Iterable[tuple[Tensor, Tensor]]  # images [B, 3, H, W] and labels


def _of_several(batches: Batches) -> Batches:
    """The batches without those of one image, unless there is no other.

    One image has no variance where maps have one pixel.
    """
    single = None
    for images, labels in batches:
        if len(images) > 1:
            single = ()
            yield images, labels
        elif single is None:
            single = (images, labels)
    if single:
        yield single


@contextmanager
def recalibrated(
    network: nn.Module,
    forward: Callable[[Tensor], Tensor],
    batches: Batches,
    context: DeviceContext,
) -> Iterator[None]:
    """Within, the batch norms that `forward` uses have the mean statistics of `batches`.

    The old statistics come back afterwards. Without batches nothing changes.
    """
    norms = [module for module in network.modules() if hasattr(module, "running_mean")]
    momenta = [norm.momentum for norm in norms]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        network.train()
        with torch.no_grad():
            for count, (images, labels) in enumerate(_of_several(batches), start=1):
                for norm in norms:
                    norm.momentum = 1 / count  # the running mean of all batches so far
                with context.autocast(), batch_of(len(images)):
                    forward(context.batch(images, labels)[0])
        network.eval()
        yield
    finally:
        for name, buffer in network.named_buffers():
            buffer.copy_(buffers[name])
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@torch.no_grad()
def reset_norms(network: nn.Module, batches: Batches, context: DeviceContext) -> None:
    """Give the batch norms of `network` the mean statistics of `batches`, in evaluation mode.

    As published with once-for-all networks: means and biased variances of the batches, each
    normalised by its own, weighted by their numbers of images. Without batches nothing changes.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    means, variances = ([torch.zeros_like(norm.running_mean) for norm in norms] for _ in range(2))
    momenta, values = [norm.momentum for norm in norms], [1] * len(norms)

    def count_values(index: int, x: Tensor) -> None:
        values[index] = x.numel() // x.shape[1]

    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs, i=index: count_values(i, inputs[0]))
        for index, norm in enumerate(norms)
    ]
    network.train()
    seen = 0
    try:
        for norm in norms:
            norm.momentum = 1.0  # the running statistics are those of the last batch
        for images, labels in _of_several(batches):
            check_stop()
            with context.autocast(), batch_of(len(images)):
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
