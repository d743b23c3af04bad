"""Labels go by the names of classes: from the data through checkpoints to scores and exports."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_cifar
import train_imagenet
import validate
from model.spaces.registry import open_problem, save_spec, spec_of
from model.trained import load_network
from tests.conftest import TINY_CONFIG, rng
from tests.support import refused
from tools import adapt, export
from utils import checkpoint
from utils.config import load_config
from utils.data import load_dataset, load_test_images
from utils.errors import UserError
from utils.folder2lmdb import Folder, lmdb_file, pack
from utils.images import ImageData, image_folder, labelled_as

COLOURS = {"cols": (200, 50, 40), "disc": (40, 180, 60), "rows": (40, 60, 200)}


def paint(folder: Path, colours: dict[str, tuple], per_class: int) -> None:
    """Noisy images of a colour in a folder for each class."""
    draw = np.random.default_rng(0)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = np.clip(draw.normal(colour, 20, (20, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A data set of three classes, and a network that tells them apart, in logs/net."""
    folder = tmp_path_factory.mktemp("names")
    paint(folder / "three" / "train", COLOURS, 24)
    paint(folder / "three" / "val", COLOURS, 4)
    text = TINY_CONFIG.format(log_dir=folder / "logs")
    text = text.replace("dataset: digits", f"dataset: imagefolder\ndataset_dir: {folder}/three")
    (folder / "three.yml").write_text(text.replace("classes: 10", "classes: 3"))
    space = open_problem(load_config(folder / "three.yml")).space
    spec = spec_of(space, space.decode(space.sample(1, rng())[0]))
    save_spec(folder / "net.json", spec, {}, {})
    flags = ["--epochs", "25", "--batch-size", "24", "--lr", "0.05"]
    line = ["--cfg", folder / "three.yml", "--architecture", folder / "net.json", *flags]
    train_cifar.main([str(word) for word in [*line, "--title", "net"]])
    return folder


@pytest.fixture
def trained(world) -> Path:
    return world / "logs" / "net" / "checkpoints" / "last.pth"


def scored(capsys, *words) -> float:
    capsys.readouterr()
    validate.main([*map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)["top1"]


def test_checkpoints_carry_the_names(trained, capsys):
    assert checkpoint.load(trained)["data"]["class_names"] == ["cols", "disc", "rows"]
    assert scored(capsys, "--checkpoint", trained) == 100


def test_a_folder_of_other_classes_is_refused_with_the_names(trained, tmp_path, capsys):
    """By number, aardvark would be cols, and cols disc: an accuracy of 0."""
    paint(tmp_path / "val", {"aardvark": (9, 9, 9), **COLOURS}, 2)
    shutil.rmtree(tmp_path / "val" / "rows")
    said = refused(capsys, validate.main, tmp_path, "--checkpoint", trained)
    names = "aardvark (only here); rows (only there)"
    assert said.endswith(f"{tmp_path}: its classes are not those of the network: {names}")
    shutil.rmtree(tmp_path / "val" / "aardvark")
    said = refused(capsys, validate.main, tmp_path, "--checkpoint", trained)
    assert said.endswith("its classes are not those of the network: rows (only there)")


def test_many_names_are_one_short_line(trained, tmp_path, capsys):
    paint(tmp_path / "val", {f"{number:02d}{'x' * 200}": (0, 0, 0) for number in range(40)}, 1)
    said = refused(capsys, validate.main, tmp_path, "--checkpoint", trained)
    assert "and 37 more (only here); cols, disc, rows (only there)" in said
    assert len(said) < 400 + len(str(tmp_path))


def pack_reversed(folder: Path, part: str, out: Path) -> None:
    """An LMDB file whose classes are in another order."""
    images, classes = image_folder(folder / part, 0, strict=True)
    images = replace(images, labels=len(classes) - 1 - images.labels)
    pack(lmdb_file(out, part), Folder(images, classes[::-1]), workers=1)


def test_labels_of_an_lmdb_file_in_another_order_go_by_name(world, trained, tmp_path, capsys):
    for part in ("train", "val"):
        pack_reversed(world / "three", part, tmp_path)
    assert scored(capsys, tmp_path, "--lmdb", "--checkpoint", trained) == 100
    plain, turned = (
        load_test_images(name, str(folder), 16, 3, names=list(COLOURS))
        for name, folder in (("imagefolder", world / "three"), ("imagenet_lmdb", tmp_path))
    )
    assert turned.labels.equal(plain.labels)
    assert turned.images.equal(plain.images)


def test_parts_of_one_data_set_are_labelled_alike(world, tmp_path):
    images, classes = image_folder(world / "three" / "train", 0, strict=True)
    pack(lmdb_file(tmp_path, "train"), Folder(images, classes), workers=1)
    pack_reversed(world / "three", "val", tmp_path)
    dataset = load_dataset("imagenet_lmdb", str(tmp_path), 16, 3)
    assert dataset.names == ("cols", "disc", "rows")
    assert dataset.test.labels.equal(
        load_dataset("imagefolder", f"{world}/three", 16, 3).test.labels
    )


def without_names(trained: Path, file: Path, **data) -> Path:
    payload = checkpoint.load(trained)
    payload["data"] = {k: v for k, v in payload["data"].items() if k != "class_names"} | data
    checkpoint.save(file, payload)
    return file


def test_older_checkpoints_know_no_names(trained, tmp_path, capsys):
    file = without_names(trained, tmp_path / "old.pth")
    assert scored(capsys, "--checkpoint", file) == 100
    paint(tmp_path / "val", {f"a{name}": colour for name, colour in COLOURS.items()}, 2)
    assert scored(capsys, tmp_path, "--checkpoint", file) == 100


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cols", "disc"], "class_names are 2, the network's classes 3"),
        (["cols", "disc", "disc"], "class_names must differ from each other"),
        (["cols", "disc", 3], "Expected `str"),
        ("cols", "Expected `array"),
    ],
)
def test_broken_names_are_refused(trained, tmp_path, capsys, names, said):
    file = without_names(trained, tmp_path / "broken.pth", class_names=names)
    assert said in refused(capsys, validate.main, "--checkpoint", file)


