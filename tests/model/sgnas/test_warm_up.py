"""Supernet warm-up: the passes of its steps, and where its training stands."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from model.costs.lookup_table import LookUpTable
from model.sgnas.warm_up import ComplexityAwareRate, WarmUp, WarmUpRecipe
from model.spaces.nasbench_macro.benchmark_table import BlockTable
from model.spaces.nasbench_macro.space import BlockSpace
from model.spaces.nasbench_macro.supernet import BlockSupernet
from model.spaces.registry import KINDS, Problem
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import mixed_space, rng
from tests.support import CPU, NOWHERE, Batches, recipe_of, trained
from utils.config import load_config
from utils.optim import Schedule
from utils.runtime import Progress, stream

UNIFIED = KINDS["unified"]
PROBLEM = Problem(mixed_space(), LookUpTable(mixed_space()))


def test_the_gradients_of_all_paths_add_up_though_the_stem_is_computed_once():
    space, criterion = mixed_space(), nn.CrossEntropyLoss()
    together, alone = UnifiedSupernet(space).double(), UnifiedSupernet(space).double()
    images, labels = torch.randn(6, 3, 12, 12, generator=rng()).double(), torch.arange(6)

    def forwards(images, labels, rng):
        return UNIFIED.passes(together, space.sample_fair(3, rng), CPU, images, labels)

    means = trained(forwards, Batches([(images, labels)]), recipe_of(together))
    paths = space.sample_fair(3, stream(0, "test", 0, 0))
    losses = [criterion(alone(images, path), labels) for path in paths]
    sum(losses).backward()
    assert means.loss == pytest.approx(float(sum(losses).detach()) / 3, rel=1e-4)
    for (name, one), other in zip(together.named_parameters(), alone.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-8, rtol=1e-6, msg=name)


def test_paths_are_drawn_fairly_or_uniformly():
    space, images, labels = mixed_space(), torch.randn(4, 3, 12, 12), torch.arange(4)
    supernet = UnifiedSupernet(space).eval()
    for sampling, sample in (("fair", space.sample_fair), ("uniform", space.sample)):
        drawn = UNIFIED.step_choices(space, 3, sampling, rng(1))
        passes = list(UNIFIED.passes(supernet, drawn, CPU, images, labels))
        paths = sample(3, rng(1))
        assert all(targets is labels for _, targets in passes)
        for (logits, _), path in zip(passes, paths, strict=True):
            assert logits.equal(supernet(images, path))


def test_a_warm_up_resumes_to_the_same_bits(tiny_config):
    """In the middle of an epoch, from what a checkpoint holds."""
    recipe = load_config(tiny_config).part(WarmUpRecipe)
    images = [torch.randn(8, 3, 12, 12, generator=rng(seed)) for seed in range(4)]
    batches = Batches([(one, torch.arange(8) % 7) for one in images])

    def started() -> WarmUp:
        supernet = UnifiedSupernet(mixed_space(), rng())
        return WarmUp(PROBLEM, supernet, 4, recipe, CPU, NOWHERE)

    def train(warm_up: WarmUp, stop: int) -> None:
        with Progress("test", stop) as progress:
            warm_up.epoch(Batches(batches[:stop]), 0, progress)

    unbroken, stopped, resumed = started(), started(), started()
    train(unbroken, 4)
    train(stopped, 2)
    resumed.load_state(stopped.state())
    train(resumed, 4)
    assert resumed.meter == unbroken.meter
    for name, value in unbroken.supernet.state_dict().items():
        assert value.equal(resumed.supernet.state_dict()[name]), name


# -- complexity-aware learning rates -------------------------------------------------------------


def test_exponents_are_3_for_the_smallest_and_a_third_for_the_largest_network():
    """And linear in log P between; the reference is the formula, a network at a time."""
    table, space = PROBLEM.table, PROBLEM.space
    rate = ComplexityAwareRate.of(table, 0.1)
    paths = torch.cat([space.extremes(), space.sample(20, rng())])
    sizes = [math.log(float(table.parameters_m(path))) for path in paths]
    least, most = sizes[0], sizes[1]
    expected = [3 - (size - least) / (most - least) * (3 - 1 / 3) for size in sizes]
    np.testing.assert_allclose(rate.exponents(paths), np.clip(expected, 1 / 3, 3), rtol=1e-6)
    assert rate.exponents(paths)[:2] == pytest.approx([3, 1 / 3])


def test_a_step_takes_the_published_rate_of_what_it_samples():
    """lr_0 (1 - t / T) ** g(P) with a linear schedule; the mean where a step has two networks."""
    rate, space = ComplexityAwareRate.of(PROBLEM.table, 0.2), PROBLEM.space
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    smallest, largest = space.extremes()
    for paths, exponents in (
        (smallest[None], [3]),
        (largest[None], [1 / 3]),
        (space.extremes(), [3, 1 / 3]),
    ):
        Schedule("linear", 0.2, 10, 4).apply(optimizer, 30)  # a quarter is left
        rate.apply(optimizer, paths)
        expected = 0.2 * sum(0.25**g for g in exponents) / len(exponents)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize("by_complexity", [False, True])
def test_the_rate_of_a_warm_up_depends_on_complexity_where_it_is_asked(tiny_config, by_complexity):
    """All paths of the last step are those that were drawn for it."""
    given = ["paths_per_step=1", "lr_scheduler=linear", "epochs=1", "warmup_epochs=1"]
    config = load_config(tiny_config, [*given, f"lr_by_complexity={str(by_complexity).lower()}"])
    recipe = config.part(WarmUpRecipe)
    warm_up = WarmUp(PROBLEM, UnifiedSupernet(mixed_space(), rng()), 2, recipe, CPU, NOWHERE)
    images = [torch.randn(8, 3, 12, 12, generator=rng(seed)) for seed in range(2)]
    with Progress("test", 2) as progress:
        warm_up.epoch(Batches([(one, torch.arange(8) % 7) for one in images]), 0, progress)
    used = warm_up.recipe.optimizer.param_groups[0]["lr"]
    [path] = PROBLEM.space.sample_fair(1, stream(recipe.seed, "warm-up", 0, 1))
    g = float(ComplexityAwareRate.of(PROBLEM.table, 1.0).exponents(path[None])[0])
    assert used == pytest.approx(recipe.optim_state.lr * 0.5 ** (g if by_complexity else 1))


@pytest.mark.parametrize("used_only", [False, True])
def test_a_step_moves_what_its_path_uses_and_the_rest_only_as_published(tiny_config, used_only):
    """Momentum and decay move weights that no path of the step uses, unless they are left alone."""
    one_path = ["paths_per_step=1", "path_sampling=uniform", "lr_warmup_steps=0"]
    given = [*one_path, f"step_used_only={str(used_only).lower()}"]
    recipe = load_config(tiny_config, given).part(WarmUpRecipe)
    space = BlockSpace(image_size=16, widths=(8, 12), depths=(1, 3), strides=(2, 2), classes=7)
    problem = Problem(space, BlockTable({}))
    supernet, other = BlockSupernet(space, rng()), BlockSupernet(space, rng())
    warm_up = WarmUp(problem, supernet, 1, recipe, CPU, NOWHERE)
    images, labels = torch.randn(8, 3, 12, 12, generator=rng(0)), torch.arange(8) % 7
    with Progress("test", 1) as progress:
        warm_up.epoch(Batches([(images, labels)]), 0, progress)

    [path] = space.sample(1, stream(recipe.seed, "warm-up", 0, 0))
    nn.functional.cross_entropy(other(images, path), labels).backward()
    used = set()
    for (name, new), old in zip(supernet.named_parameters(), other.parameters(), strict=True):
        if old.grad is not None:
            used.add(name)
        moves = old.grad is not None or (not used_only and bool(old.any()))  # zeros do not decay
        assert new.equal(old) != moves, name
    assert 0 < len(used) < len(list(other.parameters()))
