"""What opens a config, a file or a checkpoint: problems, records of networks, supernets."""

import dataclasses
import json

import pytest
import torch

from model.sgnas.warm_up import supernet_payload
from model.spaces.elastic.net_config import NetConfigSpec, net_config
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.nasbench201.space import CellSpace
from model.spaces.nasbench201.supernet import CellSupernet
from model.spaces.paths import Architecture
from model.spaces.registry import (
    FORMAT,
    KINDS,
    describes_network,
    load_spec,
    open_problem,
    open_supernet,
    parse_architecture,
    record_of,
    save_spec,
    spec_of,
    spec_of_record,
)
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import mixed_space, rng
from tests.support import BEST_CELL, SMALL_ELASTIC
from utils import checkpoint
from utils.config import load_config
from utils.errors import UserError

# -- literal records -----------------------------------------------------------------------------

LAYER = {"in_channels": 4, "out_channels": 4, "stride": 1, "expansion": 2, "kernels": [3, 5]}
UNIFIED = {"layers": [LAYER], "image_size": 8, "classes": 3, "first_channels": 4}
CELLS = {"channels": 8, "cells": 2, "image_size": 32, "classes": 10}
ELASTIC = {"stages": [8], "strides": [2], "activations": ["relu"], "se": [False], "head": [8, 8]}
ELASTIC |= {"resolutions": [16, 20], "depths": [1], "classes": 3}
ROWS, SUBNET = [[5, None]], {"ks": [3], "e": [6], "d": [1], "r": 20}
CELL_ROWS = [["nor_conv_3x3"], ["nor_conv_3x3"], ["nor_conv_1x1"]]
CELL_ROWS += [["skip_connect"], ["nor_conv_3x3"], ["nor_conv_3x3"]]
CONFIG = net_config(MobileNetV3.of(SMALL_ELASTIC, SMALL_ELASTIC.decode([0] * 11)))
UNIFIED_SPACE = UnifiedSpace((LayerSpec(4, 4, 1, 2, (3, 5)),), 8, 3, first_channels=4)

TODAY = {
    "unified": (UNIFIED, ROWS),
    "nasbench201": (CELLS, BEST_CELL),
    "elastic": (ELASTIC, SUBNET),
    "none": ({"image_size": 16}, CONFIG),
}
WITH_KIND = {kind: {"kind": kind, **space} for kind, (space, _) in TODAY.items()}
OLDER = {
    "file of a unified space": (
        "unified",
        {"format": "architecture/1", "space": WITH_KIND["unified"], "choices": ROWS},
    ),
    "file of cells": (
        "nasbench201",
        {"format": "architecture/1", "space": WITH_KIND["nasbench201"], "choices": CELL_ROWS},
    ),
    "file of an elastic space": (
        "elastic",
        {"format": "elastic-architecture/1", "space": ELASTIC, "architecture": SUBNET},
    ),
    "file of a net.config": (
        "none",
        {
            "format": "network-config/1",
            "kind": "mobilenetv3",
            "config": CONFIG,
            "image_size": 16,
        },
    ),
    "checkpoint of a unified space": (
        "unified",
        {"kind": "subnet", "space": WITH_KIND["unified"], "architecture": ROWS},
    ),
    "checkpoint of cells": (
        "nasbench201",
        {"kind": "cell-network", "space": WITH_KIND["nasbench201"], "architecture": CELL_ROWS},
    ),
    "checkpoint of an elastic space": (
        "elastic",
        {"kind": "elastic-subnet", "space": ELASTIC, "architecture": SUBNET},
    ),
    "checkpoint of a net.config": (
        "none",
        {"kind": "mobilenetv3", "config": CONFIG, "image_size": 16},
    ),
}


def today(kind: str) -> dict:
    space, architecture = TODAY[kind]
    return {"format": FORMAT, "kind": kind, "space": space, "architecture": architecture}


