"""The benchmark of equal cost: rankings of an invented table, and answers to it."""

import json

import numpy as np
import pytest

import msunas
import search
from benchmarks import band_look_ups
from benchmarks import nasbench_macro as benchmark
from model.ranking.score_file import ScoreFile
from model.spaces.nasbench_macro.benchmark_table import BlockTable
from tests.support import refused
from utils.errors import UserError

CONFIG = """
dataset: digits
classes: 10
input_size: 8
supernet: nasbench_macro
space: {image_size: 32, supernet_width: 0.05}
cuda: false
warmup_epochs: 1
epochs: 1
search_epochs: 1
batch_size: 256
paths_per_step: 1
validation_paths: 2
bn_recalibration_images: 128
low_flops: 30
high_flops: 90
target_step: 10
eval_step: 30
pool_size: 4
pool_tolerance: 14
priors_per_target: 4
answer_ranking: supernet
optim_state: {optimizer: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.0005}
log_dir: logs
"""


def accuracy(name: str) -> float:
    """The more blocks, the better; large ones add a little."""
    return 60 + sum({"0": 0, "1": 3, "2": 3.5}[digit] for digit in name)


@pytest.fixture(scope="module")
def names() -> list[str]:
    return list(benchmark.all_genes())


@pytest.fixture
def table(tmp_path, names):
    """Without every tenth network."""
    rows = {name: {"mean_acc": accuracy(name)} for i, name in enumerate(names) if i % 10}
    (tmp_path / "t.json").write_text(json.dumps(rows))
    return tmp_path / "t.json"


@pytest.fixture
def free(tmp_path, names):
    """Scores of all networks without training, of which one knows the truth."""
    file, rng = tmp_path / "free.jsonl", np.random.default_rng(0)
    genes = benchmark.all_genes()
    costs, parameters = benchmark.GENOME.costs(np.stack(list(genes.values())))
    scores, lines = ScoreFile.open(file, {"seed": 0}), []
    for name, cost, params in zip(names, costs.tolist(), parameters.tolist(), strict=True):
        sizes = {"cost": cost, "params_m": params, "blocks": sum(d != "0" for d in name)}
        terms = {"expressivity": accuracy(name), "progressivity": accuracy(name)}
        values = {**sizes, **terms, "trainability": float(rng.normal())}
        lines.append(json.dumps({"id": name, **values, "by": scores.by}) + "\n")
    file.write_text("".join(lines))
    return file


def test_all_networks_come_once_in_the_order_of_seed_0(names):
    assert len(set(names)) == len(names) == 3969
    assert names == list(benchmark.all_genes())


def test_a_network_of_equal_cost_costs_a_tenth_less_at_most():
    costs = np.array([35.9, 36.0, 40.0, 40.1])
    assert benchmark.in_band(costs, 40).tolist() == [False, True, True, False]


def test_what_an_answer_is_worth_is_told_by_its_band(table):
    known = BlockTable.load(table)
    best = benchmark.best_within(known.paths, known.accuracies.numpy())
    found = benchmark.worth(best, known)
    assert found["judged"] == len(benchmark.TARGETS)
    assert found["regret"] <= 0, "the best under a ceiling is no worse than the best of its band"
    assert found["wins"] == 1
    worst = known.paths[[int(known.accuracies.argmin())] * len(benchmark.TARGETS)]
    assert benchmark.worth(worst, known)["above random"] < 0
    large = known.paths[[int(known.costs.argmax())] * len(benchmark.TARGETS)]
    assert benchmark.worth(large, known)["over"] == len(benchmark.TARGETS)


@pytest.fixture
def ranking(tmp_path, names):
    """Scores by a supernet that saw every second network, and is mistaken."""
    file, rng = tmp_path / "ranking.jsonl", np.random.default_rng(1)
    scores = ScoreFile.open(file, {"seed": 0})
    loss = rng.normal(size=len(names)).tolist()
    lines = [
        json.dumps({"id": name, "supernet": 50.0, "supernet_loss": one, "by": scores.by}) + "\n"
        for name, one in zip(names[::2], loss[::2], strict=True)
    ]
    file.write_text("".join(lines))
    return file


