"""Batch norms that a path switches between, folded into the 1x1 convolution before them.

The projection of a unified block has a batch norm for each number of skipped sub-blocks (SGNAS:
sums of one sub-block and of six differ in scale), its depthwise convolutions have one for each
kernel and sub-block.

A 1x1 convolution is linear, so that the statistics of its outputs follow from those of its inputs,
which in an inverted bottleneck are several times fewer: with covariance S of the inputs, an output
of weights w has the variance w' S w. So the expanded maps are written once, normalised, and never
read for their statistics.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.layers.bn_folding import affine
from model.layers.pointwise import maps_of, norm_relu6, rows_of


@dataclass(frozen=True)
class Pixels:
    """Maps as rows `[B H W, C + 1]`, the last column all ones, so that a bias is one more weight.

    `mean [C]` and `covariance [C, C]` are there when the rows are centred: the mean is subtracted
    then.
    """

    rows: Tensor
    like: Tensor
    mean: Tensor | None = None
    covariance: Tensor | None = None

    @classmethod
    def of(cls, x: Tensor, centred: bool = False) -> "Pixels":
        rows = rows_of(x)
        if not centred:
            return cls(torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1), x)
        with torch.autocast(x.device.type, enabled=False):
            rows, mean, covariance = _Centred.apply(
                rows.to(torch.promote_types(rows.dtype, torch.float32))
            )
        return cls(rows, x, mean, covariance)

    def maps(self, rows: Tensor) -> Tensor:
        """Rows `[B H W, D]` computed from these as maps `[B, D, H, W]`."""
        return maps_of(rows, self.like)


class _Centred(torch.autograd.Function):
    """`rows [N, C]` -> `[rows - mean, 1] [N, C + 1]`, mean, covariance."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        N, C = rows.shape
        centred, mean = rows.new_empty(N, C + 1), rows.mean(dim=0)
        torch.sub(rows, mean, out=centred[:, :-1])
        centred[:, -1] = 1
        ctx.save_for_backward(centred)
        ctx.mark_non_differentiable(mean)
        return centred, mean, centred[:, :-1].T @ centred[:, :-1] / N

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_centred: Tensor, grad_mean: Tensor, grad_covariance: Tensor) -> Tensor:
        (centred,) = ctx.saved_tensors
        grad_centred = grad_centred[:, :-1]
        both = (grad_covariance + grad_covariance.T) / len(centred)
        # The column of ones times the last row of `weight` subtracts the mean gradient.
        weight = torch.cat([both, -grad_centred.mean(dim=0, keepdim=True)])
        return torch.addmm(grad_centred, centred, weight)


class SwitchableBatchNorm(nn.Module):
    """`count` batch norms of C channels each, of which a call uses some, one after another along
    the channels.
    """

    def __init__(self, count: int, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(count, channels))
        self.bias = nn.Parameter(torch.zeros(count, channels))
        self.register_buffer("running_mean", torch.zeros(count, channels))
        self.register_buffer("running_var", torch.ones(count, channels))

    def forward(self, maps: list[Tensor], index: Tensor, relu6: bool = False) -> list[Tensor]:
        """`maps`, `[B, n C, H, W]` together, through the norms `index [n]`, whose statistics move
        when training.
        """
        sizes = [x.shape[1] for x in maps]
        mean, var, *affine = self._picked(index)
        norm = norm_relu6 if relu6 else F.batch_norm
        parts = zip(*(part.split(sizes) for part in (mean, var, *affine)), strict=True)
        maps = [
            norm(x, *part, self.training, self.momentum, self.eps)
            for x, part in zip(maps, parts, strict=True)
        ]
        if self.training:
            self._put(index, mean, var)
        return maps

    def folded_into(self, weight: Tensor, index: Tensor, pixels: Pixels | None = None) -> Tensor:
        """The weights `[n C, C_in + 1]` of `weight [n C, C_in]` before the norms `index [n]`, the
        last one the bias.

        By the statistics of centred `pixels`, for those pixels, while the running statistics move;
        or in evaluation mode by the running statistics, for pixels as they are.
        """
        # variances in half precision would be poor
        with torch.autocast(weight.device.type, enabled=False):
            mean, var, scale, bias = self._picked(index)
            if self.training:
                spread = ((weight @ pixels.covariance) * weight).sum(dim=1)
                with torch.no_grad():
                    mean.lerp_(weight @ pixels.mean, self.momentum)
                    N = len(pixels.rows)
                    var.lerp_(spread * (N / max(1, N - 1)), self.momentum)
                    self._put(index, mean, var)
                scale = scale * (spread + self.eps).rsqrt()
            else:
                scale = scale * (var + self.eps).rsqrt()
                bias = bias - mean * scale
            return torch.cat([weight * scale[:, None], bias[:, None]], dim=1)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Evaluation mode as `x * scale + shift`, each `[count, C]`."""
        scale, shift = affine(self)
        return scale.detach(), shift.detach()

    def hand_down(self, bn: nn.BatchNorm2d, index: list[int]) -> None:
        """Copy the norms `index`, one after another, into a stand-alone batch norm."""
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(bn, name).copy_(getattr(self, name)[index].flatten())

    def _picked(self, index: Tensor) -> list[Tensor]:
        return [
            part[index].flatten()
            for part in (self.running_mean, self.running_var, self.weight, self.bias)
        ]

    def _put(self, index: Tensor, mean: Tensor, var: Tensor) -> None:
        self.running_mean[index] = mean.view(len(index), -1)
        self.running_var[index] = var.view(len(index), -1)
