"""Processes that lose their launcher end, and those that lose one another start again."""

import json
import os
import signal
from pathlib import Path

import pytest

from model.sgnas.warm_up import supernet_payload
from model.spaces.registry import open_problem
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import rng
from tests.support import wait_for
from tests.worlds import Child, launcher
from utils import checkpoint, distributed
from utils.config import load_config


def evolution(folder: Path, candidates: int, restarts: int) -> Child:
    """An evolutionary search in two processes, which fine-tunes so many candidates."""
    space = open_problem(load_config(folder / "tiny.yml")).space
    checkpoint.save(folder / "supernet.pth", supernet_payload(UnifiedSupernet(space, rng()), 1))
    line = "msunas.py --cfg tiny.yml --supernet_path supernet.pth --n_epochs 1 --iterations 0"
    line += f" --n_doe {candidates} --vld_size 100 --save found"
    return Child(folder, launcher, 2, restarts, line)


def runs(process: int) -> bool:
    """Whether a process is there, and more than a name that waits for its parent."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] != "Z"


def measured(folder: Path) -> int:
    return len(list((folder / "found").glob("iter_0/*.stats")))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it looks into /proc")
def test_workers_end_when_their_launcher_is_killed(tmp_path, tiny_config):
    run = evolution(tmp_path, 200, restarts=0)
    wait_for(lambda: measured(tmp_path))
    own = run.workers
    assert len(own) == 2
    os.kill(run.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(runs, own)), seconds=60)
    said = run.said + run.errors
    assert "the same command resumes" in said
    assert "Traceback" not in said
    assert measured(tmp_path) < 200


@pytest.mark.slow
def test_both_processes_may_be_killed_one_after_the_other(tmp_path, tiny_config):
    run = evolution(tmp_path, 12, restarts=3)
    for rank in (1, 0):  # those that start again must not meet what the first ones left
        before = measured(tmp_path)
        wait_for(lambda before=before: measured(tmp_path) > before)
        os.kill(run.workers[rank], signal.SIGKILL)
        wait_for(lambda: len(run.workers) == 2)
    assert run.wait() == 0, run.errors
    assert len(json.loads((tmp_path / "found" / "iter_0.stats").read_text())["archive"]) == 12


def test_a_lost_connection_is_a_line(monkeypatch):
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")
    assert distributed.said_of_loss(lost) is None  # it runs alone
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "another process of this run has ended" in distributed.said_of_loss(lost)
    assert distributed.said_of_loss(RuntimeError("shapes cannot be multiplied")) is None
