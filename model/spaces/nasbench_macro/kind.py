"""Spaces of blocks, such as that of NAS-Bench-Macro, as a kind of search space."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from model.spaces.contracts import Design, Genes, SpaceKind
from model.spaces.nasbench_macro.benchmark_table import BlockTable
from model.spaces.nasbench_macro.keys import BlockKeys
from model.spaces.nasbench_macro.space import BlockSpace, from_digits
from model.spaces.nasbench_macro.supernet import BlockNetwork, BlockSupernet
from model.spaces.paths import Architecture, PathGenome, PathKind, PathSpec
from utils import checkpoint
from utils.config import Config
from utils.errors import UserError


@dataclass(frozen=True)
class BlockSpec(PathSpec):
    """An architecture of blocks, in the network that its costs are of."""

    supernet_type = BlockSupernet

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        """UserError when the supernet is narrower or wider than the network."""
        state = checkpoint.weights(checkpoint.load(supernet), supernet)
        weight = state.get("classifier.weight")
        channels = weight.shape[1] if weight is not None and weight.dim() == 2 else None
        if channels not in (None, self.space.head_channels):
            raise UserError(
                f"{supernet}: its head has {channels} channels, the network's "
                f"{self.space.head_channels}"
            )
        return super().inherited(supernet, options, rng)

    @property
    def name(self) -> str:
        """The digits of the canonical form."""
        return self.space.digits(self.space.encode(self.architecture)[None])[0]


class BlockGenome(PathGenome):
    """A gene for each layer; identities stand last in each stage."""

    def canonical(self, genes: Genes) -> Genes:
        return self.space.canonical(torch.from_numpy(np.asarray(genes))).numpy()

    def choice(self, row: Genes) -> torch.Tensor:
        """In canonical form, for which weights are trained."""
        return super().choice(self.canonical(np.asarray(row)[None])[0])


class BlockKind(PathKind):
    name, keys = "nasbench_macro", BlockKeys
    space_type, spec_type, genome_type = BlockSpace, BlockSpec, BlockGenome
    # whose width and images are the config's
    supernet_of_checkpoint = SpaceKind.supernet_of_checkpoint

    def supernet(self, space: BlockSpace, config: Config, rng: torch.Generator) -> BlockSupernet:
        keys = self.space_keys(config)
        size = (keys.supernet_width, config.input_size, keys.supernet_affine)
        return BlockSupernet(space, rng, *size)

    def image_size(self, supernet: BlockSupernet) -> int:
        return supernet.image_size

    def architecture(self, space: BlockSpace, record) -> Architecture:
        """From digits, or from rows of the names of blocks."""
        if isinstance(record, str):
            return from_digits(space, record)
        return super().architecture(space, record)

    def block_modules(self, network: BlockNetwork) -> list[nn.Module]:
        return [network.first, *network.layers]

    def design(self, architecture: Architecture) -> Design:
        return Design(choices=architecture.choices)

    def benchmark(self, file: str, space: BlockSpace) -> BlockTable:
        if space != BlockSpace():
            raise UserError(
                f"--table {file}: it is of the networks of NAS-Bench-Macro; the config is of others"
            )
        return BlockTable.load(file)


KIND = BlockKind()
