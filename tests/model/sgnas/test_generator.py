"""The generator with the released weights, and the prior pool."""

import json

import pytest
import torch

from model.costs.lookup_table import LookUpTable
from model.sgnas.answers import ReadyGenerator
from model.sgnas.generator import ArchitectureGenerator
from model.sgnas.prior_pool import PriorPool, tolerance
from model.sgnas.runs import load_generator
from model.spaces.paths import Architecture
from tests.conftest import golden, released, rng
from utils.errors import UserError


@pytest.fixture(scope="module")
def released_generator(imagenet_space) -> ReadyGenerator:
    generator = load_generator(released("sgnas_generator_imagenet.pth"), 270, 450, 10)
    pool = PriorPool.load(released("sgnas_prior_pool_imagenet.json"), imagenet_space)
    return ReadyGenerator(generator, pool, LookUpTable(imagenet_space), "released")


def test_the_released_generator_gives_the_released_answers(released_generator, imagenet_space):
    rows = golden("released_generator.json")["rows"]
    targets = torch.tensor([float(row["target_macs_m"]) for row in rows])
    with torch.no_grad():
        logits = released_generator.generator(released_generator.pool.nearest(targets), targets)
    for row, raw, found in zip(rows, logits, released_generator.generate(targets), strict=True):
        assert found.architecture == Architecture.of(row["choices"])
        assert found.macs_m == pytest.approx(row["generated_macs_m"], abs=1e-3)
        torch.testing.assert_close(
            raw[0].flatten(), torch.tensor(row["raw_first_row"]), atol=1e-3, rtol=1e-4
        )
        assert float(raw.sum()) == pytest.approx(row["raw_sum"], rel=1e-4)


def test_the_released_generator_gives_the_model_zoo(released_generator):
    rows = golden("model_zoo.json")["rows"]
    found = released_generator.generate(torch.tensor([float(row["target_macs_m"]) for row in rows]))
    for row, answer in zip(rows, found, strict=True):
        assert answer.architecture.canonical() == Architecture.of(row["choices"]).canonical()


def test_the_released_prior_costs_what_it_costs(released_generator):
    cost = released_generator.table(released_generator.pool.paths)
    assert cost.tolist() == pytest.approx([359.818368], abs=1e-3)


def test_size_and_keys_are_published():
    generator = ArchitectureGenerator(80, 120)
    assert sum(p.numel() for p in generator.parameters()) == 67_969
    blocks = ["hc_head.0", "hc_head.1", "hc_head.2", "bb_head.0", "bb_head.1", "head"]
    blocks += [f"body.block{i}" for i in (1, 2, 3)]
    assert set(generator.state_dict()) == {
        *(f"{b}.conv.weight" for b in blocks),
        "tail.0.weight",
        "tail.0.bias",
    }


@pytest.mark.parametrize(("layers", "blocks"), [(2, 1), (7, 2), (19, 6)])
def test_the_hardware_head_equals_that_of_whole_maps(layers, blocks):
    generator, targets = (
        ArchitectureGenerator(1, 3).double(),
        torch.tensor([1.5, 2.9], dtype=torch.float64),
    )
    whole = ((targets - 1) / 2).view(2, 1, 1, 1).expand(2, 10, layers, 4 * blocks)
    for block in generator.hc_head:
        block.conv.weight.data.abs_()  # so that no ReLU hides a difference
    found = generator._hardware(targets, layers, 4 * blocks)
    torch.testing.assert_close(found, generator.hc_head(whole))


def test_many_targets_in_one_forward_are_the_targets_one_by_one(small_space):
    generator = ArchitectureGenerator(1, 2).eval()
    priors, targets = small_space.sample(5, rng()), torch.linspace(1, 2, 5)
    with torch.no_grad():
        together = generator(priors, targets)
        alone = torch.cat(
            [generator(p[None], t[None]) for p, t in zip(priors, targets, strict=True)]
        )
    assert together.shape == (5, *small_space.shape)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


def test_an_empty_range_of_targets_is_refused():
    with pytest.raises(UserError, match="120 is not below 80"):
        ArchitectureGenerator(120, 80)


