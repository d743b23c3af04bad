"""Architectures trained from scratch, compared with their supernet accuracy."""

import json
import shutil

import pytest
import torch

import msunas
import train_cifar
from model.ranking.score_file import ScoreFile
from model.ranking.supernet_accuracy import SupernetAccuracy
from model.spaces.paths import Architecture
from model.spaces.registry import open_problem
from tests.support import refused
from tools import rank
from utils.config import load_config
from utils.errors import UserError

RECIPE = ("--set", "epochs=1", "optim_state.lr=0.05")


@pytest.fixture
def table(searched):
    return open_problem(load_config(searched / "tiny.yml")).table


def test_more_random_architectures_begin_with_the_same(table):
    few, many = rank.drawn(table, 3, 0), rank.drawn(table, 9, 0)
    assert many[:3] == few
    assert len({answer.architecture for answer in many}) == 9
    assert rank.drawn(table, 3, 1) != few


def test_random_architectures_of_a_target_cost_as_much(table):
    found = rank.drawn(table, 5, 0, 0.15)
    assert len({answer.architecture for answer in found}) == 5
    assert all(abs(answer.cost / 0.15 - 1) <= 0.005 for answer in found)
    paths = torch.stack([table.space.encode(answer.architecture) for answer in found])
    assert [answer.cost for answer in found] == table(paths).tolist()


def test_too_few_of_a_cost_are_an_error(table, monkeypatch):
    monkeypatch.setattr(rank, "DRAWS", 1)
    said = "--random 2: of 9 M, of 4096 random architectures 0 are such"
    with pytest.raises(UserError, match=said):
        rank.drawn(table, 2, 0, 9.0)


def trained(searched, out, *more) -> list[dict]:
    rank.main([str(searched / "logs" / "tiny"), "--out", str(out), *more, *RECIPE])
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def evolution(searched, tmp_path_factory):
    """A short evolutionary search on the supernet of the run."""
    folder = tmp_path_factory.mktemp("evolution")
    line = f"--supernet_path {searched}/logs/tiny/checkpoints/supernet_best.pth --n_epochs 0"
    line += f" --cfg {searched}/tiny.yml --save {folder}/found --n_doe 6 --n_iter 2 --iterations 1"
    msunas.main(f"{line} --vld_size 40".split())
    return folder / "found"


@pytest.mark.slow
def test_networks_are_trained_once_and_all_numbers_may_grow(
    searched, tmp_path, evolution, monkeypatch, capsys
):
    first = trained(searched, tmp_path, "--count", "3")
    assert [line["method"] for line in first] == ["random"] * 3
    before = {file: file.read_bytes() for file in tmp_path.glob("*/result.json")}
    assert len(before) == 3
    said = capsys.readouterr().out
    assert "Kendall tau of the supernet's loss" in said
    assert "Kendall tau of cost alone" in said
    assert "Kendall tau of the number of blocks" in said
    assert said.count("too few architectures for an interval") == 5

    more = f"--count 4 --targets 0.15 --random 2 --search {evolution} --scored 5".split()
    lines = trained(searched, tmp_path, *more)
    assert lines[:3] == first
    assert all(file.read_bytes() == content for file, content in before.items())
    said = capsys.readouterr().out
    assert "of one training with another" in said
    assert ", left 0" in said
    assert "by the supernet, 5 random ones of 0.15 have" in said
    assert "all 8 networks together" in said
    scored = ScoreFile.open(tmp_path / "supernet.jsonl").values
    # two of the five are answers
    assert len(scored) == len({line["network"] for line in lines}) + 3
    answers = lines[4:]
    assert [(line["method"], line["seed"]) for line in answers] == [
        *[("generator", 0), ("generator", 1), ("msunas", 0), ("msunas", 1)],
        *[("random", 0), ("random", 1)] * 2,
    ]
    assert all(line["target"] == 0.15 for line in answers)
    assert answers[0]["architecture"] == answers[1]["architecture"]
    assert answers[0]["supernet_top1"] == answers[1]["supernet_top1"]

    monkeypatch.setattr(rank, "train_from_scratch", None)  # nothing is left to train
    monkeypatch.setattr(SupernetAccuracy, "scores", None)  # nor to score
    assert trained(searched, tmp_path, *more) == lines
    assert ", left" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_network_is_what_train_cifar_trains(searched, tmp_path):
    line = trained(searched, tmp_path, "--count", "1")[0]
    folder = tmp_path / f"{line['network']}-seed0"
    given = f"--cfg {searched}/tiny.yml --architecture {folder}/architecture.json --title same"
    train_cifar.main([*given.split(), *RECIPE, f"log_dir={tmp_path}", "seed=0"])
    result = json.loads((tmp_path / "same" / "result.json").read_text())
    assert result["top1"] == line["test_top1"]
    stored = json.loads((folder / "architecture.json").read_text())
    assert line["architecture"] == stored["architecture"]


