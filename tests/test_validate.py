"""Validation of trained networks: ours say all about themselves, others need a config."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import validate
from model.sgnas.answers import read_generated
from model.spaces.registry import open_problem, spec_of
from tests.support import refused, run
from tools import generate
from utils import checkpoint
from utils.config import load_config


@pytest.fixture(scope="module")
def trained(net) -> Path:
    """The run folder of a network, with an average of its weights."""
    return net


def scored(capsys, *words) -> dict:
    """What `validate` prints."""
    capsys.readouterr()
    run(validate.main, *words, "--json")
    return json.loads(capsys.readouterr().out)


def test_train_then_validate_agree(trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    assert result["macs_m"] == pytest.approx(result["macs_m_counted"], abs=1e-3)
    provenance = json.loads((trained / "architecture.json").read_text())["provenance"]
    assert provenance["source"].endswith("generator_best_avg.pth")
    last = f"--checkpoint {trained / 'checkpoints' / 'last.pth'}"
    validated = scored(capsys, last)
    for key in ("top1", "top5", "macs_m", "params_m"):
        assert validated[key] == pytest.approx(result[key], abs=1e-6)
    run(validate.main, last)
    assert f"{result['top1']:.3f}" in capsys.readouterr().out


def test_the_average_is_scored_too_and_what_was_chosen_on_test_images_is_said(trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    epochs = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    expected = {
        "last": result["top1"],
        "ema": result["ema"]["top1"],
        "best": max(row["top1"] for row in epochs),
    }
    for name, top1 in expected.items():
        validated = scored(capsys, "--checkpoint", trained / "checkpoints" / f"{name}.pth")
        assert validated["top1"] == pytest.approx(top1, abs=1e-6)
        assert validated["chosen_by"] == ("test images" if name == "best" else None)
    run(validate.main, "--checkpoint", trained / "checkpoints" / "best.pth")
    assert "chosen by test images, on which it looks too good" in capsys.readouterr().out


def test_norms_are_estimated_again_where_asked(trained, tmp_path, capsys):
    """Then it does not matter what a checkpoint says of them."""
    file, spoilt = trained / "checkpoints" / "last.pth", tmp_path / "spoilt.pth"
    payload = checkpoint.load(file)
    for key, value in payload["model"].items():
        if key.endswith(("running_mean", "running_var")):
            value.fill_(3)
    checkpoint.save(spoilt, payload)
    losses = {
        (name.stem, norms): scored(capsys, "--checkpoint", name, "--norms", norms)["loss"]
        for name in (file, spoilt)
        for norms in (0, 300)
    }
    assert losses["last", 300] == losses["spoilt", 300]
    assert len(set(losses.values())) == 3


def test_the_published_line(tmp_path, tiny_config, searched, capsys):
    """Weights of others: a bare state dict with "module.", a config, a target, image folders."""
    found, weights = tmp_path / "found.json", tmp_path / "w.pth"
    run(generate.main, "--run", searched / "logs" / "tiny", "--flops 0.15 --out", found)
    [answer] = read_generated(found)
    spec = spec_of(open_problem(load_config(tiny_config)).space, answer.architecture)
    state = spec.network({"se": True, "activation": "hswish"}).state_dict()
    torch.save({"state_dict": {f"module.{key}": v for key, v in state.items()}}, weights)
    for label in range(10):
        file = tmp_path / "images" / "val" / str(label) / "0.png"
        file.parent.mkdir(parents=True)
        Image.new("RGB", (20, 20), (25 * label, 0, 0)).save(file)
    line = f"{tmp_path / 'images'} --checkpoint {weights} --config_path {searched / 'tiny.yml'}"
    line += " --target_flops 0.15 --activation hswish"
    result = scored(capsys, line, "--se True")
    assert result["images"] == 10
    # squeeze-excite is counted, but not in the table
    assert result["macs_m_counted"] > result["macs_m"]
    says = "state_dict mismatch: missing [], unexpected ['first_mb.se"
    assert says in refused(capsys, validate.main, *line.split(), "--se", "False")


def test_weights_of_an_unknown_architecture_are_refused(tmp_path, searched, capsys):
    weights = tmp_path / "w.pth"
    torch.save({"w": torch.ones(1)}, weights)
    assert "give --config_path" in refused(capsys, validate.main, "--checkpoint", weights)
    line = ["--checkpoint", weights, "--config_path", searched / "tiny.yml"]
    says = "--target_flops or --architecture must say which architecture these weights belong to"
    assert says in refused(capsys, validate.main, *line)
    line = ["--checkpoint", tmp_path / "none.pth"]
    assert "there is no such checkpoint" in refused(capsys, validate.main, *line)
