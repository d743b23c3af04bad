"""Which folders are classes, and which files are images."""

import os
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.support import refused
from utils import folder2lmdb
from utils.class_folders import labelled_files
from utils.data import load_dataset, load_test_images
from utils.errors import UserError


def write(root: Path, *names: str) -> Path:
    """A small image in each of these files."""
    for number, name in enumerate(names):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, number, number)).save(file, "PNG")
    return root


def two_of_each(*folders: str) -> list[str]:
    return [f"{folder}/{number}.png" for folder in folders for number in range(2)]


def read(root: Path, size: int = 8):
    return load_dataset("imagefolder", str(root), size, None)


def says(root: Path) -> str:
    """The one line in which reading a folder ends."""
    with pytest.raises(UserError) as caught:
        read(root)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500 + 2 * len(str(root))
    text.encode()  # it can be printed
    return text.replace(str(root), "DIR")


LEFT_OVER = (".ipynb_checkpoints", "__MACOSX", ".cache", ".git")


@pytest.mark.parametrize("inside", ["", "train", "val", "cat"])
def test_left_over_folders_and_files_are_no_classes(tmp_path, inside):
    if inside == "cat":
        write(tmp_path, *two_of_each("cat", "dog"))
    else:
        write(tmp_path, *two_of_each("train/cat", "train/dog", "val/cat", "val/dog"))
    for name in LEFT_OVER:
        write(tmp_path / inside / name, "0.png", "cat/0.png")
    write(tmp_path / inside, "._0.png", ".0.png")
    dataset = read(tmp_path)
    assert dataset.names == ("cat", "dog")
    assert len(dataset.train.labels) == (2 if inside == "cat" else 4)
    assert len(dataset.test.labels) == (2 if inside == "cat" else 4)


def test_a_left_over_folder_makes_no_labelled_test_part(tmp_path):
    write(tmp_path, *two_of_each("train/cat", "train/dog", "val/cat", "val/dog"))
    write(tmp_path / "test", "0.png", ".ipynb_checkpoints/0-checkpoint.png")
    dataset = read(tmp_path)
    assert len(dataset.test.labels) == 4
    assert dataset.held_out is None


UNDIVIDED = {
    "called train": ["bus", "car", "train"],
    "called test and val": ["pass", "test", "val"],
    "called as all parts": ["bus", "test", "train", "val"],
    "with folders": ["bus/red", "bus/blue", "car/old/very"],
    "with folders, one called train": ["bus/red", "car", "train"],
}


@pytest.mark.parametrize("name", UNDIVIDED)
def test_classes_of_any_name_and_depth(tmp_path, name):
    folders = UNDIVIDED[name]
    write(tmp_path, *two_of_each(*folders))
    dataset = read(tmp_path)
    assert dataset.names == tuple(sorted({folder.split("/")[0] for folder in folders}))
    count = len(dataset.train.labels) + len(dataset.test.labels)
    assert count == 2 * len(folders)
    assert dataset.held_out is None
    assert set(dataset.test.labels.tolist()) == set(range(len(dataset.names)))


DIVIDED = {
    "plain": ["train/a", "train/b", "val/a", "val/b"],
    "with folders": ["train/a/x", "train/b", "val/a", "val/b/y"],
    "next to other folders": ["train/a", "train/b", "val/a", "val/b", "extras", "more/images"],
    "next to unlabelled images": ["train/a", "train/b", "val/a", "val/b", "test", "masks"],
    "with classes called as parts": ["train/train", "train/val", "val/train", "val/val"],
}


@pytest.mark.parametrize("name", DIVIDED)
def test_parts_stay_parts(tmp_path, name):
    write(tmp_path, *two_of_each(*DIVIDED[name]))
    dataset = read(tmp_path)
    assert dataset.names == (("train", "val") if "called" in name else ("a", "b"))
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (4, 4)


def test_what_may_be_either_is_refused(tmp_path):
    write(tmp_path, *two_of_each("bus/red", "car/red", "train/steam", "train/diesel"))
    may = "train may be a class or a part, next to bus, car"
    assert (
        says(tmp_path) == f"DIR: {may}; rename it, or put the classes into train and val (or test)"
    )


def test_the_order_is_that_of_torchvision(tmp_path):
    from torchvision.datasets import ImageFolder

    names = ["b/1.png", "b/a/0.PNG", "b/a b/0.png", "b/a.c/9.png", "a/Z.png", "a/z.jpg", "B/x.tif"]
    write(tmp_path, *names)
    os.symlink(tmp_path / "b" / "a", tmp_path / "a" / "linked")
    expected, found = ImageFolder(str(tmp_path)), labelled_files(tmp_path)
    assert list(zip(found.paths, found.labels, strict=True)) == expected.samples
    assert found.classes == expected.classes


def test_a_circle_of_links_ends(tmp_path):
    write(tmp_path, "a/0.png", "b/0.png")
    os.symlink(tmp_path, tmp_path / "a" / "back")
    os.symlink(tmp_path / "a", tmp_path / "b" / "other")
    os.symlink(tmp_path / "b", tmp_path / "a" / "other")
    found = labelled_files(tmp_path)
    assert found.classes == ["a", "b"]
    assert len(found.paths) <= 6


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 80])
@pytest.mark.parametrize("undivided", [True, False])
def test_a_class_of_which_nothing_can_be_read_is_refused(tmp_path, size, undivided):
    names = ["cat", "dog"] if undivided else ["train/cat", "train/dog", "val/cat", "val/dog"]
    write(tmp_path, *two_of_each(*names))
    for file in (tmp_path / names[1]).glob("*.png"):
        file.write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        read(tmp_path, size)
    none = "class dog: none of its images can be read (2; the first: "
    assert none in str(caught.value)
    assert str(caught.value).endswith(f"{names[1]}/0.png: no image of a known format)")


