"""The prior pool: architectures near their marks, and the files of them."""

import json

import pytest
import torch

from model.costs.lookup_table import LookUpTable
from model.sgnas.prior_pool import PoolRecipe, PriorPool, open_pool, tolerance
from tests.conftest import rng
from utils.errors import UserError


@pytest.mark.parametrize(("name", "low", "high"), [("imagenet", 270, 450), ("cifar", 80, 120)])
def test_every_prior_meets_its_mark(name, low, high, request):
    table = LookUpTable(request.getfixturevalue(f"{name}_space"))
    pool = PriorPool.build(table, low, high, 6, rng())
    marks = [low + (high - low) * i / 7 for i in range(1, 7)]
    assert pool.marks.tolist() == pytest.approx(marks, abs=1e-3)
    assert ((table(pool.paths) - pool.marks).abs() <= 1.0).all()
    assert (table.space.active(pool.paths) >= 2).all()
    assert not pool.paths[:, ~table.space.mask].any()


def test_a_small_range_is_met_within_one_percent(small_space):
    table = LookUpTable(small_space)
    least, most = table.reach(min_expansion=2)
    low, high = least + 0.3 * (most - least), least + 0.7 * (most - least)
    pool = PriorPool.build(table, low, high, 3, rng())
    assert ((table(pool.paths) - pool.marks).abs() <= 0.01 * pool.marks).all()
    assert tolerance(5.0) == 0.05
    assert tolerance(360.0) == 1.0


def test_a_chained_pool_changes_little_from_mark_to_mark(cifar_space):
    table, changes = LookUpTable(cifar_space), []
    for chain in (True, False):
        pool = PriorPool.build(table, 80, 120, 20, rng(), chain)
        assert ((table(pool.paths) - pool.marks).abs() <= 1.0).all()
        changes.append(float((pool.paths[1:] != pool.paths[:-1]).any(dim=-1).float().mean()))
    assert changes[0] < 0.1 < changes[1]


def test_a_mark_out_of_reach_is_refused(cifar_space):
    says = r"no architecture costs 21 M; .* reaches 51\.29 to 171\.76 M"
    with pytest.raises(UserError, match=says):
        PriorPool.build(LookUpTable(cifar_space), 20, 22, 1, rng())


def test_the_nearest_mark_gives_the_prior(cifar_space):
    paths = cifar_space.sample(3, rng())
    pool = PriorPool(torch.tensor([90.0, 100.0, 110.5]), paths)
    assert pool.nearest(torch.tensor([80.0, 94.9, 95.1, 300.0])).equal(paths[[0, 0, 1, 2]])


# -- files ---------------------------------------------------------------------------------------


def test_a_pool_is_read_as_it_was_written_with_decimal_marks(tmp_path, small_space):
    pool = PriorPool(torch.tensor([1.25, 3.0]), small_space.sample(2, rng()))
    pool.save(tmp_path / "pool.json")
    loaded = PriorPool.load(tmp_path / "pool.json", small_space)
    assert loaded.marks.tolist() == [1.25, 3.0]
    assert loaded.paths.equal(pool.paths)
    assert list(json.loads((tmp_path / "pool.json").read_text())) == ["1.25", "3"]


MIXTURES = json.dumps({"90": [[0.5, 0.5, 0.0, 0.0] * 6] * 19})
ALL_SKIP = json.dumps({"90": [[0, 0, 0, 1] * 6] * 19})
WRONG = {
    "": "not a prior pool",
    "[]": "not a prior pool",
    "{}": "it holds no architectures",
    '{"x": [[1]]}': "not a prior pool",
    '{"90": [[0, 1]]}': "its architectures are 1 x 2; the space has 19 x 24",
    '{"90": "text"}': "not a prior pool",
    '{"-1": [[0, 1]]}': "every mark must be a finite number above 0",
    MIXTURES: "one 1 and else 0",
    ALL_SKIP: "mark 90: .*layer 0 skips every sub-block",
}


@pytest.mark.parametrize(("text", "says"), WRONG.items(), ids=WRONG.values())
def test_a_file_that_is_no_pool_is_refused(tmp_path, text, says, cifar_space):
    (tmp_path / "pool.json").write_text(text)
    with pytest.raises(UserError, match=rf"pool\.json: .*{says}"):
        PriorPool.load(tmp_path / "pool.json", cifar_space)


def test_a_run_keeps_its_pool_and_else_takes_the_one_that_is_named(tmp_path, cifar_space, capsys):
    table = LookUpTable(cifar_space)
    named, kept = tmp_path / "named.json", tmp_path / "kept.json"
    recipe = PoolRecipe(80, 120, 2, False, 0.0, str(named), 0)
    built = open_pool(recipe, table, kept)
    assert capsys.readouterr().out == ""
    for file, size in ((named, 3), (kept, 4)):
        PriorPool.build(table, 80, 120, size, rng()).save(file)
        assert len(open_pool(recipe, table, kept).marks) == size
        assert f"prior pool from {file}" in capsys.readouterr().out
    assert len(built.marks) == 2
    PriorPool(1000 * built.marks, built.paths).save(kept)
    with pytest.raises(UserError, match=r"kept\.json: its marks are no costs in M by this table"):
        open_pool(recipe, table, kept)
