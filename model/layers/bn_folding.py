"""Batch norms as what they are in evaluation mode: affine maps, folded into convolutions.

`plain` and `folded` give other programs what they run well: PyTorch's own layers, and no batch norm
directly behind a convolution. They change logits in evaluation mode by rounding alone, leave the
network as it is, and return another one that is only good for evaluation.
"""

import copy
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from model.layers.blocks import MixedDepthwise

EVERY = slice(None)  # channel


def affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Evaluation mode of a batch norm as `x * scale + shift`, each of the shape of its `weight`.

    `norm` is any module with weight, bias, running_mean, running_var and eps.
    """
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def folded_conv(
    conv: nn.Conv2d, norm: nn.Module, channels: slice = EVERY, precision: torch.dtype | None = None
) -> nn.Conv2d:
    """A copy of `conv` with a bias that computes what `norm` makes of its result.

        y = (W x + b - mean) * rsqrt(var + eps) * weight + bias

    in this order, which is that of PyTorch's `fuse_conv_bn_eval`: both give the same bits.

    Args:
        conv: it has as many output channels as `channels`.
        norm: as of `affine`, in evaluation mode.
        channels: those of `norm` that follow `conv`.
        precision: number type of the arithmetic (default: that of `norm`); results are of `conv`'s.
    """
    found = copy.deepcopy(conv)
    mean, var, weight, bias = (
        part[channels].to(precision or part.dtype)
        for part in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    found.weight, found.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, var, norm.eps, weight, bias
    )
    return found


def plain(network: nn.Module) -> nn.Module:
    """A copy of `network` in evaluation mode whose convolutions are `nn.Conv2d` itself.

    Ours run faster on CPUs by ways that only slow down what other programs make of them.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.__class__ = nn.Conv2d  # ours have the same parameters, and no state of their own
    return network


@torch.no_grad()
def folded(network: nn.Module) -> nn.Module:
    """As `plain`, without the batch norms that come directly behind convolutions.

    Those that come behind sums, as the last one of cells, stay. The arithmetic is of double
    precision.
    """
    network = plain(network)
    for part in list(network.modules()):
        if isinstance(part, MixedDepthwise):
            for index, conv in enumerate(part.blocks):
                own = slice(index * part.channels, (index + 1) * part.channels)
                part.blocks[index] = folded_conv(conv, part.bn, own, torch.float64)
            part.bn = nn.Identity()
        for conv, norm in _neighbours(part):
            new = folded_conv(getattr(part, conv), getattr(part, norm), EVERY, torch.float64)
            setattr(part, conv, new)
            setattr(part, norm, nn.Identity())
    return network


def _neighbours(part: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of each convolution of `part` and of the batch norm directly behind it."""
    names = list(part._modules) if isinstance(part, nn.Sequential) else ["conv", "bn"]
    for conv, norm in pairwise(names):
        kinds = (getattr(part, conv, None), getattr(part, norm, None))
        if isinstance(kinds[0], nn.Conv2d) and isinstance(kinds[1], nn.BatchNorm2d):
            yield conv, norm
