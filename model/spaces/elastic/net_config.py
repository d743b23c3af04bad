"""`net.config`, the published description of a MobileNetV3, and networks that only it describes.

Both published spellings are read, the older one is written. Source: the published code of Lu et
al., "NSGANetV2", ECCV 2020.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import nn

from model.costs.counting import count_macs
from model.spaces.contracts import Design, NetworkSpec, SpaceKind
from model.spaces.elastic.network import ACTIVATIONS, MobileNetV3
from model.spaces.elastic.space import Layer
from utils import checkpoint
from utils.config import Config
from utils.errors import UserError
from utils.image_sets import USUAL_SIZE
from utils.json_file import as_type, check_json, read_json
from utils.ranges import (
    MOST_ENTRIES,
    Channels,
    Classes,
    KernelSize,
    Pixels,
    Ranged,
    Share,
    Stride,
    check_parameters,
)

CLASSIFIER = ("classifier.linear.weight", "classifier.linear.bias")


# -- what is read of a description ---------------------------------------------------------------


@dataclass(frozen=True)
class _Conv(Ranged):
    out_channels: Channels
    stride: Stride = 1


@dataclass(frozen=True)
class _Bottleneck(Ranged):
    in_channels: Channels
    out_channels: Channels
    kernel_size: KernelSize
    stride: Stride
    expand_ratio: Annotated[int | float, "above 0 and at most 64"]
    act_func: str | None
    use_se: bool
    mid_channels: Annotated[int, "at least 1 and at most 131,072"] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {self.kernel_size} must be odd")
        if self.act_func not in ACTIVATIONS:
            names = ", ".join(filter(None, ACTIVATIONS))
            raise ValueError(f"act_func {self.act_func!r} is unknown; allowed are {names}")


@dataclass(frozen=True)
class _Block:
    """In the older or in the newer spelling."""

    mobile_inverted_conv: _Bottleneck | None = None
    conv: _Bottleneck | None = None
    shortcut: dict | None = None

    def layer(self) -> Layer:
        part = self.mobile_inverted_conv or self.conv
        if part is None:
            raise ValueError("a block has neither mobile_inverted_conv nor conv")
        widths = (part.in_channels, part.out_channels)
        layer = Layer(
            *widths, part.kernel_size, part.stride, part.expand_ratio, part.act_func, part.use_se
        )
        if bool(self.shortcut) != layer.residual:
            raise ValueError("a block has a shortcut where its shapes have no residual, or none")
        return layer if layer.expansion == 1 else replace(layer, fixed_middle=part.mid_channels)


@dataclass(frozen=True)
class _Norm(Ranged):
    momentum: Annotated[float, "above 0 and at most 1"]
    eps: Annotated[float, "above 0 and at most 1"]


@dataclass(frozen=True)
class _Classifier(Ranged):
    out_features: Classes
    dropout_rate: Share = 0.0


@dataclass(frozen=True)
class _NetConfig:
    bn: _Norm
    first_conv: _Conv
    blocks: list[_Block]
    final_expand_layer: _Conv
    feature_mix_layer: _Conv
    classifier: _Classifier

    def __post_init__(self):
        if not self.blocks:
            raise ValueError("it has no blocks")
        if len(self.blocks) > MOST_ENTRIES:
            raise ValueError(f"it has {len(self.blocks)} blocks, more than {MOST_ENTRIES}")
        check_parameters(self.parameters())

    def parameters(self) -> int:
        """Weights of the convolutions and the classifier; the others are few."""
        layers, last = self.layers(), self.feature_mix_layer.out_channels
        widths = (layers[-1].out_channels, self.final_expand_layer.out_channels, last)
        head = widths[0] * widths[1] + last * (widths[1] + self.classifier.out_features)
        return head + sum(
            layer.middle * (layer.in_channels + layer.kernel**2 + layer.out_channels)
            + layer.se * layer.middle**2 // 2
            for layer in layers
        )

    def layers(self) -> list[Layer]:
        return [block.layer() for block in self.blocks]


def network_of(config: dict, **options) -> MobileNetV3:
    """The network of a `net.config` of either spelling; UserError when it is none."""
    read = as_type(config, _NetConfig, "net.config", "the description of a MobileNetV3")
    network = MobileNetV3(
        read.first_conv.out_channels,
        read.first_conv.stride,
        read.layers(),
        (read.final_expand_layer.out_channels, read.feature_mix_layer.out_channels),
        read.classifier.out_features,
        **{"dropout": read.classifier.dropout_rate, **options},
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = read.bn.momentum, read.bn.eps
    return network


# -- what is written -----------------------------------------------------------------------------


def net_config(network: MobileNetV3) -> dict:
    """The published description of a network."""
    wide, last = network.head_channels
    stem, classifier = network.first_conv.conv, network.classifier["linear"]
    return {
        "name": "MobileNetV3",
        "bn": {"momentum": network.first_conv.bn.momentum, "eps": network.first_conv.bn.eps},
        "first_conv": _conv_config(3, stem.out_channels, 3, stem.stride[0]),
        "blocks": [_block_config(layer) for layer in network.layers],
        "final_expand_layer": _conv_config(network.layers[-1].out_channels, wide),
        "feature_mix_layer": _conv_config(wide, last, norm=False),
        "classifier": {
            "name": "LinearLayer",
            "in_features": classifier.in_features,
            "out_features": classifier.out_features,
            "bias": True,
            "use_bn": False,
            "act_func": None,
            "dropout_rate": 0,
            "ops_order": "weight_bn_act",
        },
    }


def _conv_config(
    in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1, norm: bool = True
) -> dict:
    return {
        "name": "ConvLayer",
        "kernel_size": kernel,
        "stride": stride,
        "dilation": 1,
        "groups": 1,
        "bias": False,
        "has_shuffle": False,
        "in_channels": in_channels,
        "out_channels": out_channels,
        "use_bn": norm,
        "act_func": "h_swish",
        "dropout_rate": 0,
        "ops_order": "weight_bn_act",
    }


def _block_config(layer: Layer) -> dict:
    identity = {
        "name": "IdentityLayer",
        "in_channels": [layer.in_channels],
        "out_channels": [layer.in_channels],
        "use_bn": False,
        "act_func": None,
        "dropout_rate": 0,
        "ops_order": "weight_bn_act",
    }
    return {
        "name": "MobileInvertedResidualBlock",
        "mobile_inverted_conv": {
            "name": "MBInvertedConvLayer",
            "in_channels": layer.in_channels,
            "out_channels": layer.out_channels,
            "kernel_size": layer.kernel,
            "stride": layer.stride,
            "expand_ratio": layer.expansion,
            "mid_channels": layer.middle if layer.expansion > 1 else None,
            "act_func": layer.activation,
            "use_se": layer.se,
        },
        "shortcut": identity if layer.residual else None,
    }


# -- networks that only a net.config describes ---------------------------------------------------


@dataclass(frozen=True)
class NetConfigSpace(Ranged):
    """No space to search: the size in pixels at which the one network is used."""

    kind: ClassVar[str] = "none"
    image_size: Pixels

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class NetConfigSpec(NetworkSpec):
    """A network that only its published `net.config` describes."""

    space: NetConfigSpace
    architecture: dict  # the net.config
    options = ("dropout", "drop_path")

    @classmethod
    def of(cls, config: dict, image_size: int) -> "NetConfigSpec":
        """UserError when `config` describes no network."""
        network_of(config)
        return cls(NetConfigSpace(image_size), config)

    @classmethod
    def load(cls, file: str | Path, image_size: int | None = None) -> "NetConfigSpec":
        """From a `net.config` file, which may say its `img_size`; else 224 is usual."""
        config = read_json(file, dict, "a network description")
        try:
            size = as_type(config.get("img_size") or USUAL_SIZE, int, "img_size", "a whole number")
            return cls.of(config, image_size or size)
        except UserError as error:
            raise UserError(f"{file}: no network description ({error})") from None

    @property
    def classes(self) -> int:
        return self.architecture["classifier"]["out_features"]

    @property
    def macs_m(self) -> float:
        """Of the convolutions."""
        return count_macs(self.network({}), self.image_size)

    @property
    def blocks(self) -> int:
        return len(self.architecture["blocks"])

    def with_classes(self, classes: int) -> "NetConfigSpec":
        classifier = {**self.architecture["classifier"], "out_features": classes}
        return replace(self, architecture={**self.architecture, "classifier": classifier})

    def network(self, options: dict, rng: torch.Generator | None = None) -> nn.Module:
        return network_of(self.architecture, **options, rng=rng)

    def inherited(
        self, supernet: str, options: dict, rng: torch.Generator | None = None
    ) -> nn.Module:
        """With the weights of its own in a file; of a classifier of its size only."""
        network = self.network(options, rng)
        state, own = checkpoint.weights(checkpoint.load(supernet), supernet), network.state_dict()
        if any(key in state and state[key].shape != own[key].shape for key in CLASSIFIER):
            state = {**state, **{key: own[key] for key in CLASSIFIER}}
        checkpoint.load_into(network, state, supernet)
        return network

    def to_json(self) -> dict:
        return self.architecture

    def fitted_to(self, state: dict) -> "NetConfigSpec":
        """With as many classes as the weights `state` have."""
        weight = state.get(CLASSIFIER[0])
        return self if weight is None else self.with_classes(len(weight))


class NetConfigKind(SpaceKind):
    """Networks without a search space."""

    name, paper = "none", "nsganetv2"

    def space_from_dict(self, record: dict) -> NetConfigSpace:
        return as_type(record, NetConfigSpace, "space", "the size of a network's images")

    def parse(self, record) -> dict:
        config = as_type(record, dict, "architecture", "a net.config")
        check_json(config, "architecture")  # what nothing here reads is written again, too
        return config

    def architecture(self, space: NetConfigSpace, record) -> dict:
        return self.parse(record)

    def spec(self, space: NetConfigSpace, architecture: dict) -> NetConfigSpec:
        return NetConfigSpec.of(architecture, space.image_size)

    def spec_of_config(self, config: Config) -> NetConfigSpec:
        config.require("network_config")
        size = config.network_size or config.input_size
        return NetConfigSpec.load(config.network_config, size).with_classes(config.classes)

    def block_modules(self, network: MobileNetV3) -> list[nn.Module]:
        return [network.first_conv, *network.blocks]

    def design(self, architecture: dict) -> Design:
        layers = network_of(architecture).layers[1:]  # the first is fixed
        pairs = tuple((layer.kernel, layer.expansion) for layer in layers)
        return Design(stages=(pairs,))

    def design_of(self, spec: NetConfigSpec) -> Design:
        return replace(self.design(spec.architecture), resolution=spec.image_size)


KIND = NetConfigKind()


def published_files(network: MobileNetV3) -> dict[str, str]:
    """The files by which the published code describes a network: name -> text."""
    return {"net.config": json.dumps(net_config(network), indent=4) + "\n"}
