"""Checkpoint files: whole or absent, read without running code, and named when they do not fit."""

import argparse
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from utils import checkpoint
from utils.errors import UserError


def test_a_checkpoint_reads_back(tmp_path):
    checkpoint.save(tmp_path / "deep" / "a.pth", {"model": {"w": torch.ones(2)}, "epoch": 3})
    payload = checkpoint.load(tmp_path / "deep" / "a.pth")
    assert payload["epoch"] == 3
    assert checkpoint.weights(payload, "a.pth")["w"].tolist() == [1, 1]
    assert os.listdir(tmp_path / "deep") == ["a.pth"]


def test_a_failed_save_leaves_the_earlier_file(tmp_path, monkeypatch):
    file = tmp_path / "a.pth"
    checkpoint.save(file, {"epoch": 1})

    def half(path, content):
        with open(path, "wb") as file:
            file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(file, {"epoch": 2})
    monkeypatch.undo()
    assert checkpoint.load(file)["epoch"] == 1
    assert os.listdir(tmp_path) == ["a.pth"]


@pytest.mark.parametrize("key", ["model", "state_dict", "state_dict_ema", None])
def test_weights_are_found_under_every_published_key(key):
    state = {"module.a": torch.ones(1)}
    assert list(checkpoint.weights({key: state, "epoch": 1} if key else state, "x")) == ["a"]


def test_the_arguments_that_timm_stores_are_allowed(tmp_path):
    payload = {"state_dict": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=1)}
    torch.save(payload, tmp_path / "a.pth")
    assert checkpoint.load(tmp_path / "a.pth")["args"].lr == 1


class Hostile:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "there is no such checkpoint"),
        (b"", "not a readable checkpoint"),
        (b"not a checkpoint", "not a readable checkpoint"),
        ("truncated", "not a readable checkpoint"),
        ("hostile", "not a readable checkpoint"),
        ("list", "must be a dictionary"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content, says, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "a.pth"
    if content == "truncated":
        torch.save({"w": torch.ones(1000)}, file)
        file.write_bytes(file.read_bytes()[:2000])
    elif content == "hostile":
        torch.save({"w": Hostile()}, file)
    elif content == "list":
        torch.save([1], file)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        checkpoint.load(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        ({"weight": (2, 3)}, r"state_dict mismatch: missing \['bias'\], unexpected \[\]"),
        ({"weight": (2, 3), "bias": (2,), "extra": (1,)}, r"missing \[\], unexpected \['extra'\]"),
        ({"weight": (2, 4), "bias": (2,)}, r"weight is \(2, 4\); this network has \(2, 3\)"),
    ],
)
def test_foreign_weights_are_refused_and_nothing_is_loaded(shapes, says):
    network, state = nn.Linear(3, 2), {key: torch.ones(shape) for key, shape in shapes.items()}
    before = network.weight.clone()
    with pytest.raises(UserError, match=says):
        checkpoint.load_into(network, state, "a.pth")
    assert network.weight.equal(before)


def test_a_payload_without_weights_is_refused():
    with pytest.raises(UserError, match="holds no weights"):
        checkpoint.weights({"epoch": 3}, "a.pth")
