"""Unified spaces: layers, masks, the rules of sampling."""

import pytest
import torch

from model.spaces.paths import Architecture, PathSpace
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from tests.conftest import mixed_space, rng
from utils.errors import UserError


def test_a_unified_space_is_a_space_of_paths(cifar_space):
    assert isinstance(cifar_space, PathSpace)
    assert cifar_space.shape == (19, 6, 4)


def test_sampled_paths_keep_min_expansion(small_space):
    least = torch.tensor([spec.least_active(2) for spec in small_space.layers])
    assert (small_space.active(small_space.sample(200, rng())) >= least).all()


@pytest.mark.parametrize("fair", [False, True])
def test_sampling_reaches_every_legal_entry_and_no_other(small_space, fair):
    """A sub-block skips where its layer has more than its least number, or is not there at all."""
    sample = small_space.sample_fair if fair else small_space.sample
    seen = sample(600, rng()).any(dim=0)
    assert seen[..., :-1].equal(small_space.mask[..., :-1])
    for layer, spec in enumerate(small_space.layers):
        spare = spec.least_active(small_space.min_expansion) < spec.expansion
        skips = [spare] * spec.expansion + [True] * (len(seen[layer]) - spec.expansion)
        if not fair:  # the first one of a layer that may not vanish is active
            skips[0] = bool(spare and small_space.mask[layer, 0, -1])
        assert seen[layer, :, -1].tolist() == skips


def test_uniform_sampling_gives_each_choice_its_share(cifar_space):
    """Of six sub-blocks, 2 to 6 are active, each number as likely, and the first one always."""
    paths = cifar_space.sample(4000, rng())
    active = cifar_space.active(paths)
    for number in range(2, 7):
        assert (active == number).float().mean() == pytest.approx(1 / 5, abs=0.01)
    share = paths.mean(dim=0)  # of each choice [L, E, K]
    others = (4 + 3 + 2 + 1 + 0) / 5 / 5  # skip in the mean over those numbers
    for block in range(6):
        skips = others if block else 0.0
        assert (share[:, block, -1] - skips).abs().max() < 0.05
        assert (share[:, block, :-1] - (1 - skips) / 3).abs().max() < 0.05


def test_fair_sampling_repeats_no_expansion_before_all_have_come(cifar_space):
    for seed in range(5):
        # 5 possible numbers: two rounds
        active = cifar_space.active(cifar_space.sample_fair(10, rng(seed)))
        for half in (active[:5], active[5:]):
            assert half.sort(dim=0).values.equal(torch.arange(2.0, 7)[:, None].expand(5, 19))


def test_fair_sampling_repeats_no_kernel_before_all_have_come(small_space):
    paths = small_space.sample_fair(40, rng())
    for layer, spec in enumerate(small_space.layers):
        for block in range(spec.expansion):
            drawn = [int(p.argmax()) for p in paths[:, layer, block] if p[-1] == 0]
            size = len(spec.kernels)
            for start in range(0, len(drawn) - size + 1, size):
                assert len(set(drawn[start : start + size])) == size


def test_fair_sampling_activates_sub_blocks_uniformly(cifar_space):
    active = 1 - cifar_space.sample_fair(2000, rng())[..., -1]
    share = active.mean(dim=0)  # expansions 2..6 are equally likely: 4 of 6 on average
    assert (share - 4 / 6).abs().max() < 0.05


def test_the_first_sub_block_of_a_static_layer_may_not_skip(cifar_space):
    assert not cifar_space.mask[:, 0, -1].any()
    assert cifar_space.mask[:, 1:].all()


def test_a_layer_that_may_vanish_may():
    space, vanished = mixed_space(), Architecture.of([[3, 3, 3], [None] * 4, [3], [3, 3, 3, 3]])
    assert space.active(space.encode(vanished)).tolist() == [3, 0, 1, 4]


@pytest.mark.parametrize(
    "change",
    [
        {"kernels": (4,)},
        {"kernels": ()},
        {"kernels": (3, 3)},
        {"stride": 0},
        {"may_vanish": True, "stride": 2},
    ],
)
def test_an_impossible_layer_is_refused(change):
    keys = {"in_channels": 4, "out_channels": 4, "stride": 1, "expansion": 2, "kernels": (3,)}
    with pytest.raises(UserError, match="layer"):
        LayerSpec(**keys | change)


def test_layers_must_fit_together():
    layers = (LayerSpec(4, 8, 1, 2, (3,)), LayerSpec(9, 8, 1, 2, (3,)))
    with pytest.raises(UserError, match="layer 1 takes 9 channels, but gets 8"):
        UnifiedSpace(layers, 8, 2, first_channels=4)
