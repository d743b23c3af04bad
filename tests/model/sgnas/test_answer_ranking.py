"""Ranked answers: the best of what the generator proposes, kept where they were scored."""

import json
import shutil

import pytest
import torch

from model.ranking.signals import Signals
from model.sgnas.answer_ranking import answer_ranking
from model.sgnas.runs import find_generator, run_config
from model.spaces.registry import open_problem
from tests.support import refused
from tools import generate
from utils.errors import UserError

TARGETS = torch.tensor([0.14, 0.16], dtype=torch.float64)


@pytest.fixture
def run(searched, tmp_path):
    return shutil.copytree(searched / "logs" / "tiny", tmp_path / "run")


def opened(run, how: str):
    config = run_config(run, [f"answer_ranking={how}", "priors_per_target=2"])
    problem = open_problem(config)
    return find_generator(config, problem, run), config, problem


@pytest.mark.slow
@pytest.mark.parametrize("how", ["training-free", "supernet", "combined"])
def test_the_answers_are_the_best_by_their_signals_and_cost_nothing_again(run, how, monkeypatch):
    ready, config, problem = opened(run, how)
    rank = answer_ranking(config, problem, run)
    found, unmet = ready.within(TARGETS, rank)
    assert unmet == []
    paths = problem.space.sample(5, torch.Generator().manual_seed(0))
    scores = rank(paths)
    lines = [json.loads(line) for line in (run / f"answers_{how}.jsonl").read_text().splitlines()]
    assert ("expressivity" in lines[0]) == (how != "supernet")
    assert ("supernet_loss" in lines[0]) == (how != "training-free")
    if how == "supernet":  # the least loss is the best
        names = [problem.kind.spec(problem.space, problem.space.decode(p)).name for p in paths]
        losses = {line["id"]: line["supernet_loss"] for line in lines}
        assert int(scores.argmax()) == min(range(5), key=lambda i: losses[names[i]])
    monkeypatch.setattr(Signals, "of", None)
    again = answer_ranking(config, problem, run)
    assert ready.within(TARGETS, again)[0] == found
    assert (again(paths) == scores).all()


def test_published_answers_need_no_signals(run, monkeypatch):
    monkeypatch.setattr(Signals, "of", None)
    _, config, problem = opened(run, "none")
    assert answer_ranking(config, problem, run) is None
    assert run_config(run).answer_ranking == "none"


def test_a_ranking_needs_the_folder_of_a_run(run):
    _, config, problem = opened(run, "combined")
    with pytest.raises(UserError, match="answer_ranking: combined: it needs the folder of the run"):
        answer_ranking(config, problem, None)


def test_generate_ranks_what_the_config_says(run, tmp_path, capsys):
    given = ["--run", str(run), "--flops", "0.15", "--at-most", "--out", str(tmp_path / "f.json")]
    generate.main([*given, "--set", "answer_ranking=training-free", "priors_per_target=2"])
    [row] = json.loads((tmp_path / "f.json").read_text())
    assert row["macs_m"] <= 0.15
    said = refused(capsys, generate.main, *given, "--set", "answer_ranking=best")
    assert "answer_ranking: 'best' is not allowed" in said
