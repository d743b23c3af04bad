"""A network to be: an architecture in its space, of either kind, as training and validation need
it.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from model.costs.lookup_table import LookUpTable
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ARCHITECTURE_FORMAT as ELASTIC_FORMAT
from model.spaces.elastic.space import (
    ElasticArchitecture,
    ElasticSpace,
    load_elastic_architecture,
    save_elastic_architecture,
)
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.nasbench201.space import CellSpace
from model.spaces.nasbench201.supernet import CellNetwork, CellSupernet
from model.spaces.registry import load_supernet
from model.spaces.unified.network import SubNet, count_macs, count_parameters
from model.spaces.unified.space import (
    Architecture,
    UnifiedSpace,
    load_architecture,
    save_architecture,
    space_from_dict,
)
from model.spaces.unified.supernet import UnifiedSupernet
from utils import checkpoint
from utils.errors import UserError
from utils.image_sets import USUAL_SIZE


class NetworkSpec(Protocol):
    """What builds, costs and describes a network; `options` are those that `names` names."""

    names: tuple[str, ...]

    @property
    def image_size(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def macs_m(self) -> float:
        """Multiply-adds in M, by the convention of its space."""

    def with_classes(self, classes: int) -> "NetworkSpec":
        """With another number of them."""

    def network(self, options: dict, rng: torch.Generator | None = None) -> nn.Module:
        """With weights of its own."""

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        """With the weights of a supernet checkpoint."""

    def describe(self) -> dict:
        """What a checkpoint says of it; `described` reads it."""

    def save(self, path: Path, costs: dict, provenance: dict) -> None:
        """Write `architecture.json`."""


@dataclass(frozen=True)
class _OfChoices:
    """What the spaces of paths have in common: a choice for each sub-block or edge."""

    space: UnifiedSpace | CellSpace
    architecture: Architecture
    kind: ClassVar[str]

    @property
    def image_size(self) -> int:
        return self.space.image_size

    @property
    def classes(self) -> int:
        return self.space.classes

    @property
    def macs_m(self) -> float:
        return float(LookUpTable(self.space)(self.space.encode(self.architecture)))

    def with_classes(self, classes: int) -> "NetworkSpec":
        return replace(self, space=replace(self.space, classes=classes))

    def describe(self) -> dict:
        choices = [list(row) for row in self.architecture.choices]
        return {"kind": self.kind, "space": self.space.to_dict(), "architecture": choices}

    def save(self, path: Path, costs: dict, provenance: dict) -> None:
        save_architecture(path, self.space, self.architecture, costs, provenance)


@dataclass(frozen=True)
class UnifiedSpec(_OfChoices):
    """An architecture of SGNAS."""

    kind = "subnet"
    names = ("se", "activation", "dropout", "drop_path")

    def network(self, options: dict, rng: torch.Generator | None = None) -> nn.Module:
        return SubNet(self.space, self.architecture, **options, rng=rng)

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        source = UnifiedSupernet(self.space)
        load_supernet(source, supernet)
        return source.extract(self.space.encode(self.architecture), exact=False, **options, rng=rng)


@dataclass(frozen=True)
class CellSpec(_OfChoices):
    """A cell of NAS-Bench-201, in the network that its costs are of."""

    kind = "cell-network"
    names = ()

    def network(self, options: dict, rng: torch.Generator | None = None) -> nn.Module:
        return CellNetwork(self.space, self.architecture, rng=rng)

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        """UserError when the supernet has another number of cells in each stage than the network."""
        state = checkpoint.weights(checkpoint.load(supernet), supernet)
        cells = max(1, len({key.split(".")[2] for key in state if "stages.0." in key}))
        if cells != self.space.cells:
            raise UserError(
                f"{supernet}: it has {cells} cells in each stage, the network {self.space.cells}"
            )
        source = CellSupernet(self.space, cells=cells)
        checkpoint.load_into(source, state, supernet)
        return source.extract(self.space.encode(self.architecture))


@dataclass(frozen=True)
class ElasticSpec:
    """An architecture of NSGANetV2, at its own resolution."""

    space: ElasticSpace
    architecture: ElasticArchitecture
    kind = "elastic-subnet"
    names = ("dropout", "drop_path")

    @property
    def image_size(self) -> int:
        return self.architecture.r

    @property
    def classes(self) -> int:
        return self.space.classes

    @property
    def macs_m(self) -> float:
        return float(self.space.costs(np.array([self.space.encode(self.architecture)]))[0][0]) / 1e6

    def with_classes(self, classes: int) -> "ElasticSpec":
        return replace(self, space=replace(self.space, classes=classes))

    def network(self, options: dict, rng: torch.Generator | None = None) -> nn.Module:
        return MobileNetV3.of(self.space, self.architecture, **options, rng=rng)

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        source = ElasticSupernet(self.space)
        load_supernet(source, supernet)
        return source.extract(self.architecture, **options)

    def describe(self) -> dict:
        architecture = self.architecture.to_json()
        return {"kind": self.kind, "space": self.space.to_dict(), "architecture": architecture}

    def save(self, path: Path, costs: dict, provenance: dict) -> None:
        save_elastic_architecture(path, self.space, self.architecture, costs, provenance)


@dataclass(frozen=True)
class NetConfigSpec:
    """A network that only its published `net.config` describes, at the resolution it is used with."""

    config: dict
    image_size: int
    kind = "mobilenetv3"
    names = ("dropout", "drop_path")

    @classmethod
    def load(cls, file: str | Path, image_size: int | None = None) -> "NetConfigSpec":
        """From a `net.config` file, which may say its `img_size`; else 224 is usual. UserError when
        it is none.
        """
        try:
            config = json.loads(Path(file).read_text())
            MobileNetV3.from_config(config)
            return cls(config, image_size or int(config.get("img_size", USUAL_SIZE)))
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise UserError(f"{file}: no network description ({error})") from None

    @property
    def classes(self) -> int:
        return self.config["classifier"]["out_features"]

    @property
    def macs_m(self) -> float:
        """Of the convolutions."""
        return count_macs(self.network({}), self.image_size)

    def with_classes(self, classes: int) -> "NetConfigSpec":
        return replace(
            self,
            config={
                **self.config,
                "classifier": {**self.config["classifier"], "out_features": classes},
            },
        )

    def network(self, options: dict, rng: torch.Generator | None = None) -> nn.Module:
        return MobileNetV3.from_config(self.config, **options, rng=rng)

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        """With the weights of its own in a file; a classifier for another number of classes stays
        at random.
        """
        network, state = (
            self.network(options, rng),
            checkpoint.weights(checkpoint.load(supernet), supernet),
        )
        own = network.state_dict()
        if any(key in state and state[key].shape != own[key].shape for key in CLASSIFIER):
            state = {**state, **{key: own[key] for key in CLASSIFIER}}
        checkpoint.load_into(network, state, supernet)
        return network

    def describe(self) -> dict:
        return {"kind": self.kind, "config": self.config, "image_size": self.image_size}

    def save(self, path: Path, costs: dict, provenance: dict) -> None:
        record = {
            "format": PLAIN_FORMAT,
            **self.describe(),
            "costs": costs,
            "provenance": provenance,
        }
        checkpoint.write_text(path, json.dumps(record, indent=1) + "\n")


CLASSIFIER = ("classifier.linear.weight", "classifier.linear.bias")
PLAIN_FORMAT = "network-config/1"
KINDS = (
    UnifiedSpec.kind,
    CellSpec.kind,
    ElasticSpec.kind,
    NetConfigSpec.kind,
)  # of checkpoints that say their network


def costs_of(spec: NetworkSpec, network: nn.Module, image_size: int) -> dict[str, float]:
    """Costs in M: by the table of its space, counted on `image_size` pixels, and parameters."""
    return {
        "macs_m": spec.macs_m,
        "macs_m_counted": count_macs(network, image_size),
        "params_m": count_parameters(network),
    }


def described(payload: dict) -> NetworkSpec:
    """The blueprint that a checkpoint describes; errors of a broken description are the caller's to
    name.
    """
    if payload["kind"] == NetConfigSpec.kind:
        return NetConfigSpec(payload["config"], int(payload["image_size"]))
    if payload["kind"] == ElasticSpec.kind:
        space = ElasticSpace.from_dict(payload["space"])
        return ElasticSpec(space, space.architecture(payload["architecture"]))
    space, architecture = (
        space_from_dict(payload["space"]),
        Architecture.of(payload["architecture"]),
    )
    space.check(architecture)
    return spec_of(space, architecture)


def spec_of(space: UnifiedSpace | CellSpace, architecture: Architecture) -> NetworkSpec:
    """That of an architecture of choices in its space."""
    return (CellSpec if isinstance(space, CellSpace) else UnifiedSpec)(space, architecture)


def load_spec(path: Path) -> tuple[NetworkSpec, dict]:
    """What `architecture.json` holds, of either kind, and the whole record; UserError if it is
    none.
    """
    try:
        kind = json.loads(Path(path).read_text())["format"]
    except (OSError, ValueError, LookupError, TypeError):
        kind = None  # the reader below says what is wrong
    if kind == PLAIN_FORMAT:
        record = json.loads(Path(path).read_text())
        try:
            MobileNetV3.from_config(record["config"])
            return described({"kind": NetConfigSpec.kind, **record}), record
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path}: no description of a network ({error!r})") from None
    read, spec = (load_architecture, spec_of)
    if kind == ELASTIC_FORMAT:
        read, spec = (load_elastic_architecture, ElasticSpec)
    space, architecture, record = read(path)
    return spec(space, architecture), record
