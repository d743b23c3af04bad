"""The NAS-Bench-201 cells: the space by its published numbers, the supernet against a plain sum,
what runs on them.
"""

import copy
import csv
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import msunas
import post_search
import search
import train_cifar
import validate
from benchmarks import nasbench201 as benchmark
from benchmarks.nasbench201 import Ranking, best_within, expected_best, taus, true_accuracies
from model.costs.lookup_table import LookUpTable
from model.ranking.score_file import ScoreFile
from model.sgnas.generator import ArchitectureGenerator, PriorPool
from model.sgnas.repair import Demand, repair
from model.sgnas.warm_up import path_logits, supernet_payload
from model.spaces.genome import CellGenome
from model.spaces.nasbench201.benchmark_table import CellTable
from model.spaces.nasbench201.space import EDGES, OPERATIONS, CellSpace, from_string, to_string
from model.spaces.nasbench201.supernet import CellNetwork, CellSupernet
from model.spaces.network_spec import CellSpec, described
from model.spaces.unified.network import count_macs, count_parameters
from model.spaces.unified.space import (
    Architecture,
    SearchSpace,
    load_architecture,
    save_architecture,
)
from tests.conftest import rng
from tests.test_stages import refused
from utils import checkpoint
from utils.engine import DeviceContext
from utils.errors import UserError

SPACE = CellSpace()
PUBLISHED = Path(__file__).parents[5] / "shared" / "data" / "nasbench201_cifar10.csv"
needs_table = pytest.mark.skipif(
    not PUBLISHED.exists(), reason="the published table is other people's, and not here"
)
BEST = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|"
    "+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
)


@pytest.fixture(scope="module")
def supernet() -> CellSupernet:
    """With batch norms that are no identity."""
    net = CellSupernet(SPACE, rng(), cells=2, image_size=16).train()
    for path in SPACE.sample(6, rng(1)):
        net(torch.randn(16, 3, 16, 16, generator=rng(2)), path)
    return net.eval()


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=rng(3))


# -- the space -------------------------------------------------------------------------------------


def test_the_space_has_15625_cells_and_28_costs():
    assert isinstance(SPACE, SearchSpace)
    paths = SPACE.all()
    assert paths.shape == (15625, 6, 1, 5)
    assert len(paths.unique(dim=0)) == 15625
    costs = LookUpTable(SPACE)(paths)
    assert len(costs.round(decimals=3).unique()) == 28


def test_costs_are_the_published_ones():
    """7.78305 + 35.38944 n3 + 3.93216 n1 M multiply-adds, 0.073306 + 0.24304 n3 + 0.028 n1 M
    parameters.
    """
    paths, table = SPACE.all(), LookUpTable(SPACE)
    n1, n3 = (
        paths[:, :, 0, OPERATIONS.index(name)].sum(dim=1)
        for name in ("nor_conv_1x1", "nor_conv_3x3")
    )
    torch.testing.assert_close(
        table(paths), 7.78305 + 35.38944 * n3 + 3.93216 * n1, rtol=1e-6, atol=1e-5
    )
    torch.testing.assert_close(
        table.parameters_m(paths).float(), 0.073306 + 0.24304 * n3 + 0.028 * n1
    )
    assert table.reach() == pytest.approx((7.78305, 220.11969))


@needs_table
def test_costs_are_those_of_every_row_of_the_published_table():
    with PUBLISHED.open(newline="") as file:
        rows = list(csv.DictReader(file))
    paths, table = (
        torch.stack([SPACE.encode(from_string(row["architecture"])) for row in rows]),
        LookUpTable(SPACE),
    )
    torch.testing.assert_close(
        table(paths), torch.tensor([float(row["macs_m"]) for row in rows]), rtol=0, atol=2e-5
    )
    parameters = torch.tensor([float(row["params_m"]) for row in rows], dtype=torch.float64)
    torch.testing.assert_close(table.parameters_m(paths), parameters, rtol=0, atol=1e-6)
    assert [to_string(SPACE.decode(path)) for path in paths] == [
        row["architecture"] for row in rows
    ]


