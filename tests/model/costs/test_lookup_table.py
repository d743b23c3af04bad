"""Closed-form costs: golden numbers, counted networks, finite differences, brute force."""

import itertools

import pytest
import torch

from model.costs.counting import count_macs, count_parameters
from model.costs.lookup_table import LookUpTable
from model.spaces.paths import Architecture
from model.spaces.registry import open_problem
from model.spaces.unified.network import SubNet
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from tests.conftest import GOLDEN, golden, mixed_space, rng
from utils.config import load_config


@pytest.mark.parametrize("dataset", ["imagenet", "cifar100"])
def test_golden_costs_and_parameters(dataset):
    name = f"{dataset.removesuffix('100')}_config.yml"
    space = open_problem(load_config(GOLDEN / "published_configs" / name)).space
    rows = [row for row in golden("unified_costs.json")["rows"] if row["dataset"] == dataset]
    assert len(rows) == 12
    paths = torch.stack([space.encode(Architecture.of(row["choices"])) for row in rows])
    table = LookUpTable(space)
    expected = torch.tensor([row["macs_m_lookup"] for row in rows])
    torch.testing.assert_close(table(paths), expected, atol=1e-3, rtol=0)
    assert (table.parameters_m(paths) * 1e6).round().tolist() == [row["params"] for row in rows]


def test_pinned_numbers(imagenet_space, cifar_space):
    for space, base, least, most in (
        (imagenet_space, 40.943616, 75.126016, 556.125696),
        (cifar_space, 8.257536, 19.419136, 171.761664),
    ):
        table = LookUpTable(space)
        assert table.base == pytest.approx(base, abs=1e-6)
        assert table.reach() == pytest.approx((least, most), abs=1e-3)


def test_the_table_equals_the_count_on_the_built_network(small_space):
    table = LookUpTable(small_space)
    for path in small_space.sample(8, rng()):
        network = SubNet(small_space, small_space.decode(path))
        counted = count_macs(network, small_space.image_size)
        assert float(table(path)) == pytest.approx(counted, abs=1e-3)
        assert float(table.parameters_m(path)) == pytest.approx(count_parameters(network), abs=1e-9)


def test_a_vanished_layer_costs_nothing():
    space = mixed_space(se=True)
    architecture = Architecture.of([[3, None, 5], [None] * 4, [3], [3, 5, 7, 3]])
    network = SubNet(space, architecture)
    assert len(network.stages) == 3
    cost = float(LookUpTable(space)(space.encode(architecture)))
    assert cost == pytest.approx(count_macs(network, 12), abs=1e-3)


def test_expansion_one_has_no_expand_cost(cifar_space):
    table = LookUpTable(cifar_space)
    one = cifar_space.encode(Architecture.of([[3] + [None] * 5] * 19))
    two = cifar_space.encode(Architecture.of([[3, 3] + [None] * 4] + [[3] + [None] * 5] * 18))
    network = SubNet(cifar_space, cifar_space.decode(one))
    assert float(table(one)) == pytest.approx(count_macs(network, 32), abs=1e-3)
    # layer 0 of 16 -> 32 channels at 32x32: one more 3x3 sub-block, its share of project, and two
    # shares of expand
    more = 32 * 32 * 16 * (9 + 32 + 2 * 16) / 1e6
    assert float(table(two) - table(one)) == pytest.approx(more, abs=1e-4)


def test_a_batch_costs_what_its_members_cost(small_space):
    table = LookUpTable(small_space)
    paths = small_space.relax(torch.randn(6, *small_space.shape, generator=rng()), 2.0)
    torch.testing.assert_close(table(paths), torch.stack([table(path) for path in paths]))
    torch.testing.assert_close(table(paths.view(2, 3, *small_space.shape)), table(paths).view(2, 3))


def test_the_gradient_agrees_with_finite_differences(small_space):
    table = LookUpTable(small_space).double()
    logits = torch.randn(small_space.shape, generator=rng(), dtype=torch.float64)
    of_logits = lambda x: table(small_space.relax(x, 3.0))  # noqa: E731
    assert torch.autograd.gradcheck(of_logits, logits.requires_grad_(), eps=1e-6, atol=1e-6)


def test_negligible_choices_cost_nothing():
    layers = (LayerSpec(4, 4, 1, 1, (3, 5), may_vanish=True),)
    space = UnifiedSpace(layers, 8, 2, stem_stride=1, first_channels=4)
    table = LookUpTable(space)
    mixed, pure = torch.tensor([[[0.991, 0.009, 0.0]]]), torch.tensor([[[0.991, 0.0, 0.009]]])
    depthwise = 4 * 9 * 64 / 1e6
    expected = 0.991 * depthwise + 4 * 4 * 64 / 1e6
    assert float(table(mixed) - table.base) == pytest.approx(expected, abs=1e-7)
    assert float(table(mixed)) > float(table(pure))  # projecting 1 instead of 0.991 of the channels


def test_reach_is_the_range_of_all_architectures():
    layers = (LayerSpec(4, 4, 1, 2, (3, 5), may_vanish=True), LayerSpec(4, 6, 2, 2, (5, 7)))
    space = UnifiedSpace(layers, 8, 2, first_channels=4)
    table = LookUpTable(space)
    rows = [list(itertools.product((*spec.kernels, None), repeat=2)) for spec in space.layers]
    legal = [Architecture(pair) for pair in itertools.product(*rows) if any(pair[1])]
    costs = table(torch.stack([space.encode(architecture) for architecture in legal]))
    assert table.reach() == pytest.approx((float(costs.min()), float(costs.max())))
