"""Networks as other programs like them: of PyTorch's own layers, with batch norms folded into the
convolutions.

`plain` changes no number but for rounding, and `folded` none in evaluation mode. Both leave the
network as it is, and return another one that is only good for evaluation.
"""

import copy

import torch
from torch import Tensor, nn

from model.layers.blocks import MixedDepthwise


@torch.no_grad()
def plain(network: nn.Module) -> nn.Module:
    """A copy of `network` in evaluation mode whose convolutions are `nn.Conv2d` itself.

    Ours run faster on CPUs by ways that only slow down what other programs make of them.
    """
    network = copy.deepcopy(network).eval().requires_grad_(False)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                setattr(parent, name, _ordinary(child))
    return network


@torch.no_grad()
def folded(network: nn.Module) -> nn.Module:
    """As `plain`, without the batch norms that come directly behind convolutions.

    Those that come behind sums, as the last one of cells, stay.
    """
    network = plain(network)
    for part in list(network.modules()):
        if isinstance(part, MixedDepthwise):
            _fold(list(part.blocks), part.bn)
            part.bn = nn.Identity()
        elif isinstance(part, nn.Sequential):
            _fold_neighbours(part)
        elif isinstance(getattr(part, "conv", None), nn.Conv2d) and isinstance(
            getattr(part, "bn", None), nn.BatchNorm2d
        ):
            _fold([part.conv], part.bn)
            part.bn = nn.Identity()
    return network


def _ordinary(conv: nn.Conv2d) -> nn.Conv2d:
    """The same convolution, with the same tensors, of PyTorch's own class."""
    new = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        groups=conv.groups,
        bias=conv.bias is not None,
        device="meta",
    )
    new.weight, new.bias = conv.weight, conv.bias
    return new.train(conv.training)


def _fold_neighbours(parts: nn.Sequential) -> None:
    """Fold each batch norm of `parts` into the convolution before it."""
    for index in range(1, len(parts)):
        if isinstance(parts[index], nn.BatchNorm2d) and isinstance(parts[index - 1], nn.Conv2d):
            _fold([parts[index - 1]], parts[index])
            parts[index] = nn.Identity()


def _fold(convs: list[nn.Conv2d], norm: nn.BatchNorm2d) -> None:
    """Give `convs`, which share the channels of `norm` in their order, what `norm` does to their
    results.

    y = (W x + b - mean) scale + bias with scale = weight / sqrt(var + eps), in double precision.
    """
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    widths = [conv.out_channels for conv in convs]
    for conv, factor, offset in zip(convs, scale.split(widths), shift.split(widths), strict=True):
        before = conv.bias.double() if conv.bias is not None else 0.0
        weight = conv.weight.double() * factor[:, None, None, None]
        conv.weight = _parameter(weight, like=conv.weight)
        conv.bias = _parameter(before * factor + offset, like=conv.weight)


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype), requires_grad=False)
