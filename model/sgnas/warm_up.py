"""Supernet warm-up: fairly sampled single paths, and what such a path is worth (SGNAS, section
3.2).

An elastic supernet is warmed up by the sandwich rule instead.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.costs.lookup_table import LookUpTable
from model.ranking.supernet_accuracy import NORMS_IMAGES, CandidateEvaluation, CandidateImages
from model.spaces.elastic.space import Genes
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.nasbench201.supernet import CellSupernet
from model.spaces.registry import Supernet, build_recipe, search_loader
from model.spaces.unified.supernet import UnifiedSupernet
from utils.config import Config
from utils.data import SearchImages
from utils.distributed import divided, results
from utils.engine import (
    DeviceContext,
    EpochMeter,
    average_norms,
    evaluate,
    recalibrated,
    train_epoch,
)
from utils.images import decoded
from utils.loader import Loader, Normalisation, resize
from utils.runtime import Progress, stream

PathSupernet = UnifiedSupernet | CellSupernet


class WarmUp:
    """The supernet and what trains it: the gradients of `paths_per_step` networks on a batch add up
    before a step.
    """

    def __init__(
        self,
        supernet: Supernet,
        steps_per_epoch: int,
        config: Config,
        context: DeviceContext,
        checkpoint: Path,
    ):
        self.supernet = supernet
        if isinstance(supernet, ElasticSupernet):
            self.forwards = partial(sandwich_logits, supernet, config.paths_per_step, context)
        else:
            self.forwards = partial(
                path_logits, supernet, config.paths_per_step, context, sampling=config.path_sampling
            )
        self.recipe = build_recipe(
            supernet.parameters(), steps_per_epoch, config, context, "warm-up", checkpoint
        )
        self.epochs, self.meter, self.best_top1 = 0, EpochMeter(), -1.0

    def epoch(self, batches: Loader, epoch: int, progress: Progress) -> EpochMeter:
        """What is left of an epoch, after the steps in `meter`."""
        self.supernet.train()
        train_epoch(self.forwards, self.recipe, batches, epoch, self.meter, progress)
        average_norms(self.supernet)
        return self.meter

    def state(self) -> dict:
        average_norms(self.supernet)
        return {
            **supernet_payload(self.supernet, self.epochs),
            "optimizer": self.recipe.optimizer.state_dict(),
            "tally": asdict(self.meter),
            "best_top1": self.best_top1,
        }

    def load_state(self, state: dict) -> None:
        self.supernet.load_state_dict(state["model"])
        self.recipe.optimizer.load_state_dict(state["optimizer"])
        self.epochs, self.meter, self.best_top1 = (
            state["epoch"],
            EpochMeter(**state["tally"]),
            state["best_top1"],
        )


def supernet_payload(supernet: Supernet, epochs: int) -> dict:
    """The checkpoint of a supernet."""
    return {
        "kind": "supernet",
        "epoch": epochs,
        "model": supernet.state_dict(),
        "space": supernet.space.to_dict(),
    }


def path_logits(
    supernet: PathSupernet,
    paths: int,
    context: DeviceContext,
    images: Tensor,
    labels: Tensor,
    rng: torch.Generator,
    sampling: str = "fair",
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of the paths of one step, sampled fairly or uniformly, one after another.

    All paths share stem and first block, which are computed once, and differentiated once all paths
    have been.
    """
    with context.autocast():
        features = supernet.stem(images)
    shared = features.detach().requires_grad_()
    space = supernet.space
    for path in space.sample_fair(paths, rng) if sampling == "fair" else space.sample(paths, rng):
        with context.autocast():
            logits = supernet.classify(shared, path)
        yield logits, labels
    if shared.grad is not None:  # cells may connect nothing to their output
        features.backward(shared.grad)


