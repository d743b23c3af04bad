"""The unified supernet: every sub-network of the space in one set of weights.

`UnifiedSupernet` computes one hard path, on the active slices of its stacked weights only, and can
be trained. For soft paths see `model/spaces/unified/soft_supernet.py`; both give the same logits for the same one-hot
path in evaluation mode.

Axes: B batch, L layers, E sub-blocks, K choices, C channels of a sub-block. Source: SGNAS, section
3.1 and figure 3.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers.blocks import (
    ConvBN,
    InvertedBottleneck,
    head_stage,
    initialise,
    squeezed_channels,
)
from model.layers.depthwise import depthwise_conv
from model.layers.pointwise import pointwise_conv, relu6_products
from model.spaces.unified.network import SubNet
from model.spaces.unified.soft_supernet import SoftSupernet
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from model.spaces.unified.switchable_norm import Pixels, SwitchableBatchNorm
from utils.errors import UserError


class UnifiedBlock(nn.Module):
    """One layer of the supernet. Weights are stacked by sub-block: `[E, C, ...]`.

    `choices` is the layer's discrete choice as pairs (index into `kernels`, sub-block), sorted, so
    that each kernel size is one depthwise convolution over neighbouring channels.
    """

    def __init__(self, spec: LayerSpec):
        super().__init__()
        E, C, out = spec.expansion, spec.in_channels, spec.out_channels
        self.spec = spec
        self.kernels = tuple(sorted(spec.kernels))
        if E > 1:
            self.expand = nn.Parameter(torch.empty(E, C, C, 1, 1))
            self.expand_bn = SwitchableBatchNorm(E, C)
        self.depthwise = nn.ParameterDict(
            {str(k): nn.Parameter(torch.empty(E, C, 1, k, k)) for k in self.kernels}
        )
        # kernel by kernel, sub-blocks within
        self.depthwise_bn = SwitchableBatchNorm(len(self.kernels) * E, C)
        if spec.se:
            self.squeeze = nn.Parameter(torch.empty(squeezed_channels(E * C), E, C))
            self.squeeze_bias = nn.Parameter(torch.zeros(squeezed_channels(E * C)))
            self.excite = nn.Parameter(torch.empty(E, C, squeezed_channels(E * C)))
            self.excite_bias = nn.Parameter(torch.zeros(E, C))
        self.project = nn.Parameter(torch.empty(out, E, C))
        self.project_bn = SwitchableBatchNorm(E, out)  # by the number of skipped sub-blocks

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

        Every larger kernel begins as the smallest one with zeros around it, and all sub-blocks
        share the part `alignment` (0..1) of their weights' variance. Without it, each random choice
        of sub-blocks and kernels begins as another random function, and what follows a layer cannot
        learn from any of them.
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
        """Kernel by kernel: the projection is a sum over the sub-blocks, so that nothing is split
        or concatenated.
        """
        if not choices and self.spec.may_vanish:
            return x
        kernels, blocks = zip(*choices, strict=True)
        used = sorted(set(kernels))
        counts = [kernels.count(kernel) for kernel in used]  # sub-blocks of each of them
        index = torch.tensor(blocks, device=x.device)
        middles = self._expanded(x, index, counts) if self.spec.expansion > 1 else [x]
        middles = [
            depthwise_conv(
                middle,
                self.depthwise[str(self.kernels[kernel])][part].flatten(0, 1),
                self.spec.stride,
            )
            for kernel, part, middle in zip(used, index.split(counts), middles, strict=True)
        ]
        norms = self.spec.expansion * torch.tensor(kernels, device=x.device) + index
        middles = self.depthwise_bn(middles, norms, relu6=True)
        if self.spec.se:
            middles = self._gated(middles, index)
        y = pointwise_conv(middles, self.project.index_select(1, index).flatten(1))
        (y,) = self.project_bn(
            [y], torch.tensor([self.spec.expansion - len(choices)], device=x.device)
        )
        return x + y if self.spec.residual else y

    def _expanded(self, x: Tensor, blocks: Tensor, counts: list[int]) -> list[Tensor]:
        """The inputs of the depthwise convolutions: for each kernel the maps of so many of `blocks`
        as it has.
        """
        pixels = Pixels.of(x, centred=self.training)
        weight = self.expand.index_select(0, blocks).view(-1, x.shape[1])
        weight = self.expand_bn.folded_into(weight, blocks, pixels)
        parts = relu6_products(pixels.rows, weight, [count * x.shape[1] for count in counts])
        return [pixels.maps(part) for part in parts]

    def _gated(self, middles: list[Tensor], blocks: Tensor) -> list[Tensor]:
        """Squeeze-excite over all of `middles` together."""
        pooled = torch.cat([middle.mean(dim=(2, 3)) for middle in middles], dim=1)
        parts = self._gate(pooled, blocks).split([middle.shape[1] for middle in middles], dim=1)
        return [middle * gate for middle, gate in zip(middles, parts, strict=True)]

    def _gate(self, pooled: Tensor, blocks: Tensor) -> Tensor:
        """Squeeze-excite gate `[B, n C, 1, 1]`: the width inside is that of the stand-alone layer."""
        width = squeezed_channels(pooled.shape[1])
        squeezed = F.linear(
            pooled, self.squeeze[:width, blocks].flatten(1), self.squeeze_bias[:width]
        ).relu()
        gate = F.linear(
            squeezed,
            self.excite[blocks, :, :width].flatten(0, 1),
            self.excite_bias[blocks].flatten(),
        )
        return F.hardsigmoid(gate)[:, :, None, None]


def _align(weight: Tensor, blocks: int, alignment: float, rng: torch.Generator) -> None:
    """Give the sub-blocks, along the axis `blocks`, a part in common; the variance stays what it
    is.
    """
    shared = weight.std() * torch.randn(weight.select(blocks, 0).shape, generator=rng).unsqueeze(
        blocks
    )
    weight.copy_(alignment**0.5 * shared + (1 - alignment) ** 0.5 * weight)


class UnifiedSupernet(nn.Module):
    """`supernet(images [B, 3, H, W], path [L, E, K]) -> logits [B, classes]`.

    A one-hot path that needs no gradient runs on the active slices only, in training or evaluation
    mode. Any other path is soft: it needs evaluation mode and gets gradients for the path alone
    (see `SoftSupernet`; call `frozen()` once to run many of them).

    `alignment` 0 is the published initialisation; see `UnifiedBlock.align`.
    """

    def __init__(
        self, space: UnifiedSpace, rng: torch.Generator | None = None, alignment: float = 0.0
    ):
        super().__init__()
        self.space = space
        self.first = ConvBN(
            3, space.stem_channels, kernel=3, stride=space.stem_stride, activation="relu6"
        )
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
        """The sorted pairs (index into the layer's kernels, sub-block) of each layer of a one-hot
        path.
        """
        rows = []
        for row, spec in zip(self.space.decode(path).choices, self.space.layers, strict=True):
            kernels = sorted(spec.kernels)
            pairs = sorted(
                (kernels.index(kernel), block)
                for block, kernel in enumerate(row)
                if kernel is not None
            )
            assert pairs or spec.may_vanish, "a path skips all of a layer that may not vanish"
            rows.append(pairs)
        return rows

    def frozen(self) -> SoftSupernet:
        """This supernet as it is now, for soft paths; it must be in evaluation mode."""
        assert not self.training, "soft paths run in evaluation mode: call eval() first"
        return SoftSupernet(self)

    @torch.no_grad()
    def extract(self, path: Tensor, exact: bool = True, **options) -> SubNet:
        """The stand-alone network of a one-hot path with inherited weights; `options` go to
        `SubNet`.

        It equals the supernet in evaluation mode, unless the options give it squeeze-excite that
        the supernet does not have, which then begins at random. A stand-alone layer of expansion 1
        has no expand convolution, so that it cannot equal the supernet's: UserError, or with
        `exact` false the layer inherits what it has.
        """
        architecture = self.space.decode(path)
        for index, (kernels, spec) in enumerate(
            zip(architecture.kernels, self.space.layers, strict=True)
        ):
            least = spec.least_active(max(2, self.space.min_expansion))
            if exact and len(kernels) < least and not (spec.may_vanish and not kernels):
                raise UserError(
                    f"extract: layer {index} has {len(kernels)} active sub-blocks; a supernet and its stand-alone "
                    f"network agree only from {least} on"
                )
        network = SubNet(self.space, architecture, **options).to(self.classifier.weight.device)
        network.first.load_state_dict(self.first.state_dict())
        network.first_mb.load_state_dict(
            self.first_mb.state_dict(), strict=network.first_mb.se is None
        )
        network.last_stage.load_state_dict(self.last_stage.state_dict())
        network.classifier[1].load_state_dict(self.classifier.state_dict())
        active = [
            (block, row)
            for block, row in zip(self.stages, architecture.choices, strict=True)
            if any(row)
        ]
        for stage, (block, row) in zip(network.stages, active, strict=True):
            _inherit(stage, block, row)
        return network.train(self.training)


def _inherit(stage: InvertedBottleneck, block: UnifiedBlock, row: tuple[int | None, ...]) -> None:
    """Copy the slices of `block` that the choices `row` activate into the stand-alone layer
    `stage`.
    """
    E = block.spec.expansion
    used = [(index, kernel) for index, kernel in enumerate(row) if kernel is not None]
    blocks = [index for index, _ in used]
    if stage.point_wise is not None:
        stage.point_wise.conv.weight.copy_(block.expand[blocks].flatten(0, 1))
        _inherit_bn(stage.point_wise.bn, block.expand_bn, blocks)
    for conv, (index, kernel) in zip(stage.depthwise.blocks, used, strict=True):
        conv.weight.copy_(block.depthwise[str(kernel)][index])
    _inherit_bn(
        stage.depthwise.bn, block.depthwise_bn, [block.kernels.index(k) * E + i for i, k in used]
    )
    if stage.se is not None and block.spec.se:
        width = stage.se.squeeze_conv.out_channels
        stage.se.squeeze_conv.weight.copy_(
            block.squeeze[:width, blocks].flatten(1)[..., None, None]
        )
        stage.se.squeeze_conv.bias.copy_(block.squeeze_bias[:width])
        stage.se.excite_conv.weight.copy_(
            block.excite[blocks, :, :width].flatten(0, 1)[..., None, None]
        )
        stage.se.excite_conv.bias.copy_(block.excite_bias[blocks].flatten())
    stage.point_wise_1.conv.weight.copy_(block.project[:, blocks].flatten(1)[..., None, None])
    _inherit_bn(stage.point_wise_1.bn, block.project_bn, [E - len(used)])


def _inherit_bn(bn: nn.BatchNorm2d, stacked: SwitchableBatchNorm, index: list[int]) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(bn, name).copy_(getattr(stacked, name)[index].flatten())


# -- checkpoints of the published release ----------------------------------------------------------


def from_published(space: UnifiedSpace, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published release's supernet state dict in the layout of `UnifiedSupernet`.

    There a module holds each sub-block and kernel (`stages.i.depthwise.blocks.e.blocks.k`, kernels
    in the order of the config's row, skip last). Its dense skip convolutions are dropped. UserError
    when a key is missing or of a wrong shape.
    """
    ours = {
        key: value
        for key, value in weights.items()
        # stem, first block, head and classifier have the same names
        if not key.startswith("stages.")
    }
    try:
        for i, spec in enumerate(space.layers):
            ours.update(
                {
                    f"stages.{i}.{key}": value
                    for key, value in _published_layer(weights, i, spec).items()
                }
            )
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"supernet checkpoint: layer {i} does not fit the config's l_cfgs ({error})"
        ) from None
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
        layer[f"depthwise_bn.{part}"] = torch.stack(
            [weights[f"{name}.bn.{part}"] for name in names]
        )
        layer[f"project_bn.{part}"] = torch.stack(
            [weights[f"{stage}.sbn.{n}.{part}"] for n in range(E)]
        )
    return layer
