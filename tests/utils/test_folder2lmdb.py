"""Image folders in one LMDB file."""

import json
import re
import signal

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import refused, wait_for
from tests.utils.image_files import PLAIN, write_folder, write_parts
from tests.worlds import Child, script
from utils import folder2lmdb
from utils.data import load_dataset, load_test_images
from utils.errors import UserError
from utils.folder2lmdb import NUMBER, About, LmdbSource, Record, lmdb_file
from utils.loader import Augmentation, loader


def pack(folder, *options, split="train"):
    folder2lmdb.main([str(folder), "--split", split, *map(str, options)])
    return lmdb_file(folder, split)


@pytest.fixture
def folder(tmp_path):
    """Three classes of four images in train/, of two in val/, at 100x90."""
    return write_parts(tmp_path, (100, 90))


def write(environment, table, key: bytes, value: bytes) -> None:
    with environment.begin(write=True) as transaction:
        transaction.put(key, value, db=table)


def unreadable(folder) -> str:
    """The one line in which reading the packed folder ends."""
    with pytest.raises(UserError) as caught:
        load_dataset("imagenet_lmdb", str(folder), 80, 3)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("size", "workers"), [(16, 0), (80, 0), (80, 2)])
def test_a_packed_folder_gives_the_batches_of_the_folder(folder, size, workers):
    for split in ("train", "val"):
        pack(folder, split=split)
    plain, packed = (
        load_dataset(name, str(folder), size, 3) for name in ("imagefolder", "imagenet_lmdb")
    )
    for part, augment in (("train", Augmentation()), ("test", None)):
        batches = [
            list(loader(getattr(data, part), 4, PLAIN, augment, 1, workers).epoch(1))
            for data in (plain, packed)
        ]
        for (images, labels), (same, as_well) in zip(*batches, strict=True):
            assert images.equal(same)
            assert labels.equal(as_well)


