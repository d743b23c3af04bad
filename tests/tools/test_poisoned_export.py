"""No text of a checkpoint or a description is ever run: exports of poisoned ones are refused."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.spaces.elastic.kind import ElasticSpec
from model.spaces.elastic.net_config import NetConfigSpec, net_config
from model.spaces.elastic.network import MobileNetV3
from model.spaces.registry import record_of
from tests.support import SMALL_ELASTIC, refused
from tools import export
from tools.formats import timm_module
from utils import checkpoint
from utils.errors import UserError

POISON = "__import__('pathlib').Path('ran').touch() or 1"
DATA = {
    "dataset": "digits",
    "dataset_dir": "data",
    "mean": [0.3] * 3,
    "std": [0.3] * 3,
    "image_size": 16,
    "network_size": None,
}


def elastic_network() -> MobileNetV3:
    return MobileNetV3.of(SMALL_ELASTIC, SMALL_ELASTIC.decode(SMALL_ELASTIC.extremes()[0]))


def unified() -> dict:
    release = Path(export.__file__).parents[1] / "release" / "digits" / "digits_3M"
    return checkpoint.load(release / "last.pth")


def elastic() -> dict:
    spec = ElasticSpec(SMALL_ELASTIC, SMALL_ELASTIC.decode(SMALL_ELASTIC.extremes()[0]))
    return described(record_of(spec))


def described_by_net_config() -> dict:
    return described(record_of(NetConfigSpec.of(net_config(elastic_network()), 16)))


def described(record: dict) -> dict:
    options = {"dropout": 0.2, "drop_path": 0.0}
    return {**record, "options": options, "data": DATA, "model": elastic_network().state_dict()}


KINDS = {"unified": unified, "elastic": elastic, "net.config": described_by_net_config}
# What no generated source and no network knows: texts there are only texts.
TEXTS = (
    "name",
    "dataset",
    "dataset_dir",
    "bias",
    "has_shuffle",
    "use_bn",
    "ops_order",
    "dilation",
    "groups",
)


def leaves(value, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values in nested mappings and lists that hold no others.

    Of a list the first two entries are enough: the others are read in the same way.
    """
    if not isinstance(value, (dict, list, tuple)):
        yield path
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value[:2]):
        yield from leaves(part, (*path, key))


def with_value(record: dict, path: tuple, value) -> dict:
    """A copy of a nested record with another value at a path; tuples become lists."""
    parents = root = json.loads(json.dumps(record))
    for key in path[:-1]:
        parents = parents[key]
    parents[path[-1]] = value
    return root


def export_line(payload: dict) -> list[str]:
    checkpoint.save("net.pth", payload)
    return ["--checkpoint", "net.pth", "--format", "timm", "--out", "out/net.py", "--runs", "0"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_poisoned_is_exported(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    export.main(export_line(KINDS[kind]()))
    assert Path("out/net.py").exists()


@pytest.mark.slow
@pytest.mark.parametrize("poison", [POISON, [POISON, 1], {POISON: POISON}], ids=type)
@pytest.mark.parametrize("kind", KINDS)
def test_text_in_any_number_of_a_checkpoint_is_refused_and_never_run(
    kind, poison, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    payload = KINDS[kind]()
    weights = {"model": payload.pop("model")}
    described_by = {key: payload[key] for key in ("space", "architecture", "options", "data")}
    for path in leaves(described_by):
        if not {*TEXTS, "drop_path"}.isdisjoint(path) or _is_unread(path):
            continue
        poisoned = {**payload, **with_value(described_by, path, copy.deepcopy(poison)), **weights}
        line = refused(capsys, export.main, *export_line(poisoned))
        assert "net.pth" in line, path
        assert not Path("ran").exists(), path
        assert not Path("out").exists(), path


def _is_unread(path: tuple) -> bool:
    """Keys of the published net.config that describe what is always the same."""
    fixed = {"in_features", "in_channels", "kernel_size", "act_func", "dropout_rate"}
    ends = ("first_conv", "final_expand_layer", "feature_mix_layer")
    if path[-2:] == ("classifier", "in_features") or path[-2:] == ("classifier", "act_func"):
        return True
    return "shortcut" in path or (path[-1] in fixed and path[-2] in ends)


@pytest.mark.parametrize("path", [("first_conv", "stride"), ("blocks", 0, "shortcut", "name")])
@pytest.mark.parametrize("value", [POISON, [POISON, 1]], ids=type)
def test_text_in_a_net_config_file_is_never_run(path, value, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()
    torch.save(elastic_network().state_dict(), "net.inherited")
    Path("net.config").write_text(
        json.dumps(with_value(net_config(elastic_network()), path, value))
    )
    line = "--model net.config --pretrained net.inherited --img-size 16 --dataset cifar10 "
    line += "--data nowhere --format timm --out out/net.py --runs 0"
    if path[-1] == "stride":
        assert "net.config" in refused(capsys, export.main, *line.split())
    else:  # a name that is not read
        export.main(line.split())
        assert POISON not in Path("out/net.py").read_text()
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "value", [0, -1.5, True, "a'\"\n", [1, (2,), ()], {"a": {"b": [1.0]}}], ids=repr
)
def test_a_literal_is_its_value(value):
    assert eval(timm_module.literal(value), {"__builtins__": {}}) == value


class Sly(int):
    """A number whose text is code."""

    def __repr__(self):
        return POISON


@pytest.mark.parametrize("value", [Sly(1), float("nan"), None, {"a": [Sly(1)]}, {Sly(1): 1}])
def test_what_is_no_plain_value_has_no_literal(value):
    with pytest.raises(UserError, match="is no number and no text"):
        timm_module.literal(value)
