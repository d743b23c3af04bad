"""What trained generators answer: the released one, ours, and the files of answers."""

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch

from model.costs.lookup_table import LookUpTable
from model.sgnas.answers import (
    Generated,
    ReadyGenerator,
    answers,
    evaluated_targets,
    read_generated,
    rows_of,
)
from model.sgnas.generator import ArchitectureGenerator
from model.sgnas.hardware_loss import HardwareLoss
from model.sgnas.prior_pool import PriorPool
from model.sgnas.repair import Demand, repair
from model.sgnas.runs import load_generator
from model.spaces.nasbench201.space import CellSpace
from model.spaces.paths import Architecture
from tests.conftest import golden, mixed_space, released, rng
from utils.errors import UserError

# -- the released generator ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def released_generator(imagenet_space) -> ReadyGenerator:
    generator = load_generator(released("sgnas_generator_imagenet.pth"), 270, 450, 10)
    pool = PriorPool.load(released("sgnas_prior_pool_imagenet.json"), imagenet_space)
    return ReadyGenerator(generator, pool, LookUpTable(imagenet_space), "released")


def test_the_released_generator_gives_the_released_answers(released_generator):
    rows = golden("released_generator.json")["rows"]
    targets = torch.tensor([float(row["target_macs_m"]) for row in rows])
    logits = released_generator.logits(targets)
    for row, raw, found in zip(rows, logits, released_generator.generate(targets), strict=True):
        assert found.architecture == Architecture.of(row["choices"])
        assert found.macs_m == pytest.approx(row["generated_macs_m"], abs=1e-3)
        first = torch.tensor(row["raw_first_row"])
        torch.testing.assert_close(raw[0].flatten(), first, atol=1e-3, rtol=1e-4)
        assert float(raw.sum()) == pytest.approx(row["raw_sum"], rel=1e-4)


def test_the_released_generator_gives_the_model_zoo(released_generator):
    rows = golden("model_zoo.json")["rows"]
    found = released_generator.generate(torch.tensor([float(row["target_macs_m"]) for row in rows]))
    for row, answer in zip(rows, found, strict=True):
        assert answer.architecture.canonical() == Architecture.of(row["choices"]).canonical()


def test_the_released_prior_costs_what_it_costs(released_generator):
    cost = released_generator.table(released_generator.pool.paths)
    assert cost.tolist() == pytest.approx([359.818368], abs=1e-3)


# -- answers -------------------------------------------------------------------------------------


@pytest.fixture
def ready(small_space) -> ReadyGenerator:
    """An untrained generator, which answers from the nearest prior."""
    table = LookUpTable(small_space)
    low, high = table(small_space.sample(40, rng())).sort().values[[10, 30]].tolist()
    pool = PriorPool.build(table, low, high, 5, rng())
    torch.manual_seed(0)
    return ReadyGenerator(ArchitectureGenerator(low, high).eval(), pool, table, "here")


def targets_of(ready: ReadyGenerator) -> torch.Tensor:
    ends = ready.generator.low, ready.generator.high
    return torch.linspace(*ends, 7, dtype=torch.float64)


def test_a_target_is_answered_from_its_nearest_priors_by_the_one_that_costs_nearest(ready):
    space, table, pool, targets = ready.table.space, ready.table, ready.pool, targets_of(ready)
    found = dataclasses.replace(ready, priors_per_target=3).generate(targets)
    for target, answer in zip(targets.tolist(), found, strict=True):
        nearest = sorted(range(5), key=lambda i: abs(float(pool.marks[i]) - target))[:3]
        one = torch.tensor([target], dtype=torch.float32)
        with torch.no_grad():
            logits = [ready.generator(prior[None], one) for prior in pool.paths[nearest]]
        costs = [float(table(space.discretize(row))) for row in logits]
        least = min(abs(cost - target) for cost in costs)
        assert abs(answer.macs_m - target) == pytest.approx(least, abs=1e-6)
    misses = [
        sum(abs(a.macs_m - a.target) for a in row) for row in (found, ready.generate(targets))
    ]
    assert misses[0] <= misses[1]


@pytest.mark.slow
def test_repaired_answers_meet_their_demand_and_the_others_are_named(ready):
    targets = targets_of(ready)
    found, unmet = ready.repaired(targets)
    assert unmet == []
    assert all(abs(a.macs_m / a.target - 1) <= 0.005 + 1e-6 for a in found)
    _, unmet = ready.repaired(targets[:1] / 1000)
    assert unmet == (targets[:1] / 1000).tolist()
    least, most = ready.table.reach()
    for wrong in (least / 2, 2 * most):
        with pytest.raises(UserError, match="no architecture meets it; this space reaches"):
            ready.check(torch.tensor([wrong]))
    ready.check(torch.tensor([2 * most]), at_most=True)


