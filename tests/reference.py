"""The unified supernet written as can be: a module per sub-block and kernel, skips
multiplied by zero.

Key names are those of the published release, so its state dict is also a published checkpoint.
"""

import torch
from torch import nn

from model.spaces.unified.space import UnifiedSpace


class ConvBN(nn.Module):
    def __init__(self, c_in, c_out, k=1, stride=1, groups=1):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, k, stride, k // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x):
        return self.bn(self.conv(x))


class SubBlock(nn.Module):
    """All choices of one sub-block: a depthwise branch per kernel, then skip, a dense convolution
    times zero.
    """

    def __init__(self, channels, kernels, stride, skip):
        super().__init__()
        branches = [ConvBN(channels, channels, k, stride, channels) for k in kernels]
        skips = [nn.Conv2d(channels, channels, 1, stride, bias=False)] if skip else []
        self.blocks = nn.ModuleList([*branches, *skips])
        self.kernels = len(kernels)

    def branch(self, index, x):
        if index < self.kernels:
            return nn.functional.relu6(self.blocks[index](x))
        return self.blocks[index](x) * 0

    def forward(self, x, p):
        """`p` in the order of `blocks`."""
        parts = [p[i] * self.branch(i, x) for i in range(len(self.blocks)) if p[i] > 0.01]
        return sum(parts)


class Layer(nn.Module):
    def __init__(self, spec):
        super().__init__()
        E, C = spec.expansion, spec.in_channels
        self.spec = spec
        self.point_wise = ConvBN(C, E * C) if E > 1 else None
        self.depthwise = nn.Module()
        self.depthwise.blocks = nn.ModuleList(
            SubBlock(C, spec.kernels, spec.stride, spec.skip) for _ in range(E)
        )
        if spec.se:
            self.se = nn.Module()
            self.se.squeeze_conv = nn.Conv2d(E * C, E * C // 4, 1)
            self.se.excite_conv = nn.Conv2d(E * C // 4, E * C, 1)
        self.point_wise_1 = nn.Module()
        self.point_wise_1.conv = nn.Conv2d(E * C, spec.out_channels, 1, bias=False)
        self.sbn = nn.ModuleList(nn.BatchNorm2d(spec.out_channels) for _ in range(E))

    def forward(self, x, p):
        """`p [E, kernels in this layer's own order + skip]`."""
        E, C = self.spec.expansion, self.spec.in_channels
        skipped = round(float(p[:, -1].detach().sum()))
        if skipped == E:
            return x
        y = nn.functional.relu6(self.point_wise(x)) if E > 1 else x
        y = torch.cat(
            [
                block(part, q)
                for block, part, q in zip(self.depthwise.blocks, y.split(C, 1), p, strict=True)
            ],
            1,
        )
        if self.spec.se:
            width = (E - skipped) * C // 4  # the width of the stand-alone layer
            s = self.se.squeeze_conv(y.mean((2, 3), keepdim=True)).relu()
            s = s * (torch.arange(s.shape[1]) < width)[None, :, None, None]
            y = y * nn.functional.hardsigmoid(self.se.excite_conv(s))
        y = self.sbn[skipped](self.point_wise_1.conv(y))
        return x + y if self.spec.residual else y


class ReferenceSupernet(nn.Module):
    def __init__(self, space: UnifiedSpace):
        super().__init__()
        self.space = space
        stem, first = space.stem_channels, space.first_channels
        self.first = ConvBN(3, stem, 3, space.stem_stride)
        self.first_mb = nn.Module()
        self.first_mb.depthwise = nn.Module()
        self.first_mb.depthwise.blocks = nn.ModuleList(
            [nn.Conv2d(stem, stem, 3, 1, 1, groups=stem, bias=False)]
        )
        self.first_mb.depthwise.bn = nn.BatchNorm2d(stem)
        self.first_mb.point_wise_1 = ConvBN(stem, first)
        self.stages = nn.ModuleList(Layer(spec) for spec in space.layers)
        head = space.head_channels
        self.last_stage = nn.Sequential(
            nn.Conv2d(space.layers[-1].out_channels, head, 1, bias=False), nn.BatchNorm2d(head)
        )
        self.classifier = nn.Linear(head, space.classes)

    def forward(self, images, path):
        x = nn.functional.relu6(self.first(images))
        mb = self.first_mb
        x = nn.functional.relu6(mb.depthwise.bn(mb.depthwise.blocks[0](x)))
        x = mb.point_wise_1(x)
        for layer, p in zip(self.stages, path, strict=True):
            spec = layer.spec
            order = [self.space.kernels.index(k) for k in spec.kernels] + [self.space.shape[2] - 1]
            x = layer(x, p[: spec.expansion, order])
        return self.classifier(nn.functional.relu6(self.last_stage(x)).mean((2, 3)))
