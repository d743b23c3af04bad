"""The unified block: all sub-blocks and kernels of a layer in one set of stacked weights.

Axes: E sub-blocks, C channels of a sub-block. Source: SGNAS, section 3.1 and figure 3.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers.blocks import InvertedBottleneck, squeezed_channels
from model.layers.depthwise import depthwise_conv
from model.layers.pointwise import pointwise_conv, relu6_products
from model.spaces.unified.space import LayerSpec
from model.spaces.unified.switchable_norm import Pixels, SwitchableBatchNorm


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
        """Kernel by kernel, as the projection is a sum over sub-blocks: nothing is concatenated."""
        if not choices and self.spec.may_vanish:
            return x
        kernels, blocks = zip(*choices, strict=True)
        used = sorted(set(kernels))
        counts = [kernels.count(kernel) for kernel in used]  # sub-blocks of each of them
        index = torch.tensor(blocks, device=x.device)
        middles = self._expanded(x, index, counts) if self.spec.expansion > 1 else [x]
        weights = [
            self.depthwise[str(self.kernels[kernel])][part].flatten(0, 1)
            for kernel, part in zip(used, index.split(counts), strict=True)
        ]
        middles = [
            depthwise_conv(middle, weight, self.spec.stride)
            for middle, weight in zip(middles, weights, strict=True)
        ]
        norms = self.spec.expansion * torch.tensor(kernels, device=x.device) + index
        middles = self.depthwise_bn(middles, norms, relu6=True)
        if self.spec.se:
            middles = self._gated(middles, index)
        y = pointwise_conv(middles, self.project.index_select(1, index).flatten(1))
        skipped = torch.tensor([self.spec.expansion - len(choices)], device=x.device)
        (y,) = self.project_bn([y], skipped)
        return x + y if self.spec.residual else y

    def _expanded(self, x: Tensor, blocks: Tensor, counts: list[int]) -> list[Tensor]:
        """The inputs of the depthwise convolutions: for each kernel the maps of its `blocks`."""
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
        """Squeeze-excite gate `[B, n C, 1, 1]`, as wide inside as in the stand-alone layer."""
        width = squeezed_channels(pooled.shape[1])
        squeeze, excite = self.squeeze[:width, blocks], self.excite[blocks, :, :width]
        squeezed = F.linear(pooled, squeeze.flatten(1), self.squeeze_bias[:width]).relu()
        gate = F.linear(squeezed, excite.flatten(0, 1), self.excite_bias[blocks].flatten())
        return F.hardsigmoid(gate)[:, :, None, None]

    # -- other forms of the same layer -----------------------------------------------------------

    def folded(self) -> dict[str, Tensor]:
        """The weights of the soft form of this layer, with the batch norms folded in.

        The last norm depends on the number of skipped sub-blocks: `project [E, out, E C]` and
        `project_bias [E, out]` hold it for each number that can occur.
        """
        E, C = self.spec.expansion, self.spec.in_channels
        weights = {}
        if E > 1:
            every = torch.arange(E, device=self.expand.device)
            flat = self.expand.flatten(0, 1).flatten(1)
            weights["expand"] = self.expand_bn.folded_into(flat, every)
        scale, shift = (part.view(-1, E, C) for part in self.depthwise_bn.affine())
        for index, k in enumerate(self.kernels):
            weight = self.depthwise[str(k)] * scale[index, :, :, None, None, None]
            weights[f"depthwise_{k}"] = weight.flatten(0, 1)
            weights[f"depthwise_bias_{k}"] = shift[index].flatten()
        if self.spec.se:
            names = ("squeeze", "squeeze_bias", "excite", "excite_bias")
            weights |= {name: getattr(self, name) for name in names}
        scale, shift = self.project_bn.affine()
        weights["project"] = self.project.flatten(1)[None] * scale[:, :, None]
        weights["project_bias"] = shift
        return {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def hand_down(self, stage: InvertedBottleneck, row: tuple[int | None, ...]) -> None:
        """Copy the slices that the choices `row` activate into the stand-alone layer `stage`."""
        E = self.spec.expansion
        used = [(index, kernel) for index, kernel in enumerate(row) if kernel is not None]
        blocks = [index for index, _ in used]
        if stage.point_wise is not None:
            stage.point_wise.conv.weight.copy_(self.expand[blocks].flatten(0, 1))
            self.expand_bn.hand_down(stage.point_wise.bn, blocks)
        for conv, (index, kernel) in zip(stage.depthwise.blocks, used, strict=True):
            conv.weight.copy_(self.depthwise[str(kernel)][index])
        norms = [self.kernels.index(kernel) * E + index for index, kernel in used]
        self.depthwise_bn.hand_down(stage.depthwise.bn, norms)
        if stage.se is not None and self.spec.se:
            squeeze, excite = stage.se.squeeze_conv, stage.se.excite_conv
            width = squeeze.out_channels
            squeeze.weight.copy_(self.squeeze[:width, blocks].flatten(1)[..., None, None])
            squeeze.bias.copy_(self.squeeze_bias[:width])
            excite.weight.copy_(self.excite[blocks, :, :width].flatten(0, 1)[..., None, None])
            excite.bias.copy_(self.excite_bias[blocks].flatten())
        stage.point_wise_1.conv.weight.copy_(self.project[:, blocks].flatten(1)[..., None, None])
        self.project_bn.hand_down(stage.point_wise_1.bn, [E - len(used)])


def _align(weight: Tensor, blocks: int, alignment: float, rng: torch.Generator) -> None:
    """Give the sub-blocks, along the axis `blocks`, a part in common; their variance stays."""
    drawn = torch.randn(weight.select(blocks, 0).shape, generator=rng).unsqueeze(blocks)
    shared = weight.std() * drawn
    weight.copy_(alignment**0.5 * shared + (1 - alignment) ** 0.5 * weight)
