"""The parts of training that have known answers: schedules, losses, targets, scores, gradients that
add up.
"""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.ranking.bn_recalibration import recalibrated
from model.sgnas.generator_training import expected, straight_through, training_targets
from model.sgnas.hardware_loss import HardwareLoss
from model.sgnas.warm_up import path_logits
from model.spaces.unified.supernet import UnifiedSupernet
from model.training.from_scratch import mixup
from tests.conftest import mixed_space, rng
from utils.config import OptimState, load_config
from utils.engine import DeviceContext, evaluate
from utils.errors import UserError
from utils.images import ImageData
from utils.loader import Augmentation, MemoryLoader, Normalisation
from utils.optim import Schedule, make_optimizer, moving_average
from utils.recipe import EpochMeter, Recipe, check_finite, train_epoch
from utils.runtime import Progress, seed_global, stream

CPU = DeviceContext(torch.device("cpu"))
NOWHERE = Path("none.pth")


class Batches(list):
    """A list of batches as a loader."""

    def epoch(self, epoch: int = 0, first: int = 0, every: int = 1):
        return iter(self[first::every])


def recipe_of(network, criterion=None, lr=1e-9, **options) -> Recipe:
    optimizer = make_optimizer(
        network.parameters(), OptimState(lr=lr, momentum=0.0, weight_decay=0.0)
    )
    schedule = Schedule("constant", lr, 1, 1)
    return Recipe(
        criterion or nn.CrossEntropyLoss(),
        optimizer,
        schedule,
        CPU,
        (0, "test"),
        NOWHERE,
        **options,
    )


def trained(network, forwards, batches, recipe, epoch=0, meter=None) -> EpochMeter:
    meter = meter or EpochMeter()
    with Progress("test", len(batches)) as progress:
        train_epoch(forwards, recipe, batches, epoch, meter, progress)
    return meter


def test_the_hardware_loss_is_the_published_one():
    loss = HardwareLoss(alpha=0.0003, loss_penalty=1.2, cost_tolerance=0.1)
    costs, targets = torch.tensor([110.0, 90.0, 100.05, 100.0]), torch.full((4,), 100.0)
    torch.testing.assert_close(
        loss(costs, targets), torch.tensor([0.0003 * 1.2 * 100, 0.0003 * 100, 0.0, 0.0])
    )


def test_the_unit_of_the_hardware_loss_scales_a_small_space():
    small = HardwareLoss(cost_tolerance=0.0025, cost_unit=0.025)
    torch.testing.assert_close(
        small(torch.tensor([2.75]), torch.tensor([2.5])),
        HardwareLoss()(torch.tensor([110.0]), torch.tensor([100.0])),
    )


def test_a_relative_hardware_loss_weighs_shares_of_the_target():
    loss = HardwareLoss(alpha=100, loss_penalty=1.0, cost_tolerance=0.0, hardware_loss="relative")
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


def test_the_cosine_falls_over_the_epochs_and_stays_down():
    schedule = Schedule("cosine", 0.064, epochs=10, steps_per_epoch=5)
    assert schedule.at(0) == 0.064
    assert schedule.at(25) == pytest.approx(0.032)
    assert schedule.at(10) == pytest.approx(0.064 * 0.5 * (1 + math.cos(math.pi / 5)))
    assert schedule.at(50) == schedule.at(99) == pytest.approx(0)


def test_the_step_schedule_decays_every_step_size_epochs():
    schedule = Schedule("step", 1.0, epochs=10, steps_per_epoch=5, step_size=3, decay_ratio=0.1)
    assert [schedule.at(epoch * 5 + 4) for epoch in (0, 2, 3, 6)] == pytest.approx(
        [1.0, 1.0, 0.1, 0.01]
    )


