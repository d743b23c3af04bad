"""Parts of generator training that have known answers: targets, gradients, sampled losses."""

import math

import pytest
import torch
from torch.nn import functional as F

from model.costs.lookup_table import LookUpTable
from model.sgnas.generator_training import (
    GeneratorRecipe,
    GeneratorTraining,
    expected,
    straight_through,
)
from model.sgnas.hardware_loss import HardwareLoss
from model.sgnas.prior_pool import PriorPool
from model.spaces.unified.soft_supernet import SoftSupernet
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import mixed_space, rng
from tests.support import CPU, NOWHERE
from utils.config import load_config


def test_targets_are_all_multiples_in_shuffled_rounds_with_jitter(tiny_config):
    settings = ["low_flops=0.102", "high_flops=0.2", "target_step=0.01", "target_jitter=0.001"]
    recipe = load_config(tiny_config, settings).part(GeneratorRecipe)
    targets = recipe.targets(21, rng()).double()
    marks = torch.tensor([0.11 + 0.01 * i for i in range(9)], dtype=torch.float64)
    for drawn in (targets[:9], targets[9:18]):
        assert (drawn.sort().values - marks).abs().max() <= 0.001 + 1e-6
    assert not targets[:9].equal(targets[9:18])
    assert len(targets) == 21


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


@pytest.mark.parametrize("override", ["sampled_paths=0", "sampled_paths=2"])
def test_a_step_pays_for_images_and_for_missed_targets(tiny_config, override):
    config, space = load_config(tiny_config, [override, "logit_decay=0.5"]), mixed_space()
    table, paths = LookUpTable(space), space.sample(2, rng())
    pool, loss = PriorPool(table(paths), paths), HardwareLoss(cost_unit=0.001, cost_tolerance=0.0)
    supernet, recipe = UnifiedSupernet(space, rng()).eval(), config.part(GeneratorRecipe)
    soft, context = SoftSupernet(supernet), (CPU, NOWHERE)
    training = GeneratorTraining(soft, pool, table, loss, 1, recipe, *context)
    images, labels = torch.randn(4, 3, 12, 12, generator=rng()), torch.arange(4)
    targets = table(paths)
    found, numbers = training.losses(images, labels, targets, 1.0, rng(1))

    logits = training.generator(pool.nearest(targets), targets)
    drawn = rng(1)
    relaxed = space.relax(logits, 1.0, drawn)
    seen = relaxed[:1]
    if config.sampled_paths:
        seen = space.discretize(space.relax(logits[:1].expand(2, -1, -1, -1), 1.0, drawn))
    smooth = {"label_smoothing": recipe.label_smoothing}
    passed = [F.cross_entropy(soft(images, path), labels, **smooth) for path in seen]
    whole = sum(passed) / len(passed) + loss(table(relaxed), targets).mean()
    whole = whole + 0.5 * logits.square().mean()
    torch.testing.assert_close(found, whole)
    assert numbers["target"] == pytest.approx(float(targets[0]))
    found.backward()
    assert all(p.grad is not None for p in training.generator.parameters())
