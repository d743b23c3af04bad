"""What a batch needs of a machine and of a network, said in one line where it lacks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from utils.errors import UserError

# What torch says on CPUs and other devices, whose errors have no type of their own.
_NO_MEMORY = (
    *("out of memory", "can't allocate memory", "not enough memory"),
    *("Storage size calculation overflowed", "integer multiplication overflow"),
)
_ONE_VALUE = "Expected more than 1 value per channel"


class OneValue(UserError):
    """A batch norm was to take the variance of one value per channel."""


def lack(error: BaseException, images: int | None = None) -> UserError | None:
    """What an error of torch means for the user, if that is memory or a batch that is too small.

    `images` is the batch size, where it is known.
    """
    of = f" for a batch of {images} images" if images is not None else ": a size is too large"
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY)
    ):
        return UserError(f"out of memory{of}; choose a smaller batch size (batch_size, -b)")
    if isinstance(error, ValueError) and _ONE_VALUE in text:
        needs = "maps of one pixel need at least 2 images in each process for their batch norms"
        return OneValue(f"batch size: {images if images is not None else 1}: {needs}")
    return None


@contextmanager
def batch_of(images: int) -> Iterator[None]:
    """Within, too little memory or too few images are a UserError that names the batch size."""
    try:
        yield
    except (MemoryError, RuntimeError, ValueError) as error:
        if (said := lack(error, images)) is None:
            raise
        raise said from None


@torch.no_grad()
def check_one_image(network: nn.Module, size: int, flag: str) -> None:
    """UserError when a network cannot train on one image of `size` pixels in a process."""
    values = []
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [
        norm.register_forward_pre_hook(lambda _, inputs: values.append(inputs[0][0, 0].numel()))
        for norm in norms
    ]
    training = network.training
    network.eval()(torch.zeros(1, 3, size, size, device=next(network.parameters()).device))
    network.train(training)
    for hook in hooks:
        hook.remove()
    if min(values, default=2) < 2:
        maps = f"at {size} pixels this network has maps of one pixel, whose batch norms need"
        raise UserError(f"{flag}: one image for each process; {maps} at least 2")
