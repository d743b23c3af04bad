"""The unified supernet: every sub-network of the space in one set of weights.

`UnifiedSupernet` computes one hard path, on the active slices of its stacked weights only, and can be trained;
`FrozenSupernet` computes a soft mixture, with batch norms folded into the convolutions, and can only be
differentiated in the path. Both give the same logits for the same one-hot path in evaluation mode.

Axes: B batch, L layers, E sub-blocks, K choices, C channels of a sub-block. Source: SGNAS, section 3.1 and figure 3.
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.blocks import ConvBN, InvertedBottleneck, head_stage, initialise, squeezed_channels
from model.cpu import norm_relu6, pointwise_conv, pointwise_relu6
from model.depthwise import convolution_backward, depthwise_conv
from model.lookup_table import NEGLIGIBLE
from model.space import LayerSpec, UnifiedSpace
from model.subnet import SubNet
from utils.errors import UserError


class StackedBatchNorm(nn.Module):
    """`count` batch norms of C channels each, of which a call uses some, one after another along the channels."""

    def __init__(self, count: int, channels: int, momentum: float = 0.1, eps: float = 1e-5):
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(count, channels))
        self.bias = nn.Parameter(torch.zeros(count, channels))
        self.register_buffer("running_mean", torch.zeros(count, channels))
        self.register_buffer("running_var", torch.ones(count, channels))

    def forward(self, x: Tensor, index: Tensor, relu6: bool = False) -> Tensor:
        """`x [B, n C, H, W]` through the norms `index [n]`, whose running statistics move when training."""
        mean, var, weight, bias = (
            part[index].flatten() for part in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        norm = norm_relu6 if relu6 else F.batch_norm
        x = norm(x, mean, var, weight, bias, self.training, self.momentum, self.eps)
        if self.training:
            shape = len(index), -1
            self.running_mean[index] = mean.view(shape)
            self.running_var[index] = var.view(shape)
        return x

    def affine(self) -> tuple[Tensor, Tensor]:
        """Evaluation mode as `x * scale + shift`, each `[count, C]`."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale.detach(), (self.bias - self.running_mean * scale).detach()


