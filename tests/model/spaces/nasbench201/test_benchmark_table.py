"""The table of published accuracies: looked up by path, and its optimum under a ceiling."""

import itertools
import math

import pytest
import torch

from model.spaces.nasbench201.benchmark_table import CellTable
from model.spaces.nasbench201.space import CellSpace
from tests.conftest import published_table, rng
from tests.support import BEST_CELL, cell_table
from utils.errors import UserError

SPACE = CellSpace()


def test_it_is_looked_up_by_path_and_knows_the_optimum_under_a_ceiling(tmp_path):
    accuracy = lambda cell: 50 + 5 * cell.count("3x3~") - cell.count("avg")  # noqa: E731
    table = CellTable.load(cell_table(tmp_path / "t.csv", accuracy))
    paths = SPACE.sample(50, rng())
    n3, pools = paths[:, :, 0, 3].sum(dim=1), paths[:, :, 0, 1].sum(dim=1)
    torch.testing.assert_close(table.accuracy(paths), 50 + 5 * (n3 + pools) - pools)
    assert table.optimum(43.173) == 50 + 5 + 5 * 4, "one convolution, five pools"
    assert table.optimum(500) == 80
    assert math.isnan(table.optimum(7))


def test_the_published_table_has_the_published_optima():
    table = CellTable.load(published_table())
    known = {25: 91.31, 60: 93.75, 100: 94.31, 150: 94.34, 190: 94.37}
    assert {cost: table.optimum(cost) for cost in known} == pytest.approx(known, abs=0.006)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("architecture,cifar10_test_accuracy\n", "15625 of 15625 architectures have no accuracy"),
        ("index,architecture\n0,x\n", "line 2"),
        (f"architecture,cifar10_test_accuracy\n{BEST_CELL},good\n", "line 2"),
        ("architecture,cifar10_test_accuracy\n|magic~0|,3\n", "line 2"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_its_line(tmp_path, text, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        CellTable.load(tmp_path / "t.csv")
    with pytest.raises(UserError, match="cannot be read"):
        CellTable.load(tmp_path / "nowhere.csv")


def test_positions_are_those_of_all():
    table = CellTable(torch.arange(5**6).float())
    assert table.accuracy(SPACE.all()).tolist() == list(range(5**6))
    rows = [tuple(row) for row in SPACE.all().argmax(dim=-1)[..., 0].tolist()]
    assert rows == list(itertools.product(range(5), repeat=6))
