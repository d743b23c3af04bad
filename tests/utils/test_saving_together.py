"""Of several processes, saving changes neither what is trained nor what is saved."""

import json
from pathlib import Path

import pytest
import torch

import search
import train_cifar
from tests.support import run_weights, same, stop_after
from tests.worlds import in_world
from utils import checkpoint, distributed
from utils.stopping import Stopped

EVERY_STEP = "1e-9"


def search_run(folder: Path, title: str, minutes: str) -> None:
    options = f"--cfg {folder / 'tiny.yml'} --title {title} --checkpoint-minutes {minutes}"
    search.main([*options.split(), "--set", "batch_size=240", "warmup_epochs=1", "search_epochs=0"])


def scratch_run(folder: Path, title: str, minutes: str) -> None:
    options = f"--cfg {folder / 'tiny.yml'} --flops 0.15 --architecture {folder / 'found.json'}"
    options += f" --title {title} --checkpoint-minutes {minutes} --ema 0.9 --batch-size 240"
    train_cifar.main([*options.split(), "--epochs", "1"])


def often_rarely_and_stopped(folder: Path) -> None:
    for title, minutes in (("rare", "60"), ("often", EVERY_STEP)):
        search_run(folder, f"search-{title}", minutes)
        scratch_run(folder, f"net-{title}", minutes)
    stopped_and_resumed(folder)


def stopped_and_resumed(folder: Path) -> None:
    """Stop both in the first epoch, where their statistics differ, and go on."""
    for one_run, name, title in (
        (search_run, "supernet_last", "search-stopped"),
        (scratch_run, "last", "net-stopped"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, 3)
            with pytest.raises(SystemExit) as ended:
                one_run(folder, title, "60")
            assert isinstance(ended.value.__context__, Stopped)
        distributed.wait()  # until the first process has saved
        kept = checkpoint.load(folder / "logs" / title / "checkpoints" / f"{name}.pth")
        assert kept["tally"]["steps"] == 3
        first, second = kept["norms"]
        assert not first.equal(second)
        one_run(folder, title, "60")


def checkpoints(folder: Path, run: str) -> dict[str, dict[str, torch.Tensor]]:
    run = folder / "logs" / run
    return {file.stem: run_weights(run, file.stem) for file in run.glob("checkpoints/*.pth")}


@pytest.fixture
def folder(tmp_path, tiny_config) -> Path:
    found = {"target": 0.15, "macs_m": 0.15, "params_m": 0.01}
    found["choices"] = [[3, 5, None, None, None, None]] * 2
    (tmp_path / "found.json").write_text(json.dumps([found]))
    return tmp_path


@pytest.mark.slow
def test_how_often_two_processes_save_and_where_they_stop_changes_no_bit(folder):
    in_world(2, often_rarely_and_stopped, folder, folder)
    for stage, names in (("search", {"supernet_last"}), ("net", {"last", "ema"})):
        rare = checkpoints(folder, f"{stage}-rare")
        assert names <= rare.keys()
        for other in ("often", "stopped"):
            found = checkpoints(folder, f"{stage}-{other}")
            assert found.keys() == rare.keys()
            for name, weights in rare.items():
                assert same(weights, found[name]), (stage, other, name)


@pytest.mark.slow
def test_one_process_saves_its_own_statistics(folder):
    search_run(folder, "one", "60")
    kept = checkpoint.load(folder / "logs" / "one" / "checkpoints" / "supernet_last.pth")
    assert kept["norms"] == []
