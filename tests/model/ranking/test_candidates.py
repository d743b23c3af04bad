"""Candidates of an evolutionary search: their images, their scores, their fine-tuning."""

from dataclasses import replace

import pytest
import torch

from model.ranking.candidates import CandidateAccuracy, CandidateImages, FineTuning
from model.ranking.supernet_accuracy import SupernetAccuracy
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.registry import KINDS
from tests.conftest import rng
from tests.support import CPU, SMALL_ELASTIC
from utils.data import load_dataset, split_for_search
from utils.loader import Normalisation, loader

NORMALISE = Normalisation((0.3, 0.3, 0.3), (0.37, 0.37, 0.37))
ELASTIC = KINDS["elastic"]


pytestmark = pytest.mark.usefixtures("full_searches")


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", "", 20, 10)


@pytest.fixture(scope="module")
def supernet() -> ElasticSupernet:
    return ElasticSupernet(replace(SMALL_ELASTIC, classes=10), rng()).eval()


def test_training_images_and_validation_images_are_disjoint(digits):
    count = len(digits.train.labels)
    images = CandidateImages.split(digits.train, 60)
    assert len(images.validate.labels) == 60
    assert len(images.train.labels) == count - 60
    rest = sorted(set(range(count)) - set(images.validated))
    assert images.train.images.equal(digits.train.images[rest])
    assert images.validate.images.equal(digits.train.images[images.validated])
    assert len(images.norms.labels) == min(2000, count - 60)
    parts = split_for_search(digits, 0.8, 0)
    images = CandidateImages.of_search(parts, 60)
    assert images.train is parts.train
    assert images.validate.labels.equal(parts.held_out.labels[images.validated])


@pytest.mark.slow
def test_without_fine_tuning_it_is_the_accuracy_on_the_supernet(digits, supernet):
    images = CandidateImages.split(digits.train, 60)
    images = replace(images, norms=images.norms.subset(torch.arange(200)))
    accuracy = CandidateAccuracy(ELASTIC, supernet, images, NORMALISE, CPU)
    batches = loader(images.validate, 200, NORMALISE), loader(images.norms, 100, NORMALISE)
    expected = SupernetAccuracy(ELASTIC, supernet, *batches, CPU)
    for genes in supernet.space.extremes():
        size = supernet.space.decode(genes).r
        assert accuracy.score(genes, size) == expected.score(genes)


@pytest.mark.slow
def test_fine_tuning_learns_from_a_fresh_classifier_and_leaves_the_supernet(digits, supernet):
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    images = CandidateImages.split(digits.train, 100)
    images = replace(images, norms=images.norms.subset(torch.arange(200)))
    tuning = FineTuning(epochs=3, lr=0.1, batch_size=16, classes=10)
    accuracy = CandidateAccuracy(ELASTIC, supernet, images, NORMALISE, CPU, tuning=tuning)
    genes = supernet.space.extremes()[0]
    tuned = accuracy.score(genes, 16, "one")
    assert tuned.top1 > 50
    shorter = replace(tuning, epochs=1, batch_size=128)
    accuracy = CandidateAccuracy(ELASTIC, supernet, images, NORMALISE, CPU, tuning=shorter)
    first = accuracy.score(genes, 16, "one")
    assert accuracy.score(genes, 16, "one") == first, "the same name, the same random numbers"
    assert accuracy.score(genes, 16, "other") != first
    assert all(value.equal(before[name]) for name, value in supernet.state_dict().items())