def test_the_learning_rate_warms_up_linearly():
    schedule = Schedule("constant", 1.0, epochs=1, steps_per_epoch=10, warmup_steps=4)
    assert [schedule.at(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_optimisers_get_their_numbers():
    parameters = [nn.Parameter(torch.ones(1))]
    sgd = make_optimizer(parameters, OptimState("sgd", 0.1, 0.8, 0.01)).defaults
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (0.1, 0.8, 0.01)
    assert make_optimizer(parameters, OptimState("adam", 0.1, beta=0.5)).defaults["betas"] == (
        0.5,
        0.999,
    )


def test_a_score_counts_right():
    logits = torch.eye(10)[[0, 1, 2, 3]] + torch.linspace(0.09, 0, 10)
    labels = torch.tensor([0, 1, 9, 4])  # right, right, last, among the first five
    score = evaluate(
        lambda images: images.flatten(1), Batches([(logits.view(4, 10, 1, 1), labels)]), CPU
    )
    assert (score.top1, score.top5, score.images) == (50.0, 75.0, 4)
    assert score.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_its_step(value, tmp_path):
    with pytest.raises(
        UserError, match=f"warm-up 1/2: the loss is {value} at step 7; there is no checkpoint yet"
    ):
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
    losses = [
        criterion(alone(images, path), labels)
        for path in space.sample_fair(3, stream(0, "test", 0, 0))
    ]
    sum(losses).backward()
    assert means.loss == pytest.approx(float(sum(losses).detach()) / 3, rel=1e-4)
    for (name, one), other in zip(together.named_parameters(), alone.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-8, rtol=1e-6, msg=name)


def test_labels_may_be_probabilities():
    network = nn.Linear(2, 3)
    images, labels = torch.randn(4, 2, 1, 1, generator=rng()), torch.tensor([0, 1, 2, 2])
    tallies = [
        trained(
            network,
            lambda x, y, _: [(network(x.flatten(1)), y)],
            Batches([(images, given)]),
            recipe_of(network),
        )
        for given in (labels, F.one_hot(labels, 3).float())
    ]
    assert (tallies[0].loss, tallies[0].top1) == pytest.approx(
        (tallies[1].loss, tallies[1].top1), abs=1e-5
    )


def test_an_epoch_goes_on_in_its_middle_to_the_same_bits():
    data = ImageData(
        torch.randint(256, (40, 3, 8, 8), generator=rng()).to(torch.uint8), torch.arange(40) % 4
    )
    augment = Augmentation(2, True, autoaugment=True, cutout=2)
    batches = MemoryLoader(data, 8, Normalisation((0.5,) * 3, (0.5,) * 3), augment, seed=1)
    weights, tallies = [], []
    for stops in ((), (0,), (1, 3, 4)):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 4))
        recipe, meter = recipe_of(network, lr=0.1, mix=mixup(0.2, 4)), EpochMeter()

        def forwards(images, labels, drawn, network=network):
            yield network(images) * torch.rand((), generator=drawn), labels

        for stop in (*stops, 5):
            ahead = Batches(list(batches.epoch(3))[:stop])
            assert all(
                one[0].equal(other[0])
                for one, other in zip(ahead[2:], batches.epoch(3, 2), strict=False)
            )
            torch.manual_seed(99)  # whatever happens between two sittings
            trained(network, forwards, ahead, recipe, 3, meter)
        weights.append(network[2].weight.detach().clone())
        tallies.append(meter)
    assert weights[0].equal(weights[1])
    assert weights[0].equal(weights[2])
    assert tallies[0] == tallies[1] == tallies[2]


def test_a_moving_average_without_decay_is_a_copy_and_with_decay_lags():
    network = nn.Linear(1, 1, bias=False)
    lagging, copy = moving_average(network, 0.9), moving_average(network, 0.0)
    optimizer = torch.optim.Adam(network.parameters(), 1.0)
    for _ in range(100):
        optimizer.zero_grad()
        network.weight.sum().backward()
        optimizer.step()
        lagging.update_parameters(network)
        copy.update_parameters(network)
    lag = float(lagging.module.weight.detach()) - float(network.weight.detach())
    assert lag == pytest.approx(9, abs=0.5)  # 0.9 / 0.1 steps
    assert copy.module.weight.equal(network.weight)


def test_a_moving_average_equals_the_naive_one_and_holds_batch_norm_statistics():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average, naive = moving_average(network, 0.9), None
    for step in range(20):
        network(torch.randn(8, 2, generator=rng(step)))
        with torch.no_grad():
            network[0].weight += 0.1
        average.update_parameters(network)
        now = torch.cat([network[0].weight.detach().flatten(), network[1].running_mean])
        keep = min(0.9, step / (step + 9))
        naive = now if naive is None else keep * naive + (1 - keep) * now
    torch.testing.assert_close(
        torch.cat([average.module[0].weight.flatten(), average.module[1].running_mean]), naive
    )
    assert int(average.module[1].num_batches_tracked) == 20


def test_random_streams_have_names():
    draws = [
        torch.rand(3, generator=stream(*names)).tolist()
        for names in ((1, "a"), (1, "a"), (1, "b"), (2, "a"))
    ]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]
    assert draws[0] != draws[3]


def test_mixup_gives_the_shares_of_the_images_to_the_labels():
    images, labels = torch.eye(4)[:, :, None, None], torch.arange(4)  # pixel k of image k is 1
    seed_global(stream(0, "mixup"))
    mixed_images, mixed_labels = mixup(alpha=1.0, classes=4)(images, labels)
    torch.testing.assert_close(mixed_images[:, :, 0, 0], mixed_labels)
    assert 0.01 < float(mixed_labels[0, 0]) < 0.99


def test_recalibration_gives_a_path_the_statistics_of_the_batches_and_then_the_old_ones():
    space = mixed_space()
    supernet, path = UnifiedSupernet(space).eval(), space.sample(1, rng())[0]
    images = torch.randn(8, 3, 12, 12, generator=rng())
    before = {
        name: buffer.clone() for name, buffer in supernet.named_buffers() if "running" in name
    }
    with recalibrated(supernet, lambda x: supernet(x, path), [(images, torch.zeros(8))] * 3, CPU):
        assert not supernet.training
        features = supernet.first.conv(images)
        torch.testing.assert_close(supernet.first.bn.running_mean, features.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(supernet.first.bn.running_var, features.var(dim=(0, 2, 3)))
        block = supernet.stages[0]
        moved = (block.expand_bn.running_mean != before["stages.0.expand_bn.running_mean"]).any(
            dim=1
        )
        assert moved.equal(path[0, : block.spec.expansion, -1] == 0)
    for name, buffer in supernet.named_buffers():
        if "running" in name:
            assert buffer.equal(before[name])
    assert all(m.momentum == 0.1 for m in supernet.modules() if hasattr(m, "running_mean"))


def test_without_batches_recalibration_changes_nothing():
    supernet = UnifiedSupernet(mixed_space()).eval()
    with recalibrated(supernet, lambda x: x, [], CPU):
        assert supernet.first.bn.running_mean.equal(torch.zeros(5))
