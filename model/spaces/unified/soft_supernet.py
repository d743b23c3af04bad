"""The soft supernet: what the architecture generator is trained against.

`SoftSupernet` computes a soft mixture, with batch norms folded into the convolutions, and can
only be differentiated in the path. Axes: B batch, L layers, E sub-blocks, K choices, C channels of
a sub-block. Source: SGNAS, section 3.4.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.costs.lookup_table import NEGLIGIBLE
from model.layers.blocks import ConvBN, InvertedBottleneck, squeezed_channels
from model.layers.bn_folding import folded_conv
from model.layers.depthwise import gradient_of_input
from model.layers.pointwise import relu6_products
from model.spaces.unified.block import UnifiedBlock
from model.spaces.unified.supernet import UnifiedSupernet
from model.spaces.unified.switchable_norm import Pixels


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution by `weight [out, in]`; x is not kept for a gradient of the weight."""
    return F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class _Mixture(torch.autograd.Function):
    """The mixture of branches: sum over kernels k of p_k relu6(depthwise convolution_k(x)).

    For `x [B, C, H, W]` and `p [C, kernels]`, differentiable in both. Only x is kept; the branches
    are computed again where the gradient needs them, one at a time, so that the memory of a
    generator step is a fraction of that of the plain sum.
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
    """A layer for soft paths: each sub-block gives the p-weighted sum of its kernel branches.

    Skip gives zero. All weights are buffers with the batch norms folded in.
    """

    def __init__(self, block: UnifiedBlock, choice_index: list[int]):
        super().__init__()
        self.spec, self.kernels, self.choice_index = block.spec, block.kernels, choice_index
        for name, weight in block.folded().items():
            self.register_buffer(name, weight, persistent=False)

    def forward(self, x: Tensor, p: Tensor, skipped: int) -> Tensor:
        """`p [E, kernels of this layer]`, negligible ones 0; `skipped`: rounded number of skips."""
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
        branches = [(k, *(getattr(self, name).to(y.dtype) for name in pair)) for k, *pair in names]
        y = _Mixture.apply(y, p.repeat_interleave(C, dim=0).to(y.dtype), branches, self.spec.stride)
        if self.spec.se:
            y = y * self._gate(y.mean(dim=(2, 3)), (E - skipped) * C)
        y = _pointwise(y, self.project[skipped], self.project_bias[skipped])
        return x + y if self.spec.residual else y

    def _gate(self, pooled: Tensor, middle: int) -> Tensor:
        width = squeezed_channels(middle)
        squeeze, excite = self.squeeze[:width], self.excite[:, :, :width]
        squeezed = F.linear(pooled, squeeze.flatten(1), self.squeeze_bias[:width]).relu()
        gate = F.linear(squeezed, excite.flatten(0, 1), self.excite_bias.flatten())
        return F.hardsigmoid(gate)[:, :, None, None]


class SoftSupernet(nn.Module):
    """`soft(images [B, 3, H, W], path [L, E, K]) -> logits [B, classes]`.

    A supernet as it is now, in evaluation mode, differentiable in the path alone. Entries of the
    path up to `NEGLIGIBLE` count as zero (SGNAS, stage 2).
    """

    def __init__(self, supernet: UnifiedSupernet):
        super().__init__()
        assert not supernet.training, "soft paths run in evaluation mode: call eval() first"
        self.space = supernet.space
        self.stem = nn.Sequential(*_folded(supernet.first), *_folded(supernet.first_mb))
        index = self.space.kernels.index
        self.stages = nn.ModuleList(
            SoftBlock(block, [index(k) for k in block.kernels]) for block in supernet.stages
        )
        conv, bn, act = supernet.last_stage
        self.head = nn.Sequential(folded_conv(conv, bn), act)
        self.classifier = nn.Linear(self.space.head_channels, self.space.classes)
        self.classifier.load_state_dict(supernet.classifier.state_dict())
        self.to(supernet.classifier.weight.device).requires_grad_(False).eval()

    def forward(self, images: Tensor, path: Tensor) -> Tensor:
        kept = path * (path > NEGLIGIBLE)
        active = self.space.active(path.detach()).cpu()
        skipped = (self.space.expansions - active).round().long().tolist()
        x = self.stem(images)
        for block, p, count in zip(self.stages, kept, skipped, strict=True):
            x = block(x, p[: block.spec.expansion, block.choice_index], count)
        return self.classifier(self.head(x).mean(dim=(2, 3)))


def _folded(part: ConvBN | InvertedBottleneck) -> list[nn.Module]:
    """The convolutions of the stem or the first block with their batch norms folded in."""
    if isinstance(part, ConvBN):
        return [folded_conv(part.conv, part.bn), part.act]
    depthwise = folded_conv(part.depthwise.blocks[0], part.depthwise.bn)
    return [depthwise, part.depthwise.act, *_folded(part.point_wise_1)]