def test_an_adapted_network_has_the_names_of_its_own_classes(trained, tmp_path, capsys):
    paint(tmp_path / "own", {"night": (9, 9, 9), "snow": (240, 240, 240)}, 8)
    line = ["--checkpoint", trained, "--data", tmp_path / "own", "--epochs", 3, "--title", "own"]
    adapt.main([str(word) for word in [*line, "--set", f"log_dir={tmp_path}/logs"]])
    file = tmp_path / "logs" / "own" / "checkpoints" / "last.pth"
    assert checkpoint.load(file)["data"]["class_names"] == ["night", "snow"]
    scored(capsys, "--checkpoint", file)
    (tmp_path / "own" / "night").rename(tmp_path / "own" / "dusk")
    said = refused(capsys, validate.main, "--checkpoint", file)
    assert "dusk (only here); night (only there)" in said


def test_a_network_trained_by_the_other_script_has_them_too(world, tmp_path, capsys):
    line = [world / "three", "--architecture", world / "net.json", "--epochs", 1, "-b", 8, "-j", 0]
    line += ["--cooldown-epochs", 0, "--output", tmp_path, "--experiment", "net"]
    train_imagenet.main([str(word) for word in line])
    file = tmp_path / "net" / "checkpoints" / "last.pth"
    assert checkpoint.load(file)["data"]["class_names"] == ["cols", "disc", "rows"]
    paint(tmp_path / "other" / "val", {"cols": (1, 1, 1), "disc": (2, 2, 2), "x": (3, 3, 3)}, 1)
    said = refused(capsys, validate.main, tmp_path / "other", "--checkpoint", file)
    assert "x (only here); rows (only there)" in said


@pytest.mark.slow
def test_exports_carry_them(trained, tmp_path):
    out = tmp_path / "net.pt2"
    line = ["--checkpoint", str(trained), "--runs", "0", "--out"]
    export.main([*line, str(out), "--format", "torch-export"])
    extra = {"network.json": ""}
    torch.export.load(out, extra_files=extra)
    assert json.loads(extra["network.json"])["class_names"] == ["cols", "disc", "rows"]
    export.main([*line, str(tmp_path / "net_of_names.py"), "--format", "timm"])
    assert "'label_names': ('cols', 'disc', 'rows')" in (tmp_path / "net_of_names.py").read_text()


def test_an_onnx_file_carries_them(trained, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "net.onnx"
    export.main(
        ["--checkpoint", str(trained), "--runs", "0", "--out", str(out), "--format", "onnx"]
    )
    found = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert json.loads(found["class_names"]) == ["cols", "disc", "rows"]


def test_labels_beyond_the_classes_of_an_lmdb_file_are_refused(world, tmp_path):
    images, classes = image_folder(world / "three" / "val", 0, strict=True)
    with pytest.raises(UserError, match=r"val\.lmdb: its labels and its 2 classes do not fit"):
        pack(lmdb_file(tmp_path, "val"), Folder(images, classes[:2]), workers=1)
    with pytest.raises(UserError, match=r"val\.lmdb: its labels and its 2 classes do not fit"):
        load_test_images("imagenet_lmdb", str(tmp_path), 16, 3)


def test_numbered_folders_sort_otherwise_than_numbers():
    """As the folders 1, 10, 100, ... of Flowers-102, and its archive."""
    archive, folders = (list(map(str, range(1, 103))), sorted(map(str, range(1, 103))))
    images = ImageData(torch.zeros(3, 3, 1, 1), torch.tensor([0, 1, 2]))  # of 1, 10 and 100
    assert labelled_as(images, folders, "here", archive, "there").labels.tolist() == [0, 9, 99]


def test_a_folder_is_refused_where_the_data_are_in_none(trained, tmp_path, capsys):
    file = without_names(trained, tmp_path / "digits.pth", dataset="digits")
    said = refused(capsys, validate.main, tmp_path, "--checkpoint", file)
    assert said.endswith("digits.pth is of digits, which are in no folder")


def test_hub_networks_carry_them(trained):
    assert load_network(None, trained, "sgnas", {}).class_names == ["cols", "disc", "rows"]
    alone = trained.parent.parent / "architecture.json"
    assert load_network(alone, None, "sgnas", {}).class_names is None
