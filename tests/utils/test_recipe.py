"""An epoch of training: gradients that add up, and a middle at which it resumes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.training.from_scratch import mixup
from tests.conftest import rng
from tests.support import Batches, recipe_of, trained
from utils.errors import UserError
from utils.images import ImageData
from utils.loader import Augmentation, MemoryLoader, Normalisation
from utils.recipe import EpochMeter, check_finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_nan_or_infinite_stops_with_its_step(value, tmp_path):
    says = f"warm-up 1/2: the loss is {value} at step 7; there is no checkpoint yet"
    with pytest.raises(UserError, match=says):
        check_finite(value, "warm-up 1/2", 7, tmp_path / "last.pth")
    (tmp_path / "last.pth").touch()
    with pytest.raises(UserError, match=r"last\.pth is the last good checkpoint; try a lower lr"):
        check_finite(value, "warm-up 1/2", 7, tmp_path / "last.pth")


def test_labels_may_be_probabilities():
    network = nn.Linear(2, 3)
    images, labels = torch.randn(4, 2, 1, 1, generator=rng()), torch.tensor([0, 1, 2, 2])

    def forwards(x, y, _):
        return [(network(x.flatten(1)), y)]

    one, other = (
        trained(forwards, Batches([(images, given)]), recipe_of(network))
        for given in (labels, F.one_hot(labels, 3).float())
    )
    assert (one.loss, one.top1) == pytest.approx((other.loss, other.top1), abs=1e-5)


def test_an_epoch_resumes_in_its_middle_to_the_same_bits():
    pixels = torch.randint(256, (40, 3, 8, 8), generator=rng()).to(torch.uint8)
    data = ImageData(pixels, torch.arange(40) % 4)
    augment = Augmentation(2, True, autoaugment=True, cutout=2)
    batches = MemoryLoader(data, 8, Normalisation((0.5,) * 3, (0.5,) * 3), augment, seed=1)
    weights, meters = [], []
    for stops in ((), (0,), (1, 3, 4)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))
        recipe, meter = recipe_of(network, lr=0.1, mix=mixup(0.2, 4)), EpochMeter()

        def forwards(images, labels, drawn, network=network):
            yield network(images) * torch.rand((), generator=drawn), labels

        for stop in (*stops, 5):
            ahead = Batches(list(batches.epoch(3))[:stop])
            for (images, _), (same, _) in zip(ahead[2:], batches.epoch(3, 2), strict=False):
                assert images.equal(same)
            torch.manual_seed(99)  # whatever happens between two sessions
            trained(forwards, ahead, recipe, 3, meter)
        weights.append(network[2].weight.detach().clone())
        meters.append(meter)
    assert weights[0].equal(weights[1])
    assert weights[0].equal(weights[2])
    assert meters[0] == meters[1] == meters[2]
