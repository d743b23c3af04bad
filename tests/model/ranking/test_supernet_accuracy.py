"""Accuracy on the weights of a supernet: in place, by re-estimated batch norms, and of many."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from model.ranking.bn_recalibration import reset_norms
from model.ranking.supernet_accuracy import AccuracyRecipe, SupernetAccuracy
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.nasbench201.space import CellSpace
from model.spaces.nasbench201.supernet import CellSupernet
from model.spaces.registry import KINDS, spec_of
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import plain_space, rng
from tests.support import CPU, SMALL_ELASTIC
from utils.data import Dataset, load_dataset, split_for_search
from utils.engine import evaluate
from utils.loader import Normalisation, Resized, loader

NORMALISE = Normalisation((0.3, 0.3, 0.3), (0.37, 0.37, 0.37))
SUPERNETS = {
    "unified": lambda: UnifiedSupernet(replace(plain_space(), image_size=16, classes=10), rng()),
    "nasbench201": lambda: CellSupernet(CellSpace(channels=4, image_size=16), rng(), image_size=16),
    "elastic": lambda: ElasticSupernet(replace(SMALL_ELASTIC, classes=10), rng()),
}


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits", "", 16, 10)


@pytest.fixture(params=SUPERNETS)
def supernet(request) -> nn.Module:
    """With a classifier that is sure of what it says."""
    supernet = SUPERNETS[request.param]().eval()
    classifier = [module for module in supernet.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(classifier.weight, std=2, generator=rng(1))
    return supernet


@pytest.mark.slow
def test_in_place_and_stand_alone_agree(supernet, digits):
    """The supernet's own forward, norms re-estimated in place; the extracted network, norms reset.

    They differ by biased and unbiased variances alone: losses by less than 0.5 %, top-1 by two
    images.
    """
    kind = KINDS[supernet.space.kind]
    validation = loader(digits.test, 100, NORMALISE)
    norms = loader(digits.train.subset(torch.arange(400)), 100, NORMALISE)
    accuracy = SupernetAccuracy(kind, supernet, validation, norms, CPU)
    choices, losses = kind.choices(supernet.space, 4, rng(1)), []
    for choice in choices:
        found, network = accuracy.score(choice), kind.extract(supernet, choice)
        size = spec_of(supernet.space, supernet.space.decode(choice)).image_size
        reset_norms(network, Resized(norms, size).epoch(), CPU)
        alone = evaluate(network, Resized(validation, size), CPU)
        assert found.loss == pytest.approx(alone.loss, rel=5e-3)
        assert abs(found.top1 - alone.top1) <= 200.01 / alone.images
        losses.append(found.loss)
    assert len(set(losses)) == 4
    assert min(losses) > 2.5, "far from chance, which is 2.3"


def test_a_supernet_is_left_as_it_was(supernet, digits):
    kind = KINDS[supernet.space.kind]
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    batches = loader(digits.test.subset(torch.arange(50)), 25, NORMALISE)
    [choice] = kind.choices(supernet.space, 1, rng(1))
    score = SupernetAccuracy(kind, supernet.train(), batches, batches, CPU).score(choice)
    assert not supernet.training
    assert all(value.equal(before[name]) for name, value in supernet.state_dict().items())
    # with no images to re-estimate norms on, they are the supernet's own
    plain = SupernetAccuracy(
        kind, supernet, batches, loader(digits.test.subset([]), 25, NORMALISE), CPU
    )
    assert plain.score(choice) == evaluate(kind.forward(supernet, choice), batches, CPU) != score


@pytest.mark.slow
def test_many_are_scored_on_the_validation_part_of_a_search(supernet, digits):
    kind = KINDS[supernet.space.kind]
    images = split_for_search(digits, 0.8, 0)
    numbers = {"batch_size": 64, "mean": NORMALISE.mean, "std": NORMALISE.std, "crop_padding": 4}
    numbers |= {"horizontal_flip": True, "num_workers": 0, "seed": 1}
    recipe = AccuracyRecipe(**numbers, bn_recalibration_images=100)
    accuracy = SupernetAccuracy.on_search_images(kind, supernet, images, recipe, CPU)
    choices = kind.choices(supernet.space, 3, rng(1))
    assert accuracy.score(choices[0]).images == len(images.validate.labels)
    assert sum(len(labels) for _, labels in accuracy.recalibration.epoch()) == 100
    assert accuracy.top1_of_all(choices) == [accuracy.score(choice).top1 for choice in choices]
