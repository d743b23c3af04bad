"""A run resumes with the images that it started with, or says which have changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import search
import train_cifar
import train_imagenet
from tests.conftest import TINY_CONFIG
from tests.support import refused
from tools import adapt
from utils import folder2lmdb
from utils.data import load_dataset
from utils.data_record import DataRecord

CLASSES = [f"class{label}" for label in range(10)]


def paint(file: Path, seed: int) -> None:
    """An image of random pixels, whose file has a length of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16 + seed % 7, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Path:
    """A folder of images, and runs of all stages on it."""
    root = tmp_path_factory.mktemp("started")
    for part, count in (("train", 20), ("val", 2)):
        for label, name in enumerate(CLASSES):
            folder = root / "data" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                paint(folder / f"{number}.png", 100 * label + number)
    data = f"dataset: imagefolder\ndataset_dir: {root / 'data'}"
    text = TINY_CONFIG.format(log_dir=root / "logs").replace("dataset: digits", data)
    text = text.replace("epochs: 2", "epochs: 1").replace("batch_size: 64", "batch_size: 16")
    (root / "tiny.yml").write_text(text)
    found = {"target": 0.15, "macs_m": 0.15, "params_m": 0.01}
    found["choices"] = [[3, 5, None, None, None, None]] * 2
    (root / "found.json").write_text(json.dumps([found]))
    for name in STAGES:
        run_stage(name, root)
    return root


def run_stage(name: str, root: Path) -> None:
    main, *words = STAGES[name](root)
    main([str(word) for line in words for word in str(line).split()])


def of_search(root: Path) -> list:
    return [search.main, f"--cfg {root / 'tiny.yml'} --title search"]


def of_train_cifar(root: Path) -> list:
    given = f"--cfg {root / 'tiny.yml'} --flops 0.15 --architecture {root / 'found.json'}"
    return [train_cifar.main, given, "--title net"]


def of_train_imagenet(root: Path) -> list:
    given = f"{root / 'data'} --architecture {root}/logs/net/architecture.json -b 8 -j 0"
    more = "--epochs 1 --warmup-epochs 0 --cooldown-epochs 0 --experiment imagenet"
    return [train_imagenet.main, given, more, f"--output {root / 'logs'}"]


def of_adapt(root: Path) -> list:
    given = f"--checkpoint {root}/logs/net/checkpoints/last.pth --data {root / 'data'}"
    return [adapt.main, given, f"--title mine --epochs 1 --set log_dir={root / 'logs'}"]


STAGES = {
    "search": of_search,
    "train_cifar": of_train_cifar,
    "train_imagenet": of_train_imagenet,
    "adapt": of_adapt,
}


def add(train: Path) -> str:
    paint(train / "class3" / "new.png", 5)
    return "train: class 'class3' had 20 images, now 21"


def remove(train: Path) -> str:
    (train / "class3" / "2.png").unlink()
    return "train: class 'class3' had 20 images, now 19"


def exchange(train: Path) -> str:
    (train / "class3" / "2.png").write_bytes((train / "class4" / "3.png").read_bytes())
    return "an image was exchanged"


def rename(train: Path) -> str:
    for part in (train, train.parent / "val"):
        (part / "class9").rename(part / "class99")
    return "class 'class9' is gone and class 'class99' is new (200 images of 10 classes"


CHANGES = [add, remove, exchange, rename]


@pytest.fixture
def changed(started):
    """The data, which come back after the test."""
    shutil.copytree(started / "data", started / "kept")
    yield started / "data" / "train"
    shutil.rmtree(started / "data")
    (started / "kept").rename(started / "data")


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("stage", STAGES)
def test_changed_data_are_refused_and_named(started, changed, capsys, stage, change):
    said = change(changed)
    main, *words = STAGES[stage](started)
    before = files(started / "logs")
    line = refused(capsys, main, *[word for line in words for word in str(line).split()])
    assert "its data have changed since it started" in line
    assert said in line
    assert files(started / "logs") == before


def files(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_data_resume_and_runs_without_a_record_do(started, stage):
    run_stage(stage, started)
    title = {"train_cifar": "net", "train_imagenet": "imagenet", "adapt": "mine"}.get(stage, stage)
    record = started / "logs" / title / "data.json"
    kept = record.read_text()
    record.unlink()
    run_stage(stage, started)
    assert record.read_text() == kept


# -- records -------------------------------------------------------------------------------------


def record_of(name: str, folder: Path) -> DataRecord:
    dataset = load_dataset(name, str(folder), 8, None, in_memory=0)
    return DataRecord.of(name, str(folder), dataset)


@pytest.mark.parametrize("change", CHANGES)
def test_lmdb_files_have_records_that_can_be_compared_with_folders(
    started, changed: Path, tmp_path, change: Callable
):
    folder = changed.parent

    def packed(out: Path) -> DataRecord:
        for part in ("train", "val"):
            folder2lmdb.main([str(folder), "--split", part, "--out", str(out)])
        return record_of("imagenet_lmdb", out)

    first, on_disk = packed(tmp_path / "first"), record_of("imagefolder", folder)
    assert first.changes(packed(tmp_path / "again")) is None
    assert first.changes(on_disk) is on_disk.changes(first) is None
    said = change(changed)
    assert said in first.changes(packed(tmp_path / "changed"))
    if change is not exchange:  # of two forms, only numbers can be compared
        assert said in first.changes(record_of("imagefolder", folder))


def test_other_files_and_another_place_are_no_change(started, changed, tmp_path):
    before = record_of("imagefolder", changed.parent)
    (changed / "class1" / "notes.txt").write_text("")
    (changed / "class1" / ".hidden.png").write_text("")
    assert before.changes(record_of("imagefolder", changed.parent)) is None
    moved = shutil.copytree(changed.parent, tmp_path / "elsewhere")
    assert before.changes(record_of("imagefolder", moved)) is None


def test_images_in_memory_are_known_by_their_pixels(tmp_path):
    dataset = load_dataset("digits", "", 8, 10)
    before = DataRecord.of("digits", "", dataset)
    assert sum(before.parts["train"].values()) + sum(before.parts["test"].values()) == 1797
    dataset.train.images[5, 0, 3, 3] += 1
    assert "an image was exchanged" in before.changes(DataRecord.of("digits", "", dataset))
