"""The stand-alone network of an architecture: an ordinary CNN that knows nothing of search."""

import torch
from torch import Tensor, nn

from model.layers.blocks import ConvBN, InvertedBottleneck, head_stage, initialise, new_classifier
from model.spaces.paths import Architecture
from model.spaces.unified.space import UnifiedSpace


class SubNet(nn.Module):
    """`network(images [B, 3, H, W]) -> logits [B, classes]`.

    Per layer the expansion ratio is the number of active sub-blocks; a layer without any is left
    out. `se` puts squeeze-excite into every block, also into layers whose spec has none;
    `activation` is "relu6" or "hswish"; `drop_path` is the rate of the last searched block, and
    falls linearly to 0 before the first one. State-dict keys are those of the published weights.
    UserError when the architecture is none of the space.
    """

    def __init__(
        self,
        space: UnifiedSpace,
        architecture: Architecture,
        *,
        se: bool = False,
        activation: str = "relu6",
        dropout: float = 0.2,
        drop_path: float = 0.0,
        bn_momentum: float = 0.1,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        space.check(architecture)
        stem, first = space.stem_channels, space.first_channels
        self.first = ConvBN(3, stem, kernel=3, stride=space.stem_stride, activation=activation)
        self.first_mb = InvertedBottleneck(stem, first, kernels=(3,), se=se, activation=activation)
        layers = [
            (spec, kernels)
            for spec, kernels in zip(space.layers, architecture.kernels, strict=True)
            if kernels
        ]
        self.stages = nn.Sequential(
            *(
                InvertedBottleneck(
                    spec.in_channels,
                    spec.out_channels,
                    kernels,
                    spec.stride,
                    spec.residual,
                    se or spec.se,
                    activation,
                    drop_path * (index + 1) / len(layers),
                )
                for index, (spec, kernels) in enumerate(layers)
            )
        )
        self.last_stage = head_stage(space.layers[-1].out_channels, space.head_channels, activation)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(space.head_channels, space.classes)
        )
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = bn_momentum
        initialise(self, rng or torch.Generator().manual_seed(0))

    def reset_classifier(self, classes: int, rng: torch.Generator) -> None:
        """A new classifier at random, N(0, 0.01), for `classes`."""
        self.classifier[1] = new_classifier(self.classifier[1], classes, rng)

    def forward(self, images: Tensor) -> Tensor:
        x = self.last_stage(self.stages(self.first_mb(self.first(images))))
        return self.classifier(x.mean(dim=(2, 3)))