class UnifiedBlock(nn.Module):
    """One layer of the supernet. Weights are stacked by sub-block: `[E, C, ...]`.

    `choices` is the layer's discrete choice as pairs (index into `kernels`, sub-block), sorted, so that each kernel
    size is one depthwise convolution over neighbouring channels.
    """

    def __init__(self, spec: LayerSpec):
        super().__init__()
        E, C, out = spec.expansion, spec.in_channels, spec.out_channels
        self.spec = spec
        self.kernels = tuple(sorted(spec.kernels))
        if E > 1:
            self.expand = nn.Parameter(torch.empty(E, C, C, 1, 1))
            self.expand_bn = StackedBatchNorm(E, C)
        self.depthwise = nn.ParameterDict({str(k): nn.Parameter(torch.empty(E, C, 1, k, k)) for k in self.kernels})
        self.depthwise_bn = StackedBatchNorm(len(self.kernels) * E, C)  # kernel by kernel, sub-blocks within
        if spec.se:
            self.squeeze = nn.Parameter(torch.empty(squeezed_channels(E * C), E, C))
            self.squeeze_bias = nn.Parameter(torch.zeros(squeezed_channels(E * C)))
            self.excite = nn.Parameter(torch.empty(E, C, squeezed_channels(E * C)))
            self.excite_bias = nn.Parameter(torch.zeros(E, C))
        self.project = nn.Parameter(torch.empty(out, E, C))
        self.project_bn = StackedBatchNorm(E, out)  # by the number of skipped sub-blocks

    def initialise(self, rng: torch.Generator) -> None:
        """As `blocks.initialise`, with the fan-out of the full convolutions."""
        E, C, out = self.spec.expansion, self.spec.in_channels, self.spec.out_channels
        if E > 1:
            self.expand.data.normal_(0, (2 / (E * C)) ** 0.5, generator=rng)
        for k in self.kernels:
            self.depthwise[str(k)].data.normal_(0, (2 / (k * k * C)) ** 0.5, generator=rng)
        if self.spec.se:
            self.squeeze.data.normal_(0, (2 / len(self.squeeze)) ** 0.5, generator=rng)
            self.excite.data.normal_(0, (2 / (E * C)) ** 0.5, generator=rng)
        self.project.data.normal_(0, (2 / out) ** 0.5, generator=rng)

    @torch.no_grad()
    def align(self, alignment: float, rng: torch.Generator) -> None:
        """Let all choices begin as nearly the same function.

        Every larger kernel begins as the smallest one with zeros around it, and all sub-blocks share the part
        `alignment` (0..1) of their weights' variance. Without it, each random choice of sub-blocks and kernels begins
        as another random function, and what follows a layer cannot learn from any of them.
        """
        smallest = self.kernels[0]
        base = self.depthwise[str(smallest)]
        base.normal_(0, (2 / smallest**2) ** 0.5, generator=rng)
        _align(base, 0, alignment, rng)
        _align(self.project, 1, alignment, rng)
        if self.spec.expansion > 1:
            _align(self.expand, 0, alignment, rng)
        for k in self.kernels[1:]:
            margin = (k - smallest) // 2
            self.depthwise[str(k)].copy_(F.pad(base, (margin,) * 4))

    def forward(self, x: Tensor, choices: list[tuple[int, int]]) -> Tensor:
        """Kernel by kernel: the projection is a sum over the sub-blocks, so that nothing is split or concatenated."""
        if not choices and self.spec.may_vanish:
            return x
        groups = [(i, [block for index, block in choices if index == i]) for i in range(len(self.kernels))]
        groups = [(i, blocks) for i, blocks in groups if blocks]
        middles = [self._middle(x, i, blocks) for i, blocks in groups]
        if self.spec.se:
            middles = self._gated(middles, [block for _, block in choices])
        y = None
        for middle, (_, blocks) in zip(middles, groups, strict=True):
            part = pointwise_conv(middle, self.project[:, blocks].flatten(1))
            y = part if y is None else y + part
        y = self.project_bn(y, torch.tensor([self.spec.expansion - len(choices)], device=x.device))
        return x + y if self.spec.residual else y

    def _middle(self, x: Tensor, kernel: int, blocks: list[int]) -> Tensor:
        """What the sub-blocks `blocks`, all of the kernel of that index, give to the projection."""
        index = torch.tensor(blocks, device=x.device)
        if self.spec.expansion > 1:
            x = pointwise_conv(x, self.expand[index].flatten(0, 1).flatten(1))
            x = self.expand_bn(x, index, relu6=True)
        weight = self.depthwise[str(self.kernels[kernel])][index].flatten(0, 1)
        y = depthwise_conv(x, weight, self.spec.stride)
        return self.depthwise_bn(y, kernel * self.spec.expansion + index, relu6=True)

    def _gated(self, middles: list[Tensor], blocks: list[int]) -> list[Tensor]:
        """Squeeze-excite over all of `middles` together."""
        pooled = torch.cat([middle.mean(dim=(2, 3)) for middle in middles], dim=1)
        gates = self._gate(pooled, torch.tensor(blocks, device=pooled.device))
        parts = gates.split([middle.shape[1] for middle in middles], dim=1)
        return [middle * gate for middle, gate in zip(middles, parts, strict=True)]

    def _gate(self, pooled: Tensor, blocks: Tensor) -> Tensor:
        """Squeeze-excite gate `[B, n C, 1, 1]`: the width inside is that of the stand-alone layer."""
        width = squeezed_channels(pooled.shape[1])
        squeezed = F.linear(pooled, self.squeeze[:width, blocks].flatten(1), self.squeeze_bias[:width]).relu()
        gate = F.linear(squeezed, self.excite[blocks, :, :width].flatten(0, 1), self.excite_bias[blocks].flatten())
        return F.hardsigmoid(gate)[:, :, None, None]


def _align(weight: Tensor, blocks: int, alignment: float, rng: torch.Generator) -> None:
    """Give the sub-blocks, along the axis `blocks`, a part in common; the variance stays what it is."""
    shared = weight.std() * torch.randn(weight.select(blocks, 0).shape, generator=rng).unsqueeze(blocks)
    weight.copy_(alignment**0.5 * shared + (1 - alignment) ** 0.5 * weight)


