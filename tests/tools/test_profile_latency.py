"""Measuring latency tables: what is written, how good it is, what cannot be measured."""

import json
import sys

import numpy as np
import pytest
import torch

from model.costs.latency import Latencies
from model.spaces.registry import open_problem
from model.spaces.unified.latency import UnifiedLatency
from model.spaces.unified.network import SubNet
from tests.conftest import mixed_space, rng
from tests.support import refused
from tools import profile_latency
from utils.config import load_config


@pytest.fixture(autouse=True)
def tiny(tiny_config, tmp_path, monkeypatch) -> None:
    """The tiny config in the working directory."""
    monkeypatch.chdir(tmp_path)


FEW_PARTS = (
    "l_cfgs=[[6,8,[3,skip],2,2,false]]",
    "low_flops=0.06",
    "high_flops=0.08",
    "eval_step=0.005",
)


def measure(flags: str) -> dict:
    """What is kept next to a table that is measured of the tiny space."""
    profile_latency.main(["--cfg", "tiny.yml", "--out", "other.yaml", *flags.split()])
    with open("other.yaml.check.json") as file:
        return json.load(file)


def base_of(table: str, *overrides: str) -> float:
    space = open_problem(load_config("tiny.yml", overrides)).space
    return UnifiedLatency(Latencies.read(table), space).base


@pytest.mark.slow
def test_how_good_a_table_is_is_printed_and_kept(capsys):
    record = measure("--runs 2 --networks 4")
    assert "mean absolute percentage error" in capsys.readouterr().out
    assert len(record["table_ms"]) == len(record["measured_ms"]) == 4
    ratios = np.divide(record["table_ms"], record["measured_ms"])
    error = 100 * np.abs(ratios - 1).mean()
    assert record["mean absolute percentage error"] == pytest.approx(error, abs=0.01)


UNMEASURABLE = {
    "--space unified": "--space unified: --cfg must name it",
    "--cfg tiny.yml --space elastic": "--cfg tiny.yml describes one of kind unified",
    "--cfg tiny.yml --device nowhere": "--device nowhere:",
    "--cfg tiny.yml --backend tensorrt": "invalid choice: 'tensorrt'",
    "--cfg tiny.yml --width 1.2": "--width: it is for the published space",
    "--set se=true": "--set: it overrides a config; --cfg names none",
}


@pytest.mark.parametrize(("argv", "words"), UNMEASURABLE.items())
def test_what_cannot_be_measured_is_refused(capsys, argv, words):
    assert words in refused(capsys, profile_latency.main, "--out", "other.yaml", *argv.split())


@pytest.mark.slow
def test_onnxruntime_measures_too():
    pytest.importorskip("onnxruntime")
    record = measure(
        f"--runs 1 --calibration 1 --networks 2 --backend onnxruntime --set {' '.join(FEW_PARTS)}"
    )
    assert record["backend"] == "onnxruntime"
    assert base_of("other.yaml", *FEW_PARTS) > 0


def test_onnxruntime_measures_networks_as_they_are_deployed(monkeypatch):
    """Without batch norms, of convolutions that all say so; with the same logits."""
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    files, session, space = [], onnxruntime.InferenceSession, mixed_space()

    def kept(file, *a, **k):
        files.append(file)
        return session(file, *a, **k)

    monkeypatch.setattr(onnxruntime, "InferenceSession", kept)
    network = SubNet(space, space.decode(space.sample(1, rng())[0])).eval()
    images = torch.randn(1, 3, 12, 12, generator=rng())
    with torch.inference_mode():
        logits = network(images)
    profile_latency.by_onnxruntime(network, images)
    nodes = [node.op_type for node in onnx.load_from_string(files[0]).graph.node]
    assert "BatchNormalization" not in nodes
    assert "MatMul" not in nodes
    found = session(files[0]).run(None, {"images": images.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), logits, rtol=1e-4, atol=1e-5)


def test_without_onnxruntime_one_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    argv = "--cfg tiny.yml --out o.yaml --backend onnxruntime"
    line = refused(capsys, profile_latency.main, *argv.split())
    assert "is not installed; pip install onnx onnxruntime" in line


def test_a_table_is_scaled_by_whole_networks(monkeypatch):
    """Invented times: a part takes a millisecond, and a network twice as its parts."""

    def networks(measure, parts):
        return np.array([2.0 * (len(part.build().stages) + 4) for part in parts])

    monkeypatch.setattr(profile_latency.Measure, "__call__", lambda measure, part: (1.0, 0.0))
    monkeypatch.setattr(profile_latency.Measure, "networks", networks)
    record = measure("")
    assert record["scale"] == 2
    assert record["mean absolute percentage error"] == pytest.approx(0, abs=1e-3)
    assert base_of("other.yaml") == pytest.approx(8)
