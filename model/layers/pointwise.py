"""Layers that CPUs compute faster than PyTorch's own of the same result; elsewhere they are
PyTorch's own.
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
    """A 1x1 convolution of `maps`, together `[B, C, H, W]`, by `weight [D, C]` -> `[B, D, H, W]`:
    matrix products.
    """
    weights = weight.split([x.shape[1] for x in maps], dim=1)
    if not plain_cpu(maps[0]):
        return reduce(
            add, (F.conv2d(x, part[..., None, None]) for x, part in zip(maps, weights, strict=True))
        )
    return maps_of(_SumOfProducts.apply(len(maps), *map(rows_of, maps), *weights), maps[0])


class _SumOfProducts(torch.autograd.Function):
    """Of `count` times `rows [N, C]` and as many `weight [D, C]`: the sum of `rows @ weight.T`."""

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
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.saved_tensors) // 2
        rows, weights = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        wanted = ctx.needs_input_grad[1:]
        of_rows = [
            gradient @ weight if want else None
            for weight, want in zip(weights, wanted, strict=False)
        ]
        of_weights = [
            _of_weight(x, gradient) if want else None
            for x, want in zip(rows, wanted[count:], strict=True)
        ]
        return None, *of_rows, *of_weights


def _of_weight(rows: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the weight of `rows @ weight.T`, in the layout of the faster product."""
    return (rows.T @ gradient).T


class PointwiseConv(nn.Conv2d):
    """`pointwise_conv` as a module, with the parameters of an ordinary convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:  # a batch norm was folded in
            return super().forward(x)
        return pointwise_conv([x], self.weight.flatten(1))


def relu6_products(rows: Tensor, weight: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
    """ReLU6 of `rows [N, C]` times `weight [D, C]`, transposed, in parts: `[N, size]` for each of
    `sizes`.
    """
    weights = weight.split(sizes)
    if not plain_cpu(rows):
        return tuple(F.relu6(F.linear(rows, part)) for part in weights)
    return _ReLU6Products.apply(rows, *weights)


class _ReLU6Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        parts = tuple((rows @ weight.T).clamp_(0, 6) for weight in weights)
        ctx.save_for_backward(rows, *weights, *parts)
        return parts

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, *rest = ctx.saved_tensors
        weights, parts = rest[: len(gradients)], rest[len(gradients) :]
        of_rows, of_weights = None, []
        for gradient, weight, y, wanted in zip(
            gradients, weights, parts, ctx.needs_input_grad[1:], strict=True
        ):
            inner = aten.hardtanh_backward(gradient, y, 0.0, 6.0)
            if ctx.needs_input_grad[0]:
                of_rows = inner @ weight if of_rows is None else of_rows.addmm_(inner, weight)
            of_weights.append(_of_weight(rows, inner) if wanted else None)
        return of_rows, *of_weights


def rows_of(x: Tensor) -> Tensor:
    """`[B, C, H, W]` as pixels `[B H W, C]`, a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def maps_of(rows: Tensor, like: Tensor) -> Tensor:
    """Pixels as maps of the size of `like`: the inverse of `rows_of`."""
    B, _, H, W = like.shape
    return rows.view(B, H, W, -1).permute(0, 3, 1, 2)


def norm_relu6(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor,
    bias: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor:
    """ReLU6 of `F.batch_norm`, without a copy for the activation's gradient: its result is enough."""
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
    def backward(ctx, gradient):
        x, y, weight, mean, var, *statistics = ctx.saved_tensors
        inner = aten.hardtanh_backward(gradient, y, 0.0, 6.0)
        wanted = [ctx.needs_input_grad[i] for i in (0, 3, 4)]
        grad_x, of_weight, of_bias = aten.native_batch_norm_backward(
            inner, x, weight, mean, var, *statistics, True, ctx.eps, wanted
        )
        return grad_x, None, None, of_weight, of_bias, None, None
