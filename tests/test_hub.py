"""`torch.hub` builds the networks of this project from their files."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from model.spaces.contracts import NetworkSpec
from model.spaces.elastic.net_config import NetConfigSpec, net_config
from model.spaces.nasbench201.space import CellSpace
from model.spaces.registry import record_of, save_spec, spec_of
from tests.conftest import mixed_space, rng
from tests.support import SMALL_ELASTIC
from utils.errors import UserError

REPOSITORY = Path(__file__).parent.parent
load = partial(torch.hub.load, str(REPOSITORY), source="local")
SIZES = {"unified": 12, "nasbench201": 8, "elastic": 20, "none": 16}


def spec_named(kind: str) -> NetworkSpec:
    """A network of each kind that sees `SIZES[kind]` pixels."""
    if kind in ("elastic", "none"):
        genes = SMALL_ELASTIC.sample(1, np.random.default_rng(0))[0]
        spec = spec_of(SMALL_ELASTIC, SMALL_ELASTIC.decode(genes))
        return spec if kind == "elastic" else NetConfigSpec.of(net_config(spec.network({})), 16)
    cells = CellSpace(channels=4, cells=1, image_size=8, classes=5)
    space = mixed_space() if kind == "unified" else cells
    return spec_of(space, space.decode(space.sample(1, rng())[0]))


@pytest.fixture(params=SIZES)
def stored(request, tmp_path):
    """An entry, a spec, a network of it and its options.

    In tmp_path are architecture.json, our checkpoint ours.pth, and plain weights.pth.
    """
    spec = spec_named(request.param)
    assert (spec.kind, spec.image_size) == (request.param, SIZES[request.param])
    wanted = {"se": True, "activation": "hswish"}
    options = {name: value for name, value in wanted.items() if name in spec.options}
    network = spec.network(options, rng(7)).eval()
    save_spec(tmp_path / "architecture.json", spec, {}, {})
    said = {"dropout": 0.1, "se": False, "activation": "relu6", **options}
    payload = {**record_of(spec), "options": said, "model": network.state_dict()}
    torch.save(payload, tmp_path / "ours.pth")
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    entry = "nsganetv2" if request.param in ("elastic", "none") else "sgnas"
    return entry, spec, network, options


@torch.inference_mode()
def assert_same(one, other, size: int) -> None:
    images = torch.randn(2, 3, size, size, generator=rng())
    assert not one.training
    torch.testing.assert_close(one(images), other(images))


def test_a_checkpoint_describes_its_network(stored, tmp_path):
    entry, spec, network, _ = stored
    ours, architecture = tmp_path / "ours.pth", str(tmp_path / "architecture.json")
    assert_same(load(entry, checkpoint=ours), network, spec.image_size)
    both = load(entry, checkpoint=str(ours), architecture=architecture)
    assert_same(both, network, spec.image_size)


def test_plain_weights_need_an_architecture_and_its_options(stored, tmp_path):
    entry, spec, network, options = stored
    files = {"architecture": tmp_path / "architecture.json", "checkpoint": tmp_path / "weights.pth"}
    assert_same(load(entry, **files, **options), network, spec.image_size)
    says = r"weights.pth: it does not say its architecture; give one, too"
    with pytest.raises(UserError, match=says):
        load(entry, checkpoint=files["checkpoint"])
    if options:
        with pytest.raises(UserError, match=r"weights.pth: state_dict mismatch: missing"):
            load(entry, **files, se=False)


def test_an_architecture_alone_has_random_weights(stored, tmp_path):
    entry, spec, network, options = stored
    random = load(entry, architecture=tmp_path / "architecture.json", **options)
    assert random.state_dict().keys() == network.state_dict().keys()
    assert not random.training
    images = torch.zeros(1, 3, spec.image_size, spec.image_size)
    assert random(images).shape == (1, spec.classes)


def test_the_other_entry_says_whose_the_network_is_not(stored, tmp_path):
    entry, spec, *_ = stored
    other = {"sgnas": "nsganetv2", "nsganetv2": "sgnas"}[entry]
    with pytest.raises(UserError, match=rf"a network of kind {spec.kind}, not of {other}"):
        load(other, checkpoint=tmp_path / "ours.pth")


def test_unknown_options_are_named(stored, tmp_path):
    entry, spec, *_ = stored
    with pytest.raises(UserError, match=rf"option wings: networks of kind {spec.kind} have"):
        load(entry, architecture=tmp_path / "architecture.json", wings=2)


def test_a_net_config_and_weights_of_other_classes(tmp_path):
    spec, config, weights = spec_named("none"), tmp_path / "net.config", tmp_path / "weights.pth"
    config.write_text(json.dumps(spec.to_json()))
    network = spec.with_classes(3).network({}, rng(2)).eval()
    torch.save({"state_dict": network.state_dict()}, weights)
    found = load("nsganetv2", architecture=config, checkpoint=weights, dropout=0.5)
    assert_same(found, network, 16)
    assert found.dropout.p == 0.5


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "architecture or checkpoint must be given"),
        ({"checkpoint": "none.pth"}, "none.pth: there is no such checkpoint"),
        ({"architecture": "none.json"}, "none.json: cannot be read as an architecture"),
        ({"architecture": "list.json"}, "list.json: a list of architectures does not say their"),
        ({"architecture": "other.json"}, "other.json: it does not describe its architecture"),
        ({"architecture": "net.config"}, "net.config: not the description of a MobileNetV3"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, monkeypatch, files, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "other.json").write_text('{"format": "something/1"}')
    (tmp_path / "net.config").write_text('{"blocks": 3}')
    with pytest.raises(UserError) as error:
        load("nsganetv2", **files)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_torch_hub_alone_finds_entries_and_dependencies(tmp_path):
    save_spec(tmp_path / "architecture.json", spec_named("unified"), {}, {})
    code = f"""
import ast, importlib.util, sys, torch
architecture = {{"architecture": "architecture.json", "se": True}}
found = torch.hub.load({str(REPOSITORY)!r}, "sgnas", source="local", **architecture)
assert found(torch.zeros(1, 3, 12, 12)).shape == (1, 7)
spec = importlib.util.spec_from_file_location("hubconf", {str(REPOSITORY / "hubconf.py")!r})
hubconf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hubconf)
entries = [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and name[0] != "_"]
assert entries == ["nsganetv2", "sgnas"]
files = {{getattr(module, "__file__", None) or "" for module in sys.modules.values()}}
imported = set()
for file in files:
    if file.startswith(({str(REPOSITORY / "model")!r}, {str(REPOSITORY / "utils")!r})):
        for line in ast.parse(open(file).read()).body:
            if isinstance(line, ast.Import):
                imported |= {{name.name.split(".")[0] for name in line.names}}
            elif isinstance(line, ast.ImportFrom):
                imported.add(line.module.split(".")[0])
packages = imported - {{"model", "utils", *sys.stdlib_module_names}}
assert packages == set(hubconf.dependencies), packages ^ set(hubconf.dependencies)
"""
    run_alone(tmp_path, code)


@pytest.mark.slow
def test_another_package_of_the_same_name_is_named(tmp_path):
    (tmp_path / "utils.py").write_text("")
    code = f"""
import sys, torch
sys.path.insert(0, "")
import utils
try:
    torch.hub.load({str(REPOSITORY)!r}, "sgnas", source="local")
except ImportError as error:
    assert "another module named 'utils' is imported already" in str(error)
else:
    raise AssertionError
"""
    run_alone(tmp_path, code)


def run_alone(folder: Path, code: str) -> None:
    """Run `code` in a process of its own."""
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
