"""Latency in unified spaces: sums over parts, expectations over mixtures, searches in ms."""

import json
import math
from itertools import product

import pytest
import torch
import yaml

import msunas
import search
import train_cifar
from model.costs.latency import Latencies
from model.spaces.paths import Architecture
from model.spaces.registry import open_problem
from model.spaces.unified.latency import UnifiedLatency, ends, layer_key, parts_of
from model.spaces.unified.network import SubNet
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from tests.conftest import mixed_space, rng
from tests.support import latency_file, parameters, refused
from tools import generate, profile_latency
from utils.config import load_config

LAYERS = (LayerSpec(4, 6, 2, 3, (3, 5)), LayerSpec(6, 6, 1, 3, (5, 7), may_vanish=True))
SMALL = UnifiedSpace(
    LAYERS, 8, 2, stem_stride=1, stem_channels=4, first_channels=4, head_channels=8
)


@pytest.fixture
def odd_table(tmp_path) -> UnifiedLatency:
    """A table of arbitrary numbers."""
    numbers = torch.rand(1000, generator=rng(), dtype=torch.float64).tolist()
    file = latency_file(tmp_path / "lut.yaml", parts_of(SMALL), lambda key: numbers.pop())
    return UnifiedLatency(Latencies.read(file), SMALL)


def keys_of(space: UnifiedSpace, architecture: Architecture, se: bool, activation: str):
    """The keys of an architecture's parts, one by one."""
    layers = zip(space.layers, architecture.kernels, space.sizes, strict=True)
    keys = [layer_key(s, k, size, se, activation) for s, k, (size, _) in layers if k]
    return [*ends(space, se, activation), *keys]


# -- sums and expectations -----------------------------------------------------------------------


def test_a_path_costs_the_sum_of_its_parts(odd_table, tmp_path):
    entries = yaml.safe_load((tmp_path / "lut.yaml").read_text())
    paths = SMALL.sample(30, rng())
    keys = [keys_of(SMALL, SMALL.decode(path), False, "relu6") for path in paths]
    naive = [sum(entries[key]["mean"] for key in row) for row in keys]
    torch.testing.assert_close(odd_table(paths), torch.tensor(naive))


def test_the_order_of_sub_blocks_and_vanished_layers(odd_table):
    rows = [[[3, 5, None], [5, 7, 7]], [[5, None, 3], [7, 5, 7]], [[3, 5, None], [None] * 3]]
    one, other, gone = (SMALL.encode(Architecture.of(row)) for row in rows)
    assert odd_table(one) == odd_table(other) > odd_table(gone)


def test_a_mixture_costs_what_its_architectures_cost_on_average(odd_table):
    mixture = SMALL.relax(torch.randn(SMALL.shape, generator=rng()), 1.0)
    average = 0.0
    for index in product(range(SMALL.shape[2]), repeat=6):
        path = torch.eye(SMALL.shape[2])[torch.tensor(index)].view(2, 3, -1)
        likelihood = float((mixture * path).sum(dim=-1).prod())
        average += likelihood * float(odd_table(path)) if likelihood else 0.0
    assert float(odd_table(mixture)) == pytest.approx(average, rel=1e-5)


def test_soft_and_hard_paths_agree_where_they_meet(odd_table):
    path = SMALL.sample(5, rng())
    torch.testing.assert_close(odd_table(path.clone().requires_grad_()), odd_table(path))


