"""Run folders, checkpoints and searches of earlier versions are still read, and resumed."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

import msunas
import post_search
import search
import train_cifar
import validate
from model.spaces.registry import load_spec, open_problem
from tests.conftest import TINY_CONFIG
from tests.support import Killed, run, run_weights, same
from tools import generate
from utils import checkpoint
from utils.config import load_config
from utils.run_folder import RunFolder

LAYER = {"in_channels": 4, "out_channels": 8, "stride": 2, "expansion": 6, "kernels": (3, 5, 7)}
LAYER |= {"skip": True, "may_vanish": False, "se": False}
SPACE = {
    "kind": "unified",
    "layers": (LAYER, {**LAYER, "in_channels": 8, "stride": 1, "may_vanish": True}),
    "image_size": 16,
    "classes": 10,
    "stem_channels": 4,
    "stem_stride": 1,
    "first_channels": 4,
    "head_channels": 16,
    "min_expansion": 2,
}


def older_payload(file: Path, kind: str, **changes) -> None:
    """A checkpoint, as earlier versions described its space and its network."""
    payload = checkpoint.load(file)
    for key in ("format", "space_kind"):
        payload.pop(key, None)
    checkpoint.save(file, {**payload, "kind": kind, "space": SPACE, **changes})


def older_config(folder: Path) -> None:
    """The config of a run folder, with the keys of earlier versions."""
    values = yaml.safe_load((folder / "config.yml").read_text())
    assert values.pop("space") is None
    values |= {"elastic": None, "cell": None}
    (folder / "config.yml").write_text(yaml.safe_dump(values))


def test_a_search_resumes_and_answers(searched, tmp_path):
    unbroken, folder = searched / "logs" / "tiny", tmp_path / "logs" / "tiny"
    shutil.copytree(unbroken, folder)
    for file in folder.glob("checkpoints/*"):
        if file.stem.startswith("generator"):
            file.unlink()
        else:
            older_payload(file, "supernet")
    older_config(folder)
    line = f"--cfg {searched / 'tiny.yml'} --set log_dir={tmp_path / 'logs'}"
    run(search.main, line)
    for name in ("supernet_best", "generator_best_avg", "generator_final"):
        assert same(run_weights(folder, name), run_weights(unbroken, name))
    for name in ("metrics.jsonl", "architectures.json"):
        assert (folder / name).read_text() == (unbroken / name).read_text()
    run(generate.main, f"--run {folder} --flops 0.15 --out {tmp_path / 'found.json'}")


ROWS = [[3, None, None, 3, 5, None], [7, None, None, None, 5, None]]


def test_a_list_of_architectures_is_trained_from(searched, tmp_path):
    row = {"target": 0.15, "macs_m": 0.1, "params_m": 0.001, "choices": ROWS}
    row["kernels"] = [[3, 3, 5], [7, 5]]
    (tmp_path / "found.json").write_text(json.dumps([row]))
    line = f"--cfg {searched / 'tiny.yml'} --architecture {tmp_path / 'found.json'}"
    run(train_cifar.main, line, f"--title net --set epochs=1 log_dir={tmp_path}")
    spec, record = load_spec(tmp_path / "net" / "architecture.json")
    assert spec.to_json() == record["architecture"] == ROWS
    assert record["provenance"]["target"] == 0.15


@pytest.mark.slow
def test_a_training_resumes_and_is_validated(searched, tmp_path, monkeypatch, capsys):
    stored = {"format": "architecture/1", "space": SPACE, "choices": ROWS, "costs": {}}
    stored["provenance"] = {"source": "found.json", "target": 0.15, "unit": "M"}
    (tmp_path / "stored.json").write_text(json.dumps(stored))
    line = f"--cfg {searched / 'tiny.yml'} --set log_dir={tmp_path} --architecture"
    run(train_cifar.main, line, tmp_path / "stored.json", "--title unbroken")
    save = RunFolder.save

    def killed_after_the_first(folder, name, *rest):
        save(folder, name, *rest)
        if name == "last":
            raise Killed

    monkeypatch.setattr(RunFolder, "save", killed_after_the_first)
    with pytest.raises(Killed):
        run(train_cifar.main, line, tmp_path / "stored.json", "--title older")
    monkeypatch.undo()
    folder = tmp_path / "older"
    older_config(folder)
    older_payload(folder / "checkpoints" / "last.pth", "subnet", architecture=ROWS)
    shutil.copy(tmp_path / "stored.json", folder / "architecture.json")
    shutil.copy(folder / "checkpoints" / "last.pth", tmp_path / "older.pth")
    run(train_cifar.main, line, tmp_path / "stored.json", "--title older")
    assert same(run_weights(folder, "last"), run_weights(tmp_path / "unbroken", "last"))
    epochs = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    capsys.readouterr()
    run(validate.main, "--checkpoint", tmp_path / "older.pth", "--json")
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(epochs[0]["top1"])


# -- evolutionary searches -------------------------------------------------------------------------

CELLS = """
dataset: digits
classes: 10
input_size: 16
low_flops: 0.2
high_flops: 0.4
target_step: 0.05
target_jitter: 0.005
eval_step: 0.1
supernet: nasbench201
cell: {channels: 4, cells: 1, image_size: 16}
"""
# the config, what else its supernet's checkpoint says, and architectures of its archive
ARCHIVES = {
    "unified": (
        TINY_CONFIG.format(log_dir="logs"),
        {"space": SPACE},
        [
            {"choices": [[3, 3, *4 * [None]], 6 * [None]]},
            {"choices": [6 * [7], 6 * [7]]},
            {"choices": [[3, 3, None, 3, 5, 3], [None, 7, None, 3, None, 5]]},
            {"choices": [[None, 7, 3, 5, None, 7], [None, 7, 7, 3, 5, 7]]},
        ],
    ),
    "nasbench201": (
        CELLS,
        {},
        [
            {"cell": "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"},
            {"cell": "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|"},
            {"cell": "|skip_connect~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"},
            {"cell": "|none~0|+|none~0|none~1|+|avg_pool_3x3~0|none~1|skip_connect~2|"},
        ],
    ),
}
SETTINGS = {
    "space": None,
    "n_classes": None,
    "set": [],
    "sec_obj": "flops",
    "n_doe": 3,
    "n_iter": 2,
    "selection": "hypervolume",
    "predictor": "ard",
    "dataset": None,
    "vld_size": 20,
    "trn_batch_size": 128,
    "vld_batch_size": 200,
    "n_epochs": 0,
    "lr": None,
    "test": False,
    "seed": 0,
    "lut": None,
    "random search": False,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_evolutionary_search_resumes_and_is_chosen_from(kind, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text, described, (*known, failed) = ARCHIVES[kind]
    Path("space.yml").write_text(text)
    config = load_config("space.yml")
    supernet = open_problem(config).supernet(config)
    payload = {"kind": "supernet", "epoch": 1, "model": supernet.state_dict(), **described}
    checkpoint.save("supernet.pth", payload)
    Path("evo").mkdir()
    files = {"cfg": "space.yml", "supernet_path": "supernet.pth"}
    digests = {name: checkpoint.digest(file) for name, file in files.items()}
    settings = {**SETTINGS, **digests}
    Path("evo/search.json").write_text(json.dumps({"settings": settings, "validation": [1, 2]}))
    rows = [[found, 90.0 - index, 1.0] for index, found in enumerate(known)]
    stats = {"archive": rows, "candidates": rows, "hv": 0.1, "surrogate": {"model": "ard"}}
    stats |= {"reference": [90.0, 1.0], "foretold": [], "failed": [failed], "sec_obj": "flops"}
    Path("evo/iter_0.stats").write_text(json.dumps(stats))

    line = "--cfg space.yml --supernet_path supernet.pth"
    budget = "--vld_size 20 --n_epochs 0 --n_doe 3 --n_iter 2 --save evo --iterations"
    for iterations in (1, 2):  # the second resumes what the first wrote
        run(msunas.main, line, budget, iterations)
        assert f"after iteration {iterations - 1} of evo" in capsys.readouterr().out
        found = json.loads(Path(f"evo/iter_{iterations}.stats").read_text())
        assert len(found["archive"]) == 3 + 2 * iterations
        assert [row[1] for row in found["archive"][:3]] == [90.0, 89.0, 88.0]
        assert len(found["failed"]) == 1
    [best] = known[2].values()
    for number in (0, 2):
        run(post_search.main, line, f"--expr evo/iter_{number}.stats -n 1 --save final{number}")
        files = Path(f"final{number}").glob("*/architecture.json")
        written = [json.loads(file.read_text())["architecture"] for file in files]
        assert number or best in written, "the most accurate one always is"
        assert written