def test_trained_networks_say_which_signals_count(free, ranking, names):
    scored = benchmark.Scored.read(free, ranking)
    few = names[::200]
    better = scored.calibrated({name: accuracy(name) for name in few})
    truth = np.array([accuracy(name) for name in names])
    tau = benchmark.taus(better, truth)["all"]
    assert tau["calibrated"] > tau["combined"] + 0.1
    assert abs(tau["supernet"]) < 0.05
    assert np.isnan(better.scores["calibrated"][1])
    with pytest.raises(UserError, match=f"--trained: the supernet has not scored {names[1]}"):
        scored.calibrated(dict.fromkeys(names[:5], 1.0))


def test_searches_that_know_more_look_up_less(free, ranking, table, names):
    """Genes tell this truth, free signals know it, and a supernet of noise does not help."""
    scored = benchmark.Scored.read(free, ranking)
    band = band_look_ups.Band.of(60, scored, BlockTable.load(table))
    good = (band.accuracies >= band.accuracies.max() - band_look_ups.ENOUGH).sum()
    by_chance = (len(band.accuracies) + 1) / (good + 1)
    mean = {
        method: np.mean([band_look_ups.look_ups(method, seed, band) for seed in range(20)])
        for method in band_look_ups.METHODS
    }
    assert 0.5 * by_chance < mean["random"] < 2 * by_chance
    assert mean["published"] < 0.7 * mean["random"]
    assert mean["free"] < mean["published"]
    assert mean["free"] <= mean["supernet"]


@pytest.mark.slow
def test_rankings_and_answers_are_reported_and_written(tmp_path, monkeypatch, capsys, table, free):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(benchmark, "TARGETS", (30, 60, 90))
    (tmp_path / "m.yml").write_text(CONFIG)
    search.main(["--cfg", "m.yml", "--title", "run"])
    supernet = "logs/run/checkpoints/supernet_best.pth"
    options = ["--cfg", "m.yml", "--supernet_path", supernet]
    evolution = "--n_doe 12 --n_iter 2 --iterations 1 --n_epochs 0 --vld_size 40 --save evolved"
    msunas.main([*options, *evolution.split()])
    given = ["logs/run", "--count", "20", "--free", str(free)]
    report = ["report", *given, "--table", str(table)]
    assert "have no scores yet" in refused(capsys, benchmark.main, *report)
    benchmark.main(["rank", *given])
    capsys.readouterr()
    more = ["--searches", "evolved", "--predictions", "p.jsonl", "--answers", "a.jsonl"]
    benchmark.main([*report, *more])
    said = capsys.readouterr().out
    assert "the table has 3572 of 3969 networks; 397 it lacks" in said
    assert "training_free" in said
    predictions = [json.loads(line) for line in (tmp_path / "p.jsonl").open()]
    assert len(predictions) == 3969
    assert sum(line["supernet"] is not None for line in predictions) == 20
    assert all(line["training_free"] <= 0 for line in predictions)
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").open()]
    methods = ("generator, ranked", "generator", "training-free", "msunas")
    assert len(answers) == len(methods) * len(benchmark.TARGETS)
    own = [line for line in answers if line["method"] == "training-free"]
    cost = {line["arch"]: line["cost_m"] for line in predictions}
    assert all(cost[line["arch"]] <= line["target"] + 1e-3 for line in own)


def test_what_cannot_be_reported_is_a_line(tmp_path, capsys):
    assert "--table: report needs" in refused(capsys, benchmark.main, "report", "logs/run")
    assert "it is no run folder" in refused(capsys, benchmark.main, "rank", tmp_path)
