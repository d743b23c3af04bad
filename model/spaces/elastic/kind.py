"""The once-for-all spaces of NSGANetV2 as a kind of search space."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.costs.latency import Latencies, Part
from model.spaces.contracts import CostTable, Design, Forward, Genes, NetworkSpec, SpaceKind
from model.spaces.elastic.keys import ElasticKeys
from model.spaces.elastic.latency import ElasticLatency, parts_of
from model.spaces.elastic.net_config import published_files
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ElasticArchitecture, ElasticSpace, ElasticTable
from model.spaces.elastic.supernet import (
    ElasticSupernet,
    from_published,
    sandwich,
    sandwich_choices,
)
from utils import checkpoint
from utils.config import Config
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.json_file import as_type
from utils.loader import resize

NET_SUBNET = 'a net.subnet {"ks": [...], "e": [...], "d": [...], "r": ...}'


@dataclass(frozen=True)
class ElasticSpec(NetworkSpec):
    """A network of NSGANetV2, at its own resolution."""

    space: ElasticSpace
    architecture: ElasticArchitecture
    options = ("dropout", "drop_path")

    @property
    def image_size(self) -> int:
        return self.architecture.r

    @property
    def macs_m(self) -> float:
        genes = np.array([self.space.encode(self.architecture)])
        return float(ElasticTable(self.space)(genes)[0])

    @property
    def blocks(self) -> int:
        return sum(self.architecture.d)

    def network(self, options: dict, rng: torch.Generator | None = None) -> nn.Module:
        return MobileNetV3.of(self.space, self.architecture, **options, rng=rng)

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        source = ElasticSupernet(self.space)
        KIND.load(source, supernet)
        return source.extract(self.architecture, **options)

    def to_json(self) -> dict:
        return self.architecture.to_json()


class ElasticGenome:
    """The genes of `space.py`."""

    def __init__(self, space: ElasticSpace):
        self.space, self.largest_genes = space, space.largest_genes
        self.sample, self.extremes = space.sample, space.extremes
        self.canonical, self.expressed = space.canonical, space.expressed

    def costs(self, genes: Genes) -> tuple[NDArray, NDArray]:
        macs, parameters = self.space.costs(genes)
        return macs / 1e6, parameters / 1e6

    def cost_by(self, table: CostTable, genes: Genes) -> NDArray:
        return table(genes)

    def choice(self, row: Genes) -> Genes:
        return np.asarray(row)

    def spec(self, row: Genes) -> ElasticSpec:
        return ElasticSpec(self.space, self.space.decode(row))

    def to_json(self, row: Genes) -> dict:
        return self.space.decode(row).to_json()

    def from_json(self, record) -> list[int]:
        return self.space.encode(KIND.parse(record))


class ElasticKind(SpaceKind):
    name, paper, keys = "elastic", "nsganetv2", ElasticKeys
    kinds_of_steps = 4  # of different resolutions
    # of the published space at width 1.0
    published_latency = str(Path(__file__).parents[3] / "config_file" / "latency_cpu.yaml")

    def space(self, config: Config) -> ElasticSpace:
        return ElasticSpace(**asdict(self.space_keys(config)), classes=config.classes)

    def space_from_dict(self, record: dict) -> ElasticSpace:
        return as_type(record, ElasticSpace, "space", "an elastic space")

    def table(self, space: ElasticSpace, config: Config) -> ElasticTable:
        return ElasticTable(space)

    def latency_parts(self, space: ElasticSpace, options: dict) -> dict[str, Part]:
        return parts_of(space)

    def latency_table(
        self, latencies: Latencies, space: ElasticSpace, options: dict
    ) -> ElasticLatency:
        return ElasticLatency(latencies, space)

    # -- supernets -------------------------------------------------------------------------------

    def supernet(
        self, space: ElasticSpace, config: Config, rng: torch.Generator
    ) -> ElasticSupernet:
        return ElasticSupernet(space, rng)

    def supernet_of_checkpoint(self, path: str, payload: dict) -> ElasticSupernet:
        """Of a checkpoint of ours, which says its space, or a published one, by its width."""
        state = from_published(checkpoint.weights(payload, path))
        if "space" in payload:
            space = self.space_from_dict(payload["space"])
        else:
            space = ElasticSpace(**shown_by_weights(state, path))
        supernet = ElasticSupernet(space)
        checkpoint.load_into(supernet, state, path)
        return supernet.eval()

    def extract(self, supernet: ElasticSupernet, genes: Genes) -> MobileNetV3:
        return supernet.extract(supernet.space.decode(genes))

    def released_weights(self, space: ElasticSpace, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return from_published(state)

    def image_size(self, supernet: ElasticSupernet) -> int:
        return max(supernet.space.resolutions)

    def choices(self, space: ElasticSpace, count: int, rng: torch.Generator) -> Genes:
        """Both extremes and random sub-networks `[count, G]`."""
        return np.concatenate([space.extremes(), self.sample(space, count, rng)])[:count]

    def sample(self, space: ElasticSpace, count: int, rng: torch.Generator) -> Genes:
        return space.sample(count, np.random.default_rng(rng.initial_seed()))

    def forward(self, supernet: ElasticSupernet, genes: Genes) -> Forward:
        architecture = supernet.space.decode(genes)
        return lambda images: supernet(resize(images, architecture.r), architecture)

    def step_choices(
        self, space: ElasticSpace, count: int, sampling: str, rng: torch.Generator
    ) -> Genes:
        return sandwich_choices(space, count, rng)

    def passes(
        self,
        supernet: ElasticSupernet,
        choices: Genes,
        context: DeviceContext,
        images: Tensor,
        labels: Tensor,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return sandwich(supernet, choices, context, images, labels)

    # -- architectures ---------------------------------------------------------------------------

    def parse(self, record) -> ElasticArchitecture:
        """From a published `net.subnet` record."""
        return as_type(record, ElasticArchitecture, "architecture", NET_SUBNET)

    def architecture(self, space: ElasticSpace, record) -> ElasticArchitecture:
        architecture = self.parse(record)
        space.encode(architecture)
        return architecture

    def spec(self, space: ElasticSpace, architecture: ElasticArchitecture) -> ElasticSpec:
        return ElasticSpec(space, architecture)

    def genome(self, space: ElasticSpace) -> ElasticGenome:
        return ElasticGenome(space)

    def design(self, architecture: ElasticArchitecture) -> Design:
        pairs = tuple(zip(architecture.ks, architecture.e, strict=True))
        ends = zip(accumulate(architecture.d), architecture.d, strict=True)
        stages = tuple(pairs[end - depth : end] for end, depth in ends)
        return Design(stages=stages, resolution=architecture.r)

    def block_modules(self, network: MobileNetV3) -> list[nn.Module]:
        return [network.first_conv, *network.blocks]

    def published_files(self, network: MobileNetV3) -> dict[str, str]:
        return published_files(network)


def shown_by_weights(state: dict[str, Tensor], path: str) -> dict:
    """Width and classes of a published once-for-all state dict; UserError when it is none."""
    stem, head = state.get("first_conv.conv.weight"), state.get("classifier.linear.weight")
    widths = {ElasticSpace(width=width).channels[0]: width for width in (1.0, 1.2)}
    if stem is None or head is None or len(stem) not in widths:
        raise UserError(f"{path}: no once-for-all supernet of width 1.0 or 1.2")
    return {"width": widths[len(stem)], "classes": len(head)}


KIND = ElasticKind()
