"""Whether a ranking can be trusted: rankings by hand, and supernets that know nothing."""

import json

import numpy as np
import pytest

import search
from model.ranking.reliability import Reliability

COSTS = np.arange(8.0)
SHUFFLED = np.array([3.0, 0, 6, 1, 7, 4, 2, 5])


def found(first, second, top1=60.0, costs=COSTS, classes=10) -> Reliability:
    return Reliability.of(np.full((2, 8), top1), np.array([first, second]), costs, classes)


def test_a_ranking_that_two_halves_share_and_cost_does_not_say_is_not_doubted():
    one = found(SHUFFLED, SHUFFLED + 0.1)
    assert one.halves == pytest.approx(1)
    assert (one.top1, one.chance, one.count) == (60, 10, 8)
    assert abs(one.cost) < 0.5
    assert one.doubts == []


def test_halves_that_disagree_are_noise():
    [doubt] = found(SHUFFLED, SHUFFLED[::-1]).doubts
    assert "mostly noise" in doubt


def test_a_ranking_by_cost_alone_is_no_better_than_cost():
    losses = 7 - COSTS
    swapped = losses.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    [doubt] = found(losses, swapped).doubts
    assert "ranks no better than cost" in doubt


@pytest.mark.parametrize(
    ("classes", "top1", "doubted"),
    [(10, 18, True), (10, 20, False), (2, 54, True), (2, 56, False)],
)
def test_what_has_learned_little_is_told_by_chance(classes, top1, doubted):
    doubts = found(SHUFFLED, SHUFFLED, top1, classes=classes).doubts
    assert any("has learned little" in doubt for doubt in doubts) is doubted


def test_a_search_says_it_once_and_keeps_it(tiny_config, capsys):
    given = ["--cfg", str(tiny_config), "--set", "warmup_epochs=1", "search_epochs=0"]
    search.main([*given, "optim_state.lr=1e-6"])
    said = capsys.readouterr().out
    assert "supernet: 3 random networks have" in said
    assert "warning: the supernet has learned little" in said
    kept = tiny_config.parent / "logs" / "tiny" / "reliability.json"
    assert json.loads(kept.read_text())["count"] == 3
    search.main([*given, "optim_state.lr=1e-6"])
    assert "random networks have" not in capsys.readouterr().out
