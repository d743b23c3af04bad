"""The table of published accuracies: looked up by path, with networks that it lacks."""

import json
import math

import pytest
import torch

from model.spaces.nasbench_macro.benchmark_table import BlockTable
from model.spaces.nasbench_macro.space import BlockSpace, from_digits
from tests.conftest import macro_table
from utils.errors import UserError

SPACE = BlockSpace()


def path(digits: str) -> torch.Tensor:
    return SPACE.encode(from_digits(SPACE, digits))


def written(folder, rows) -> str:
    (folder / "t.json").write_text(json.dumps(rows))
    return folder / "t.json"


def test_networks_that_are_the_same_have_one_accuracy(tmp_path):
    table = BlockTable.load(
        written(tmp_path, {"00000002": {"mean_acc": 65.5}, "22222222": {"mean_acc": 93}})
    )
    found = table.accuracy(torch.stack([path("00000020"), path("00000002"), path("00000200")]))
    assert found[:2].tolist() == [65.5, 65.5]
    assert math.isnan(found[2]), "it lacks this one"
    assert table.optimum(50) == 65.5
    assert table.optimum(500) == 93
    assert math.isnan(table.optimum(5))
    assert len(table.paths) == 2


def test_the_published_half_has_the_published_numbers():
    table = BlockTable.load(macro_table())
    assert len(table.known) == 1989
    assert float(table.accuracies.max()) == pytest.approx(93.107, abs=1e-3)
    assert float(table.accuracy(path("00000002")[None])[0]) == 65.86


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({}, "it holds no network"),
        ({"0000": {"mean_acc": 1}}, "8 digits"),
        ({"00000003": {"mean_acc": 1}}, "digits above 2"),
        ({"00000002": {}}, "00000002"),
        ({"00000002": {"mean_acc": "high"}}, "00000002"),
        ({"00000002": {"mean_acc": 101}}, "no percentage"),
        ([1], "t.json"),
        ({"00000002": 5}, "t.json"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        BlockTable.load(written(tmp_path, rows))
