"""Depthwise convolution whose weight gradient is fast on CPUs for wide kernels, too.

oneDNN has a fast weight gradient for kernels up to 3 wide, and falls back to one about ten times
slower for wider ones, where it would take most of a training step. Here such a gradient is put
together from windows 3 wide, on small maps from the products of all pairs of pixels. All else
(stride 2 on larger maps, other number types, compiled code, other devices) is PyTorch's own.

With stride s, 'same' padding and a kernel w of k x k taps, each channel is by itself

    z[u, v] = sum over i, j of w[i, j] x[s u + i - k // 2, s v + j - k // 2]
"""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.layers.pointwise import plain_cpu

# The widest kernel of which oneDNN computes the weight gradient fast.
FAST_WIDTH = 3

# Up to so many pairs of an input and an output pixel, products of all pairs beat windows.
MOST_PAIRS = 1024

# Windows pay from this width of the map on.
LEAST_WIDTH = 8


def depthwise_conv(x: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """`x [B, C, H, W]` and `weight [C, 1, k, k]`, k odd -> z `[B, C, H / stride, W / stride]`."""
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
        how = {"groups": channels, "bias": False}
        super().__init__(channels, channels, kernel, stride, kernel // 2, **how)

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
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = gradient_of_input(gradient, x, weight, ctx.stride)
        if ctx.needs_input_grad[1] and _few_pairs(x, ctx.stride):
            grad_weight = gradient_by_products(gradient, x, weight, ctx.stride)
        elif ctx.needs_input_grad[1]:
            grad_weight = gradient_by_windows(gradient, x, weight)
        return grad_x, grad_weight, None


def gradient_by_products(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Compute the gradient of `weight [C, 1, k, k]` from all pairs of input and output pixels.

    grad_w[i, j] = sum over pixels p, q of (sum over images of x[p] grad_z[q]) taps[p, q, i, j]
    """
    C, k = len(weight), weight.shape[-1]
    # contiguous, or the product would copy matrix by matrix
    seen, given = (m.transpose(0, 1).flatten(2).contiguous() for m in (x, gradient))  # [C, B, H W]
    products = seen.transpose(1, 2) @ given
    taps = _taps(*x.shape[2:], *gradient.shape[2:], k, stride).to(x.dtype)
    return (products.view(C, -1) @ taps).view(weight.shape)


@lru_cache(maxsize=64)
def _taps(H: int, W: int, h: int, w: int, k: int, stride: int) -> Tensor:
    """`[H W h w, k k]`: 1 where the tap of a kernel lets that output pixel see that input pixel."""

    def along(size: int, out: int) -> Tensor:
        tap = torch.arange(size)[:, None] - stride * torch.arange(out) + k // 2
        return (tap[..., None] == torch.arange(k)).float()

    return torch.einsum("yai,xbj->yxabij", along(H, h), along(W, w)).reshape(H * W * h * w, k * k)


def gradient_by_windows(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Compute the gradient of `weight [C, 1, k, k]` at stride 1, by windows of FAST_WIDTH columns.

    A window is a kernel of oneDNN's fast width that sees x shifted sideways, by the offset of its
    first column from the middle one; windows overlap where they do not divide the k columns.
    """
    k = weight.shape[-1]
    # its size counts
    result, window = torch.empty_like(weight), weight.new_empty(len(weight), 1, k, FAST_WIDTH)
    for first in range(0, k - FAST_WIDTH + 1, FAST_WIDTH - 1):
        seen, pad = _seen(x, first - k // 2)
        found = _backward(gradient, seen, window, 1, (k // 2, pad), of_weight=True)
        result[..., first : first + FAST_WIDTH] = found
    return result


def _seen(x: Tensor, offset: int) -> tuple[Tensor, int]:
    """What pixels see through a window of FAST_WIDTH columns from `offset` on, and padding to add.

    Pixel w sees the pixels w + offset, ... of its row, zeros where there are none.
    """
    if offset == -(FAST_WIDTH // 2):
        return x, FAST_WIDTH // 2
    *sizes, W = x.shape
    layout = {"dtype": x.dtype, "memory_format": torch.channels_last}
    seen = torch.empty(*sizes, W + FAST_WIDTH - 1, **layout)
    begin, end = max(offset, 0), min(W + offset + FAST_WIDTH - 1, W)
    seen[..., : begin - offset] = 0
    seen[..., begin - offset : end - offset] = x[..., begin:end]
    seen[..., end - offset :] = 0
    return seen, 0


def gradient_of_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Compute the gradient of x.

    At stride 1 it is a convolution by the reversed kernel, which is the faster way on CPUs:

        grad_x[u, v] = sum over i, j of w[k-1-i, k-1-j] grad_z[u + i - k // 2, v + j - k // 2]
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
    # stride, padding, dilation, transposed, padding of the output, groups
    how = ([stride] * 2, list(pad), [1, 1], False, [0, 0], len(weight))
    found = torch.ops.aten.convolution_backward(gradient, x, weight, None, *how, wanted)
    return found[wanted.index(True)]
