"""The unified spaces of SGNAS as a kind of search space."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.costs.latency import Latencies, Part
from model.costs.lookup_table import LookUpTable
from model.spaces.contracts import CostTable
from model.spaces.paths import PathKind, PathSpec
from model.spaces.unified.latency import UnifiedLatency, parts_of
from model.spaces.unified.network import SubNet
from model.spaces.unified.published import from_published, is_published
from model.spaces.unified.soft_supernet import SoftSupernet
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from model.spaces.unified.supernet import UnifiedSupernet
from utils.config import Config


@dataclass(frozen=True)
class UnifiedSpec(PathSpec):
    """A network of SGNAS."""

    options = ("se", "activation", "dropout", "drop_path")
    supernet_type = UnifiedSupernet

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        source = UnifiedSupernet(self.space)
        KIND.load(source, supernet)
        path = self.space.encode(self.architecture)
        return source.extract(path, exact=False, **options, rng=rng)


class UnifiedKind(PathKind):
    name = "unified"
    space_type, spec_type = UnifiedSpace, UnifiedSpec

    def space(self, config: Config) -> UnifiedSpace:
        config.require("l_cfgs", "low_flops", "high_flops")
        config.check_layers()
        layers, channels = [], config.first_channels
        for index, row in enumerate(config.l_cfgs):
            residual = row.stride == 1 and row.out_channels == channels
            layer = LayerSpec(
                channels,
                row.out_channels,
                row.stride,
                row.expansion,
                row.kernels,
                row.skip,
                may_vanish=row.skip and residual and index not in config.static_layers,
                se=row.se,
            )
            layers.append(layer)
            channels = row.out_channels
        return UnifiedSpace(
            layers=tuple(layers),
            image_size=config.input_size,
            classes=config.classes,
            stem_channels=config.stem_channels,
            stem_stride=config.stem_stride or (1 if config.input_size < 64 else 2),
            first_channels=config.first_channels,
            head_channels=config.head_channels,
            min_expansion=config.min_expansion,
        )

    def table(self, space: UnifiedSpace, config: Config) -> CostTable:
        if config.cost == "flops":
            return LookUpTable(space)
        latencies = Latencies.read(config.latency_table)
        return self.latency_table(latencies, space, self.latency_options(config))

    def latency_options(self, config: Config) -> dict:
        return {"se": config.se, "activation": config.activation}

    def latency_parts(self, space: UnifiedSpace, options: dict) -> dict[str, Part]:
        return parts_of(space, **options)

    def latency_table(self, latencies: Latencies, space: UnifiedSpace, options: dict) -> CostTable:
        return UnifiedLatency(latencies, space, **options)

    def supernet(
        self, space: UnifiedSpace, config: Config, rng: torch.Generator
    ) -> UnifiedSupernet:
        return UnifiedSupernet(space, rng, config.alignment)

    def largest(self, supernet: UnifiedSupernet) -> nn.Module:
        return supernet.extract(supernet.space.extremes()[1], exact=False, dropout=0.0)

    def released_weights(self, space: UnifiedSpace, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return from_published(space, state) if is_published(state) else state

    def soft(self, supernet: UnifiedSupernet) -> SoftSupernet:
        return SoftSupernet(supernet)

    def block_modules(self, network: SubNet) -> list[nn.Module]:
        return [network.first, network.first_mb, *network.stages]

    def extract(self, supernet: UnifiedSupernet, path: Tensor) -> nn.Module:
        return supernet.extract(path, dropout=0.0)


KIND = UnifiedKind()