# -- records of networks -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TODAY)
def test_a_record_is_read_as_it_is_written(kind, tmp_path):
    spec = spec_of_record(today(kind))
    assert spec.kind == kind
    assert describes_network(record_of(spec))
    save_spec(tmp_path / "a.json", spec, {"macs_m": 1.5}, {"source": "test"})
    loaded, record = load_spec(tmp_path / "a.json")
    assert loaded == spec == spec_of_record(record_of(spec))
    assert (record["costs"], record["provenance"]) == ({"macs_m": 1.5}, {"source": "test"})
    assert json.loads(json.dumps(record_of(spec))).items() <= record.items()


@pytest.mark.parametrize("form", OLDER)
def test_older_records_are_read(form, tmp_path):
    kind, record = OLDER[form]
    assert spec_of_record(record) == spec_of_record(today(kind))
    if "file" in form:
        (tmp_path / "a.json").write_text(json.dumps({**record, "costs": {}, "provenance": {}}))
        assert load_spec(tmp_path / "a.json")[0] == spec_of_record(today(kind))
    else:
        assert describes_network(record)


def test_a_space_in_a_checkpoint_may_have_tuples():
    spec = spec_of(UNIFIED_SPACE, Architecture.of(ROWS))
    assert spec_of_record({**record_of(spec), "options": {}}) == spec
    space = {"kind": "unified", **dataclasses.asdict(UNIFIED_SPACE)}
    assert spec_of_record({"kind": "subnet", "space": space, "architecture": ROWS}) == spec


@pytest.mark.parametrize("kind", TODAY)
def test_the_options_of_a_spec_are_those_that_its_network_takes(kind):
    spec = spec_of_record(today(kind))
    values = {"se": True, "activation": "hswish", "dropout": 0.5, "drop_path": 0.1}
    network = spec.network({name: values[name] for name in spec.options}).eval()
    images = torch.zeros(2, 3, spec.image_size, spec.image_size)
    assert network(images).shape == (2, spec.classes)
    assert spec.with_classes(4).network({}).eval()(images).shape == (2, 4)
    assert spec.macs_m > 0


WRONG = {
    "": "not an architecture",
    "[]": "not an architecture",
    "{}": "its format is None, not 'architecture/2'",
    '{"format": "other"}': "its format is 'other'",
    '{"format": "architecture/1"}': "KeyError: 'space'",
    '{"format": "architecture/2"}': "KeyError: 'kind'",
    '{"format": "architecture/2", "kind": "resnet"}': "kind: 'resnet' is not allowed",
    '{"format": "elastic-architecture/1", "space": 3, "architecture": 3}': "an elastic space",
}


@pytest.mark.parametrize(("text", "says"), WRONG.items())
def test_a_file_that_is_no_architecture_is_refused(tmp_path, text, says):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a\.json: .*{says}") as error:
        load_spec(tmp_path / "a.json")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        load_spec(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("kind", "key", "value", "says"),
    [
        ("unified", "space", {**UNIFIED, "classes": "ten"}, "space: not a space of kind unified"),
        ("unified", "space", {**UNIFIED, "layers": []}, "no searchable layer"),
        ("unified", "architecture", [[5, 7]], "layer 0 is .5, 7.; allowed are 3, 5, null"),
        ("unified", "architecture", "text", "the choices of each layer"),
        ("nasbench201", "architecture", "|none~0|", "architecture: "),
        ("elastic", "architecture", {**SUBNET, "r": 17}, "not one of this space"),
        ("elastic", "space", {**ELASTIC, "strides": [0]}, "strides is 0; it must be at least 1"),
        ("none", "architecture", {**CONFIG, "blocks": []}, "it has no blocks"),
    ],
)
def test_a_record_that_is_wrong_says_where(kind, key, value, says):
    with pytest.raises(UserError, match=says):
        spec_of_record({**today(kind), key: value})


@pytest.mark.parametrize(("form", "kind"), [(row[1], kind) for kind, row in TODAY.items()])
def test_an_architecture_without_its_kind_is_told_by_its_form(form, kind):
    found, architecture = parse_architecture(form)
    assert (found.name, architecture) == (kind, KINDS[kind].parse(form))


def test_an_architecture_of_no_form_is_refused():
    with pytest.raises(UserError, match="no kind of space reads 3"):
        parse_architecture(3)


