"""Timing by a clock that the test itself moves."""

import numpy as np
import pytest

from utils import timing
from utils.timing import Timer, seconds_of


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The time in seconds, for callables to move on."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    return now


def test_a_run_takes_what_passes_in_it(clock):
    assert seconds_of(lambda: clock.__setitem__(0, clock[0] + 2)) == 2


def test_callables_take_turns_and_their_first_runs_do_not_count(clock):
    calls, timer = [], Timer(12, warm_up=3, in_a_row=10)

    def callable_of(name: str, slow: int, fast: int):
        def run():
            starts_a_turn = calls[-3:] != [name] * 3
            calls.append(name)
            clock[0] += (slow if starts_a_turn else fast) / 1000

        return run

    times = timer.median_ms([callable_of("a", 90, 2), callable_of("b", 70, 3)])
    assert times == pytest.approx([2.0, 3.0])
    assert "".join(calls) == "a" * 13 + "b" * 13 + "a" * 5 + "b" * 5


def test_times_are_in_the_order_of_the_runs(clock):
    runs = iter(range(1, 7))

    def run():
        clock[0] += next(runs)

    times = Timer(3).seconds([run, run])
    assert times.tolist() == [[1, 3, 5], [2, 4, 6]]
    assert np.isfinite(Timer(1).seconds([lambda: None])).all()