@pytest.mark.parametrize("seed", range(3))
def test_costs_are_those_counted_of_the_network(seed):
    path = SPACE.sample(1, rng(seed))[0]
    network, table = CellNetwork(SPACE, SPACE.decode(path)), LookUpTable(SPACE)
    # the linear layer
    assert count_macs(network, 32) + 650e-6 == pytest.approx(float(table(path)), abs=1e-5)
    assert count_parameters(network) == pytest.approx(float(table.parameters_m(path)))


def test_strings_are_written_as_published_and_read_back():
    architecture = from_string(BEST)
    assert to_string(architecture) == BEST
    assert [choice for (choice,) in architecture.choices][:3] == [
        "nor_conv_3x3",
        "nor_conv_3x3",
        "nor_conv_1x1",
    ]
    empty = SPACE.decode(SPACE.extremes()[0])
    assert to_string(empty) == "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
    assert all(choice is None for (choice,) in empty.choices)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "|none~0|",
        "|magic~0|+|none~0|none~1|+|none~0|none~1|none~2|",
        BEST.replace("~0", "~1"),
        "+" + BEST,
    ],
)
def test_other_strings_are_refused(text):
    with pytest.raises(UserError, match=r"^architecture: "):
        from_string(text)


def test_encoding_and_architecture_files_go_there_and_back(tmp_path):
    for path in SPACE.sample(20, rng()):
        architecture = SPACE.decode(path)
        assert torch.equal(SPACE.encode(architecture), path)
        assert SPACE.encode(Architecture.of(architecture.choices)).equal(path)
    save_architecture(tmp_path / "a.json", SPACE, architecture, {}, {})
    assert load_architecture(tmp_path / "a.json")[:2] == (SPACE, architecture)


def test_fair_sampling_gives_each_edge_each_operation_once_in_five_paths():
    paths = SPACE.sample_fair(10, rng())
    for part in paths.split(5):
        assert (part.sum(dim=0) == 1).all()
    assert not torch.equal(paths[:5], paths[5:])
    assert SPACE.sample_fair(7, rng()).shape == (7, 6, 1, 5)


def test_neighbours_are_all_cells_one_choice_away():
    path = SPACE.sample(1, rng())[0]
    found = SPACE.neighbours(path)
    everything = SPACE.all()
    away = everything[(everything != path).any(dim=-1)[..., 0].sum(dim=1) == 1]
    assert len(found) == len(away) == 24
    assert {tuple(p.flatten().tolist()) for p in found} == {
        tuple(p.flatten().tolist()) for p in away
    }


# -- the supernet ----------------------------------------------------------------------------------


