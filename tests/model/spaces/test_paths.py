"""Architectures on paper, and the algebra of paths that all spaces of paths share."""

import pytest
import torch

from model.spaces.nasbench201.space import CellSpace
from model.spaces.nasbench201.supernet import CellSupernet
from model.spaces.paths import Architecture, PathSpace, hard_rows
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import SMALL_SPACES, mixed_space, rng
from utils.errors import UserError

SPACES = {**SMALL_SPACES, "cells": CellSpace}


@pytest.fixture(params=SPACES)
def space(request) -> PathSpace:
    return SPACES[request.param]()


# -- architectures -------------------------------------------------------------------------------


def test_canonical_packs_to_the_left_and_keeps_the_stand_alone_network():
    loose = Architecture.of([["skip", 5, None, 3]])
    assert loose.canonical() == Architecture.of([[5, 3, None, None]])
    assert loose != loose.canonical()
    assert loose.kernels == loose.canonical().kernels == ((5, 3),)
    assert hash(loose) == hash(Architecture.of([[None, 5, None, 3]]))


@pytest.mark.parametrize("rows", [[[3, None, 7], [5]], [["pool"], [None]]])
def test_an_architecture_is_written_as_a_cell_of_a_table_and_read_back(rows):
    architecture = Architecture.of(rows)
    assert Architecture.of_text(architecture.text) == architecture


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


# -- paths ---------------------------------------------------------------------------------------


def test_decode_inverts_encode_for_sampled_paths(space):
    for path in torch.cat([space.sample(50, rng()), space.sample_fair(50, rng(1))]):
        architecture = space.decode(path)
        assert space.encode(architecture).equal(path)
        assert space.decode(space.encode(architecture)) == architecture


def test_sampled_paths_are_one_hot_and_obey_the_mask(space):
    paths = space.sample(200, rng())
    assert paths.sum(-1).equal(torch.ones(paths.shape[:-1]))
    assert not paths[:, ~space.mask].any()
    assert (space.active(paths) >= space.least_active(space.min_expansion)).all()


def test_fair_sampling_repeats_with_its_seed(space):
    first, second = space.sample_fair(4, rng(3)), space.sample_fair(4, rng(3))
    assert first.equal(second)
    assert not first.equal(space.sample_fair(4, rng(4)))


def test_relaxed_paths_are_mixtures_of_legal_choices(space):
    logits = torch.randn(20, *space.shape, generator=rng(), requires_grad=True)
    soft = space.relax(logits, 5.0, rng(1))
    torch.testing.assert_close(soft.sum(-1), torch.ones(soft.shape[:-1]))
    assert not soft[:, ~space.mask].any()
    (soft**2).sum().backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, ~space.mask].any()


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


# -- hard paths ----------------------------------------------------------------------------------

SUPERNETS = {
    "unified": lambda: UnifiedSupernet(mixed_space()),
    "cells": lambda: CellSupernet(CellSpace(channels=2), image_size=12),
}


@pytest.mark.parametrize("name", SUPERNETS)
def test_a_supernet_takes_hard_paths_alone(name):
    supernet, images = SUPERNETS[name]().eval(), torch.randn(2, 3, 12, 12, generator=rng())
    hard = supernet.space.sample(1, rng())[0]
    assert supernet(images, hard).isfinite().all()
    with pytest.raises(AssertionError, match="needs a gradient"):
        supernet(images, hard.clone().requires_grad_())
    soft = supernet.space.relax(torch.randn(supernet.space.shape, generator=rng()), 1.0)
    for path in (soft, 0 * hard, hard * 2):
        with pytest.raises(AssertionError, match="not one-hot"):
            supernet(images, path)


def test_a_hard_path_is_read_as_rows():
    path = torch.eye(3)[[2, 0]][None]
    assert hard_rows(path) == [[[0, 0, 1], [1, 0, 0]]]
