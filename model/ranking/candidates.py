"""Candidates of an evolutionary search: the images that judge them, and their fine-tuning.

Source: Lu et al., "NSGANetV2", ECCV 2020, section 3.2: batch norms re-estimated on training images,
optionally a short fine-tuning with a fresh classifier, then top-1 on a part of the training set
that nothing else has seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from model.ranking.bn_recalibration import reset_norms
from model.ranking.supernet_accuracy import SupernetAccuracy
from model.spaces.contracts import Choice, NetworkSpec, SpaceKind
from utils.data import SearchImages
from utils.engine import DeviceContext, Score, evaluate
from utils.images import ImageData, Images, decoded
from utils.loader import Augmentation, Normalisation, Resized, loader
from utils.optim import Schedule
from utils.recipe import EpochMeter, Recipe, train_epoch
from utils.runtime import Progress, stream

# Published: which images the search validates on, and which ones re-estimate batch norms.
VALIDATION_SEED, NORMS_SEED = 2147483647, 937162211
NORMS_IMAGES, NORMS_BATCH = 2000, 100


@dataclass(frozen=True)
class CandidateImages:
    """Decoded once and shared by all candidates; no test image, unless the user asks for it.

    `train` and `validate` are disjoint, and `norms` is a part of `train`. Large images of `train`
    are not decoded.
    """

    train: Images
    validate: ImageData
    norms: ImageData
    validated: list[int]  # indices of `validate` in the training set, or in its held-out part

    @classmethod
    def split(cls, images: Images, count: int) -> "CandidateImages":
        """`count` training images validate: the first of the published permutation of them."""
        order = _shuffled(images, VALIDATION_SEED)
        return cls._of(images.subset(order[count:].sort().values), images, order[:count])

    @classmethod
    def of_search(cls, images: SearchImages, count: int) -> "CandidateImages":
        """`count` images validate, of those that did not train the supernet."""
        order = _shuffled(images.held_out, VALIDATION_SEED)
        return cls._of(images.train, images.held_out, order[:count])

    @classmethod
    def _of(cls, train: Images, source: Images, index: Tensor) -> "CandidateImages":
        norms = decoded(train.subset(_shuffled(train, NORMS_SEED)[:NORMS_IMAGES]))
        return cls(train, decoded(source.subset(index)), norms, index.tolist())


def _shuffled(images: Images, seed: int) -> Tensor:
    return torch.randperm(len(images.labels), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class FineTuning:
    """Published: SGD, Nesterov momentum 0.9, weight decay 4e-5, a cosine to 0, cross entropy."""

    epochs: int = 0
    lr: float = 0.01
    weight_decay: float = 4e-5
    batch_size: int = 128
    classes: int = 0
    augment: Augmentation = field(default_factory=Augmentation)
    workers: int = 0


@dataclass(frozen=True)
class CandidateAccuracy:
    """Scores candidates, each at its own resolution: with the weights of the supernet, or tuned."""

    kind: SpaceKind
    supernet: nn.Module | None  # None: networks are trained from scratch alone
    images: CandidateImages
    normalise: Normalisation
    context: DeviceContext
    batch_size: int = 200
    tuning: FineTuning = FineTuning()
    seed: int = 0

    @property
    def in_place(self) -> SupernetAccuracy:
        """Scores candidates with the weights of the supernet as they are."""
        validation = loader(self.images.validate, self.batch_size, self.normalise)
        norms = loader(self.images.norms, NORMS_BATCH, self.normalise)
        return SupernetAccuracy(self.kind, self.supernet, validation, norms, self.context)

    def score(self, choice: Choice, resolution: int, name: str = "candidate") -> Score:
        """The score of an architecture; `name` says which random numbers its fine-tuning draws."""
        in_place = self.in_place
        if not self.tuning.epochs:
            return in_place.score(choice)
        validation, norms = in_place.validation, in_place.recalibration
        network = self.context.put(self.kind.extract(self.supernet, choice))
        network.reset_classifier(self.tuning.classes, stream(self.seed, "classifier", name))
        reset_norms(network, Resized(norms, resolution).epoch(), self.context)
        self._tune(network, resolution, name)
        return evaluate(network.eval(), Resized(validation, resolution), self.context)

    def score_from_scratch(self, spec: NetworkSpec, name: str) -> Score:
        """The score of a network that is trained from fresh weights, by the same recipe."""
        spec = spec.with_classes(self.tuning.classes or spec.classes)
        network = spec.network({}, stream(self.seed, "from scratch", name))
        network = self.context.put(network)
        self._tune(network, spec.image_size, name)
        validation = loader(self.images.validate, self.batch_size, self.normalise)
        return evaluate(network.eval(), Resized(validation, spec.image_size), self.context)

    def _tune(self, network: nn.Module, resolution: int, name: str) -> None:
        tuning, seed = self.tuning, stream(self.seed, "fine-tuning", name).initial_seed()
        how = (self.normalise, tuning.augment, seed, tuning.workers)
        batches = Resized(loader(self.images.train, tuning.batch_size, *how), resolution)
        decay = tuning.weight_decay
        optimizer = torch.optim.SGD(
            network.parameters(), tuning.lr, momentum=0.9, weight_decay=decay, nesterov=True
        )
        schedule = Schedule("cosine", tuning.lr, tuning.epochs, len(batches))
        loss = nn.CrossEntropyLoss()
        recipe = Recipe(loss, optimizer, schedule, self.context, (seed, name), None)
        network.train()
        for epoch in range(tuning.epochs):
            title = f"{name}, epoch {epoch + 1}/{tuning.epochs}"
            with Progress(title, len(batches)) as progress:
                forwards = partial(_logits, network)
                train_epoch(forwards, recipe, batches, epoch, EpochMeter(), progress)


def _logits(
    network: nn.Module, images: Tensor, labels: Tensor, rng: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    yield network(images), labels