def plain_logits(net: CellSupernet, x: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """Operation by operation, edge by edge, as the mixture is written down."""
    x = net.first(x)
    for index, stage in enumerate(net.stages):
        for cell in stage:
            nodes = [x, 0, 0, 0]
            for (to, source), edge, (share,) in zip(EDGES, cell.edges, path, strict=True):
                y = nodes[source]
                outputs = [
                    y,
                    F.avg_pool2d(y, 3, 1, 1, count_include_pad=False),
                    edge["nor_conv_1x1"].bn(F.conv2d(y.relu(), edge["nor_conv_1x1"].conv.weight)),
                    edge["nor_conv_3x3"].bn(
                        F.conv2d(y.relu(), edge["nor_conv_3x3"].conv.weight, padding=1)
                    ),
                    torch.zeros_like(y),
                ]
                nodes[to] = nodes[to] + sum(p * out for p, out in zip(share, outputs, strict=True))
            x = nodes[3]
        if index < 2:
            x = net.reductions[index](x)
    return net.classifier(net.last_bn(x).relu().mean(dim=(2, 3)))


def test_the_supernet_computes_the_sum_over_edges(supernet):
    for path in [*SPACE.sample(4, rng(5)), *SPACE.extremes()]:
        torch.testing.assert_close(supernet(images(), path), plain_logits(supernet, images(), path))


def test_soft_paths_are_mixtures_and_give_the_path_their_gradient(supernet):
    soft = SPACE.relax(torch.randn(SPACE.shape, generator=rng()), 1.0).requires_grad_()
    weights = torch.randn(4, 10, generator=rng(1))
    results, frozen = [], supernet.frozen()
    before = {name: value.clone() for name, value in frozen.named_buffers()}
    training = copy.deepcopy(supernet).train()  # batches are normalised by their own statistics
    for net in (frozen, lambda x, p: plain_logits(training, x, p), training):
        logits = net(images(), soft)
        results.append((logits, torch.autograd.grad((logits * weights).sum(), soft)[0]))
    for logits, gradient in results[1:]:
        torch.testing.assert_close(results[0][0], logits, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(results[0][1], gradient, rtol=1e-3, atol=1e-4)
    assert all(
        value.equal(before[name]) for name, value in frozen.named_buffers() if "running" in name
    )


def test_choices_without_a_share_get_their_gradient_too(supernet):
    frozen, hard = supernet.frozen(), SPACE.sample(1, rng(2))[0]
    path = hard.clone().requires_grad_()
    frozen(images(), path)[:, 0].sum().backward()
    changed = hard.clone().requires_grad_()
    plain_logits(copy.deepcopy(supernet).train(), images(), changed)[:, 0].sum().backward()
    torch.testing.assert_close(path.grad, changed.grad, rtol=1e-3, atol=1e-4)
    assert (path.grad[hard == 0] != 0).any()


def test_the_frozen_supernet_gives_weights_no_gradient(supernet):
    soft = SPACE.relax(torch.zeros(SPACE.shape), 1.0).requires_grad_()
    frozen = supernet.frozen()
    frozen(images(), soft).sum().backward()
    assert soft.grad is not None
    assert all(p.grad is None for p in frozen.parameters())


def test_stand_alone_networks_inherit_what_the_supernet_computes(supernet):
    for path in [*SPACE.sample(4, rng(6)), *SPACE.extremes()]:
        network = supernet.extract(path)
        torch.testing.assert_close(network(images()), supernet(images(), path))
        weights = [
            name
            for name, _ in network.named_parameters()
            if "edges" in name and name.endswith("conv.weight")
        ]
        assert len(weights) == 3 * 2 * path[:, 0, 2:4].sum(), (
            "three stages of two cells, only what is chosen"
        )


# -- what runs on it -------------------------------------------------------------------------------


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


def test_genes_are_paths(supernet):
    genome = CellGenome(supernet)
    genes = genome.sample(20, np.random.default_rng(0))
    paths = SPACE.of_index(torch.from_numpy(genes))
    np.testing.assert_allclose(genome.costs(genes)[0], LookUpTable(SPACE)(paths).numpy())
    for row, path in zip(genes, paths, strict=True):
        assert genome.genes(genome.record(row)) == row.tolist()
        network, size = genome.network(row)
        assert size == 16
        torch.testing.assert_close(network(images()), supernet(images(), path))
    assert genome.spec(genes[0]).macs_m == pytest.approx(genome.costs(genes[:1])[0][0])
    with pytest.raises(UserError, match="architecture"):
        genome.genes({"cell": "|none~0|"})


# -- the table -------------------------------------------------------------------------------------


def write_table(path: Path, accuracy, cells=None) -> Path:
    rows = [to_string(SPACE.decode(cell)) for cell in (SPACE.all() if cells is None else cells)]
    lines = [f"{index},{cell},{accuracy(cell)}" for index, cell in enumerate(rows)]
    path.write_text("\n".join(["index,architecture,cifar10_test_accuracy", *lines]) + "\n")
    return path


def test_the_table_is_looked_up_by_path_and_knows_the_optimum_under_a_ceiling(tmp_path):
    table = CellTable.load(
        write_table(
            tmp_path / "t.csv", lambda cell: 50 + 5 * cell.count("3x3~") - cell.count("avg")
        )
    )
    paths = SPACE.sample(50, rng())
    n3, pools = paths[:, :, 0, 3].sum(dim=1), paths[:, :, 0, 1].sum(dim=1)
    torch.testing.assert_close(table.accuracy(paths), 50 + 5 * (n3 + pools) - pools)
    assert table.optimum(43.173) == 50 + 5 + 5 * 4, "one convolution, five pools"
    assert table.optimum(500) == 80
    assert np.isnan(table.optimum(7))


@needs_table
def test_the_published_table_has_the_published_optima():
    table = CellTable.load(PUBLISHED)
    known = {25: 91.31, 60: 93.75, 100: 94.31, 150: 94.34, 190: 94.37}
    assert {cost: table.optimum(cost) for cost in known} == pytest.approx(known, abs=0.006)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("architecture,cifar10_test_accuracy\n", "15625 of 15625 architectures have no accuracy"),
        ("index,architecture\n0,x\n", "line 2"),
        (f"architecture,cifar10_test_accuracy\n{BEST},good\n", "line 2"),
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
    assert [tuple(row) for row in SPACE.all().argmax(dim=-1)[..., 0].tolist()] == list(
        itertools.product(range(5), repeat=6)
    )


# -- the stages ------------------------------------------------------------------------------------

CONFIG = """
dataset: digits
classes: 10
input_size: 8
supernet: nasbench201
cell: {channels: 16, cells: 5, supernet_cells: 1}
cuda: false
warmup_epochs: 1
epochs: 1
search_epochs: 1
batch_size: 128
paths_per_step: 5
path_sampling: uniform
validation_paths: 2
bn_recalibration_images: 128
low_flops: 20
high_flops: 200
target_step: 10
eval_step: 60
pool_size: 4
pool_tolerance: 14
straight_through: true
sampled_paths: 2
logit_decay: 0.1
hardware_loss: relative
hardware_loss_limit: 1000
optim_state: {optimizer: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.0005}
log_dir: logs
"""


def test_cells_are_searched_ranked_evolved_and_trained_by_the_same_commands(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.yml").write_text(CONFIG)
    write_table(tmp_path / "t.csv", lambda cell: 50 + 5 * cell.count("nor_conv_3x3"))
    search.main(["--cfg", "cells.yml", "--title", "run", "--table", "t.csv"])
    rows = list(csv.DictReader((tmp_path / "logs/run/true_accuracy.csv").open()))
    assert [float(row["target M"]) for row in rows] == [20, 80, 140, 200]
    assert all(float(row["cost M"]) <= float(row["target M"]) for row in rows)

    supernet = "logs/run/checkpoints/supernet_best.pth"
    options = ["--cfg", "cells.yml", "--supernet_path", supernet]
    evolution = "--n_doe 10 --n_iter 3 --iterations 1 --n_epochs 0 --vld_size 60 --save evolved"
    msunas.main([*options, *evolution.split()])
    post_search.main([*options, "--expr", "evolved/iter_1.stats", "--save", "chosen"])
    benchmark.main(["rank", "logs/run", "--count", "4"])
    benchmark.main(["rank", "logs/run", "--count", "12"])
    ranking = list(ScoreFile.open(tmp_path / "logs/run/ranking.jsonl").values)
    assert len(set(ranking)) == len(ranking) == 12
    capsys.readouterr()
    shown = ["--count", "12", "--table", "t.csv", "--searches", "evolved"]
    benchmark.main(["report", "logs/run", *shown, "--json", "lines.jsonl"])
    assert "mean regret" in capsys.readouterr().out
    line = json.loads((tmp_path / "lines.jsonl").read_text())
    assert len(line["generator"]) == len(line["msunas"]) == 4
    assert line["generator"] == [float(row["true top-1 %"]) for row in rows]

    (file,) = list((tmp_path / "chosen").glob("*/architecture.json"))[:1]
    training = ["--cfg", "cells.yml", "--architecture", str(file), "--title", "trained"]
    assert "it has 1 cells in each stage, the network 5" in refused(
        capsys, train_cifar.main, *training, "--inherit", supernet
    )
    train_cifar.main(training)
    validate.main(["--checkpoint", "logs/trained/checkpoints/last.pth"])

    without_norms = ["--count", "12", "--set", "bn_recalibration_images=0"]
    assert "it was scored in another way" in refused(
        capsys, benchmark.main, "rank", "logs/run", *without_norms
    )
    benchmark.main(["rank", "logs/run", *without_norms, "--ranking", "no-norms.jsonl"])
    with (tmp_path / "logs/run/ranking.jsonl").open("a") as file:
        file.write('{"id": "|none~0|+|no')
    benchmark.main(["rank", "logs/run", "--count", "13"])
    found = list(ScoreFile.open(tmp_path / "logs/run/ranking.jsonl").values)
    assert found[:12] == ranking
    assert len(found) == 13

    record = json.loads((tmp_path / "evolved/search.json").read_text())
    for key, value, reason in (
        ("test", True, "guided by test images"),
        ("supernet_path", "0", "on another supernet"),
    ):
        changed = {**record, "settings": {**record["settings"], key: value}}
        (tmp_path / "evolved/search.json").write_text(json.dumps(changed))
        assert reason in refused(capsys, benchmark.main, "report", "logs/run", *shown)
    shutil.copytree("logs/run", "logs/other")
    text = (tmp_path / "logs/other/config.yml").read_text()
    (tmp_path / "logs/other/config.yml").write_text(text.replace("low_flops: 20", "low_flops: 30"))
    both = "report logs/run logs/other --count 12 --table t.csv"
    line = refused(capsys, benchmark.main, *both.split())
    assert "logs/other: its targets are not those of logs/run" in line
    (tmp_path / "logs/other/config.yml").write_text(text.replace("  cells: 5", "  cells: 6"))
    assert "it is not a run on the published cells" in refused(
        capsys, benchmark.main, "rank", "logs/other"
    )


@pytest.fixture
def ladder(tmp_path) -> tuple[Ranking, CellTable]:
    """Ten cells, each more expensive and better than the last; the supernet swaps two pairs."""
    rows = [[*["nor_conv_3x3"] * n3, *["nor_conv_1x1"] * n1] for n3 in (0, 1) for n1 in range(5)]
    cells = [Architecture.of([[name] for name in row + [None] * (6 - len(row))]) for row in rows]
    table = CellTable.load(
        write_table(
            tmp_path / "t.csv",
            lambda cell: 30 + 10 * cell.count("conv_3x3") + cell.count("conv_1x1"),
        )
    )
    return Ranking(
        torch.stack([SPACE.encode(cell) for cell in cells]),
        np.array([2, 1, 3, 5, 4, 6, 7, 8, 9, 10]),
    ), table


def test_the_taus_of_a_ladder_solved_by_eye(ladder):
    found = taus(*ladder)
    assert found["tau"] == pytest.approx((43 - 2) / 45)
    assert found["top1"] == 5.5
    assert found["inside bins"] == pytest.approx((4 - 1) / 5), (
        "one of the two mistakes is inside a bin"
    )
    assert found["cost"] == pytest.approx(1)
    assert found["cost inside bins"] == pytest.approx(1)


def test_the_best_under_each_ceiling_of_a_ladder(ladder):
    ranking, table = ladder
    targets = torch.tensor([8.0, 19.58, 45, 200], dtype=torch.float64)
    chosen = best_within(ranking, targets, table)
    assert true_accuracies(chosen, targets, table) == [30, 33, 40, 44]
    assert true_accuracies(chosen, targets - 1, table) == [None, None, 40, 44]


def test_a_step_of_cells_that_connect_nothing_is_a_step(supernet, monkeypatch):
    empty = SPACE.encode(Architecture.of([[None]] * 6))[None]
    monkeypatch.setattr(CellSpace, "sample", lambda space, count, rng: empty)
    net, labels = copy.deepcopy(supernet).train(), torch.zeros(4, dtype=torch.long)
    for logits, targets in path_logits(
        net, 1, DeviceContext(torch.device("cpu")), images(), labels, rng(), "uniform"
    ):
        F.cross_entropy(logits, targets).backward()
    assert net.classifier.bias.grad is not None


def test_an_inherited_network_is_what_its_checkpoint_says(supernet, tmp_path):
    checkpoint.save(tmp_path / "supernet.pth", supernet_payload(supernet, 1))
    small = CellSpec(CellSpace(cells=2), from_string(BEST))
    network = small.inherited(str(tmp_path / "supernet.pth"), {}).eval()
    torch.testing.assert_close(
        network(images()), supernet(images(), SPACE.encode(from_string(BEST)))
    )
    again = described(small.describe()).network({})
    again.load_state_dict(network.state_dict())
    with pytest.raises(UserError, match="it has 2 cells in each stage, the network 5"):
        CellSpec(SPACE, from_string(BEST)).inherited(str(tmp_path / "supernet.pth"), {})


def test_the_best_of_some_random_cells_is_expected_as_it_is_drawn():
    accuracies = torch.rand(40, generator=rng())
    drawn = accuracies[torch.randint(40, (20_000, 10), generator=rng(1))].max(dim=1).values
    assert expected_best(accuracies, 10) == pytest.approx(float(drawn.mean()), abs=0.003)
    assert expected_best(accuracies, 1) == pytest.approx(float(accuracies.mean()))