class UnifiedSupernet(nn.Module):
    """`supernet(images [B, 3, H, W], path [L, E, K]) -> logits [B, classes]`.

    A one-hot path that needs no gradient runs on the active slices only, in training or evaluation mode. Any other
    path is soft: it needs evaluation mode and gets gradients for the path alone (see `FrozenSupernet`; call `frozen()`
    once to run many of them).

    `alignment` 0 is the published initialisation; see `UnifiedBlock.align`.
    """

    def __init__(self, space: UnifiedSpace, rng: torch.Generator | None = None, alignment: float = 0.0):
        super().__init__()
        self.space = space
        self.first = ConvBN(3, space.stem_channels, kernel=3, stride=space.stem_stride, activation="relu6")
        self.first_mb = InvertedBottleneck(space.stem_channels, space.first_channels, kernels=(3,))
        self.stages = nn.ModuleList(UnifiedBlock(spec) for spec in space.layers)
        self.last_stage = head_stage(space.layers[-1].out_channels, space.head_channels, "relu6")
        self.classifier = nn.Linear(space.head_channels, space.classes)
        rng = rng or torch.Generator().manual_seed(0)
        initialise(self, rng)
        for block in self.stages:
            block.initialise(rng)
            if alignment:
                block.align(alignment, rng)

    def forward(self, images: Tensor, path: Tensor) -> Tensor:
        hard = not path.requires_grad and bool(((path == 0) | (path == 1)).all())
        if not hard:
            return self.frozen()(images, path)
        return self.classify(self.stem(images), path)

    def stem(self, images: Tensor) -> Tensor:
        """Features `[B, first_channels, H, W]` that all paths share."""
        return self.first_mb(self.first(images))

    def classify(self, features: Tensor, path: Tensor) -> Tensor:
        """Logits `[B, classes]` of a hard path from the features of `stem`."""
        for block, choices in zip(self.stages, self._choices(path), strict=True):
            features = block(features, choices)
        return self.classifier(self.last_stage(features).mean(dim=(2, 3)))

    def _choices(self, path: Tensor) -> list[list[tuple[int, int]]]:
        """The sorted pairs (index into the layer's kernels, sub-block) of each layer of a one-hot path."""
        rows = []
        for row, spec in zip(self.space.decode(path).choices, self.space.layers, strict=True):
            kernels = sorted(spec.kernels)
            pairs = sorted((kernels.index(kernel), block) for block, kernel in enumerate(row) if kernel is not None)
            assert pairs or spec.may_vanish, "a path skips all of a layer that may not vanish"
            rows.append(pairs)
        return rows

    def frozen(self) -> "FrozenSupernet":
        """This supernet as it is now, for soft paths; it must be in evaluation mode."""
        assert not self.training, "soft paths run in evaluation mode: call eval() first"
        return FrozenSupernet(self)

    @torch.no_grad()
    def extract(self, path: Tensor, exact: bool = True, **options) -> SubNet:
        """The stand-alone network of a one-hot path with inherited weights; `options` go to `SubNet`.

        It equals the supernet in evaluation mode, unless the options give it squeeze-excite that the supernet does not
        have, which then begins at random. A stand-alone layer of expansion 1 has no expand convolution, so that it
        cannot equal the supernet's: UserError, or with `exact` false the layer inherits what it has.
        """
        architecture = self.space.decode(path)
        for index, (kernels, spec) in enumerate(zip(architecture.kernels, self.space.layers, strict=True)):
            least = spec.least_active(max(2, self.space.min_expansion))
            if exact and len(kernels) < least and not (spec.may_vanish and not kernels):
                raise UserError(
                    f"extract: layer {index} has {len(kernels)} active sub-blocks; a supernet and its stand-alone "
                    f"network agree only from {least} on"
                )
        network = SubNet(self.space, architecture, **options).to(self.classifier.weight.device)
        network.first.load_state_dict(self.first.state_dict())
        network.first_mb.load_state_dict(self.first_mb.state_dict(), strict=network.first_mb.se is None)
        network.last_stage.load_state_dict(self.last_stage.state_dict())
        network.classifier[1].load_state_dict(self.classifier.state_dict())
        active = [(block, row) for block, row in zip(self.stages, architecture.choices, strict=True) if any(row)]
        for stage, (block, row) in zip(network.stages, active, strict=True):
            _inherit(stage, block, row)
        return network.train(self.training)


