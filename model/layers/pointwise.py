"""Layers that CPUs compute faster than PyTorch's own of the same result, which is used elsewhere.

Axes: N = B H W pixels, C channels in, D channels out; `rows [N, C]` are the pixels of maps.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

aten = torch.ops.aten


def plain_cpu(x: Tensor) -> bool:
    """Is x of single precision on a CPU, outside of autocast and compiled code?"""
    plain = x.device.type == "cpu" and x.dtype == torch.float32
    return plain and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def pointwise_conv(maps: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Convolve `maps`, together `[B, C, H, W]`, by the 1x1 `weight [D, C]` -> `[B, D, H, W]`."""
    weights = weight.split([x.shape[1] for x in maps], dim=1)
    if plain_cpu(maps[0]):
        return maps_of(_SumOfProducts.apply(len(maps), *map(rows_of, maps), *weights), maps[0])
    pairs = zip(maps, weights, strict=True)
    return reduce(add, (F.conv2d(x, part[..., None, None]) for x, part in pairs))


class _SumOfProducts(torch.autograd.Function):
    """Of `count` times `rows [N, C]` and as many `weight [D, C]`: y = sum of rows @ weight.T.

    For each of them grad_rows = grad_y @ weight, and grad_weight = grad_y.T @ rows.
    """

    @staticmethod
    def forward(ctx, count: int, *operands: Tensor) -> Tensor:
        ctx.save_for_backward(*operands)
        rows, weights = operands[:count], operands[count:]
        y = rows[0] @ weights[0].T
        for x, weight in zip(rows[1:], weights[1:], strict=True):
            y.addmm_(x, weight.T)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        count, (_, *wanted) = len(ctx.saved_tensors) // 2, ctx.needs_input_grad
        rows, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        for_rows = zip(weights, wanted[:count], strict=True)
        for_weights = zip(rows, wanted[count:], strict=True)
        grad_rows = [grad_y @ weight if want else None for weight, want in for_rows]
        grad_weights = [_grad_weight(x, grad_y) if want else None for x, want in for_weights]
        return None, *grad_rows, *grad_weights


def _grad_weight(rows: Tensor, grad_y: Tensor) -> Tensor:
    """grad_y.T @ rows, in the layout of the faster product."""
    return (rows.T @ grad_y).T


class PointwiseConv(nn.Conv2d):
    """`pointwise_conv` as a module, with the parameters of an ordinary convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:  # a batch norm was folded in
            return super().forward(x)
        return pointwise_conv([x], self.weight.flatten(1))


def relu6_products(rows: Tensor, weight: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """relu6(rows [N, C] @ weight [D, C].T) in parts: `[N, size]` for each of `sizes`."""
    weights = weight.split(sizes)
    if not plain_cpu(rows):
        return tuple(F.relu6(F.linear(rows, part)) for part in weights)
    return _ReLU6Products.apply(rows, *weights)


class _ReLU6Products(torch.autograd.Function):
    """y = relu6(rows @ weight.T) for each weight; grad_inner = grad_y where 0 < y < 6, else 0.

    grad_rows = sum of grad_inner @ weight, grad_weight = grad_inner.T @ rows.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        parts = tuple((rows @ weight.T).clamp_(0, 6) for weight in weights)
        ctx.save_for_backward(rows, *weights, *parts)
        return parts

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (rows, *rest), (rows_wanted, *wanted) = ctx.saved_tensors, ctx.needs_input_grad
        weights, parts = rest[: len(gradients)], rest[len(gradients) :]
        grad_rows, grad_weights = None, []
        for grad_y, weight, y, want in zip(gradients, weights, parts, wanted, strict=True):
            grad_inner = aten.hardtanh_backward(grad_y, y, 0.0, 6.0)
            if rows_wanted and grad_rows is None:
                grad_rows = grad_inner @ weight
            elif rows_wanted:
                grad_rows.addmm_(grad_inner, weight)
            grad_weights.append(_grad_weight(rows, grad_inner) if want else None)
        return grad_rows, *grad_weights


def rows_of(x: Tensor) -> Tensor:
    """`[B, C, H, W]` as pixels `[B H W, C]`, a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def maps_of(rows: Tensor, like: Tensor) -> Tensor:
    """Pixels as maps of the size of `like`: the inverse of `rows_of`."""
    B, _, H, W = like.shape
    return rows.view(B, H, W, -1).permute(0, 3, 1, 2)


def norm_relu6(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, training: bool,
    momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """ReLU6 of `F.batch_norm`, of which the activation's gradient needs no copy: y is enough.

    y = relu6((x - mean) * rsqrt(var + eps) * weight + bias)
    """
    if not (plain_cpu(x) and training):
        return F.relu6(F.batch_norm(x, mean, var, weight, bias, training, momentum, eps))
    return _NormReLU6.apply(x, mean, var, weight, bias, momentum, eps)


class _NormReLU6(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, var, weight, bias, momentum, eps):
        y, *statistics = torch.native_batch_norm(x, weight, bias, mean, var, True, momentum, eps)
        y.clamp_(0, 6)
        ctx.save_for_backward(x, y, weight, mean, var, *statistics)
        ctx.eps = eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, y, weight, mean, var, *statistics = ctx.saved_tensors
        grad_inner = aten.hardtanh_backward(grad_y, y, 0.0, 6.0)
        wanted = [ctx.needs_input_grad[i] for i in (0, 3, 4)]
        grad_x, grad_weight, grad_bias = aten.native_batch_norm_backward(
            grad_inner, x, weight, mean, var, *statistics, True, ctx.eps, wanted
        )
        return grad_x, None, None, grad_weight, grad_bias, None, None