def test_an_architecture_of_a_named_kind_is_refused_with_the_reason():
    with pytest.raises(UserError, match="it has 1 layers; the space has 6"):
        parse_architecture("|none~0|", "nasbench201")
    with pytest.raises(UserError, match="the choices of each layer"):
        parse_architecture(3, "unified")


# -- spaces and problems -------------------------------------------------------------------------


@pytest.mark.parametrize("space", [mixed_space(se=True), CellSpace(cells=2), SMALL_ELASTIC])
def test_a_space_survives_json(space):
    record = json.loads(json.dumps(space.to_dict()))
    assert "kind" not in record
    assert KINDS[space.kind].space_from_dict(record) == space
    assert KINDS[space.kind].space_from_dict({"kind": space.kind, **record}) == space


def test_a_problem_is_a_space_and_what_is_paid_in_it(tiny_config, tmp_path):
    config = load_config(tiny_config)
    problem = open_problem(config)
    assert (problem.kind, problem.unit) == (KINDS["unified"], "M")
    assert problem.table.space is problem.space
    one, other = problem.supernet(config), problem.supernet(config)
    assert all(map(torch.equal, one.parameters(), other.parameters())), "its seed is the config's"
    checkpoint.save(tmp_path / "s.pth", supernet_payload(UnifiedSupernet(problem.space, rng()), 1))
    trained = problem.trained_supernet(config, str(tmp_path / "s.pth"))
    assert not trained.training
    assert not trained.classifier.weight.equal(one.classifier.weight)


def test_targets_out_of_reach_are_refused(tiny_config):
    with pytest.raises(UserError, match=r"high_flops: 7 M; this space reaches 0\.\d+ to 0\.\d+ M"):
        open_problem(load_config(tiny_config, ["high_flops=7"]))


# -- supernets -----------------------------------------------------------------------------------

SUPERNETS = {
    "unified": lambda: UnifiedSupernet(mixed_space(), rng(1)),
    "elastic": lambda: ElasticSupernet(SMALL_ELASTIC, rng(1)),
}


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("kind", SUPERNETS)
def test_a_supernet_is_opened_by_its_checkpoint(kind, older, tmp_path):
    supernet, file = SUPERNETS[kind](), tmp_path / "supernet.pth"
    payload = supernet_payload(supernet, 1)
    if older:  # the kind stood in the space, unless it was elastic
        del payload["space_kind"]
        payload["space"] |= {"kind": "unified"} if kind == "unified" else {}
    checkpoint.save(file, payload)
    found = open_supernet(str(file))
    assert found.space == supernet.space
    assert all(map(torch.equal, found.parameters(), supernet.parameters()))


def test_a_checkpoint_that_says_too_little_is_refused(tmp_path):
    cells = CellSupernet(CellSpace(channels=2), rng())
    for payload, says in (
        (supernet_payload(cells, 1), "a supernet of kind nasbench201 needs its config"),
        ({"model": {"weight": torch.zeros(1)}}, "no once-for-all supernet"),
        ({"space_kind": "resnet", "model": {}}, "'resnet' is not allowed"),
        ({"space_kind": "unified", "space": {}, "model": {}}, "a space of kind unified"),
    ):
        checkpoint.save(tmp_path / "supernet.pth", payload)
        with pytest.raises(UserError, match=rf"supernet\.pth: .*{says}"):
            open_supernet(str(tmp_path / "supernet.pth"))


@pytest.mark.slow
def test_a_released_supernet_shows_its_width(tmp_path):
    published = ElasticSupernet(KINDS["elastic"].space_from_dict({"width": 1.2, "classes": 10}))
    checkpoint.save(tmp_path / "ofa", {"state_dict": published.state_dict()})
    assert open_supernet(str(tmp_path / "ofa")).space == published.space


def test_a_network_of_a_net_config_is_its_own_kind():
    spec = NetConfigSpec.of(CONFIG, 16)
    assert spec == spec_of_record(today("none"))
    assert KINDS["none"].design(CONFIG).stages == (((3, 3), (3, 3)),)
