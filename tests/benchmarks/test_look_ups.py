"""Searches that look accuracies up: an invented table, and signals that say it."""

import json

import numpy as np
import pytest

from benchmarks import look_ups as benchmark
from model.ranking.score_file import ScoreFile
from model.spaces.nasbench201.benchmark_table import CellTable
from tests.support import cell_table, refused


def accuracy(cell: str) -> float:
    """The more convolutions of 3x3, the better."""
    return 50 + 5 * cell.count("nor_conv_3x3") + cell.count("nor_conv_1x1")


@pytest.fixture
def table(tmp_path):
    return cell_table(tmp_path / "t.csv", accuracy)


@pytest.fixture
def signals(tmp_path):
    """Scores of random cells; `trainability` is their accuracy, the other terms are noise."""
    rng, file = np.random.default_rng(0), ScoreFile.open(tmp_path / "s.jsonl", {"seed": 0})
    genes = np.unique(benchmark.GENOME.sample(120, rng), axis=0)
    for row in genes:
        cell, (macs, params) = benchmark.GENOME.to_json(row), benchmark.GENOME.costs(row[None])
        terms = dict(zip(benchmark.SIGNALS, [*rng.normal(size=3), 0, 0, 0], strict=True))
        sizes = {"cost": float(macs[0]), "params_m": float(params[0]), "blocks": 1}
        file.add(cell, {**terms, **sizes, "trainability": accuracy(cell)}, cell)
    return tmp_path / "s.jsonl"


def test_the_regret_is_the_mean_distance_to_the_optima(table, monkeypatch):
    cells, search = CellTable.load(table), benchmark.search_of("random", 0, None)
    largest = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|"
    largest += "+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|"
    search.add(benchmark.looked_up(np.array([benchmark.GENOME.from_json(largest)]), cells))
    [record] = search.archive
    assert record.error == 100 - 80
    monkeypatch.setattr(benchmark, "CEILINGS", benchmark.CEILINGS[:1] + 1000)
    assert benchmark.mean_regret(search, cells) == 0
    monkeypatch.setattr(benchmark, "CEILINGS", benchmark.CEILINGS - 1000 + 20)
    within = cells.accuracies[cells.costs <= 40]
    expected = float(within.max() - within.mean())
    assert benchmark.mean_regret(search, cells) == pytest.approx(expected), "a random cell answers"


@pytest.mark.slow
def test_signals_that_know_the_answer_need_fewer_look_ups(table, signals, tmp_path, capsys):
    given = ["--table", table, "--signals", signals, "--seeds", 2, "--look-ups", 16]
    benchmark.main([str(word) for word in [*given, "--json", tmp_path / "out.jsonl"]])
    said = capsys.readouterr().out
    assert "16 look-ups" in said
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * len(benchmark.METHODS)
    reached = {
        name: np.mean([line["regret"]["16"] for line in lines if line["method"] == name])
        for name in benchmark.METHODS
    }
    assert reached["signals"] < reached["random"]
    for line in lines:
        regrets = list(line["regret"].values())
        assert regrets == sorted(regrets, reverse=True), "what is known is not forgotten"


def test_files_without_signals_are_refused(table, tmp_path, capsys):
    file = tmp_path / "s.jsonl"
    file.write_text('{"id": "a", "cost": 1, "by": {}}\n')
    line = refused(capsys, benchmark.main, "--table", table, "--signals", file)
    assert "no scores of cells by tools.score" in line
    file.write_text("")
    assert "it holds no scores" in refused(
        capsys, benchmark.main, "--table", table, "--signals", file
    )