def _inherit(stage: InvertedBottleneck, block: UnifiedBlock, row: tuple[int | None, ...]) -> None:
    """Copy the slices of `block` that the choices `row` activate into the stand-alone layer `stage`."""
    E = block.spec.expansion
    used = [(index, kernel) for index, kernel in enumerate(row) if kernel is not None]
    blocks = [index for index, _ in used]
    if stage.point_wise is not None:
        stage.point_wise.conv.weight.copy_(block.expand[blocks].flatten(0, 1))
        _inherit_bn(stage.point_wise.bn, block.expand_bn, blocks)
    for conv, (index, kernel) in zip(stage.depthwise.blocks, used, strict=True):
        conv.weight.copy_(block.depthwise[str(kernel)][index])
    _inherit_bn(stage.depthwise.bn, block.depthwise_bn, [block.kernels.index(k) * E + i for i, k in used])
    if stage.se is not None and block.spec.se:
        width = stage.se.squeeze_conv.out_channels
        stage.se.squeeze_conv.weight.copy_(block.squeeze[:width, blocks].flatten(1)[..., None, None])
        stage.se.squeeze_conv.bias.copy_(block.squeeze_bias[:width])
        stage.se.excite_conv.weight.copy_(block.excite[blocks, :, :width].flatten(0, 1)[..., None, None])
        stage.se.excite_conv.bias.copy_(block.excite_bias[blocks].flatten())
    stage.point_wise_1.conv.weight.copy_(block.project[:, blocks].flatten(1)[..., None, None])
    _inherit_bn(stage.point_wise_1.bn, block.project_bn, [E - len(used)])


def _inherit_bn(bn: nn.BatchNorm2d, stacked: StackedBatchNorm, index: list[int]) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(bn, name).copy_(getattr(stacked, name)[index].flatten())


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 1x1 convolution, `weight [out, in]`, that keeps nothing of x for a weight without gradient, as conv2d does."""
    return F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class _Mixture(torch.autograd.Function):
    """`x [B, C, H, W]`, `p [C, kernels]` -> the p-weighted sum of relu6(depthwise convolution) over the kernels.

    Differentiable in x and p. Only x is kept; the branches are computed anew where the gradient needs them, one at a
    time, so that the memory of a generator step is a fraction of that of the plain sum.
    """

    @staticmethod
    def forward(ctx, x: Tensor, p: Tensor, branches: list[tuple[int, Tensor, Tensor]], stride: int) -> Tensor:
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
        of_x, of_p = None, torch.empty_like(p)
        for column, branch in enumerate(ctx.branches):
            y = _branch(x, branch, ctx.stride)
            if ctx.needs_input_grad[0]:
                k, weight, _ = branch
                inner = torch.ops.aten.hardtanh_backward(gradient, y, 0.0, 6.0)
                shared = weight * p[:, column, None, None, None]  # so that no pass multiplies the maps by p
                part = convolution_backward(inner, x, shared, ctx.stride, k // 2, k // 2, (True, False))
                of_x = part if of_x is None else of_x.add_(part)
            of_p[:, column] = y.mul_(gradient).sum(dim=(0, 2, 3))
        return of_x, of_p, None, None


def _branch(x: Tensor, branch: tuple[int, Tensor, Tensor], stride: int) -> Tensor:
    k, weight, bias = branch
    return F.conv2d(x, weight, bias, stride, k // 2, 1, len(weight)).clamp_(0, 6)


class FrozenBlock(nn.Module):
    """A layer for soft paths: each sub-block gives the p-weighted sum of its kernel branches, skip gives zero.

    All weights are buffers with the batch norms folded in; the last norm, chosen by the rounded number of skipped
    sub-blocks, is folded for each number that can occur.
    """

    def __init__(self, block: UnifiedBlock, choice_index: list[int]):
        super().__init__()
        self.spec, self.kernels, self.choice_index = block.spec, block.kernels, choice_index
        E, C = block.spec.expansion, block.spec.in_channels
        if E > 1:
            scale, shift = block.expand_bn.affine()
            self._keep("expand", (block.expand * scale[..., None, None, None]).flatten(0, 1).flatten(1))
            self._keep("expand_bias", shift.flatten())
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
        """`p [E, kernels of this layer]`, entries that count zero already 0; `skipped`: rounded number of skips."""
        E, C = self.spec.expansion, self.spec.in_channels
        if skipped >= E:
            if self.spec.may_vanish:
                return x
            skipped = E - 1
        y = x
        if E > 1:
            y = pointwise_relu6(y, self.expand, self.expand_bias)
        names = [(k, f"depthwise_{k}", f"depthwise_bias_{k}") for k in self.kernels]
        branches = [(k, getattr(self, w).to(y.dtype), getattr(self, b).to(y.dtype)) for k, w, b in names]
        y = _Mixture.apply(y, p.repeat_interleave(C, dim=0).to(y.dtype), branches, self.spec.stride)
        if self.spec.se:
            y = y * self._gate(y.mean(dim=(2, 3)), (E - skipped) * C)
        y = _pointwise(y, self.project[skipped], self.project_bias[skipped])
        return x + y if self.spec.residual else y

    def _gate(self, pooled: Tensor, middle: int) -> Tensor:
        width = squeezed_channels(middle)
        squeezed = F.linear(pooled, self.squeeze[:width].flatten(1), self.squeeze_bias[:width]).relu()
        gate = F.linear(squeezed, self.excite[:, :, :width].flatten(0, 1), self.excite_bias.flatten())
        return F.hardsigmoid(gate)[:, :, None, None]


class FrozenSupernet(nn.Module):
    """`frozen(images [B, 3, H, W], path [L, E, K]) -> logits [B, classes]`, differentiable in the path alone.

    Entries of the path up to `NEGLIGIBLE` count as zero (SGNAS, stage 2).
    """

    def __init__(self, supernet: UnifiedSupernet):
        super().__init__()
        self.space = supernet.space
        self.stem = nn.Sequential(*_folded(supernet.first), *_folded(supernet.first_mb))
        index = self.space.kernels.index
        self.stages = nn.ModuleList(FrozenBlock(block, [index(k) for k in block.kernels]) for block in supernet.stages)
        conv, bn, act = supernet.last_stage
        self.head = nn.Sequential(fuse_conv_bn_eval(conv, bn), act)
        self.classifier = nn.Linear(self.space.head_channels, self.space.classes)
        self.classifier.load_state_dict(supernet.classifier.state_dict())
        self.to(supernet.classifier.weight.device).requires_grad_(False).eval()

    def forward(self, images: Tensor, path: Tensor) -> Tensor:
        kept = path * (path > NEGLIGIBLE)
        skipped = (self.space.expansions - self.space.active(path.detach()).cpu()).round().long().tolist()
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


# -- checkpoints of the published release ----------------------------------------------------------------------------


def from_published(space: UnifiedSpace, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published release's supernet state dict in the layout of `UnifiedSupernet`.

    There a module holds each sub-block and kernel (`stages.i.depthwise.blocks.e.blocks.k`, kernels in the order of
    the config's row, skip last). Its dense skip convolutions are dropped. UserError when a
    key is missing or of a wrong shape.
    """
    ours = {
        key: value
        for key, value in weights.items()
        if not key.startswith("stages.")  # stem, first block, head and classifier have the same names
    }
    try:
        for i, spec in enumerate(space.layers):
            ours.update({f"stages.{i}.{key}": value for key, value in _published_layer(weights, i, spec).items()})
    except (KeyError, RuntimeError) as error:
        raise UserError(f"supernet checkpoint: layer {i} does not fit the config's l_cfgs ({error})") from None
    return ours


