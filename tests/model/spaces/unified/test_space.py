"""The layout of paths, the rules of sampling, and architectures on paper."""

import pytest
import torch

from model.spaces.paths import Architecture, SearchSpace
from model.spaces.unified.space import LayerSpec, UnifiedSpace, load_architecture, save_architecture
from tests.conftest import mixed_space, rng
from utils.errors import UserError


def test_a_unified_space_is_a_search_space(cifar_space):
    assert isinstance(cifar_space, SearchSpace)
    assert cifar_space.shape == (19, 6, 4)


def test_decode_inverts_encode_for_sampled_paths(small_space):
    paths = torch.cat([small_space.sample(50, rng()), small_space.sample_fair(50, rng(1))])
    for path in paths:
        architecture = small_space.decode(path)
        assert torch.equal(small_space.encode(architecture), path)
        assert small_space.decode(small_space.encode(architecture)) == architecture


def test_sampled_paths_obey_the_mask_and_keep_min_expansion(small_space):
    paths = small_space.sample(200, rng())
    assert torch.equal(paths.sum(-1), torch.ones(paths.shape[:-1]))
    assert not paths[:, ~small_space.mask].any()
    least = torch.tensor([spec.least_active(2) for spec in small_space.layers])
    assert (small_space.active(paths) >= least).all()


def test_sampling_reaches_every_legal_entry(small_space):
    seen = small_space.sample(400, rng()).any(dim=0)
    assert torch.equal(seen, small_space.mask & seen)
    assert seen[..., :-1].equal(small_space.mask[..., :-1])


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


def test_fair_sampling_repeats_with_its_seed(cifar_space):
    first, second = cifar_space.sample_fair(4, rng(3)), cifar_space.sample_fair(4, rng(3))
    assert first.equal(second)
    assert not first.equal(cifar_space.sample_fair(4, rng(4)))


def test_relaxed_paths_are_mixtures_of_legal_choices(small_space):
    logits = torch.randn(20, *small_space.shape, generator=rng(), requires_grad=True)
    soft = small_space.relax(logits, 5.0, rng(1))
    torch.testing.assert_close(soft.sum(-1), torch.ones(soft.shape[:-1]))
    assert not soft[:, ~small_space.mask].any()
    (soft**2).sum().backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, ~small_space.mask].any()


def test_gumbel_softmax_draws_choices_with_the_probabilities_of_the_logits():
    space = UnifiedSpace((LayerSpec(4, 4, 1, 1, (3, 5), may_vanish=True),), 8, 2, first_channels=4)
    logits = torch.tensor([0.7, 0.1, 0.2]).log().expand(20000, 1, 1, 3)
    drawn = space.relax(logits, 0.01, rng()).round().mean(dim=(0, 1, 2))
    torch.testing.assert_close(drawn, torch.tensor([0.7, 0.1, 0.2]), atol=0.015, rtol=0)


def test_discretize_takes_the_largest_legal_logit():
    space = mixed_space()
    logits = torch.zeros(space.shape)
    logits[..., -1] = 9.0  # everything wants to skip
    active = space.active(space.discretize(logits))
    # only the layer that may vanish does; one has no skip at all
    assert active.tolist() == [1, 0, 1, 4]


def test_the_first_sub_block_of_a_static_layer_may_not_skip(cifar_space):
    assert not cifar_space.mask[:, 0, -1].any()
    assert cifar_space.mask[:, 1:].all()


def test_canonical_packs_to_the_left_and_keeps_the_stand_alone_network():
    loose = Architecture.of([["skip", 5, None, 3]])
    assert loose.canonical() == Architecture.of([[5, 3, None, None]])
    assert loose != loose.canonical()
    assert loose.kernels == loose.canonical().kernels == ((5, 3),)
    assert hash(loose) == hash(Architecture.of([[None, 5, None, 3]]))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([[3, 3, 3], [3, 3, 3, 3], [3]], "it has 3 layers; the space has 4"),
        ([[3, 3], [3, 3, 3, 3], [3], [3, 3, 3, 3]], "layer 0 has 2 sub-blocks"),
        ([[3, 7, 3], [3, 3, 3, 3], [3], [3, 3, 3, 3]], "layer 0 is"),
        ([[None] * 3, [3, 3, 3, 3], [3], [3, 3, 3, 3]], "layer 0 skips every sub-block"),
        ([[3, 3, 3], [3, 3, 3, 3], [3], [3, 3, 3, None]], "layer 3 is"),
    ],
)
def test_an_architecture_of_another_space_is_refused_by_layer(rows, says):
    with pytest.raises(UserError, match=says):
        mixed_space().check(Architecture.of(rows))


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
    with pytest.raises(UserError, match="layer"):
        LayerSpec(
            **{
                "in_channels": 4,
                "out_channels": 4,
                "stride": 1,
                "expansion": 2,
                "kernels": (3,),
                **change,
            }
        )


def test_layers_must_fit_together():
    with pytest.raises(UserError, match="layer 1 takes 9 channels, but gets 8"):
        UnifiedSpace(
            (LayerSpec(4, 8, 1, 2, (3,)), LayerSpec(9, 8, 1, 2, (3,))), 8, 2, first_channels=4
        )


def test_architecture_json_round_trip(tmp_path, small_space):
    architecture = small_space.decode(small_space.sample(1, rng())[0])
    save_architecture(
        tmp_path / "a.json", small_space, architecture, {"macs_m": 1.5}, {"source": "test"}
    )
    space, loaded, record = load_architecture(tmp_path / "a.json")
    assert (space, loaded) == (small_space, architecture)
    assert record["costs"] == {"macs_m": 1.5}


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "other"}', '{"format": "architecture/1"}']
)
def test_a_file_that_is_no_architecture_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        load_architecture(tmp_path / "a.json")
