"""The benchmark on NAS-Bench-201: answers compared with rankings and searches, by true accuracy."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch

import msunas
import search
from benchmarks import nasbench201 as benchmark
from benchmarks.nasbench201 import Ranking, best_within, expected_best, taus, true_accuracies
from model.ranking.score_file import ScoreFile
from model.spaces.nasbench201.benchmark_table import CellTable
from model.spaces.nasbench201.space import CellSpace
from model.spaces.paths import Architecture
from tests.conftest import rng
from tests.support import CELLS_CONFIG, cell_table, refused

SPACE = CellSpace()


@pytest.mark.slow
def test_answers_are_compared_with_the_best_that_a_ranking_or_a_search_finds(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cells.yml").write_text(CELLS_CONFIG)
    cell_table(tmp_path / "t.csv", lambda cell: 50 + 5 * cell.count("nor_conv_3x3"))
    search.main(["--cfg", "cells.yml", "--title", "run", "--table", "t.csv"])
    rows = list(csv.DictReader((tmp_path / "logs/run/true_accuracy.csv").open()))
    supernet = "logs/run/checkpoints/supernet_best.pth"
    options = ["--cfg", "cells.yml", "--supernet_path", supernet]
    evolution = "--n_doe 10 --n_iter 3 --iterations 1 --n_epochs 0 --vld_size 60 --save evolved"
    msunas.main([*options, *evolution.split()])
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

    without_norms = ["--count", "12", "--set", "bn_recalibration_images=0"]
    line = refused(capsys, benchmark.main, "rank", "logs/run", *without_norms)
    assert "it was scored in another way" in line
    benchmark.main(["rank", "logs/run", *without_norms, "--ranking", "no-norms.jsonl"])
    with (tmp_path / "logs/run/ranking.jsonl").open("a") as file:
        file.write('{"id": "|none~0|+|no')
    benchmark.main(["rank", "logs/run", "--count", "13"])
    found = list(ScoreFile.open(tmp_path / "logs/run/ranking.jsonl").values)
    assert found[:12] == ranking
    assert len(found) == 13

    record = json.loads((tmp_path / "evolved/search.json").read_text())
    wrong = [("test", True, "guided by test images"), ("supernet_path", "0", "another supernet")]
    for key, value, reason in wrong:
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
    line = refused(capsys, benchmark.main, "rank", "logs/other")
    assert "it is not a run on the published cells" in line


@pytest.fixture
def ladder(tmp_path) -> tuple[Ranking, CellTable]:
    """Ten cells, each more expensive and better than the last; the supernet swaps two pairs."""
    rows = [[*["nor_conv_3x3"] * n3, *["nor_conv_1x1"] * n1] for n3 in (0, 1) for n1 in range(5)]
    cells = [Architecture.of([[name] for name in row + [None] * (6 - len(row))]) for row in rows]
    accuracy = lambda cell: 30 + 10 * cell.count("conv_3x3") + cell.count("conv_1x1")  # noqa: E731
    table = CellTable.load(cell_table(tmp_path / "t.csv", accuracy))
    paths, top1 = (
        torch.stack([SPACE.encode(cell) for cell in cells]),
        [2, 1, 3, 5, 4, 6, 7, 8, 9, 10],
    )
    return Ranking(paths, np.array(top1), np.full(10, np.nan)), table


def test_the_taus_of_a_ladder_solved_by_eye(ladder):
    found = taus(*ladder)
    assert found["tau"] == pytest.approx((43 - 2) / 45)
    assert found["top1"] == 5.5
    # one of the two mistakes is inside a bin
    assert found["inside bins"] == pytest.approx((4 - 1) / 5)
    assert found["cost"] == pytest.approx(1)
    assert found["cost inside bins"] == pytest.approx(1)


def test_the_best_under_each_ceiling_of_a_ladder(ladder):
    ranking, table = ladder
    targets = torch.tensor([8.0, 19.58, 45, 200], dtype=torch.float64)
    chosen = best_within(ranking.paths, ranking.predicted, targets, table)
    assert true_accuracies(chosen, targets, table) == [30, 33, 40, 44]
    assert true_accuracies(chosen, targets - 1, table) == [None, None, 40, 44]


def test_the_best_of_some_random_cells_is_expected_as_it_is_drawn():
    accuracies = torch.rand(40, generator=rng())
    drawn = accuracies[torch.randint(40, (20_000, 10), generator=rng(1))].max(dim=1).values
    assert expected_best(accuracies, 10) == pytest.approx(float(drawn.mean()), abs=0.003)
    assert expected_best(accuracies, 1) == pytest.approx(float(accuracies.mean()))