def test_a_class_of_which_nothing_is_left_to_train_is_refused(tmp_path):
    write(tmp_path, *two_of_each("cat", "dog"))
    [trains] = [
        file
        for file in sorted((tmp_path / "dog").glob("*.png"))
        if Image.open(file).getpixel((0, 0))[0] in read(tmp_path).train.images[:, 0, 0, 0].tolist()
    ]
    trains.write_bytes(b"no image")
    assert "class dog: none of its training images can be read" in says(tmp_path)


def test_a_pipe_is_not_waited_for(tmp_path):
    write(tmp_path, *two_of_each("train/cat", "train/dog", "val/cat", "val/dog"))
    os.mkfifo(tmp_path / "train" / "cat" / "pipe")
    assert len(read(tmp_path).train.labels) == 4
    os.mkfifo(tmp_path / "train" / "cat" / "2.png")
    assert says(tmp_path) == "DIR/train/cat/2.png: this is no file"


def test_such_a_class_is_not_packed_either(tmp_path, capsys):
    write(tmp_path, *two_of_each("train/cat", "train/dog"))
    for number in range(2):
        (tmp_path / "train" / "dog" / f"{number}.png").write_bytes(b"")
    said = refused(capsys, folder2lmdb.main, tmp_path)
    assert "class dog: none of its images can be read" in said
    assert not (tmp_path / "train_lmdb").exists()


MISSING = {
    "nothing": ([], "DIR/train: {} (it is not there)"),
    "no images of a class": (["train/a/0.png", "train/b/0.txt"], "DIR/train: {} (no images in b; "),
    "no classes": (["train/0.png", "val/0.png"], "DIR/train: {} (it has no folders)"),
    "only left-over ones": (
        ["train/.a/0.png", "val/.a/0.png"],
        "DIR/train: {} (it has no folders)",
    ),
    "a file": (["train"], "DIR/train: {} (it is no folder)"),
    "many": (
        [f"train/{number:02d}/x" for number in range(40)],
        "DIR/train: {} (no images in 00, 01, 02 and 37 more; ",
    ),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_no_folder_of_classes_is_one_line(tmp_path, name):
    files, said = MISSING[name]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        if file.endswith(".png"):
            write(tmp_path, file)
        else:
            (tmp_path / file).write_text("text")
    must = "it must be a folder with a folder of images for each class"
    assert says(tmp_path).startswith(said.format(must))


BAD = os.fsdecode(b"b\xffd")


@pytest.mark.parametrize(
    "name", [f"{BAD}/0.png", f"a/{BAD}.png", f"a/{BAD}/0.png", f"train/a/{BAD}.png"]
)
def test_names_that_are_not_utf8_are_one_line(tmp_path, name):
    write(tmp_path, *two_of_each("train/a", "val/a") if "train" in name else two_of_each("a", "b"))
    try:
        write(tmp_path, name)
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    shown = name.replace(BAD, r"b\udcffd").removesuffix("/0.png")
    assert says(tmp_path) == f"DIR/{shown}: this name is not UTF-8; rename it"


def test_a_folder_whose_own_name_is_not_utf8_is_one_line(tmp_path, capsys):
    folder = tmp_path / BAD
    try:
        write(folder, *two_of_each("train/a"))
    except OSError:
        pytest.skip("this file system has only names in UTF-8")
    assert "which is no text" in refused(capsys, folder2lmdb.main, folder)
    with pytest.raises(UserError, match=r"b\\udcffd.*: this name is not UTF-8; rename it"):
        load_test_images("imagenet_lmdb", str(folder), 8, 2)
    write(tmp_path, *two_of_each("train/a"))
    said = refused(capsys, folder2lmdb.main, tmp_path, "--out", folder)
    assert "which is no text" in said
    assert [file.name for file in folder.iterdir()] == ["train"]


# -- endings -------------------------------------------------------------------------------------


def test_images_of_unknown_endings_are_counted_and_named(tmp_path, capsys):
    write(tmp_path, *two_of_each("a", "b"), "a/2.JPG_large", "b/3.png.bak", "b/4")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "a" / "more.jpg.txt").write_bytes(b"\xff\xd8\xff")
    labelled_files(tmp_path)
    [line] = capsys.readouterr().err.splitlines()
    left_out = (
        "left out, images of unknown endings: 3 (a/2.JPG_large, b/3.png.bak, b/4); known are "
    )
    assert line.startswith(f"{tmp_path}: {left_out}.jpg, .jpeg")
    assert line.endswith(".jfif")


def test_jfif_files_are_jpegs(tmp_path, capsys):
    write(tmp_path, *two_of_each("a", "b"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "2.JFIF", "JPEG")
    assert len(labelled_files(tmp_path).paths) == 5
    assert capsys.readouterr().err == ""


def test_a_class_of_unknown_endings_alone_says_so(tmp_path):
    write(tmp_path, "train/a/0.png", "train/b/0.JPG_large", "val/a/0.png")
    assert re.search(
        r"\(no images in b; left out, images of unknown endings: 1 \(b/0\.JPG_large\); known are",
        says(tmp_path),
    )


def test_parts_are_read_alone(tmp_path):
    write(tmp_path, *two_of_each("val/a", "val/b"))
    assert len(load_test_images("imagefolder", str(tmp_path), 8, 2).labels) == 4
