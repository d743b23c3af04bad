"""`torch.hub` builds the networks of this project from their files."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from model.spaces.elastic.kind import ElasticSpec
from model.spaces.elastic.net_config import NetConfigSpec
from model.spaces.nasbench201.kind import CellSpec
from model.spaces.nasbench201.space import CellSpace
from model.spaces.paths import Architecture
from model.spaces.unified.kind import UnifiedSpec
from tests.conftest import mixed_space, rng
from tests.model.spaces.elastic.test_elastic import SMALL
from utils.errors import UserError

REPOSITORY = Path(__file__).parent.parent
load = partial(torch.hub.load, str(REPOSITORY), source="local")


def network_specs() -> dict:
    space, cells = mixed_space(), CellSpace(channels=4, cells=1, image_size=8, classes=5)
    elastic = ElasticSpec(SMALL, SMALL.decode(SMALL.sample(1, np.random.default_rng(0))[0]))
    return {
        "subnet": ("sgnas", UnifiedSpec(space, space.decode(space.sample(1, rng())[0]))),
        "cell": ("sgnas", CellSpec(cells, cells.decode(cells.sample(1, rng())[0]))),
        "elastic": ("nsganetv2", elastic),
        "plain": ("nsganetv2", NetConfigSpec(elastic.network({}).config(), 16)),
    }


@pytest.fixture(params=["subnet", "cell", "elastic", "plain"])
def stored(request, tmp_path):
    """An entry, its blueprint, a network of it; and in tmp_path architecture.json, ours.pth, and
    plain weights.pth.
    """
    entry, spec = network_specs()[request.param]
    options = {
        name: value
        for name, value in {"se": True, "activation": "hswish"}.items()
        if name in spec.names
    }
    network = spec.network(options, rng(7)).eval()
    spec.save(tmp_path / "architecture.json", {}, {})
    described = {
        **spec.describe(),
        "options": {"dropout": 0.1, "se": False, "activation": "relu6", **options},
    }
    torch.save({**described, "model": network.state_dict()}, tmp_path / "ours.pth")
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    return entry, spec, network, options


@torch.inference_mode()
def assert_same(one, other, size: int) -> None:
    images = torch.randn(2, 3, size, size, generator=rng())
    assert not one.training
    torch.testing.assert_close(one(images), other(images))


def test_a_checkpoint_describes_its_network(stored, tmp_path):
    entry, spec, network, _ = stored
    assert_same(load(entry, checkpoint=tmp_path / "ours.pth"), network, spec.image_size)
    both = {
        "checkpoint": str(tmp_path / "ours.pth"),
        "architecture": str(tmp_path / "architecture.json"),
    }
    assert_same(load(entry, **both), network, spec.image_size)


def test_plain_weights_need_an_architecture_and_its_options(stored, tmp_path):
    entry, spec, network, options = stored
    files = {"architecture": tmp_path / "architecture.json", "checkpoint": tmp_path / "weights.pth"}
    assert_same(load(entry, **files, **options), network, spec.image_size)
    with pytest.raises(
        UserError, match=r"weights.pth: it does not say its architecture; give one, too"
    ):
        load(entry, checkpoint=files["checkpoint"])
    if options:
        with pytest.raises(UserError, match=r"weights.pth: state_dict mismatch: missing"):
            load(entry, **files, se=False)


def test_an_architecture_alone_has_random_weights(stored, tmp_path):
    entry, spec, network, options = stored
    random = load(entry, architecture=tmp_path / "architecture.json", **options)
    assert random.state_dict().keys() == network.state_dict().keys()
    assert not random.training
    assert random(torch.zeros(1, 3, spec.image_size, spec.image_size)).shape == (
        1,
        spec.classes,
    )


def test_the_other_entry_says_what_it_takes(stored, tmp_path):
    entry, spec, *_ = stored
    other = {"sgnas": "nsganetv2", "nsganetv2": "sgnas"}[entry]
    with pytest.raises(UserError, match=rf"a network of kind {spec.kind}; here it must be"):
        load(other, checkpoint=tmp_path / "ours.pth")


def test_unknown_options_are_named(stored, tmp_path):
    entry, spec, *_ = stored
    with pytest.raises(UserError, match=rf"option wings: networks of kind {spec.kind} have"):
        load(entry, architecture=tmp_path / "architecture.json", wings=2)


def test_a_net_config_and_weights_of_other_classes(tmp_path):
    spec = network_specs()["plain"][1]
    (tmp_path / "net.config").write_text(json.dumps(spec.config))
    network = spec.with_classes(3).network({}, rng(2)).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    found = load(
        "nsganetv2",
        architecture=tmp_path / "net.config",
        checkpoint=tmp_path / "weights.pth",
        dropout=0.5,
    )
    assert_same(found, network, 16)
    assert found.dropout.p == 0.5


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "architecture or checkpoint must be given"),
        ({"checkpoint": "none.pth"}, "none.pth: there is no such checkpoint"),
        ({"architecture": "none.json"}, "none.json: cannot be read as an architecture"),
        (
            {"architecture": "list.json"},
            "list.json: a list of architectures does not say their space",
        ),
        ({"architecture": "other.json"}, "other.json: no architecture file"),
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


def test_torch_hub_alone_finds_entries_and_dependencies(tmp_path):
    space = mixed_space()
    rows = space.decode(space.sample(1, rng())[0])
    UnifiedSpec(space, Architecture.of(rows.choices)).save(tmp_path / "architecture.json", {}, {})
    code = f"""
import sys, torch
found = torch.hub.load({str(REPOSITORY)!r}, "sgnas", source="local", architecture="architecture.json", se=True)
assert found(torch.zeros(1, 3, 12, 12)).shape == (1, 7)
import importlib.util
spec = importlib.util.spec_from_file_location("hubconf", {str(REPOSITORY / "hubconf.py")!r})
hubconf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(hubconf)
assert [name for name in dir(hubconf) if callable(getattr(hubconf, name)) and name[0] != "_"] == ["nsganetv2", "sgnas"]
assert all(name in sys.modules for name in hubconf.dependencies)
"""
    run(tmp_path, code)


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
    run(tmp_path, code)


def run(folder: Path, code: str) -> None:
    """Run `code` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