def blocks(space, paths: torch.Tensor) -> np.ndarray:
    """A rank solved by eye: the number of active sub-blocks, and the kernel of the first one."""
    return (space.active(paths).sum(dim=1) - 0.01 * paths[:, 0, 0].argmax(dim=-1)).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("at_most", [False, True])
def test_of_the_answers_that_meet_a_target_the_one_ranked_best_is_given(ready, at_most):
    """The reference repairs the answer to each prior alone."""
    space, table, targets = ready.table.space, ready.table, targets_of(ready)
    ready = dataclasses.replace(ready, priors_per_target=5)
    found, unmet = ready.ranked(targets, partial(blocks, space), at_most=at_most)
    assert unmet == []
    for target, answer in zip(targets.tolist(), found, strict=True):
        demand, values = Demand(target, at_most=at_most), []
        for prior in ready.pool.paths:
            with torch.no_grad():
                logits = ready.generator(prior[None], torch.tensor([target], dtype=torch.float32))
            path, met = repair(table, logits[0], space.discretize(logits)[0], demand)
            values += blocks(space, path[None]).tolist() if met else []
        own = space.encode(answer.architecture)
        assert float(demand.miss(table, own[None])) == 0
        assert blocks(space, own[None])[0] == pytest.approx(max(values))
    same = ready.within(targets, partial(blocks, space)) if at_most else None
    assert same is None or same[0] == found


def test_without_a_rank_answers_are_those_of_before(ready):
    targets = targets_of(ready)
    assert ready.answer(targets, None) == ready.generate(targets)
    assert ready.within(targets, None) == ready.repaired(targets, at_most=True)


@pytest.mark.slow
def test_a_target_that_no_answer_meets_is_named_and_answered_by_the_nearest(ready):
    target = torch.tensor([ready.table.reach()[0] / 1000], dtype=torch.float64)
    found, unmet = ready.ranked(target, partial(blocks, ready.table.space))
    assert unmet == target.tolist()
    assert found[0].macs_m >= float(target)


def test_how_well_a_generator_answers(ready):
    targets, loss = targets_of(ready), HardwareLoss(cost_unit=0.01, cost_tolerance=0.0)
    found = answers(ready, loss, targets)
    costs = torch.tensor([a.macs_m for a in found.found], dtype=torch.float64)
    assert found.hardware_loss == pytest.approx(float(loss(costs, targets).sum()))
    assert found.mean_miss == pytest.approx(float(((costs - targets).abs() / targets).mean()))
    assert found.middle == found.found[3]
    assert 0 <= found.prior_kept <= 1
    assert -1 <= found.kendall_tau <= 1


def test_answers_that_are_priors_keep_all_of_them(ready, monkeypatch):
    monkeypatch.setattr(ready.generator, "forward", lambda priors, targets: priors)
    found = answers(ready, HardwareLoss(), ready.pool.marks)
    assert found.prior_kept == 1
    assert found.kendall_tau == pytest.approx(1)
    assert found.mean_miss < 0.01 + 1e-6


def test_evaluated_targets_include_both_ends():
    assert evaluated_targets(0.1, 0.2, 0.025).tolist() == pytest.approx(
        [0.1, 0.125, 0.15, 0.175, 0.2]
    )
    assert evaluated_targets(80, 100, 15).tolist() == [80, 95]


# -- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [mixed_space(), CellSpace()])
@pytest.mark.parametrize("latency", [None, 1.25])
def test_answers_are_read_as_they_were_written(tmp_path, space, latency):
    architectures = map(space.decode, space.sample(3, rng()))
    found = [Generated(1.5, one, 1.25, 0.5, latency) for one in architectures]
    assert (found[0].cost, found[0].unit) == (1.25, "M" if latency is None else "ms")
    file = tmp_path / "found.json"
    file.write_text(json.dumps(rows_of(found, space)))
    assert read_generated(file) == found
    older = [{"target": 1.5, "macs_m": 1.25, "params_m": 0.5} for _ in found]
    for row, one in zip(older, found, strict=True):
        row |= {"choices": one.architecture.choices, "kernels": one.architecture.kernels}
        row |= {} if latency is None else {"latency_ms": latency}
    file.write_text(json.dumps(older))
    assert read_generated(file) == found


WRONG = {
    "": "not a list of generated architectures",
    "{}": "not a list of generated architectures",
    "[]": "the list of architectures is empty",
    '[{"target": 1}]': "not a list of generated architectures .*macs_m",
    '[{"target": 1, "macs_m": 1, "params_m": 1}]': "no kind of space reads None",
    '[{"target": 1, "macs_m": 1, "params_m": 1, "kind": "resnet"}]': "kind: 'resnet'",
}


@pytest.mark.parametrize(("text", "says"), WRONG.items())
def test_a_file_that_is_no_list_is_refused(tmp_path, text, says):
    (tmp_path / "found.json").write_text(text)
    with pytest.raises(UserError, match=rf"found\.json: .*{says}"):
        read_generated(tmp_path / "found.json")
