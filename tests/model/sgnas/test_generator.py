"""The architecture generator: its published size, and its forward pass against a plain one."""

import pytest
import torch

from model.sgnas.generator import ArchitectureGenerator
from tests.conftest import rng
from tests.support import parameters
from utils.errors import UserError


def test_size_and_keys_are_published():
    generator = ArchitectureGenerator(80, 120)
    assert parameters(generator) == 67_969
    blocks = ["hc_head.0", "hc_head.1", "hc_head.2", "bb_head.0", "bb_head.1", "head"]
    blocks += [f"body.block{i}" for i in (1, 2, 3)]
    keys = {*(f"{block}.conv.weight" for block in blocks), "tail.0.weight", "tail.0.bias"}
    assert set(generator.state_dict()) == keys


@pytest.mark.parametrize(("layers", "blocks"), [(2, 1), (7, 2), (19, 6)])
def test_targets_are_seen_as_whole_maps(layers, blocks):
    """Though only a small map of each target is computed."""
    generator = ArchitectureGenerator(1, 3).double()
    targets = torch.tensor([1.5, 2.9], dtype=torch.float64)
    priors = torch.rand(2, layers, blocks, 4, generator=rng(), dtype=torch.float64)
    for block in generator.hc_head:
        block.conv.weight.data.abs_()  # so that no ReLU hides a difference
    whole = ((targets - 1) / 2).view(2, 1, 1, 1).expand(2, 10, layers, 4 * blocks)
    features = generator.bb_head(priors.view(2, 1, layers, -1)) + generator.hc_head(whole)
    expected = generator.tail(generator.body(generator.head(features)) + features)
    torch.testing.assert_close(generator(priors, targets), expected.view(priors.shape))


def test_many_targets_in_one_forward_are_the_targets_one_by_one(small_space):
    generator = ArchitectureGenerator(1, 2).eval()
    priors, targets = small_space.sample(5, rng()), torch.linspace(1, 2, 5)
    with torch.no_grad():
        together = generator(priors, targets)
        pairs = zip(priors, targets, strict=True)
        alone = torch.cat([generator(p[None], t[None]) for p, t in pairs])
    assert together.shape == (5, *small_space.shape)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_an_empty_range_of_targets_is_refused():
    with pytest.raises(UserError, match="120 is not below 80"):
        ArchitectureGenerator(120, 80)
