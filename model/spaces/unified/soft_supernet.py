"""The frozen supernet, for soft paths: what the architecture generator is trained against.

`SoftSupernet` computes a soft mixture, with batch norms folded into the convolutions, and can
only be differentiated in the path. Axes: B batch, L layers, E sub-blocks, K choices, C channels of
a sub-block. Source: SGNAS, section 3.4.
"""

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.costs.lookup_table import NEGLIGIBLE
from model.layers.blocks import ConvBN, InvertedBottleneck, squeezed_channels
from model.layers.depthwise import gradient_of_input
from model.layers.pointwise import relu6_products
from model.spaces.unified.switchable_norm import Pixels

if TYPE_CHECKING:
    from model.spaces.unified.supernet import UnifiedBlock, UnifiedSupernet


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution, `weight [out, in]`, that keeps nothing of x for a weight without gradient,
    as conv2d does.
    """
    return F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class _Mixture(torch.autograd.Function):
    """`x [B, C, H, W]`, `p [C, kernels]` -> the p-weighted sum of relu6(depthwise convolution) over
    the kernels.

    Differentiable in x and p. Only x is kept; the branches are computed anew where the gradient
    needs them, one at a time, so that the memory of a generator step is a fraction of that of the
    plain sum.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, p: Tensor, branches: list[tuple[int, Tensor, Tensor]], stride: int
    ) -> Tensor:
        ctx.save_for_backward(x, p)
        ctx.branches, ctx.stride = branches, stride
        mixture = None
        amp = torch.is_autocast_enabled(x.device.type)  # all is of one type already
        with torch.autocast(x.device.type, enabled=False) if amp else nullcontext():
            for column, branch in enumerate(branches):
                y, share = _branch(x, branch, stride), p[:, column, None, None]
                mixture = y * share if mixture is None else mixture.addcmul_(y, share)
        return mixture

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, p = ctx.saved_tensors
        grad_x, grad_p = None, torch.empty_like(p)
        for column, branch in enumerate(ctx.branches):
            y = _branch(x, branch, ctx.stride)
            if ctx.needs_input_grad[0]:
                _, weight, _ = branch
                inner = torch.ops.aten.hardtanh_backward(gradient, y, 0.0, 6.0)
                # so that no pass multiplies the maps by p
                shared = weight * p[:, column, None, None, None]
                part = gradient_of_input(inner, x, shared, ctx.stride)
                grad_x = part if grad_x is None else grad_x.add_(part)
            grad_p[:, column] = y.mul_(gradient).sum(dim=(0, 2, 3))
        return grad_x, grad_p, None, None


