"""A folder is written by one run at a time, until that ends or is killed."""

import errno
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

import msunas
import post_search
import search
import train_cifar
from model.nsganetv2.archive import SearchFolder
from model.sgnas.warm_up import supernet_payload
from model.spaces.registry import open_problem
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import rng
from tests.support import refused, run_weights, same, wait_for
from tests.worlds import Child, script
from utils import checkpoint
from utils.claim import Claim, claims_released
from utils.config import load_config
from utils.errors import UserError
from utils.run_folder import RunFolder


def hold(folder: str, seconds: float = 600) -> None:
    Claim.lock(Path(folder))
    print("held", flush=True)
    time.sleep(seconds)


def holding(folder: Path, tmp_path: Path) -> Child:
    """A process that holds a folder."""
    process = Child(tmp_path, hold, str(folder))
    wait_for(lambda: process.said == "held\n")
    return process


@pytest.fixture
def holder(tmp_path):
    (tmp_path / "held").mkdir()
    process = holding(tmp_path / "held", tmp_path)
    yield process
    process.kill()
    process.wait()


def test_a_claim_ends_with_its_process(tmp_path, holder):
    with pytest.raises(UserError, match=rf"held: another .* \(process {holder.pid} on "):
        Claim.lock(tmp_path / "held")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    Claim.lock(tmp_path / "held")


def test_a_process_may_claim_again_and_gives_all_up_at_the_end(tmp_path):
    def others_may() -> bool:
        return Child(tmp_path, hold, str(tmp_path), 0).wait() == 0

    with claims_released():
        Claim.lock(tmp_path)
        Claim.lock(tmp_path)
        assert not others_may()
    assert others_may()


# -- two processes -------------------------------------------------------------------------------


def both(folder: Path, line: str) -> list[tuple[int, str]]:
    """Exit status and errors of two processes that start together, the good one first."""
    for name in ("1", "2"):
        (folder / name).mkdir()
    processes = [Child(folder / name, script, line) for name in ("1", "2")]
    return sorted((process.wait(), process.errors) for process in processes)