def _published_layer(weights: dict[str, Tensor], i: int, spec: LayerSpec) -> dict[str, Tensor]:
    E, C = spec.expansion, spec.in_channels
    stage = f"stages.{i}"
    branches = {
        k: [f"{stage}.depthwise.blocks.{e}.blocks.{spec.kernels.index(k)}" for e in range(E)]
        for k in sorted(spec.kernels)
    }
    layer = {"project": weights[f"{stage}.point_wise_1.conv.weight"].reshape(-1, E, C)}
    if E > 1:
        layer["expand"] = weights[f"{stage}.point_wise.conv.weight"].reshape(E, C, C, 1, 1)
    for k, names in branches.items():
        layer[f"depthwise.{k}"] = torch.stack([weights[f"{name}.conv.weight"] for name in names])
    if spec.se:
        layer["squeeze"] = weights[f"{stage}.se.squeeze_conv.weight"].reshape(-1, E, C)
        layer["squeeze_bias"] = weights[f"{stage}.se.squeeze_conv.bias"]
        layer["excite"] = weights[f"{stage}.se.excite_conv.weight"].reshape(E, C, -1)
        layer["excite_bias"] = weights[f"{stage}.se.excite_conv.bias"].reshape(E, C)
    for part in ("weight", "bias", "running_mean", "running_var"):
        if E > 1:
            layer[f"expand_bn.{part}"] = weights[f"{stage}.point_wise.bn.{part}"].reshape(E, C)
        names = [name for row in branches.values() for name in row]
        layer[f"depthwise_bn.{part}"] = torch.stack([weights[f"{name}.bn.{part}"] for name in names])
        layer[f"project_bn.{part}"] = torch.stack([weights[f"{stage}.sbn.{n}.{part}"] for n in range(E)])
    return layer
