"""Supernet warm-up: fairly sampled single paths, and what such a path is worth (SGNAS, section 3.2)."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from model.build import build_recipe, search_loader
from model.supernet import UnifiedSupernet
from utils.config import Config
from utils.data import Loader, SearchImages
from utils.engine import Placement, Tally, evaluate, recalibrated, train_epoch
from utils.runtime import Progress, stream


class WarmUp:
    """The supernet and what trains it: the gradients of `paths_per_step` paths on a batch add up before each step."""

    def __init__(
        self, supernet: UnifiedSupernet, steps_per_epoch: int, config: Config, place: Placement, checkpoint: Path
    ):
        self.supernet, self.paths = supernet, config.paths_per_step
        self.recipe = build_recipe(supernet.parameters(), steps_per_epoch, config, place, "warm-up", checkpoint)
        self.epochs, self.tally, self.best_top1 = 0, Tally(), -1.0

    def epoch(self, batches: Loader, epoch: int, progress: Progress) -> Tally:
        """What is left of an epoch, after the steps in `tally`."""
        self.supernet.train()
        forwards = partial(path_logits, self.supernet, self.paths, self.recipe.place)
        train_epoch(forwards, self.recipe, batches, epoch, self.tally, progress)
        return self.tally

    def state(self) -> dict:
        return {
            **supernet_payload(self.supernet, self.epochs),
            "optimizer": self.recipe.optimizer.state_dict(),
            "tally": asdict(self.tally),
            "best_top1": self.best_top1,
        }

    def load_state(self, state: dict) -> None:
        self.supernet.load_state_dict(state["model"])
        self.recipe.optimizer.load_state_dict(state["optimizer"])
        self.epochs, self.tally, self.best_top1 = state["epoch"], Tally(**state["tally"]), state["best_top1"]


def supernet_payload(supernet: UnifiedSupernet, epochs: int) -> dict:
    """The checkpoint of a supernet."""
    return {"kind": "supernet", "epoch": epochs, "model": supernet.state_dict(), "space": supernet.space.to_dict()}


def path_logits(
    supernet: UnifiedSupernet, paths: int, place: Placement, images: Tensor, rng: torch.Generator
) -> Iterator[Tensor]:
    """The logits of the fairly sampled paths of one step, one after another.

    All paths share stem and first block, which are computed once, and differentiated once all paths have been.
    """
    with place.autocast():
        features = supernet.stem(images)
    shared = features.detach().requires_grad_()
    for path in supernet.space.sample_fair(paths, rng):
        with place.autocast():
            logits = supernet.classify(shared, path)
        yield logits
    features.backward(shared.grad)


class PathValidation:
    """Scores single paths on the validation images, with BN re-estimated on training images for each path."""

    def __init__(self, supernet: UnifiedSupernet, images: SearchImages, config: Config, place: Placement):
        self.supernet, self.place = supernet, place
        self.batches = search_loader(images.validate, config, "validate", training=False)
        shuffled = torch.randperm(len(images.train.labels), generator=stream(config.seed, "recalibrate"))
        used = images.train.subset(shuffled[: config.bn_recalibration_images])
        self.recalibration = search_loader(used, config, "recalibrate", training=False)

    def top1(self, path: Tensor) -> float:
        """Top-1 in percent of a one-hot path `[L, E, K]`; leaves the supernet in evaluation mode."""

        def forward(images: Tensor) -> Tensor:
            return self.supernet(images, path)

        with recalibrated(self.supernet, forward, self.recalibration.epoch(), self.place):
            return evaluate(forward, self.batches.epoch(), self.place).top1
