"""The cells of NAS-Bench-201 as a kind of search space."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from model.spaces.contracts import Design, Genes, SpaceKind
from model.spaces.nasbench201.benchmark_table import CellTable
from model.spaces.nasbench201.keys import CellKeys
from model.spaces.nasbench201.space import CellSpace, from_string, to_string
from model.spaces.nasbench201.supernet import CONVOLUTIONS, CellNetwork, CellSupernet
from model.spaces.paths import Architecture, PathGenome, PathKind, PathSpec
from utils import checkpoint
from utils.config import Config
from utils.errors import UserError


@dataclass(frozen=True)
class CellSpec(PathSpec):
    """A cell, in the network that its costs are of."""

    supernet_type = CellSupernet

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        """UserError when the supernet has another number of cells in a stage than the network."""
        state = checkpoint.weights(checkpoint.load(supernet), supernet)
        cells = max(1, len({key.split(".")[2] for key in state if "stages.0." in key}))
        if cells != self.space.cells:
            raise UserError(
                f"{supernet}: it has {cells} cells in each stage, the network {self.space.cells}"
            )
        return super().inherited(supernet, options, rng)

    @property
    def name(self) -> str:
        """The published string of the cell."""
        return to_string(self.architecture)

    @property
    def blocks(self) -> int:
        """Convolutions of a cell."""
        return sum(choice in CONVOLUTIONS for (choice,) in self.architecture.choices)

    def to_json(self) -> str:
        return self.name


class CellGenome(PathGenome):
    """A gene for each edge; cells that compute the same by different edges count as different."""

    def sample(self, count: int, rng: np.random.Generator) -> Genes:
        return rng.integers(0, self.largest_genes + 1, (count, len(self.largest_genes)))


class CellKind(PathKind):
    name, keys = "nasbench201", CellKeys
    space_type, spec_type, genome_type = CellSpace, CellSpec, CellGenome
    # whose size is the config's
    supernet_of_checkpoint = SpaceKind.supernet_of_checkpoint

    def supernet(self, space: CellSpace, config: Config, rng: torch.Generator) -> CellSupernet:
        keys = self.space_keys(config)
        size = (keys.supernet_cells, config.input_size, keys.supernet_channels)
        return CellSupernet(space, rng, *size)

    def image_size(self, supernet: CellSupernet) -> int:
        return supernet.image_size

    def parse(self, record) -> Architecture:
        """From the published string, or in a form of older files: {"cell": string}, or rows."""
        record = record.get("cell", record) if isinstance(record, dict) else record
        return from_string(record) if isinstance(record, str) else super().parse(record)

    def block_modules(self, network: CellNetwork) -> list[nn.Module]:
        return network.blocks()

    def design(self, architecture: Architecture) -> Design:
        return Design(cell=to_string(architecture))

    def benchmark(self, file: str, space: CellSpace) -> CellTable:
        if space != CellSpace():
            raise UserError(
                f"--table {file}: it is of the published cells and their network; "
                "the config is of others"
            )
        return CellTable.load(file)


KIND = CellKind()