def _branch(x: Tensor, branch: tuple[int, Tensor, Tensor], stride: int) -> Tensor:
    k, weight, bias = branch
    return F.conv2d(x, weight, bias, stride, k // 2, 1, len(weight)).clamp_(0, 6)


class SoftBlock(nn.Module):
    """A layer for soft paths: each sub-block gives the p-weighted sum of its kernel branches, skip
    gives zero.

    All weights are buffers with the batch norms folded in; the last norm, chosen by the rounded
    number of skipped sub-blocks, is folded for each number that can occur.
    """

    def __init__(self, block: "UnifiedBlock", choice_index: list[int]):
        super().__init__()
        self.spec, self.kernels, self.choice_index = block.spec, block.kernels, choice_index
        E, C = block.spec.expansion, block.spec.in_channels
        if E > 1:
            every = torch.arange(E, device=block.expand.device)
            self._keep(
                "expand", block.expand_bn.folded_into(block.expand.flatten(0, 1).flatten(1), every)
            )
        scale, shift = (part.view(-1, E, C) for part in block.depthwise_bn.affine())
        for index, k in enumerate(self.kernels):
            weight = block.depthwise[str(k)] * scale[index, :, :, None, None, None]
            self._keep(f"depthwise_{k}", weight.flatten(0, 1))
            self._keep(f"depthwise_bias_{k}", shift[index].flatten())
        if block.spec.se:
            for name in ("squeeze", "squeeze_bias", "excite", "excite_bias"):
                self._keep(name, getattr(block, name))
        scale, shift = block.project_bn.affine()
        self._keep("project", block.project.flatten(1)[None] * scale[:, :, None])
        self._keep("project_bias", shift)

    def _keep(self, name: str, weight: Tensor) -> None:
        self.register_buffer(name, weight.detach().clone(), persistent=False)

    def forward(self, x: Tensor, p: Tensor, skipped: int) -> Tensor:
        """`p [E, kernels of this layer]`, entries that count zero already 0; `skipped`: rounded
        number of skips.
        """
        E, C = self.spec.expansion, self.spec.in_channels
        if skipped >= E:
            if self.spec.may_vanish:
                return x
            skipped = E - 1
        y = x
        if E > 1:
            pixels = Pixels.of(x)
            (y,) = map(pixels.maps, relu6_products(pixels.rows, self.expand, [E * C]))
        names = [(k, f"depthwise_{k}", f"depthwise_bias_{k}") for k in self.kernels]
        branches = [
            (k, getattr(self, w).to(y.dtype), getattr(self, b).to(y.dtype)) for k, w, b in names
        ]
        y = _Mixture.apply(y, p.repeat_interleave(C, dim=0).to(y.dtype), branches, self.spec.stride)
        if self.spec.se:
            y = y * self._gate(y.mean(dim=(2, 3)), (E - skipped) * C)
        y = _pointwise(y, self.project[skipped], self.project_bias[skipped])
        return x + y if self.spec.residual else y

    def _gate(self, pooled: Tensor, middle: int) -> Tensor:
        width = squeezed_channels(middle)
        squeezed = F.linear(
            pooled, self.squeeze[:width].flatten(1), self.squeeze_bias[:width]
        ).relu()
        gate = F.linear(
            squeezed, self.excite[:, :, :width].flatten(0, 1), self.excite_bias.flatten()
        )
        return F.hardsigmoid(gate)[:, :, None, None]


class SoftSupernet(nn.Module):
    """`frozen(images [B, 3, H, W], path [L, E, K]) -> logits [B, classes]`, differentiable in the
    path alone.

    Entries of the path up to `NEGLIGIBLE` count as zero (SGNAS, stage 2).
    """

    def __init__(self, supernet: "UnifiedSupernet"):
        super().__init__()
        self.space = supernet.space
        self.stem = nn.Sequential(*_folded(supernet.first), *_folded(supernet.first_mb))
        index = self.space.kernels.index
        self.stages = nn.ModuleList(
            SoftBlock(block, [index(k) for k in block.kernels]) for block in supernet.stages
        )
        conv, bn, act = supernet.last_stage
        self.head = nn.Sequential(fuse_conv_bn_eval(conv, bn), act)
        self.classifier = nn.Linear(self.space.head_channels, self.space.classes)
        self.classifier.load_state_dict(supernet.classifier.state_dict())
        self.to(supernet.classifier.weight.device).requires_grad_(False).eval()

    def forward(self, images: Tensor, path: Tensor) -> Tensor:
        kept = path * (path > NEGLIGIBLE)
        skipped = (
            (self.space.expansions - self.space.active(path.detach()).cpu()).round().long().tolist()
        )
        x = self.stem(images)
        for block, p, count in zip(self.stages, kept, skipped, strict=True):
            x = block(x, p[: block.spec.expansion, block.choice_index], count)
        return self.classifier(self.head(x).mean(dim=(2, 3)))


def _folded(part: ConvBN | InvertedBottleneck) -> list[nn.Module]:
    """The convolutions of the stem or the first block with their batch norms folded in."""
    if isinstance(part, ConvBN):
        return [fuse_conv_bn_eval(part.conv, part.bn), part.act]
    depthwise = fuse_conv_bn_eval(part.depthwise.blocks[0], part.depthwise.bn)
    return [depthwise, part.depthwise.act, *_folded(part.point_wise_1)]
