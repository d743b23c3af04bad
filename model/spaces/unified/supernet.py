"""The unified supernet: every sub-network of the space in one set of weights.

`UnifiedSupernet` computes one hard path, on the active slices of its stacked weights only, and can
be trained. Soft paths go to `soft_supernet.py`; both give the same logits for the same one-hot path
in evaluation mode. Source: SGNAS, section 3.1 and figure 3.
"""

import torch
from torch import Tensor, nn

from model.layers.blocks import ConvBN, InvertedBottleneck, head_stage, initialise
from model.spaces.paths import PathSupernet, hard_rows
from model.spaces.unified.block import UnifiedBlock
from model.spaces.unified.network import SubNet
from model.spaces.unified.space import UnifiedSpace
from utils.errors import UserError


class UnifiedSupernet(PathSupernet):
    """`supernet(images [B, 3, H, W], path [L, E, K]) -> logits [B, classes]` of a hard path.

    In training or evaluation mode. `alignment` 0 is the published initialisation; see
    `UnifiedBlock.align`.
    """

    network_type = SubNet

    def __init__(
        self, space: UnifiedSpace, rng: torch.Generator | None = None, alignment: float = 0.0
    ):
        super().__init__()
        self.space = space
        self.first = ConvBN(3, space.stem_channels, 3, space.stem_stride, activation="relu6")
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

    def stem(self, images: Tensor) -> Tensor:
        """Features `[B, first_channels, H, W]` that all paths share."""
        return self.first_mb(self.first(images))

    def classify(self, features: Tensor, path: Tensor) -> Tensor:
        for block, choices in zip(self.stages, self._choices(path), strict=True):
            features = block(features, choices)
        return self.classifier(self.last_stage(features).mean(dim=(2, 3)))

    def _choices(self, path: Tensor) -> list[list[tuple[int, int]]]:
        """The sorted pairs (index into the layer's kernels, sub-block) of each layer."""
        names, layers = (*self.space.names, None), []
        for rows, spec in zip(hard_rows(path), self.space.layers, strict=True):
            kernels = sorted(spec.kernels)
            chosen = [names[row.index(1)] for row in rows[: spec.expansion]]
            pairs = [(kernels.index(k), block) for block, k in enumerate(chosen) if k is not None]
            assert pairs or spec.may_vanish, "a path skips all of a layer that may not vanish"
            layers.append(sorted(pairs))
        return layers

    @torch.no_grad()
    def extract(self, path: Tensor, exact: bool = True, **options) -> SubNet:
        """The stand-alone network of a hard path with inherited weights.

        It equals the supernet in evaluation mode, unless `options` (of `SubNet`) give it
        squeeze-excite that the supernet does not have, which then starts at random. A stand-alone
        layer of expansion 1 has no expand convolution, so that it cannot equal the supernet's:
        UserError, or with `exact` false the layer inherits what it has.
        """
        architecture, space = self.space.decode(path), self.space
        for index, (kernels, spec) in enumerate(
            zip(architecture.kernels, space.layers, strict=True)
        ):
            least = spec.least_active(max(2, space.min_expansion))
            if exact and len(kernels) < least and not (spec.may_vanish and not kernels):
                raise UserError(
                    f"extract: layer {index} has {len(kernels)} active sub-blocks; a supernet and "
                    f"its stand-alone network agree only from {least} on"
                )
        network = SubNet(space, architecture, **options).to(self.classifier.weight.device)
        network.first.load_state_dict(self.first.state_dict())
        exactly = network.first_mb.se is None
        network.first_mb.load_state_dict(self.first_mb.state_dict(), strict=exactly)
        network.last_stage.load_state_dict(self.last_stage.state_dict())
        network.classifier[1].load_state_dict(self.classifier.state_dict())
        layers = zip(self.stages, architecture.choices, strict=True)
        active = [(block, row) for block, row in layers if any(row)]
        for stage, (block, row) in zip(network.stages, active, strict=True):
            block.hand_down(stage, row)
        return network.train(self.training)
