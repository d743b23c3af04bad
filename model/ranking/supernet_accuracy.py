"""What an architecture of a search is worth: its stand-alone network with inherited weights, scored
on held-out images.

Source: Lu et al., "NSGANetV2", ECCV 2020, section 3.2: batch norms re-estimated on training images,
optionally a short fine-tuning with a fresh classifier, then top-1 on a part of the training set
that nothing else has seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from utils.data import SearchImages
from utils.engine import (
    DeviceContext,
    EpochMeter,
    Recipe,
    Score,
    evaluate,
    reset_norms,
    train_epoch,
)
from utils.images import ImageData, Images, decoded
from utils.loader import Augmentation, Normalisation, Resized, loader
from utils.optim import Schedule
from utils.runtime import Progress, stream

# Published: which images the search validates on, and which ones re-estimate batch norms.
VALIDATION_SEED, NORMS_SEED = 2147483647, 937162211
NORMS_IMAGES = 2000


@dataclass(frozen=True)
class CandidateImages:
    """Decoded once and shared by all candidates; no test image is among them unless the user asks
    for it.

    `train` and `validate` are disjoint, and `norms` is a part of `train`. Large images are decoded
    once, too, but for those of `train`.
    """

    train: Images
    validate: ImageData
    norms: ImageData
    # indices of `validate` in the training set, or in its part that the search held out
    validated: list[int]

    @classmethod
    def split(cls, images: Images, count: int) -> "CandidateImages":
        """`count` of the training images validate: the first of the published permutation of as
        many images.
        """
        order = _shuffled(images, VALIDATION_SEED)
        return cls._of(images.subset(order[count:].sort().values), images, order[:count])

    @classmethod
    def of_search(cls, images: SearchImages, count: int) -> "CandidateImages":
        """`count` images validate, of those that did not train the supernet."""
        return cls._of(
            images.train, images.held_out, _shuffled(images.held_out, VALIDATION_SEED)[:count]
        )

    @classmethod
    def _of(cls, train: Images, source: Images, index: Tensor) -> "CandidateImages":
        norms = decoded(train.subset(_shuffled(train, NORMS_SEED)[:NORMS_IMAGES]))
        return cls(train, decoded(source.subset(index)), norms, index.tolist())


def _shuffled(images: Images, seed: int) -> Tensor:
    return torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class FineTuning:
    """Published: SGD with Nesterov momentum 0.9 and weight decay 4e-5, a cosine to 0, cross
    entropy.
    """

    epochs: int = 0
    lr: float = 0.01
    batch_size: int = 128
    classes: int = 0
    augment: Augmentation = field(default_factory=Augmentation)
    workers: int = 0


class CandidateEvaluation:
    """Top-1 of stand-alone networks, each at its own resolution."""

    def __init__(
        self,
        images: CandidateImages,
        normalise: Normalisation,
        context: DeviceContext,
        batch_size: int = 200,
        tuning: FineTuning = FineTuning(),
        seed: int = 0,
    ):
        self.images, self.normalise, self.context, self.tuning, self.seed = (
            images,
            normalise,
            context,
            tuning,
            seed,
        )
        self.batch_size = batch_size

    def score(self, network: nn.Module, resolution: int, name: str = "candidate") -> Score:
        """The score of a network, whose weights may change on the way: batch norms always, all by
        fine-tuning.
        """
        network = network.to(self.context.device)
        if self.context.channels_last:
            network = network.to(memory_format=torch.channels_last)
        if self.tuning.epochs:
            network.reset_classifier(self.tuning.classes, stream(self.seed, "classifier", name))
        reset_norms(
            network, self._batches(self.images.norms, resolution, 100).epoch(), self.context
        )
        if self.tuning.epochs:
            self._fine_tune(network, resolution, name)
            network.eval()
        return evaluate(
            network, self._batches(self.images.validate, resolution, self.batch_size), self.context
        )

    def _batches(self, images: ImageData, resolution: int, size: int) -> Resized:
        return Resized(loader(images, size, self.normalise), resolution)

    def _fine_tune(self, network: nn.Module, resolution: int, name: str) -> None:
        tuning, seed = self.tuning, stream(self.seed, "fine-tuning", name).initial_seed()
        batches = loader(
            self.images.train,
            tuning.batch_size,
            self.normalise,
            tuning.augment,
            seed,
            tuning.workers,
        )
        batches = Resized(batches, resolution)
        optimizer = torch.optim.SGD(
            network.parameters(), tuning.lr, momentum=0.9, weight_decay=4e-5, nesterov=True
        )
        schedule = Schedule("cosine", tuning.lr, tuning.epochs, len(batches))
        recipe = Recipe(
            nn.CrossEntropyLoss(), optimizer, schedule, self.context, (seed, name), None
        )
        network.train()
        for epoch in range(tuning.epochs):
            title = f"{name}, epoch {epoch + 1}/{tuning.epochs}"
            with Progress(title, len(batches)) as progress:
                train_epoch(
                    partial(_logits, network), recipe, batches, epoch, EpochMeter(), progress
                )


def _logits(
    network: nn.Module, images: Tensor, labels: Tensor, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    yield network(images), labels
