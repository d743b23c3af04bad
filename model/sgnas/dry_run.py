"""What a search will need before it starts: reach, memory, and time of its steps."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.spaces.registry import Problem
from utils.config import Config
from utils.data import HELD_OUT_BY_DEFAULT, Dataset, load_dataset
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.forecast import forecast_steps, random_batch
from utils.image_sets import NotThere, known_set
from utils.runtime import stream

MEASURED = 16  # images of a measured batch, at most


@dataclass(frozen=True)
class SearchForecast:
    """Peak memory in bytes; seconds of a warm-up step and, where there is one, a generator step."""

    peak_bytes: float
    warmup_seconds: float
    generator_seconds: float


def forecast(
    problem: Problem, supernet: nn.Module, config: Config, context: DeviceContext
) -> SearchForecast:
    """Measure both kinds of steps on a few random images, and scale them to the batch."""
    kind, count = problem.kind, min(config.batch_size, MEASURED)
    rng = stream(config.seed, "dry run")
    images, labels = random_batch(count, kind.image_size(supernet), context, rng)
    largest = problem.space.extremes()[1]
    scaled = (context, config.batch_size / count)

    def loss(logits: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels)

    def forward() -> Tensor:
        with context.autocast():
            return loss(kind.forward(supernet, largest)(images))

    def warmup_step(draw: int) -> None:
        sampled = (config.paths_per_step, config.path_sampling)
        choices = kind.step_choices(problem.space, *sampled, stream(config.seed, "dry run", draw))
        for logits, targets in kind.passes(supernet, choices, context, images, labels):
            F.cross_entropy(logits, targets).backward()

    supernet.train()
    steps = [partial(warmup_step, draw) for draw in range(kind.kinds_of_steps)]
    warmup = forecast_steps(steps, forward, supernet, *scaled)
    if not kind.has_generator:
        return SearchForecast(warmup.peak_bytes, warmup.seconds, 0.0)

    space, soft = problem.space, kind.soft(supernet.eval())
    mixture = space.relax(torch.zeros(space.shape), 1.0).to(context.device).requires_grad_()

    def soft_loss(path: Tensor) -> Tensor:
        with context.autocast():
            return loss(soft(images, path))

    def generator_step() -> None:
        if not config.sampled_paths:
            return soft_loss(mixture).backward()
        with torch.no_grad():
            for path in space.sample(config.sampled_paths, rng).to(context.device):
                soft_loss(path)

    generator = forecast_steps([generator_step], partial(soft_loss, mixture), soft, *scaled)
    peak = warmup.trained_bytes + max(warmup.graph_bytes, generator.graph_bytes)
    return SearchForecast(peak, warmup.seconds, generator.seconds)


def data_of(config: Config) -> Dataset | None:
    """The data set of a config; None where a run would download it.

    UserError when it is missing, or has other classes.
    """
    source = (config.dataset, config.dataset_dir, config.input_size, config.classes)
    try:
        return load_dataset(*source, strict=config.strict_data, download=False)
    except NotThere as error:
        known = known_set(config.dataset).classes
        if known != config.classes:
            has = f"the config says {config.classes}, but {config.dataset} has {known}"
            raise UserError(f"classes: {has}") from None
        print(f"projected time    unknown: {error}")
        return None


def dry_run(
    problem: Problem,
    supernet: nn.Module,
    dataset: Dataset | None,
    config: Config,
    context: DeviceContext,
) -> None:
    """Print the reachable costs, the parameters, and the memory and time that a run would take."""
    needs, generates = forecast(problem, supernet, config, context), problem.kind.has_generator
    (least, most), unit = problem.table.reach(), problem.unit
    adds = " multiply-adds" if unit == "M" else ""
    print(f"reachable cost    {least:.3f} to {most:.3f} {unit}{adds}")
    if generates:
        print(f"targets           {config.low_flops:g} to {config.high_flops:g} {unit}")
    weights = sum(p.numel() for p in supernet.parameters()) / 1e6
    print(f"parameters        supernet {weights:.2f} M")
    gib = needs.peak_bytes / 2**30
    print(f"peak memory       about {gib:.2f} GiB at batch {config.batch_size}")
    times = f"warm-up {needs.warmup_seconds:.2f} s"
    times += f", generator {needs.generator_seconds:.2f} s" * generates
    measured = f"scaled from a batch of {min(config.batch_size, MEASURED)}"
    print(f"time of a step    {times} on {context.device}, {measured}")
    if dataset is None:
        return
    images = len(dataset.train.labels)
    portion = config.train_portion if config.train_portion < 1 else HELD_OUT_BY_DEFAULT
    train, held_out = portion * images, (1 - portion) * images
    if dataset.held_out is not None:
        train, held_out = images, len(dataset.held_out.labels)
    steps = config.warmup_epochs * train / config.batch_size
    stages = f"warm-up {steps * needs.warmup_seconds / 60:.1f} min"
    steps = config.search_epochs * 0.75 * held_out / config.batch_size
    stages += f", generator {steps * needs.generator_seconds / 60:.1f} min" * generates
    print(f"projected time    {stages}, validation not counted")
