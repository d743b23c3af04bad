"""Networks as programs of torch.export, which PyTorch alone loads and runs, without this project.

program = torch.export.load("net.pt2")
logits = program.module()(images)  # [B, 3, S, S] -> [B, classes]
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim


def write(file: Path, network: nn.Module, image_size: int, about: dict) -> None:
    """Write a network of ordinary layers for any number of images, with `about` as extra JSON."""
    images = torch.zeros(2, 3, image_size, image_size)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: Dim("batch")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # it would name folders of this machine
    with open(file, "wb") as opened:
        torch.export.save(program, opened, extra_files={"network.json": json.dumps(about)})


def runner(file: Path) -> Callable[[Tensor], Tensor]:
    """`run(images [B, 3, S, S]) -> logits [B, classes]`."""
    with open(file, "rb") as opened:
        return torch.export.load(opened).module()