def sandwich_logits(
    supernet: ElasticSupernet,
    networks: int,
    context: DeviceContext,
    images: Tensor,
    labels: Tensor,
    rng: torch.Generator,
    resolutions: Sequence[int] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The sandwich rule: the largest sub-network learns the labels; the smallest, and random ones,
    its answers.

    All at one random resolution, by default of all. Source: Yu and Huang, "Universally Slimmable
    Networks", ICCV 2019 (the sandwich rule, in-place distillation).
    """
    space, draw = supernet.space, np.random.default_rng(rng.initial_seed())
    smallest, largest = space.extremes()
    resolutions = resolutions or space.resolutions
    resolution = resolutions[draw.integers(len(resolutions))]
    images, answers = resize(images, resolution), None
    for genes in [largest, smallest, *space.sample(max(0, networks - 2), draw)]:
        with context.autocast():
            logits = supernet(images, space.decode(genes))
        yield logits, (labels if answers is None else answers)
        answers = logits.detach().float().softmax(dim=1) if answers is None else answers


class PathValidation:
    """Scores single paths on the validation images, with BN re-estimated on training images for
    each path.
    """

    def __init__(
        self, supernet: PathSupernet, images: SearchImages, config: Config, context: DeviceContext
    ):
        self.supernet, self.context = supernet, context
        self.batches = search_loader(images.validate, config, "validate", training=False)
        shuffled = torch.randperm(
            len(images.train.labels), generator=stream(config.seed, "recalibrate")
        )
        used = images.train.subset(shuffled[: config.bn_recalibration_images])
        self.recalibration = search_loader(used, config, "recalibrate", training=False)

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Paths to validate `[count, L, E, K]`."""
        return self.supernet.space.sample(count, rng)

    def costs(self, paths: Tensor) -> list[float]:
        """Multiply-adds in M."""
        return LookUpTable(self.supernet.space)(paths).tolist()

    def top1(self, path: Tensor) -> float:
        """Top-1 in percent of a one-hot path `[L, E, K]`; leaves the supernet in evaluation mode."""

        def forward(images: Tensor) -> Tensor:
            return self.supernet(images, path)

        with recalibrated(self.supernet, forward, self.recalibration.epoch(), self.context):
            return evaluate(forward, self.batches, self.context).top1


class ElasticValidation:
    """Scores sub-networks of an elastic supernet as stand-alone networks, as `msunas.py` does."""

    def __init__(
        self,
        supernet: ElasticSupernet,
        images: SearchImages,
        config: Config,
        context: DeviceContext,
    ):
        self.supernet = supernet
        drawn = torch.randperm(
            len(images.train.labels), generator=stream(config.seed, "recalibrate")
        )
        norms = decoded(
            images.train.subset(drawn[: config.bn_recalibration_images or NORMS_IMAGES])
        )
        images = CandidateImages(images.train, decoded(images.validate), norms, [])
        self.evaluation = CandidateEvaluation(
            images, Normalisation(config.mean, config.std), context, config.batch_size
        )

    def sample(self, count: int, rng: torch.Generator) -> Genes:
        """Both extremes and random sub-networks `[count, G]`."""
        random = self.supernet.space.sample(count, np.random.default_rng(rng.initial_seed()))
        return np.concatenate([self.supernet.space.extremes(), random])[:count]

    def costs(self, genes: Genes) -> list[float]:
        """Multiply-adds in M."""
        return (self.supernet.space.costs(genes)[0] / 1e6).tolist()

    def top1(self, genes: Genes) -> float:
        architecture = self.supernet.space.decode(genes)
        return self.evaluation.score(self.supernet.extract(architecture), architecture.r).top1


def top1_of_all(
    validation: PathValidation | ElasticValidation, networks: Tensor | Genes
) -> list[float]:
    """Top-1 of each of `networks`, divided among all processes, which call it together."""
    return results(divided(len(networks), lambda index: validation.top1(networks[index])))


def validation_of(
    supernet: Supernet, images: SearchImages, config: Config, context: DeviceContext
) -> PathValidation | ElasticValidation:
    kind = ElasticValidation if isinstance(supernet, ElasticSupernet) else PathValidation
    return kind(supernet, images, config, context)
