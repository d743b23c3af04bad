"""tools.score: signals of architectures, in a file that grows and a table, best first."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from model.ranking.combined import sum_of_log_ranks
from model.ranking.training_free import TERMS, TrainingFree
from model.spaces.registry import open_problem
from tests.support import refused
from tools import score
from utils.config import load_config

ELASTIC = Path(score.__file__).parents[1] / "config_file" / "digits_elastic_config.yml"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "scores.jsonl"


def lines_of(file) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def table_of(file) -> list[dict]:
    with file.with_suffix(".csv").open() as rows:
        return list(csv.DictReader(rows))


def run(config, out, *options) -> list[dict]:
    score.main(["--cfg", str(config), "--out", str(out), "--images", "2", *map(str, options)])
    return lines_of(out)


def test_signals_are_those_of_the_networks_and_the_table_is_best_first(tiny_config, out, capsys):
    lines = run(tiny_config, out, "--count", 6)
    assert "6 architectures, best first" in capsys.readouterr().out
    problem = open_problem(load_config(tiny_config))
    for line in lines:
        spec = problem.kind.spec(
            problem.space, problem.kind.architecture(problem.space, line["architecture"])
        )
        assert line["id"] == spec.name
        assert line["blocks"] == spec.blocks
        assert line["cost"] == pytest.approx(spec.macs_m, abs=1e-6)
        terms = TrainingFree(images=2).score(spec)
        assert {name: line[name] for name in TERMS} == pytest.approx(terms)
    values = {n: np.array([line[n] for line in lines]) for n in (*TERMS, "cost")}
    expected = dict(
        zip([line["id"] for line in lines], sum_of_log_ranks(values).tolist(), strict=True)
    )
    table = table_of(out)
    assert {row["id"]: float(row["training_free"]) for row in table} == pytest.approx(
        expected, rel=1e-5
    )
    scores = [float(row["training_free"]) for row in table]
    assert scores == sorted(scores, reverse=True)


def test_what_is_scored_is_kept_and_the_count_may_grow(tiny_config, out, monkeypatch):
    first = run(tiny_config, out, "--count", 4)
    asked, score_one = [], TrainingFree.score
    monkeypatch.setattr(
        TrainingFree, "score", lambda self, spec: asked.append(spec) or score_one(self, spec)
    )
    more = run(tiny_config, out, "--count", 6)
    assert more[:4] == first
    assert len(asked) == 2
    assert run(tiny_config, out, "--count", 6) == more
    assert len(asked) == 2


def test_a_list_is_scored_of_any_of_our_files(tiny_config, out):
    """Of lines with architectures, such as the file itself, and of records of tools.generate."""
    lines = run(tiny_config, out, "--count", 3)
    again = out.with_name("again.jsonl")
    shutil.copy(out, out.with_name("list.jsonl"))
    assert run(tiny_config, again, "--architectures", out.with_name("list.jsonl")) == lines
    rows = [{"target": 1, "kind": "unified", "architecture": lines[1]["architecture"]}]
    out.with_name("list.json").write_text(json.dumps(rows))
    one = out.with_name("one.jsonl")
    assert run(tiny_config, one, "--architectures", out.with_name("list.json")) == [lines[1]]


def test_random_architectures_may_be_of_some_cost(tiny_config, out):
    found = run(tiny_config, out, "--count", 3, "--cost", "0.14:0.16", "--terms", "trainability")
    assert all(0.14 <= line["cost"] <= 0.16 for line in found)
    assert "expressivity" not in found[0]


def test_an_elastic_space_is_scored_without_a_supernet(out):
    found = run(ELASTIC, out, "--count", 2, "--terms", "expressivity")
    assert set(found[0]) == {
        *("id", "cost", "params_m", "blocks", "expressivity", "architecture", "by")
    }


def test_trained_networks_calibrate_and_each_way_to_rank_shows_its_tau(tiny_config, out, capsys):
    lines = run(tiny_config, out, "--count", 8)
    results = [
        {**line, "network": line["id"], "seed": seed, "test_top1": 50 + line["cost"] + seed}
        for line in lines[:5]
        for seed in (0, 1)
    ]
    file = out.with_name("results.jsonl")
    file.write_text("".join(json.dumps(line) + "\n" for line in results))
    capsys.readouterr()
    run(tiny_config, out, "--count", 8, "--calibrate", file)
    said = capsys.readouterr().out
    assert "Kendall tau, 5 trained networks" in said
    [line] = [line for line in said.splitlines() if line.strip().startswith("cost ")]
    assert line.split()[-1] == "1.000"
    assert "calibrated" in table_of(out)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--terms", "grasp"], "--terms grasp: it must be some of expressivity"),
        (["--terms", "supernet"], "--terms supernet: this needs a run folder"),
        (["--out", "table.csv"], "--out table.csv: the table is written there"),
        (["--cost", "3:1"], "--cost 3:1: it must be LOW:HIGH"),
        (["--cost", "8:9"], "--count 100: only 0 different architectures of 8 to 9 M"),
        (["--architectures", "none.json"], "none.json"),
        (["--architectures", "empty.json"], "it lists no architecture"),
        (["--architectures", "other.json"], "entry 1: it is of kind 'elastic', not unified"),
        (["--architectures", "wrong.jsonl"], "line 1: no architecture of this space"),
        (["--calibrate", "few.jsonl"], "few.jsonl: line 1: not a result of tools.rank"),
    ],
)
def test_bad_input_is_one_line(tiny_config, out, capsys, monkeypatch, options, says):
    monkeypatch.chdir(out.parent)
    for name, text in {
        "empty.json": "[]",
        "other.json": '[{"kind": "elastic", "architecture": {}}]',
        "wrong.jsonl": '{"architecture": [[9]]}\n',
        "few.jsonl": '{"architecture": [[3, 3, 3, 3, 3, 3], [3, 3, 3, 3, 3, 3]]}\n',
    }.items():
        (out.parent / name).write_text(text)
    line = refused(capsys, score.main, "--cfg", tiny_config, "--out", out, *options)
    assert says in line
    assert not out.exists()


def test_scores_of_another_space_are_refused(tiny_config, out, capsys):
    """Its networks may have the same names."""
    run(tiny_config, out, "--count", 2)
    before = out.read_bytes()
    given = ["--cfg", tiny_config, "--out", out, "--images", 2, "--count", 2]
    line = refused(capsys, score.main, *given, "--set", "head_channels=24")
    assert "it was scored in another way: space was" in line
    assert out.read_bytes() == before
