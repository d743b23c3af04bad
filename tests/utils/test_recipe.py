"""An epoch of training: gradients that add up, and a middle at which it resumes."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.sgnas.warm_up import path_logits
from model.spaces.unified.supernet import UnifiedSupernet
from model.training.from_scratch import mixup
from tests.conftest import mixed_space, rng
from utils.config import OptimState
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.images import ImageData
from utils.loader import Augmentation, MemoryLoader, Normalisation
from utils.optim import Schedule, make_optimizer
from utils.recipe import EpochMeter, Recipe, check_finite, train_epoch
from utils.runtime import Progress, stream

CPU = DeviceContext(torch.device("cpu"))
NOWHERE = Path("none.pth")


class Batches(list):
    """A list of batches as a loader."""

    def epoch(self, epoch: int = 0, first: int = 0, every: int = 1):
        return iter(self[first::every])


def recipe_of(network, criterion=None, lr=1e-9, **options) -> Recipe:
    state = OptimState(lr=lr, momentum=0.0, weight_decay=0.0)
    optimizer, schedule = (
        make_optimizer(network.parameters(), state),
        Schedule("constant", lr, 1, 1),
    )
    criterion = criterion or nn.CrossEntropyLoss()
    return Recipe(criterion, optimizer, schedule, CPU, (0, "test"), NOWHERE, **options)


def trained(network, forwards, batches, recipe, epoch=0, meter=None) -> EpochMeter:
    meter = meter or EpochMeter()
    with Progress("test", len(batches)) as progress:
        train_epoch(forwards, recipe, batches, epoch, meter, progress)
    return meter


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_nan_or_infinite_stops_with_its_step(value, tmp_path):
    says = f"warm-up 1/2: the loss is {value} at step 7; there is no checkpoint yet"
    with pytest.raises(UserError, match=says):
        check_finite(value, "warm-up 1/2", 7, tmp_path / "last.pth")
    (tmp_path / "last.pth").touch()
    with pytest.raises(UserError, match=r"last\.pth is the last good checkpoint; try a lower lr"):
        check_finite(value, "warm-up 1/2", 7, tmp_path / "last.pth")


def test_the_gradients_of_all_paths_add_up_though_the_stem_is_computed_once():
    space = mixed_space()
    together, alone = UnifiedSupernet(space).double(), UnifiedSupernet(space).double()
    images, labels = torch.randn(6, 3, 12, 12, generator=rng()).double(), torch.arange(6)
    criterion = nn.CrossEntropyLoss()
    forwards = partial(path_logits, together, 3, CPU)
    means = trained(together, forwards, Batches([(images, labels)]), recipe_of(together))
    paths = space.sample_fair(3, stream(0, "test", 0, 0))
    losses = [criterion(alone(images, path), labels) for path in paths]
    sum(losses).backward()
    assert means.loss == pytest.approx(float(sum(losses).detach()) / 3, rel=1e-4)
    for (name, one), other in zip(together.named_parameters(), alone.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-8, rtol=1e-6, msg=name)


def test_labels_may_be_probabilities():
    network = nn.Linear(2, 3)
    images, labels = torch.randn(4, 2, 1, 1, generator=rng()), torch.tensor([0, 1, 2, 2])

    def forwards(x, y, _):
        return [(network(x.flatten(1)), y)]

    one, other = (
        trained(network, forwards, Batches([(images, given)]), recipe_of(network))
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
            trained(network, forwards, ahead, recipe, 3, meter)
        weights.append(network[2].weight.detach().clone())
        meters.append(meter)
    assert weights[0].equal(weights[1])
    assert weights[0].equal(weights[2])
    assert meters[0] == meters[1] == meters[2]
