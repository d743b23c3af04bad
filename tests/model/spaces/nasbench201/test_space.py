"""The space of NAS-Bench-201 by its published numbers."""

import csv

import pytest
import torch

from model.costs.counting import count_macs, count_parameters
from model.costs.lookup_table import LookUpTable
from model.sgnas.generator import ArchitectureGenerator
from model.sgnas.prior_pool import PriorPool
from model.sgnas.repair import Demand, repair
from model.spaces.nasbench201.space import OPERATIONS, CellSpace, from_string, positions, to_string
from model.spaces.nasbench201.supernet import CellNetwork
from model.spaces.paths import PathSpace
from tests.conftest import published_table, rng
from tests.support import BEST_CELL
from utils.errors import UserError

SPACE = CellSpace()


def test_the_space_has_15625_cells_and_28_costs():
    assert isinstance(SPACE, PathSpace)
    paths = SPACE.all()
    assert paths.shape == (15625, 6, 1, 5)
    assert len(paths.unique(dim=0)) == 15625
    costs = LookUpTable(SPACE)(paths)
    assert len(costs.round(decimals=3).unique()) == 28


# -- costs ---------------------------------------------------------------------------------------


def test_costs_are_the_published_ones():
    """In M: 7.78305 + 35.38944 n3 + 3.93216 n1; parameters 0.073306 + 0.24304 n3 + 0.028 n1."""
    paths, table = SPACE.all(), LookUpTable(SPACE)
    numbers = [OPERATIONS.index(name) for name in ("nor_conv_1x1", "nor_conv_3x3")]
    n1, n3 = (paths[:, :, 0, number].sum(dim=1) for number in numbers)
    costs, parameters = table(paths), table.parameters_m(paths).float()
    torch.testing.assert_close(costs, 7.78305 + 35.38944 * n3 + 3.93216 * n1, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(parameters, 0.073306 + 0.24304 * n3 + 0.028 * n1)
    assert table.reach() == pytest.approx((7.78305, 220.11969))


@pytest.mark.slow
def test_costs_are_those_of_every_row_of_the_published_table():
    with published_table().open(newline="") as file:
        rows = list(csv.DictReader(file))
    names, table = [row["architecture"] for row in rows], LookUpTable(SPACE)
    paths = SPACE.all()[[positions()[name] for name in names]]
    some = torch.stack([SPACE.encode(from_string(name)) for name in names[::20]])
    assert paths[::20].equal(some)
    expected = torch.tensor([float(row["macs_m"]) for row in rows])
    torch.testing.assert_close(table(paths), expected, rtol=0, atol=2e-5)
    parameters = torch.tensor([float(row["params_m"]) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(table.parameters_m(paths), parameters, rtol=0, atol=1e-6)
    assert [to_string(SPACE.decode(path)) for path in paths] == names


@pytest.mark.parametrize("seed", range(3))
def test_costs_are_those_counted_of_the_network(seed):
    path = SPACE.sample(1, rng(seed))[0]
    network, table = CellNetwork(SPACE, SPACE.decode(path)), LookUpTable(SPACE)
    # the linear layer
    assert count_macs(network, 32) + 650e-6 == pytest.approx(float(table(path)), abs=1e-5)
    assert count_parameters(network) == pytest.approx(float(table.parameters_m(path)))


# -- strings -------------------------------------------------------------------------------------


def test_cells_stand_where_the_space_lists_them():
    places = positions()
    assert list(places.values()) == list(range(15625))
    paths = SPACE.all()
    for position in range(0, 15625, 977):
        assert places[to_string(SPACE.decode(paths[position]))] == position


def test_strings_are_written_as_published_and_read_back():
    architecture = from_string(BEST_CELL)
    assert to_string(architecture) == BEST_CELL
    first = [choice for (choice,) in architecture.choices][:3]
    assert first == ["nor_conv_3x3", "nor_conv_3x3", "nor_conv_1x1"]
    empty = SPACE.decode(SPACE.extremes()[0])
    assert to_string(empty) == "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    assert all(choice is None for (choice,) in empty.choices)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|none~0|",
        "|magic~0|+|none~0|none~1|+|none~0|none~1|none~2|",
        BEST_CELL.replace("~0", "~1"),
        "+" + BEST_CELL,
    ],
)
def test_other_strings_are_refused(text):
    with pytest.raises(UserError, match=r"^architecture: "):
        from_string(text)


# -- paths ---------------------------------------------------------------------------------------


def test_fair_sampling_gives_each_edge_each_operation_once_in_five_paths():
    paths = SPACE.sample_fair(10, rng())
    for part in paths.split(5):
        assert (part.sum(dim=0) == 1).all()
    assert not torch.equal(paths[:5], paths[5:])
    assert SPACE.sample_fair(7, rng()).shape == (7, 6, 1, 5)


def test_neighbours_are_all_cells_one_choice_away():
    path = SPACE.sample(1, rng())[0]
    found, everything = SPACE.neighbours(path), SPACE.all()
    away = everything[(everything != path).any(dim=-1)[..., 0].sum(dim=1) == 1]
    assert len(found) == len(away) == 24
    rows = [{tuple(p.flatten().tolist()) for p in paths} for paths in (found, away)]
    assert rows[0] == rows[1]


def test_priors_lie_near_their_marks_as_far_as_costs_allow():
    table = LookUpTable(SPACE)
    pool = PriorPool.build(table, 20, 200, 16, rng(), chain=True, within=14)
    assert ((table(pool.paths) - pool.marks).abs() <= 14).all()
    with pytest.raises(UserError, match="prior pool"):
        PriorPool.build(table, 20, 200, 16, rng())


def test_the_generator_answers_and_repair_keeps_below_a_ceiling():
    table = LookUpTable(SPACE)
    pool = PriorPool.build(table, 20, 200, 8, rng(), within=14)
    targets = torch.linspace(20, 200, 10)
    logits = ArchitectureGenerator(20, 200)(pool.nearest(targets), targets).detach()
    assert logits.shape == (10, *SPACE.shape)
    for target, row, path in zip(targets.tolist(), logits, SPACE.discretize(logits), strict=True):
        found, met = repair(table, row, path, Demand(target, at_most=True))
        assert met
        assert float(table(found)) <= target
