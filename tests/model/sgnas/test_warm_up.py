"""Supernet warm-up: the passes of its steps, and where its training stands."""

from functools import partial

import pytest
import torch
from torch import nn

from model.sgnas.warm_up import WarmUp, WarmUpRecipe
from model.spaces.registry import KINDS
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import mixed_space, rng
from tests.support import CPU, NOWHERE, Batches, recipe_of, trained
from utils.config import load_config
from utils.runtime import Progress, stream

UNIFIED = KINDS["unified"]


def test_the_gradients_of_all_paths_add_up_though_the_stem_is_computed_once():
    space, criterion = mixed_space(), nn.CrossEntropyLoss()
    together, alone = UnifiedSupernet(space).double(), UnifiedSupernet(space).double()
    images, labels = torch.randn(6, 3, 12, 12, generator=rng()).double(), torch.arange(6)
    forwards = partial(UNIFIED.passes, together, 3, "fair", CPU)
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
        passes = list(UNIFIED.passes(supernet, 3, sampling, CPU, images, labels, rng(1)))
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
        return WarmUp(UNIFIED, supernet, 4, recipe, CPU, NOWHERE)

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
