"""Costs of a built network, counted on it: what the closed forms of the tables must agree with."""

import copy

import thop
import torch
from thop.vision.basic_hooks import count_convNd
from torch import nn


def count_macs(network: nn.Module, image_size: int) -> float:
    """Millions of multiply-adds of the convolutions of `network` on one square image, by thop."""
    modules = list(network.modules())
    convolutions = {type(m) for m in modules if isinstance(m, nn.Conv2d)}  # thop goes by the type
    containers = {type(m) for m in modules if list(m.children())}  # of which some may be empty
    others = {type(m) for m in modules} - convolutions - containers
    counted = {**dict.fromkeys(others, _count_nothing), **dict.fromkeys(convolutions, count_convNd)}
    image = torch.zeros(1, 3, image_size, image_size, device=next(network.parameters()).device)
    network = copy.deepcopy(network)  # thop leaves counters behind as buffers
    macs, _ = thop.profile(network, inputs=(image,), custom_ops=counted, verbose=False)
    return macs / 1e6


def _count_nothing(module, inputs, output) -> None:
    """Modules that are no convolution cost nothing in the tables either."""


def count_parameters(network: nn.Module) -> float:
    """Millions of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad) / 1e6
