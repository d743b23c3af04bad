"""Processes that lose their launcher end, and those that lose one another start again."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from model.sgnas.warm_up import supernet_payload
from model.spaces.registry import open_problem
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import rng
from tests.support import wait_for
from tests.worlds import Child, free_port, in_world, launcher
from utils import checkpoint, distributed, signs_of_life
from utils.config import load_config


def evolution(folder: Path, candidates: int, restarts: int) -> Child:
    """An evolutionary search in two processes, which scores so many candidates."""
    space = open_problem(load_config(folder / "tiny.yml")).space
    checkpoint.save(folder / "supernet.pth", supernet_payload(UnifiedSupernet(space, rng()), 1))
    line = "msunas.py --cfg tiny.yml --supernet_path supernet.pth --n_epochs 0 --iterations 0"
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
    run = evolution(tmp_path, 2000, restarts=0)
    wait_for(lambda: measured(tmp_path))
    own = run.workers
    assert len(own) == 2
    os.kill(run.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(runs, own)), seconds=60)
    said = run.said + run.errors
    assert "the same command resumes" in said
    assert "Traceback" not in said
    assert measured(tmp_path) < 2000


@pytest.mark.slow
def test_both_processes_may_be_killed_one_after_the_other(tmp_path, tiny_config):
    run = evolution(tmp_path, 24, restarts=3)
    for rank in (1, 0):  # those that start again must not meet what the first ones left
        before = measured(tmp_path)
        wait_for(lambda before=before: measured(tmp_path) > before)
        os.kill(run.workers[rank], signal.SIGKILL)
        wait_for(lambda: len(run.workers) == 2)
    assert run.wait() == 0, run.errors
    assert len(json.loads((tmp_path / "found" / "iter_0.stats").read_text())["archive"]) == 24


def member(rank: int, port: int) -> None:
    """One of two processes; the second one stops dead, and the first one waits for it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    signs_of_life.BEAT, signs_of_life.SILENT = 0.1, 2.0
    with distributed.joined():
        Path(f"joined{rank}").touch()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        distributed.wait()


def leave_at_different_times(seconds: float) -> bool:
    signs_of_life.BEAT, signs_of_life.SILENT = 0.1, 0.5
    time.sleep(seconds * (1 - distributed.rank()))
    return True


def test_a_process_that_falls_silent_ends_the_others(tmp_path):
    port = free_port()
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    first, second = (Child(folder, member, r, port) for r, folder in enumerate(folders))
    try:
        assert first.wait(60) == 128 + signal.SIGTERM
    finally:
        second.kill()
    assert "process 1 of this run has given no sign of life for 2 seconds" in first.errors
    assert (folders[0] / "joined0").exists()


def test_a_process_that_is_done_is_missed_by_nobody(tmp_path):
    assert in_world(2, leave_at_different_times, tmp_path, 1.5) == [True, True]


def test_a_lost_connection_is_a_line(monkeypatch):
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]")
    assert distributed.said_of_loss(lost) is None  # it runs alone
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "another process of this run has ended" in distributed.said_of_loss(lost)
    assert distributed.said_of_loss(RuntimeError("shapes cannot be multiplied")) is None