@pytest.mark.parametrize(("name", "low", "high"), [("imagenet", 270, 450), ("cifar", 80, 120)])
def test_every_prior_meets_its_mark(name, low, high, request):
    table = LookUpTable(request.getfixturevalue(f"{name}_space"))
    pool = PriorPool.build(table, low, high, 6, rng())
    assert pool.marks.tolist() == pytest.approx(
        [low + (high - low) * i / 7 for i in range(1, 7)], abs=1e-3
    )
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


def test_a_mark_out_of_reach_is_refused(cifar_space):
    with pytest.raises(
        UserError, match=r"no architecture costs 21 M; .* reaches 51\.29 to 171\.76 M"
    ):
        PriorPool.build(LookUpTable(cifar_space), 20, 22, 1, rng())


def test_the_nearest_mark_gives_the_prior(cifar_space):
    paths = cifar_space.sample(3, rng())
    pool = PriorPool(torch.tensor([90.0, 100.0, 110.5]), paths)
    assert pool.nearest(torch.tensor([80.0, 94.9, 95.1, 300.0])).equal(paths[[0, 0, 1, 2]])


def test_a_target_is_answered_from_its_nearest_priors_by_the_one_that_costs_nearest(small_space):
    table = LookUpTable(small_space)
    low, high = (
        float(cost) for cost in table(small_space.sample(40, rng())).sort().values[[10, 30]]
    )
    pool = PriorPool.build(table, low, high, 5, rng())
    generator = ArchitectureGenerator(low, high).eval()
    targets = torch.linspace(low, high, 7, dtype=torch.float64)
    found = ReadyGenerator(generator, pool, table, "here", priors_per_target=3).generate(targets)
    for target, answer in zip(targets.tolist(), found, strict=True):
        nearest = sorted(range(5), key=lambda i: abs(float(pool.marks[i]) - target))[:3]
        costs = []
        for prior in pool.paths[nearest]:
            with torch.no_grad():
                logits = generator(prior[None], torch.tensor([target], dtype=torch.float32))
            costs.append(float(table(small_space.discretize(logits))))
        assert abs(answer.macs_m - target) == pytest.approx(
            min(abs(c - target) for c in costs), abs=1e-6
        )
    alone = ReadyGenerator(generator, pool, table, "here").generate(targets)
    assert sum(abs(a.macs_m - a.target) for a in found) <= sum(
        abs(a.macs_m - a.target) for a in alone
    )


def test_a_pool_is_read_as_it_was_written_with_decimal_marks(tmp_path, small_space):
    pool = PriorPool(torch.tensor([1.25, 3.0]), small_space.sample(2, rng()))
    pool.save(tmp_path / "pool.json")
    loaded = PriorPool.load(tmp_path / "pool.json", small_space)
    assert loaded.marks.tolist() == [1.25, 3.0]
    assert loaded.paths.equal(pool.paths)
    assert list(json.loads((tmp_path / "pool.json").read_text())) == ["1.25", "3"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"x": [[1]]}', '{"90": [[0, 1]]}', '{"90": "text"}']
)
def test_a_file_that_is_no_pool_is_refused(tmp_path, text, cifar_space):
    (tmp_path / "pool.json").write_text(text)
    with pytest.raises(UserError, match=r"pool\.json"):
        PriorPool.load(tmp_path / "pool.json", cifar_space)


def test_a_pool_of_mixtures_is_refused(tmp_path, cifar_space):
    row = [0.5, 0.5, 0.0, 0.0] * 6
    (tmp_path / "pool.json").write_text(json.dumps({"90": [row] * 19}))
    with pytest.raises(UserError, match="one 1 and else 0"):
        PriorPool.load(tmp_path / "pool.json", cifar_space)


def test_a_chained_pool_changes_little_from_mark_to_mark(cifar_space):
    table = LookUpTable(cifar_space)
    chained, free = (PriorPool.build(table, 80, 120, 20, rng(), chain) for chain in (True, False))
    for pool in (chained, free):
        assert ((table(pool.paths) - pool.marks).abs() <= 1.0).all()
    changes = [
        float((pool.paths[1:] != pool.paths[:-1]).any(dim=-1).float().mean())
        for pool in (chained, free)
    ]
    assert changes[0] < 0.1 < changes[1]
