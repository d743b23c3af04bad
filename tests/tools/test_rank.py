"""Architectures trained from scratch, beside what the supernet said of them."""

import json
import shutil

import numpy as np
import pytest
import torch

import msunas
import train_cifar
from model.spaces.paths import Architecture
from model.spaces.registry import build_cost_table, open_problem
from tools import rank
from utils.config import load_config

RECIPE = ("--set", "epochs=1", "optim_state.lr=0.05")


@pytest.fixture
def table(searched):
    config = load_config(searched / "tiny.yml")
    return build_cost_table(config, open_problem(config).space)


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
    with pytest.raises(
        rank.UserError, match="--random 2: of 9 M, of 4096 random architectures 0 are such"
    ):
        rank.drawn(table, 2, 0, 9.0)


def trained(searched, out, *more) -> list[dict]:
    rank.main([str(searched / "logs" / "tiny"), "--out", str(out), *more, *RECIPE])
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def evolution(searched, tmp_path_factory):
    """A short evolutionary search on the supernet of the run."""
    folder = tmp_path_factory.mktemp("evolution")
    given = [
        "--n_epochs",
        "0",
        "--n_doe",
        "6",
        "--n_iter",
        "2",
        "--iterations",
        "1",
        "--vld_size",
        "40",
    ]
    given += [
        "--supernet_path",
        str(searched / "logs" / "tiny" / "checkpoints" / "supernet_best.pth"),
    ]
    msunas.main(["--cfg", str(searched / "tiny.yml"), "--save", str(folder / "found"), *given])
    return folder / "found"


def test_networks_are_trained_once_and_all_numbers_may_grow(
    searched, tmp_path, evolution, monkeypatch, capsys
):
    first = trained(searched, tmp_path, "--count", "3")
    assert [line["method"] for line in first] == ["random"] * 3
    before = {file: file.read_bytes() for file in tmp_path.glob("*/result.json")}
    assert len(before) == 3
    said = capsys.readouterr().out
    assert "Kendall tau of the supernet" in said
    assert "Kendall tau of cost alone" in said
    assert said.count("too few architectures for an interval") == 3

    with_answers = (
        "--count",
        "4",
        "--targets",
        "0.15",
        "--random",
        "2",
        "--search",
        str(evolution),
        "--scored",
        "5",
    )
    lines = trained(searched, tmp_path, *with_answers)
    assert lines[:3] == first
    assert all(file.read_bytes() == content for file, content in before.items())
    said = capsys.readouterr().out
    assert "of one training with another" in said
    assert ", left 0" in said
    assert "by the supernet, 5 random ones of 0.15 have" in said
    assert "all 8 networks together" in said
    scored = json.loads((tmp_path / "supernet.json").read_text())["top1"]
    # two of the five are answers
    assert len(scored) == len({line["network"] for line in lines}) + 3
    answers = lines[4:]
    assert [(line["method"], line["seed"]) for line in answers] == [
        *[("generator", 0), ("generator", 1), ("msunas", 0), ("msunas", 1)],
        *[("random", 0), ("random", 1)] * 2,
    ]
    assert all(line["target"] == 0.15 for line in answers)
    assert answers[0]["choices"] == answers[1]["choices"]
    assert answers[0]["supernet_top1"] == answers[1]["supernet_top1"]

    monkeypatch.setattr(rank, "train_from_scratch", None)  # nothing is left to train
    monkeypatch.setattr(rank, "top1_of_all", None)  # nor to score
    assert trained(searched, tmp_path, *with_answers) == lines
    assert ", left" not in capsys.readouterr().out


def test_a_network_is_what_train_cifar_trains(searched, tmp_path):
    line = trained(searched, tmp_path, "--count", "1")[0]
    folder = tmp_path / f"{line['network']}-seed0"
    given = [
        "--cfg",
        str(searched / "tiny.yml"),
        "--architecture",
        str(folder / "architecture.json"),
    ]
    train_cifar.main([*given, "--title", "same", *RECIPE, f"log_dir={tmp_path}", "seed=0"])
    result = json.loads((tmp_path / "same" / "result.json").read_text())
    assert result["top1"] == line["test_top1"]
    assert Architecture.of(line["choices"]) == Architecture.of(
        json.loads((folder / "architecture.json").read_text())["choices"]
    )


