"""Depthwise convolution whose weight gradient is fast on CPUs for wide kernels, too.

oneDNN has a fast weight gradient for kernels up to 3 wide, and falls back to one about ten times
slower for wider ones, where it would take most of a training step. Here such a gradient is put
together from windows 3 wide, on small maps from the products of all pairs of pixels. All else
(stride 2 on larger maps, other number types, compiled code, other devices) is PyTorch's own.
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.layers.pointwise import plain_cpu

# The widest kernel of which oneDNN computes the weight gradient fast.
FAST_WIDTH = 3

# Up to so many pairs of an input and an output pixel, products of all pairs are faster than
# windows.
MOST_PAIRS = 1024

# Windows pay from this width of the map on.
LEAST_WIDTH = 8


def depthwise_conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """`x [B, C, H, W]`, `weight [C, 1, k, k]` of odd k -> `[B, C, H / stride, W / stride]`, 'same'
    padding.
    """
    k = weight.shape[-1]
    ours = _few_pairs(x, stride) or (stride == 1 and x.shape[3] >= max(LEAST_WIDTH, k // 2 + 1))
    if not (ours and k > FAST_WIDTH and weight.requires_grad and plain_cpu(x)):
        return F.conv2d(x, weight, None, stride, k // 2, 1, weight.shape[0])
    return _DepthwiseConv.apply(x, weight, stride)


def _few_pairs(x: Tensor, stride: int) -> bool:
    H, W = x.shape[2:]
    return H * W * -(-H // stride) * -(-W // stride) <= MOST_PAIRS


class DepthwiseConv(nn.Conv2d):
    """`depthwise_conv` as a module, with the parameters of an ordinary convolution."""

    def __init__(self, channels: int, kernel: int, stride: int = 1):
        super().__init__(
            channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is not None:  # a batch norm was folded in
            return super().forward(x)
        return depthwise_conv(x, self.weight, self.stride[0])


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return F.conv2d(x, weight, None, stride, weight.shape[-1] // 2, 1, weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        grad_x = of_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = gradient_of_input(gradient, x, weight, ctx.stride)
        if ctx.needs_input_grad[1]:
            if _few_pairs(x, ctx.stride):
                of_weight = gradient_by_products(gradient, x, weight, ctx.stride)
            else:
                of_weight = gradient_by_windows(gradient, x, weight)
        return grad_x, of_weight, None


def gradient_by_products(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The gradient of `weight [C, 1, k, k]` from the products of all pairs of an input pixel and an
    output pixel.
    """
    B, C, H, W = x.shape
    h, w = gradient.shape[2:]
    # or the product would copy matrix by matrix
    pixels = x.permute(1, 0, 2, 3).reshape(C, B, H * W).contiguous()
    products = (
        pixels.transpose(1, 2) @ gradient.permute(1, 0, 2, 3).reshape(C, B, h * w).contiguous()
    )
    taps = _taps(H, W, h, w, weight.shape[-1], stride).to(x.dtype)
    return (products.view(C, -1) @ taps).view(weight.shape)


@lru_cache(maxsize=64)
def _taps(H: int, W: int, h: int, w: int, k: int, stride: int) -> Tensor:
    """`[H W h w, k k]`: 1 where the tap of a kernel lets that output pixel see that input pixel."""

    def along(size: int, out: int) -> Tensor:
        tap = torch.arange(size)[:, None] - stride * torch.arange(out) + k // 2
        return (tap[..., None] == torch.arange(k)).float()

    return torch.einsum("yai,xbj->yxabij", along(H, h), along(W, w)).reshape(H * W * h * w, k * k)


def gradient_by_windows(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of `weight [C, 1, k, k]` at stride 1, by windows of FAST_WIDTH columns that
    cover its k columns.
    """
    k = weight.shape[-1]
    # its size counts
    result, window = torch.empty_like(weight), weight.new_empty(len(weight), 1, k, FAST_WIDTH)
    for first in range(0, k - FAST_WIDTH + 1, FAST_WIDTH - 1):
        columns = slice(first, first + FAST_WIDTH)
        seen, pad = _seen(x, first - k // 2)
        result[..., columns] = _backward(gradient, seen, window, 1, (k // 2, pad), of_weight=True)
    return result


def _seen(x: Tensor, offset: int) -> tuple[Tensor, int]:
    """What the pixels of x see through a window of FAST_WIDTH columns from `offset` on; and the
    padding it still needs.

    Pixel w sees the pixels w + offset, ... of its row, zeros where there are none.
    """
    if offset == -(FAST_WIDTH // 2):
        return x, FAST_WIDTH // 2
    B, C, H, W = x.shape
    seen = torch.empty(
        B, C, H, W + FAST_WIDTH - 1, dtype=x.dtype, memory_format=torch.channels_last
    )
    begin, end = max(offset, 0), min(W + offset + FAST_WIDTH - 1, W)
    seen[..., : begin - offset] = 0
    seen[..., begin - offset : end - offset] = x[..., begin:end]
    seen[..., end - offset :] = 0
    return seen, 0


def gradient_of_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The gradient of x, which is at stride 1 a convolution by the reversed kernel: the faster way
    on CPUs.
    """
    pad = weight.shape[-1] // 2
    if stride == 1:
        return F.conv2d(gradient, weight.flip(2, 3), None, 1, pad, 1, len(weight))
    return _backward(gradient, x, weight, stride, (pad, pad), of_weight=False)


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: int, pad: tuple[int, int], of_weight: bool
) -> Tensor:
    """PyTorch's own gradient of x, or of the weight, of a depthwise convolution."""
    wanted = [not of_weight, of_weight, False]
    found = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        None,
        [stride] * 2,
        list(pad),
        [1, 1],
        False,
        [0, 0],
        len(weight),
        wanted,
    )
    return found[wanted.index(True)]