def only_one_ran(ended: list[tuple[int, str]]) -> None:
    (good, _), (bad, errors) = ended
    assert (good, bad) == (0, 2), ended
    lines = [line for line in errors.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert "another" in lines[0]


@pytest.mark.slow
def test_of_two_processes_under_one_title_one_runs_and_is_whole(tmp_path, tiny_config):
    given = f"--cfg {tiny_config} --set warmup_epochs=1 search_epochs=0 --title"
    only_one_ran(both(tmp_path, f"search.py {given} two"))
    search.main(f"{given} one".split())
    two, one = (run_weights(tmp_path / "logs" / title, "supernet_last") for title in ("two", "one"))
    assert same(two, one)
    assert not list((tmp_path / "logs").glob(".*"))


@pytest.mark.slow
def test_a_run_in_progress_is_neither_resumed_nor_moved_aside(tmp_path, tiny_config, capsys):
    given = ["--cfg", tiny_config, "--title", "run", "--set", "warmup_epochs=1", "search_epochs=0"]
    search.main([str(word) for word in given])
    other = holding(tmp_path / "logs" / "run", tmp_path)
    capsys.readouterr()
    for resume in ("auto", "none"):
        line = refused(capsys, search.main, *given, "--resume", resume)
        assert "logs/run: another run is writing there" in line
    assert [folder.name for folder in (tmp_path / "logs").iterdir()] == ["run"]
    other.kill()
    other.wait()
    search.main([str(word) for word in given])


@pytest.fixture
def evolution(tmp_path, tiny_config) -> list[str]:
    """A small evolutionary search without its --save."""
    space = open_problem(load_config(tiny_config)).space
    checkpoint.save(tmp_path / "supernet.pth", supernet_payload(UnifiedSupernet(space, rng()), 1))
    given = f"--cfg {tiny_config} --supernet_path {tmp_path}/supernet.pth --n_epochs 0 --n_doe 6"
    return f"{given} --n_iter 2 --iterations 1 --vld_size 40".split()


@pytest.mark.slow
def test_of_two_evolutionary_searches_in_one_folder_one_runs(tmp_path, evolution):
    only_one_ran(both(tmp_path, f"msunas.py {' '.join(evolution)} --save {tmp_path}/found"))
    assert len(json.loads((tmp_path / "found" / "iter_1.stats").read_text())["archive"]) == 8


# -- what a kill leaves --------------------------------------------------------------------------


def test_a_kill_leaves_no_temporary_files_behind(tmp_path, evolution):
    save = tmp_path / "found"
    given = [*evolution, "--save", str(save)]
    msunas.main(given)
    (save / "mine").mkdir()
    theirs = save / "mine" / ".notes.txt.unfinished"
    for file in (save / "iter_0" / ".net_0.stats.x.unfinished", save / ".x.unfinished", theirs):
        file.write_text("")
    msunas.main(given)
    assert list(save.rglob(".*.unfinished")) == [theirs]
    words = f"--expr {save}/iter_1.stats -n 1 --save {tmp_path}/chosen {' '.join(evolution[:4])}"
    post_search.main(words.split())
    [network, *_] = (tmp_path / "chosen").iterdir()
    (network / ".net.inherited.x.unfinished").write_text("")
    post_search.main(words.split())
    assert not list((tmp_path / "chosen").rglob(".*.unfinished"))


@pytest.mark.slow
def test_what_is_left_of_a_run_folder_that_was_being_made_is_removed(tmp_path, tiny_config):
    logs = tmp_path / "logs"
    for name in (".run.unfinished", ".run.0123abcd.unfinished", ".run2.unfinished"):
        (logs / name).mkdir(parents=True)
    search.main(f"--cfg {tiny_config} --title run --set search_epochs=0 warmup_epochs=1".split())
    assert {path.name for path in logs.iterdir()} == {"run", ".run2.unfinished"}


# -- a folder that goes away -----------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_folder_that_is_deleted_ends_a_stage_in_a_line(
    tmp_path, tiny_config, capsys, monkeypatch
):
    logged = RunFolder.log

    def deletes_and_logs(run: RunFolder, stage: str, *rest, **numbers) -> None:
        if stage == deleted_in[-1]:
            shutil.rmtree(run.path)
        logged(run, stage, *rest, **numbers)

    deleted_in = []
    found = {"target": 0.15, "macs_m": 0.15, "params_m": 0.01}
    found["choices"] = [[3, 5, None, None, None, None]] * 2
    (tmp_path / "found.json").write_text(json.dumps([found]))
    monkeypatch.setattr(RunFolder, "log", deletes_and_logs)
    given = ["--cfg", tiny_config, "--title", "gone"]
    one = [*given, "--flops", 0.15, "--architecture", tmp_path / "found.json"]
    stages = [
        ("warm-up", search, given),
        ("generator", search, given),
        ("scratch", train_cifar, one),
    ]
    for name, stage, words in stages:
        deleted_in.append(name)
        line = refused(capsys, stage.main, *words)
        assert "logs/gone: this folder was deleted or moved while a run was writing there" in line
        assert not (tmp_path / "logs" / "gone").exists()


def test_so_does_the_folder_of_an_evolutionary_search(tmp_path, evolution, capsys, monkeypatch):
    written = SearchFolder.write_iteration

    def deletes_and_writes(folder: SearchFolder, *rest) -> None:
        shutil.rmtree(folder.path)
        folder.path.mkdir()  # another one of the same name is not taken for it
        written(folder, *rest)

    monkeypatch.setattr(SearchFolder, "write_iteration", deletes_and_writes)
    line = refused(capsys, msunas.main, *evolution, "--save", tmp_path / "found")
    assert "found: this folder was deleted or moved" in line
    assert not list((tmp_path / "found").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.yml", "metrics.jsonl", "supernet_last.pth"])
def test_a_full_disk_names_the_file(tmp_path, tiny_config, capsys, monkeypatch, name):
    flush = os.fsync

    def full(handle: int) -> None:
        if f"{name}" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(handle)

    monkeypatch.setattr(os, "fsync", full)
    line = refused(capsys, search.main, "--cfg", tiny_config, "--title", "full")
    assert line.endswith(f"{name}: No space left on device")


@pytest.mark.slow
def test_a_run_that_is_killed_resumes_at_once(tmp_path, tiny_config):
    line = f"search.py --cfg {tiny_config} --title run --set warmup_epochs=400"
    run = Child(tmp_path, script, line)
    wait_for((tmp_path / "logs" / "run" / "checkpoints" / "supernet_last.pth").exists)
    run.kill()
    run.wait()
    Claim.lock(tmp_path / "logs" / "run")