def test_the_gradient_agrees_with_finite_differences(odd_table):
    table = odd_table.double()
    table.macs.double()
    logits = torch.randn(SMALL.shape, generator=rng(), dtype=torch.float64, requires_grad=True)
    of_logits = lambda x: table(SMALL.relax(x, 1.0))  # noqa: E731
    assert torch.autograd.gradcheck(of_logits, logits, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("min_expansion", [1, 2])
def test_the_reach_is_that_of_all_architectures(odd_table, min_expansion):
    costs = []
    for rows in product(product((None, 3, 5), repeat=3), product((None, 5, 7), repeat=3)):
        architecture = Architecture.of(rows)
        active = list(map(len, architecture.kernels))
        vanished = active[1] == 0 and min_expansion <= 1
        if active[0] >= min_expansion and (active[1] >= min_expansion or vanished):
            costs.append(float(odd_table(SMALL.encode(architecture))))
    assert odd_table.reach(min_expansion) == pytest.approx((min(costs), max(costs)))


def test_batches_of_any_rank(odd_table):
    paths = SMALL.relax(torch.randn(6, *SMALL.shape, generator=rng()), 2.0)
    together = odd_table(paths.view(2, 3, *SMALL.shape))
    torch.testing.assert_close(together, odd_table(paths).view(2, 3))


@pytest.mark.parametrize("se", [False, True])
def test_the_parts_of_a_network_hold_its_parameters(se):
    space = mixed_space(se=se)
    parts = parts_of(space, se=se, activation="hswish")
    for architecture in map(space.decode, space.sample(5, rng())):
        keys = keys_of(space, architecture, se, "hswish")
        network = SubNet(space, architecture, se=se, activation="hswish")
        assert sum(parameters(parts[key].build()) for key in keys) == parameters(network)


def test_every_part_takes_what_it_says():
    for part in parts_of(SMALL).values():
        assert part.build().eval()(torch.zeros(1, *part.shape)).isfinite().all()


# -- stages in milliseconds ----------------------------------------------------------------------


@pytest.fixture
def timed(tiny_config, tmp_path, monkeypatch) -> list[str]:
    """Options for a search in milliseconds, by an invented table for the tiny space."""
    monkeypatch.chdir(tmp_path)
    space = open_problem(load_config("tiny.yml")).space
    milliseconds = lambda key: 0.1 + 0.05 * key.count("7") + 0.02 * key.count(".")  # noqa: E731
    latency_file(tmp_path / "lut.yaml", parts_of(space), milliseconds)
    keys = "cost=latency latency_table=lut.yaml low_flops=0.8 high_flops=1.2 target_step=0.05"
    keys += " target_jitter=0 eval_step=0.1 pool_tolerance=0.1"
    return ["--cfg", "tiny.yml", "--set", *keys.split()]


def slower(tmp_path) -> str:
    """The table of another device."""
    return (tmp_path / "lut.yaml").read_text().replace("mean: 0.1", "mean: 0.11")


@pytest.mark.slow
def test_a_generator_is_trained_for_milliseconds_and_used(timed, tmp_path, capsys):
    search.main(timed)
    assert "target ms" in capsys.readouterr().out
    found = json.loads((tmp_path / "logs/tiny/architectures.json").read_text())
    assert [row["target"] for row in found] == pytest.approx([0.8, 0.9, 1.0, 1.1, 1.2])
    assert all(0 < row["latency_ms"] != row["macs_m"] for row in found)

    flags = "--run logs/tiny --targets 0.9,1.1 --at-most --out found.json"
    generate.main(flags.split())
    assert "cost ms" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert all(row["latency_ms"] <= row["target"] for row in found)
    flags = "--cfg tiny.yml --lut lut.yaml --architectures found.json --runs 1"
    profile_latency.main(flags.split())
    assert len(json.loads((tmp_path / "found.latency.json").read_text())["measured_ms"]) == 2
    train_cifar.main([*timed, "epochs=1", "--flops", "0.9", "--architecture", "found.json"])
    assert json.loads((tmp_path / "logs/tiny_0.9ms/result.json").read_text())["target"] == 0.9


@pytest.mark.slow
def test_a_generator_for_milliseconds_does_not_answer_in_multiply_adds(timed, tmp_path, capsys):
    search.main(timed)
    tiny = ["--cfg", "tiny.yml"]
    line = refused(capsys, generate.main, *tiny, "--flops", "0.15")
    assert "holds no run of this space and cost" in line
    (tmp_path / "other.yaml").write_text(slower(tmp_path))
    elsewhere = [*timed[3:4], "latency_table=other.yaml", *timed[5:]]
    line = refused(capsys, generate.main, *tiny, "--targets", "1", "--set", *elsewhere)
    assert "holds no run of this space and cost" in line, "another device's table"
    given = ["generator_pretrained=logs/tiny/checkpoints/generator_best_avg.pth"]
    given += ["path_to_prior_pool=logs/tiny/prior_pool.json"]
    line = refused(capsys, generate.main, *tiny, "--flops", "0.15", "--set", *given)
    assert "its targets are in ms; those of the config are in M" in line
    line = refused(capsys, search.main, *tiny, "--set", given[1], "log_dir=elsewhere")
    assert "its marks are no costs in M by this table" in line
    (tmp_path / "found.json").write_text((tmp_path / "logs/tiny/architectures.json").read_text())
    listed = ["--flops", "1", "--architecture", "found.json"]
    line = refused(capsys, train_cifar.main, *tiny, *listed)
    assert "found.json: its targets are in ms; those of the config are in M" in line


@pytest.mark.slow
def test_a_run_keeps_its_table_and_notices_another(timed, tmp_path, capsys):
    search.main(timed)
    kept, table = tmp_path / "logs/tiny/latency_table.yaml", tmp_path / "lut.yaml"
    assert kept.read_text() == table.read_text()
    search.main(timed)
    table.write_text(slower(tmp_path))
    line = refused(capsys, search.main, *timed)
    assert "latency table lut.yaml: it has changed since this run started" in line
    table.unlink()
    generate.main(["--run", "logs/tiny", "--targets", "1"])


@pytest.mark.slow
def test_the_evolutionary_search_in_milliseconds(timed, tmp_path):
    search.main(["--cfg", "tiny.yml", "--set", "search_epochs=0"])
    flags = "--cfg tiny.yml --supernet_path logs/tiny/checkpoints/supernet_best.pth --n_epochs 0"
    flags += " --vld_size 20 --n_doe 6 --n_iter 2 --iterations 1 --sec_obj cpu --lut lut.yaml"
    msunas.main([*flags.split(), "--save", "found"])
    stats = json.loads((tmp_path / "found/iter_1.stats").read_text())
    space = open_problem(load_config("tiny.yml")).space
    table = UnifiedLatency(Latencies.read("lut.yaml"), space)
    assert len(stats["archive"]) == 8
    for rows, _, cost in stats["archive"]:
        path = space.encode(Architecture.of(rows))
        assert math.isclose(cost, float(table(path)), abs_tol=1e-2)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("cost=latency", "latency_table: None is not allowed"),
        ("cost=latency latency_table=none.yaml", "latency table none.yaml: cannot be read"),
        ("cost=seconds", "cost: 'seconds' is not allowed; it must be flops or latency"),
        ("cost=latency latency_table=lut.yaml", "low_flops: 0.1 ms; this space reaches"),
        (
            "cost=latency latency_table=lut.yaml eval_step=10",
            "eval_step: 10.0 is not allowed; it must be at most",
        ),
        ("cost=latency latency_table=lut.yaml se=true", "lacks MixConv-input"),
    ],
)
def test_impossible_latencies_are_refused(timed, capsys, overrides, words):
    line = refused(capsys, search.main, "--cfg", "tiny.yml", "--set", *overrides.split())
    assert words in line
