"""Repair: the demand is met, by the fewest changes, where the generator was least sure."""

import itertools

import pytest
import torch

from model.costs.lookup_table import LookUpTable
from model.sgnas.repair import Demand, repair
from model.spaces.paths import Architecture
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from tests.conftest import rng


def toy() -> tuple[UnifiedSpace, LookUpTable]:
    layers = (LayerSpec(4, 4, 1, 3, (3, 5)), LayerSpec(4, 6, 2, 2, (3, 5, 7)))
    space = UnifiedSpace(layers, 8, 2, stem_stride=1, first_channels=4, min_expansion=1)
    return space, LookUpTable(space)


def legal_paths(space):
    options = ((*spec.kernels, None) for spec in space.layers)
    counts = (spec.expansion for spec in space.layers)
    rows = [itertools.product(row, repeat=n) for row, n in zip(options, counts, strict=True)]
    legal = [pair for pair in itertools.product(*rows) if pair[0][0] and pair[1][0]]
    return torch.stack([space.encode(Architecture(pair)) for pair in legal])


def test_repair_finds_the_fewest_changes_of_least_regret():
    space, table = toy()
    every = legal_paths(space)
    costs = table(every)
    for seed in range(12):
        logits = torch.randn(space.shape, generator=rng(seed))
        path = space.discretize(logits)
        demand = Demand(float(costs[torch.randint(len(every), (), generator=rng(seed))]))
        found, met = repair(table, logits, path, demand, width=10_000)
        assert met
        reach = every[demand.miss(table, every) == 0]
        changes = (reach != path).any(dim=-1).sum(dim=(1, 2))
        regret = (logits * (path - reach)).sum(dim=(1, 2, 3))
        least = float(regret[changes == changes.min()].min())
        assert int((found != path).any(dim=-1).sum()) == int(changes.min())
        assert float((logits * (path - found)).sum()) == pytest.approx(least, abs=1e-5)


def test_what_meets_its_demand_stays():
    space, table = toy()
    path = space.sample(1, rng())[0]
    found, met = repair(table, torch.zeros(space.shape), path, Demand(float(table(path))))
    assert met
    assert found.equal(path)


def test_a_demand_that_nothing_meets_is_said_to_be_unmet():
    space, table = toy()
    path = space.sample(1, rng())[0]
    _, met = repair(table, torch.zeros(space.shape), path, Demand(100 * float(table(path))))
    assert not met


def test_ceilings_on_cost_and_parameters_hold_together(cifar_space):
    table = LookUpTable(cifar_space)
    path = cifar_space.sample(1, rng(3))[0]
    cost, parameters = float(table(path)), float(table.parameters_m(path))
    demand = Demand(0.9 * cost, at_most=True, max_params=0.95 * parameters)
    logits = torch.randn(cifar_space.shape, generator=rng())
    found, met = repair(table, logits, path, demand, width=8)
    assert met
    assert float(table(found)) <= 0.9 * cost
    assert float(table.parameters_m(found)) <= 0.95 * parameters


@pytest.mark.slow
def test_random_answers_in_the_published_space_are_repaired_to_half_a_percent(cifar_space):
    table = LookUpTable(cifar_space)
    for seed, target in enumerate((80.0, 97.3, 120.0)):
        logits = torch.randn(cifar_space.shape, generator=rng(seed))
        found, met = repair(table, logits, cifar_space.discretize(logits), Demand(target), width=8)
        assert met
        assert abs(float(table(found)) / target - 1) <= 0.005 + 1e-6
