"""What training will need before it starts: memory and time, from steps on random images.

Nothing here knows what is trained: a step and a forward pass come as callables.
"""

import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from utils.engine import DeviceContext
from utils.timing import Timer


@dataclass(frozen=True)
class Forecast:
    """Bytes that stay (weights, gradients, momentum), bytes of one graph, and seconds of a step."""

    trained_bytes: float
    graph_bytes: float
    seconds: float

    @property
    def peak_bytes(self) -> float:
        """Bytes of training at its peak, the program and the images not counted."""
        return self.trained_bytes + self.graph_bytes


def forecast_steps(
    steps: Sequence[Callable[[], object]],
    forward: Callable[[], object],
    network: nn.Module,
    context: DeviceContext,
    scale: float = 1.0,
) -> Forecast:
    """Measure a step and a forward pass on a part of a batch, and scale them to the batch.

    Args:
        steps: kinds of steps that are equally frequent; time is their mean.
        forward: the pass whose graph takes the most memory.
        network: what is trained.
        context: where the steps compute.
        scale: images of a batch per image of `steps` and `forward`.
    """
    graph = saved_bytes(forward, network)
    mean = sum(seconds(step, context) for step in steps) / len(steps)
    return Forecast(trained_bytes(network), graph * scale, mean * scale)


def random_batch(
    count: int, size: int, context: DeviceContext, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images `[count, 3, size, size]` of noise, and labels `[count]`, all 0."""
    images = torch.randn(count, 3, size, size, generator=rng)
    return context.batch(images, torch.zeros(count, dtype=torch.long))


def trained_bytes(network: nn.Module) -> int:
    """Bytes of the weights, their gradients and their momentum."""
    return 3 * sum(p.numel() * p.element_size() for p in network.parameters())


def saved_bytes(forward: Callable[[], object], network: nn.Module) -> int:
    """Bytes that autograd keeps of one forward pass, the weights of the network not counted."""
    kept: dict[int, int] = {}
    state = (*network.parameters(), *network.buffers())
    weights = {part.untyped_storage().data_ptr() for part in state}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def seconds(step: Callable[[], object], context: DeviceContext, times: int = 3) -> float:
    """The shortest of a few runs: a noisy machine only ever adds time."""
    return float(Timer(times, device=context.device).seconds([step]).min())


def peak_bytes(device: torch.device) -> int:
    """Peak memory so far: what CUDA allocated on `device`, else what this process had resident.

    Linux's `ru_maxrss` starts with that of the parent, so that its own file is read there.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