def test_records_keep_the_bytes_of_the_files(folder):
    source = LmdbSource(pack(folder))
    for number, file in enumerate(sorted((folder / "train").rglob("*.png"))):
        name = f"class{number // 4}/{file.name}"
        assert source.record(number) == Record(number // 4, name, file.read_bytes())
    about = About.read(source.root)
    assert about.classes == ["class0", "class1", "class2"]
    assert about.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_workers_read_what_their_parent_has_open(folder):
    images = load_test_images("imagenet_lmdb", str(folder), 80, 3, part=pack(folder).stem)
    here, helped = (
        torch.cat([x for x, _ in loader(images, 4, PLAIN, workers=count).epoch()])
        for count in (0, 2)
    )
    assert here.equal(helped)
    assert here.equal(torch.cat([x for x, _ in loader(images, 4, PLAIN).epoch()]))


def test_the_map_grows(folder, monkeypatch, capsys):
    monkeypatch.setattr(folder2lmdb, "FIRST_SIZE", 2**15)  # 12 images of some 27 kB
    file = pack(folder)
    assert file.stat().st_size > 10 * 2**15
    pack(folder, "--verify")
    assert "all 12 records" in capsys.readouterr().out


def test_a_stopped_run_resumes(folder, monkeypatch):
    monkeypatch.setattr(folder2lmdb, "BATCH", 5)
    real, calls = folder2lmdb.commit, []

    def stop_in_the_third(environment, write):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(environment, write)

    monkeypatch.setattr(folder2lmdb, "commit", stop_in_the_third)
    with pytest.raises(SystemExit):
        pack(folder)
    with pytest.raises(UserError, match=r"train\.lmdb: unfinished, 5 of 12 images"):
        load_dataset("imagenet_lmdb", str(folder), 16, 3)
    monkeypatch.setattr(folder2lmdb, "commit", real)
    pack(folder), pack(folder, "--verify")


@pytest.mark.slow
def test_a_killed_run_resumes(tmp_path):
    write_folder(tmp_path / "train", classes=4, images=160, size=(40, 40))
    line = f"utils/folder2lmdb.py {tmp_path}"
    killed, file = Child(tmp_path, script, line), lmdb_file(tmp_path, "train")
    wait_for(lambda: file.exists() and file.stat().st_size > 2**18)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert Child(tmp_path, script, line).wait() == 0
    assert About.read(file).written == 640
    pack(tmp_path, "--verify")


def test_a_run_killed_before_its_first_image_resumes(folder, monkeypatch):
    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.PosixPath.rename", killed)
        with pytest.raises(SystemExit):
            pack(folder)
    pack(folder), pack(folder, "--verify")


def test_a_file_that_cannot_be_written_is_one_line(folder, capsys, monkeypatch):
    def full(*args):
        raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr(folder2lmdb, "commit", full)
    assert "train.lmdb: cannot be written (No space left on device)" in refused(
        capsys, folder2lmdb.main, folder
    )


def test_resized_images_have_the_short_side(folder):
    write_folder(folder / "small", classes=1, images=1, size=(30, 40))
    source = LmdbSource(pack(folder, "--resize", 50))
    with Image.open(source.open(0)) as image:
        assert (image.size, image.format) == ((50, 56), "JPEG")
    source = LmdbSource(pack(folder, "--resize", 50, split="small"))
    with Image.open(source.open(0)) as image:
        assert (image.size, image.format) == ((40, 30), "PNG")


def test_verify_names_what_differs(folder, capsys):
    file = pack(folder)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(folder / "train" / "class1" / "2.png")
    capsys.readouterr()
    assert "record 6 is not class1/2.png" in refused(capsys, folder2lmdb.main, folder, "--verify")
    (folder / "train" / "class1" / "2.png").unlink()
    assert f"{file}: it has 12 images of 3 classes, other than the 11" in refused(
        capsys, folder2lmdb.main, folder
    )


def test_another_resize_is_refused(folder, capsys):
    pack(folder)
    assert "it was started with --resize None, not 8" in refused(
        capsys, folder2lmdb.main, folder, "--resize", 8
    )


def test_foreign_and_truncated_files_are_named(folder, capsys):
    file = pack(folder)
    whole = file.read_bytes()
    for content in (b"", b"no LMDB file" * 1000, whole[: len(whole) // 2], whole[:100]):
        file.write_bytes(content)
        assert re.search(r"train\.lmdb: it is (no LMDB file|cut short)", unreadable(folder))
        refused(capsys, folder2lmdb.main, folder)
    file.unlink()
    with lmdb.open(str(file), subdir=False) as environment:
        write(environment, None, b"__len__", b"12")
    assert "train.lmdb: no LMDB file of images as utils/folder2lmdb.py" in unreadable(folder)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"version": 2}, "its format has version 2, not 1"),
        ({"classes": [1, 2, 3]}, "Expected `str`, got `int` - at `$.classes[0]`"),
        ({"resize": "8"}, "Expected `int | null`, got `str` - at `$.resize`"),
    ],
)
def test_a_wrong_format_is_named(folder, form, says):
    with lmdb.open(str(pack(folder)), subdir=False, max_dbs=2) as environment:
        table, key = environment.open_db(b"about"), b"format"
        with environment.begin(db=table) as transaction:
            old = json.loads(transaction.get(key))
        assert old == {
            "version": 1,
            "classes": ["class0", "class1", "class2"],
            "count": 12,
            "resize": None,
        }
        write(environment, table, key, json.dumps(old | form).encode())
    assert says in unreadable(folder)


def test_a_corrupt_image_in_a_packed_folder_is_skipped_and_named(folder, capsys):
    (folder / "val" / "class1" / "1.png").write_bytes(b"no image")
    pack(folder, split="val"), pack(folder, "--resize", 50)
    images = load_test_images("imagenet_lmdb", str(folder), 80, 3)
    batches = list(loader(images, 2, PLAIN).epoch())
    assert [len(labels) for _, labels in batches] == [2, 1, 2]
    said = capsys.readouterr().err
    assert "val.lmdb, class1/1.png: cannot be read as an image" in said
    assert "val.lmdb: skipped 1 of 6 images" in said
    strict = load_test_images("imagenet_lmdb", str(folder), 80, 3, strict=True)
    with pytest.raises(UserError, match=r"val\.lmdb, class1/1\.png: cannot be read"):
        list(loader(strict, 2, PLAIN).epoch())


def test_a_damaged_record_is_named(folder):
    file = pack(folder)
    with lmdb.open(str(file), subdir=False, max_dbs=2) as environment:
        table = environment.open_db(b"records", integerkey=True)
        write(environment, table, NUMBER.pack(3), b"x")
    with pytest.raises(UserError, match=r"train\.lmdb: record 3 cannot be read"):
        LmdbSource(file).record(3)
    assert torch.equal(About.read(file).labels, torch.arange(3).repeat_interleave(4))