def test_the_evolved_answer_is_the_best_of_what_is_allowed(searched, evolution, table):
    args = rank.parse_arguments(f"{searched}/logs/tiny --out x --search {evolution}".split())
    rows = json.loads((evolution / "iter_1.stats").read_text())["archive"]
    target = sorted(cost for _, _, cost in rows)[len(rows) // 2]
    found = table.space.decode(rank.evolved(target, table, args))
    least = min(error for _, error, cost in rows if cost <= target)
    best = [Architecture.of(record) for record, error, _ in rows if error == least]
    assert found in best


def test_an_error_is_one_line(searched, tmp_path, evolution, capsys):
    run, out = searched / "logs" / "tiny", tmp_path / "out"
    given = (run, "--out", out)
    assert "has no config.yml" in refused(capsys, rank.main, tmp_path, "--out", out)
    assert "nothing to train" in refused(capsys, rank.main, *given, "--count", 0)
    assert "this space reaches" in refused(capsys, rank.main, *given, "--targets", 99)
    given += ("--targets", 0.15, "--search")
    assert "no search of this space" in refused(capsys, rank.main, *given, tmp_path)
    other = shutil.copytree(evolution, tmp_path / "other")
    record = json.loads((other / "search.json").read_text())
    for key, value, said in (
        ("supernet_path", "0" * 64, "on another supernet"),
        ("test", True, "guided by test images"),
    ):
        changed = {**record, "settings": {**record["settings"], key: value}}
        (other / "search.json").write_text(json.dumps(changed))
        assert said in refused(capsys, rank.main, *given, other)
    assert not out.exists()


@pytest.mark.slow
def test_a_folder_of_before_is_resumed(searched, tmp_path, monkeypatch):
    """Once the scores were in one piece, supernet.json, and without losses: they are made again."""
    lines = trained(searched, tmp_path, "--count", "2")
    file = tmp_path / "supernet.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    top1 = {row["id"]: row["supernet"] for row in rows}
    by = {**rows[0]["by"], "supernet": rows[0]["by"]["supernet"] + 48 * "f"}
    (tmp_path / "supernet.json").write_text(json.dumps({**by, "top1": top1}))
    content = file.read_text()
    file.unlink()
    monkeypatch.setattr(rank, "train_from_scratch", None)
    assert trained(searched, tmp_path, "--count", "2") == lines
    assert file.read_text() == content


@pytest.mark.slow
def test_another_recipe_is_refused_in_the_same_folder(searched, tmp_path, capsys):
    trained(searched, tmp_path, "--count", "1")
    before = sorted(tmp_path.rglob("*"))
    said = refused(
        capsys,
        rank.main,
        searched / "logs" / "tiny",
        "--out",
        tmp_path,
        "--count",
        1,
        "--set",
        "epochs=2",
    )
    assert "this run was started with epochs: 1, now it is 2" in said
    assert sorted(tmp_path.rglob("*")) == before
