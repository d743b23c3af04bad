"""Optimisers, learning rates and averaged weights."""

import math

import pytest
import torch
from torch import nn

from tests.conftest import rng
from utils.config import OptimState
from utils.optim import Schedule, make_optimizer, moving_average


def test_the_cosine_falls_over_the_epochs_and_stays_down():
    schedule = Schedule("cosine", 0.064, epochs=10, steps_per_epoch=5)
    assert schedule.at(0) == 0.064
    assert schedule.at(25) == pytest.approx(0.032)
    assert schedule.at(10) == pytest.approx(0.064 * 0.5 * (1 + math.cos(math.pi / 5)))
    assert schedule.at(50) == schedule.at(99) == pytest.approx(0)


def test_the_step_schedule_decays_every_step_size_epochs():
    schedule = Schedule("step", 1.0, epochs=10, steps_per_epoch=5, step_size=3, decay_ratio=0.1)
    rates = [schedule.at(epoch * 5 + 4) for epoch in (0, 2, 3, 6)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.01])


def test_the_learning_rate_warms_up_linearly():
    schedule = Schedule("constant", 1.0, epochs=1, steps_per_epoch=10, warmup_steps=4)
    assert [schedule.at(step) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_optimisers_get_their_numbers():
    parameters = [nn.Parameter(torch.ones(1))]
    sgd = make_optimizer(parameters, OptimState("sgd", 0.1, 0.8, 0.01)).defaults
    assert (sgd["lr"], sgd["momentum"], sgd["weight_decay"]) == (0.1, 0.8, 0.01)
    adam = make_optimizer(parameters, OptimState("adam", 0.1, beta=0.5)).defaults
    assert adam["betas"] == (0.5, 0.999)


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
    found = torch.cat([average.module[0].weight.flatten(), average.module[1].running_mean])
    torch.testing.assert_close(found, naive)
    assert int(average.module[1].num_batches_tracked) == 20