def test_the_evolved_answer_is_the_best_of_what_is_allowed(searched, evolution, table):
    args = rank.parse_arguments(
        [str(searched / "logs" / "tiny"), "--out", "x", "--search", str(evolution)]
    )
    rows = json.loads((evolution / "iter_1.stats").read_text())["archive"]
    target = sorted(cost for _, _, cost in rows)[len(rows) // 2]
    found = table.space.decode(rank.evolved(target, table, args))
    least = min(error for _, error, cost in rows if cost <= target)
    assert found in [
        Architecture.of(record["choices"]) for record, error, _ in rows if error == least
    ]


def judged(target: float, supernet: float, *tests: float) -> rank.Judged:
    answer = rank.Answer("random", target, Architecture(((int(100 * supernet),),)), target, 0.1)
    return rank.Judged(answer, supernet, tests)


def test_agreement_is_that_within_targets(capsys):
    """By hand: both targets have the supernet's order in their first training and the opposite one
    in their second.
    """
    cheap = [judged(4, 1.0, 50.0, 53.0), judged(4, 3.0, 52.0, 50.0), judged(4, 2.0, 51.0, 52.0)]
    dear = [judged(8, 1.1, 70.0, 73.0), judged(8, 3.1, 72.0, 70.0), judged(8, 2.1, 71.0, 72.0)]
    rank.print_agreement([*cheap, cheap[0], *dear])  # what several methods gave counts once
    assert capsys.readouterr().out.splitlines()[1:] == [
        # 51.5, 51, 51.5: -2 / sqrt(3 * 2), for the tie
        "  -0.816 of the supernet with the mean of all trainings",
        "  0.000 of the supernet with one training",
        "  -1.000 of one training with another",
    ]
    rank.print_agreement([judged(4, 1.0, 50.0), judged(4, 2.0, 51.0)])
    assert "another" not in capsys.readouterr().out


def test_answers_stand_among_random_ones_of_equal_cost(capsys):
    found = rank.Answer(rank.GENERATOR, 4.0, Architecture(((3,),)), 4.0, 0.1)
    scores = np.array([50.0, 52.0, 54.0, 56.0])
    rank.print_standing([rank.Judged(found, 55.0, (60.0,)), judged(4, 51.0, 50.0)], {4.0: scores})
    [line] = capsys.readouterr().out.splitlines()
    assert line == (
        "by the supernet, 4 random ones of 4 have 53.00 +- 2.58 %; generator's answer is above 75% of them"
    )


def refused(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as error:
        rank.main([str(argument) for argument in argv])
    assert error.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_what_is_wrong_is_one_line(searched, tmp_path, evolution, capsys):
    run, out = searched / "logs" / "tiny", tmp_path / "out"
    assert "has no config.yml" in refused(capsys, tmp_path, "--out", out)
    assert "nothing to train" in refused(capsys, run, "--out", out, "--count", 0)
    assert "this space reaches" in refused(capsys, run, "--out", out, "--targets", 99)
    assert "no search of this space" in refused(
        capsys, run, "--out", out, "--targets", 0.15, "--search", tmp_path
    )
    other = shutil.copytree(evolution, tmp_path / "other")
    record = json.loads((other / "search.json").read_text())
    record["settings"]["supernet_path"] = "0" * 64
    (other / "search.json").write_text(json.dumps(record))
    assert "on another supernet" in refused(
        capsys, run, "--out", out, "--targets", 0.15, "--search", other
    )
    assert not out.exists()


def test_another_recipe_is_refused_in_the_same_folder(searched, tmp_path, capsys):
    trained(searched, tmp_path, "--count", "1")
    before = sorted(tmp_path.rglob("*"))
    said = refused(
        capsys, searched / "logs" / "tiny", "--out", tmp_path, "--count", 1, "--set", "epochs=2"
    )
    assert "this run was begun with epochs: 1, now it is 2" in said
    assert sorted(tmp_path.rglob("*")) == before
