"""The space of NAS-Bench-Macro by its published numbers, and others of its layout."""

import collections
import itertools
import json

import pytest
import torch

from model.costs.counting import count_macs, count_parameters
from model.costs.lookup_table import LookUpTable
from model.spaces.nasbench_macro.kind import BlockSpec
from model.spaces.nasbench_macro.space import BlockSpace, from_digits, to_digits
from tests.conftest import macro_table, rng
from tests.model.spaces.nasbench_macro.spaces import SMALL
from utils.errors import UserError

SPACE = BlockSpace()


def test_3969_of_6561_architectures_differ():
    paths = SPACE.all()
    assert paths.shape == (3969, 8, 1, 3)
    assert len(paths.unique(dim=0)) == 3969


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("00000002", "00000020"),
        ("01020102", "01020120"),
        ("10000000", "10000000"),
        ("02001011", "02010011"),
    ],
)
def test_identities_behind_the_first_layer_of_a_stage_come_last(given, canonical):
    spec = BlockSpec(SPACE, from_digits(SPACE, given))
    assert spec.name == canonical
    assert spec.blocks == sum(digit != "0" for digit in given)
    assert float(LookUpTable(SPACE)(SPACE.encode(spec.architecture))) == pytest.approx(
        BlockSpec(SPACE, from_digits(SPACE, canonical)).macs_m
    )


def test_canonical_forms_are_those_of_sorting_by_hand():
    index = torch.tensor(list(itertools.product(range(3), repeat=4)))  # 2 is identity
    expected = [
        [*row[:2], *(i for i in row[2:] if i != 2), *(i for i in row[2:] if i == 2)]
        for row in index.tolist()
    ]
    assert SMALL.canonical(index).tolist() == expected


def test_each_different_network_is_sampled_as_often():
    names = SMALL.digits(SMALL.all())
    drawn = collections.Counter(SMALL.digits(SMALL.sample(200 * len(names), rng())))
    assert drawn.keys() == set(names)
    assert all(130 < drawn[name] < 270 for name in names), "200 +- 5 standard deviations"


def test_all_that_is_sampled_is_canonical_and_every_choice_comes():
    for paths in (SMALL.sample(300, rng()), SMALL.sample_fair(30, rng())):
        index = paths.argmax(dim=-1)[..., 0]
        assert index.equal(SMALL.canonical(index))
        assert set(index[:, 0].tolist()) == {0, 1, 2}


# -- costs ---------------------------------------------------------------------------------------


def test_costs_are_those_of_every_row_of_the_published_table():
    rows = json.loads(macro_table().read_text())
    table = LookUpTable(SPACE)
    paths = torch.stack([SPACE.encode(from_digits(SPACE, key)) for key in rows])
    flops = torch.tensor([row["flops"] / 1e6 for row in rows.values()])
    params = torch.tensor([row["params"] / 1e6 for row in rows.values()], dtype=torch.float64)
    torch.testing.assert_close(table(paths), flops, rtol=0, atol=2e-5)
    torch.testing.assert_close(table.parameters_m(paths), params, rtol=0, atol=1e-9)
    assert table.reach() == pytest.approx((7.713, 105.661), abs=1e-3)


@pytest.mark.parametrize("text", ["0000", "1220", "2111", "0210"])
def test_costs_are_those_counted_of_the_network(text):
    spec = BlockSpec(SMALL, from_digits(SMALL, text))
    network, path = spec.network({}), SMALL.encode(spec.architecture)
    linear = 12 * 4 / 1e6  # the space counts the last layer, too
    assert count_macs(network, 9) + linear == pytest.approx(spec.macs_m)
    table = LookUpTable(SMALL)
    assert count_parameters(network) == pytest.approx(float(table.parameters_m(path[None])[0]))


# -- descriptions --------------------------------------------------------------------------------


def test_digits_say_the_block_of_each_layer():
    architecture = from_digits(SMALL, "0120")
    assert architecture.choices == ((None,), ("e2k3",), ("e3k5",), (None,))
    assert to_digits(SMALL, architecture) == "0120"
    for wrong in ("012", "01230", "0130", "x", "", "٠١٢٠"):
        with pytest.raises(UserError, match="architecture"):
            from_digits(SMALL, wrong)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"blocks": ()}, "1 to 9 different pairs"),
        ({"blocks": ((3, 3), (3, 3))}, "1 to 9 different pairs"),
        ({"blocks": ((3, 4),)}, r"blocks has \(3, 4\)"),
        ({"blocks": ((0, 3),)}, r"blocks has \(0, 3\)"),
        ({"strides": (2, 2)}, "an entry for each stage"),
        ({"widths": (), "depths": (), "strides": ()}, "an entry for each stage"),
        ({"widths": (1, 2, 0)}, "widths is 0"),
        ({"widths": (16384, 16384, 16384)}, "parameters"),
    ],
)
def test_what_describes_no_space_is_refused(fields, says):
    with pytest.raises(UserError, match=says):
        BlockSpace(**fields)
