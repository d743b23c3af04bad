"""What a search will need before it begins: memory and time of its two kinds of steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.sgnas.warm_up import PathSupernet, path_logits, sandwich_logits
from model.spaces.elastic.supernet import ElasticSupernet
from utils.engine import DeviceContext
from utils.runtime import synchronise

RESOLUTIONS = 4  # of an elastic space that are timed


@dataclass(frozen=True)
class Forecast:
    """Peak memory in bytes; seconds of a warm-up step and of a generator step."""

    peak_bytes: float
    warmup_seconds: float
    generator_seconds: float


def forecast(
    supernet: PathSupernet,
    batch_size: int,
    paths: int,
    sampled: int,
    context: DeviceContext,
    rng: torch.Generator,
    measured: int = 16,
) -> Forecast:
    """Measure both steps on up to `measured` random images and scale to `batch_size`.

    A warm-up step is one of `paths` paths, a generator step one of `sampled` paths, or, where that
    is 0, of a mixture.
    """
    space = supernet.space
    count = min(batch_size, measured)
    size = getattr(supernet, "image_size", space.image_size)
    images = torch.randn(count, 3, size, size, generator=rng)
    images, labels = context.batch(images, torch.zeros(count, dtype=torch.long))
    _, largest = space.extremes()
    soft = space.relax(torch.zeros(space.shape), 1.0).to(context.device).requires_grad_()

    def loss(network, path: Tensor) -> Tensor:
        with context.autocast():
            return F.cross_entropy(network(images, path), labels)

    def warmup_step():
        for logits, targets in path_logits(supernet, paths, context, images, labels, rng):
            F.cross_entropy(logits, targets).backward()

    def generator_step():
        if not sampled:
            return loss(frozen, soft).backward()
        with torch.no_grad():
            for path in space.sample(sampled, rng).to(context.device):
                loss(frozen, path)

    supernet.train()
    activations = saved_bytes(lambda: loss(supernet, largest), supernet)
    warmup = seconds(warmup_step, context)
    frozen = supernet.eval().frozen()
    activations = max(activations, saved_bytes(lambda: loss(frozen, soft), frozen))
    generator = seconds(generator_step, context)
    scale = batch_size / count
    return Forecast(
        trained_bytes(supernet) + activations * scale, warmup * scale, generator * scale
    )


def forecast_elastic(
    supernet: ElasticSupernet,
    batch_size: int,
    networks: int,
    context: DeviceContext,
    rng: torch.Generator,
    measured: int = 16,
) -> Forecast:
    """As `forecast`, for a step by the sandwich rule of `networks` networks; no generator.

    Memory is that of the largest network at the largest resolution, time a mean over resolutions.
    """
    space, count = supernet.space, min(batch_size, measured)
    size = max(space.resolutions)
    images, labels = context.batch(
        torch.randn(count, 3, size, size, generator=rng), torch.zeros(count, dtype=torch.long)
    )
    _, largest = space.extremes()

    def step(resolution: int) -> None:
        for logits, targets in sandwich_logits(
            supernet, networks, context, images, labels, rng, (resolution,)
        ):
            F.cross_entropy(logits, targets).backward()

    def forward() -> None:
        with context.autocast():
            supernet(images, space.decode(largest))

    supernet.train()
    activations = saved_bytes(forward, supernet)
    evenly = (
        np.linspace(0, len(space.resolutions) - 1, min(RESOLUTIONS, len(space.resolutions)))
        .round()
        .astype(int)
    )
    mean = float(
        np.mean([seconds(partial(step, space.resolutions[index]), context) for index in evenly])
    )
    scale = batch_size / count
    return Forecast(trained_bytes(supernet) + activations * scale, mean * scale, 0.0)


def trained_bytes(network: nn.Module) -> int:
    """Bytes of the weights, their gradients and their momentum."""
    return 3 * sum(p.numel() * p.element_size() for p in network.parameters())


def saved_bytes(forward: Callable[[], Tensor], network: nn.Module) -> int:
    """Bytes that autograd keeps of one forward pass, the weights of the network not counted."""
    kept: dict[int, int] = {}
    weights = {
        part.untyped_storage().data_ptr() for part in (*network.parameters(), *network.buffers())
    }

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() in weights:
            return tensor
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        forward()
    return sum(kept.values())


def seconds(step: Callable[[], None], context: DeviceContext, times: int = 3) -> float:
    """The shortest of a few runs: a noisy machine only ever adds time."""
    measured = []
    for _ in range(times):
        began = time.perf_counter()
        step()
        synchronise(context.device)
        measured.append(time.perf_counter() - began)
    return min(measured)
