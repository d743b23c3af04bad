"""Layers that CPUs compute faster than PyTorch's own of the same result; elsewhere they are PyTorch's own."""

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

aten = torch.ops.aten


def plain_cpu(x: Tensor) -> bool:
    """Is x of single precision on a CPU, outside of autocast and compiled code?"""
    plain = x.device.type == "cpu" and x.dtype == torch.float32
    return plain and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def pointwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """A 1x1 convolution, `x [B, C, H, W]` by `weight [D, C]` -> `[B, D, H, W]`, as products of matrices."""
    if not plain_cpu(x):
        return F.conv2d(x, weight[..., None, None])
    return maps_of(_Product.apply(rows_of(x), weight), x)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return rows @ weight.T

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return _of_product(ctx, gradient, *ctx.saved_tensors)


class PointwiseConv(nn.Conv2d):
    """`pointwise_conv` as a module, with the parameters of an ordinary convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:  # a batch norm was folded in
            return super().forward(x)
        return pointwise_conv(x, self.weight.flatten(1))


def relu6_product(rows: Tensor, weight: Tensor) -> Tensor:
    """ReLU6 of `rows [N, C]` times `weight [D, C]`, transposed: `[N, D]`."""
    if not plain_cpu(rows):
        return F.relu6(F.linear(rows, weight))
    return _ReLU6Product.apply(rows, weight)


class _ReLU6Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, weight: Tensor) -> Tensor:
        y = (rows @ weight.T).clamp_(0, 6)
        ctx.save_for_backward(rows, weight, y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight, y = ctx.saved_tensors
        return _of_product(ctx, aten.hardtanh_backward(gradient, y, 0.0, 6.0), rows, weight)


def _of_product(ctx, gradient: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of `rows @ weight.T` that are wanted, each in the layout of its fastest product."""
    wanted = ctx.needs_input_grad
    return gradient @ weight if wanted[0] else None, (rows.T @ gradient).T if wanted[1] else None


def rows_of(x: Tensor) -> Tensor:
    """`[B, C, H, W]` as pixels `[B H W, C]`, a view of channels-last memory."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def maps_of(rows: Tensor, like: Tensor) -> Tensor:
    """Pixels as maps of the size of `like`: the inverse of `rows_of`."""
    B, _, H, W = like.shape
    return rows.view(B, H, W, -1).permute(0, 3, 1, 2)


def norm_relu6(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, training: bool, momentum: float, eps: float
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
        of_x, of_weight, of_bias = aten.native_batch_norm_backward(
            inner, x, weight, mean, var, *statistics, True, ctx.eps, wanted
        )
        return of_x, None, None, of_weight, of_bias, None, None
