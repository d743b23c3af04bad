"""The parts of training that have known answers: losses, gradients, targets, mixed images."""

import math

import pytest
import torch

from model.costs.lookup_table import HardwareLoss
from model.sgnas.generator_training import expected, straight_through, training_targets
from model.training.from_scratch import mixup
from tests.conftest import rng
from utils.config import load_config
from utils.runtime import seed_global, stream


def test_the_hardware_loss_is_the_published_one():
    loss = HardwareLoss(alpha=0.0003, penalty=1.2, tolerance=0.1)
    costs, targets = torch.tensor([110.0, 90.0, 100.05, 100.0]), torch.full((4,), 100.0)
    torch.testing.assert_close(
        loss(costs, targets), torch.tensor([0.0003 * 1.2 * 100, 0.0003 * 100, 0.0, 0.0])
    )


def test_the_unit_of_the_hardware_loss_scales_a_small_space():
    small = HardwareLoss(tolerance=0.0025, unit=0.025)
    torch.testing.assert_close(
        small(torch.tensor([2.75]), torch.tensor([2.5])),
        HardwareLoss()(torch.tensor([110.0]), torch.tensor([100.0])),
    )


def test_a_relative_hardware_loss_weighs_shares_of_the_target():
    loss = HardwareLoss(alpha=100, penalty=1.0, tolerance=0.0, relative=True)
    torch.testing.assert_close(
        loss(torch.tensor([9.0, 90.0]), torch.tensor([10.0, 100.0])), torch.tensor([1.0, 1.0])
    )


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    soft = torch.tensor([0.2, 0.8], requires_grad=True)
    result = straight_through(torch.tensor([0.0, 1.0]), soft)
    assert result.tolist() == pytest.approx([0.0, 1.0])
    (result * torch.tensor([3.0, 5.0])).sum().backward()
    assert soft.grad.tolist() == [3.0, 5.0]


def test_sampled_losses_have_their_mean_and_the_gradient_of_reinforce():
    losses = torch.tensor([1.0, 2.0, 6.0, 3.0])
    likelihoods = torch.tensor([-1.0, -2.0, -0.5, -3.0], requires_grad=True)
    value = expected(losses, likelihoods)
    value.backward()
    worse = [loss - (12 - loss) / 3 for loss in (1.0, 2.0, 6.0, 3.0)]
    deviation = math.sqrt(sum((w - sum(worse) / 4) ** 2 for w in worse) / 3)
    assert float(value.detach()) == 3.0
    assert likelihoods.grad.tolist() == pytest.approx([w / deviation / 4 for w in worse], rel=1e-2)


def test_sampled_losses_lead_to_the_best_choice():
    """Though one choice is a hundred times worse than the others differ by."""
    logits, of_choice = torch.zeros(4, requires_grad=True), torch.tensor([1.01, 1.0, 1.02, 3.0])
    optimizer, drawn = torch.optim.Adam([logits], 0.02), rng()
    for _ in range(400):
        choices = torch.multinomial(logits.detach().softmax(0), 8, True, generator=drawn)
        optimizer.zero_grad()
        expected(of_choice[choices], logits.log_softmax(0)[choices]).backward()
        optimizer.step()
    assert int(logits.argmax()) == 1


def test_targets_are_all_multiples_in_shuffled_rounds_with_jitter(tiny_config):
    settings = ["low_flops=0.102", "high_flops=0.2", "target_step=0.01", "target_jitter=0.001"]
    config = load_config(tiny_config, settings)
    targets = training_targets(config, 21, rng()).double()
    marks = [0.11 + 0.01 * i for i in range(9)]
    for drawn in (targets[:9], targets[9:18]):
        assert (
            drawn.sort().values - torch.tensor(marks, dtype=torch.float64)
        ).abs().max() <= 0.001 + 1e-6
    assert not targets[:9].equal(targets[9:18])
    assert len(targets) == 21


def test_mixup_gives_the_shares_of_the_images_to_the_labels():
    images, labels = torch.eye(4)[:, :, None, None], torch.arange(4)  # pixel k of image k is 1
    seed_global(stream(0, "mixup"))
    mixed_images, mixed_labels = mixup(alpha=1.0, classes=4)(images, labels)
    torch.testing.assert_close(mixed_images[:, :, 0, 0], mixed_labels)
    assert 0.01 < float(mixed_labels[0, 0]) < 0.99
