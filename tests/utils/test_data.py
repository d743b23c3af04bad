"""Reading and splitting images."""

import json

import pytest
import torch

from tests.conftest import rng
from tests.utils.image_files import PLAIN, coded_images, read, write_folder, write_parts
from utils.data import Dataset, load_dataset, load_test_images, split_for_search, stratified_split
from utils.errors import UserError
from utils.loader import loader


def test_digits_are_1797_images_in_ten_classes():
    digits = load_dataset("digits", "", 16, 10)
    assert len(digits.train.labels) + len(digits.test.labels) == 1797
    assert digits.train.images.shape[1:] == (3, 16, 16)
    assert digits.train.images.max() > 200
    train, test = (torch.bincount(part.labels) for part in (digits.train, digits.test))
    assert ((test / (train + test) - 0.2).abs() < 0.01).all()


def test_the_digits_test_images_never_change():
    first, second = load_dataset("digits", "", 16, 10).test, load_dataset("digits", "", 16, 10).test
    assert first.images.equal(second.images)


def test_a_stratified_split_cuts_every_class_alike():
    labels = torch.tensor([0] * 50 + [1] * 20 + [2] * 10)
    kept, held = stratified_split(labels, 0.8, rng())
    assert torch.bincount(labels[kept]).tolist() == [40, 16, 8]
    assert torch.cat([kept, held]).sort().values.equal(torch.arange(80))
    assert not kept.equal(stratified_split(labels, 0.8, rng(1))[0])


def test_the_parts_of_a_search_share_no_image_and_no_test_image(tmp_path):
    dataset = Dataset(coded_images(200), coded_images(10))
    parts = split_for_search(dataset, 0.8, 0, tmp_path / "split.json")
    three = (parts.train, parts.feed, parts.validate)
    seen = [set(part.images[:, 0, 0, 0].tolist()) for part in three]
    assert [len(s) for s in seen] == [160, 30, 10]
    assert set.union(*seen) == set(range(200))


def test_the_split_is_written_once_and_reused(tmp_path):
    dataset, file = Dataset(coded_images(200), coded_images(10)), tmp_path / "split.json"
    first = split_for_search(dataset, 0.8, 0, file)
    again = split_for_search(dataset, 0.5, 99, file)
    assert first.validate.images.equal(again.validate.images)
    with pytest.raises(UserError, match="it splits 200 images; the data set has 100"):
        split_for_search(Dataset(coded_images(100), coded_images(10)), 0.8, 0, file)


SPLIT = {"images": 10, "feed": [0, 1, 2], "validate": [3]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"feed": [0, 10]}, "index 10 of 10 images"),
        ({"feed": [10**30]}, "a whole number of more than 63 bits"),
        ({"feed": [0, -1]}, r"Expected `int` >= 0 - at `\$.feed"),
        ({"feed": [0, 1, 1]}, "an index is there twice"),
        ({"feed": [0, 3]}, "an index is there twice"),
        ({"validate": []}, r"length >= 1 - at `\$.validate`"),
        ({"validate": [1.5]}, r"Expected `int`, got `float` - at `\$.validate"),
        ({"validate": "3"}, "Expected `array`, got `str`"),
        ({"images": True}, "Expected `int`, got `bool`"),
        ({"feed": None}, r"Expected `array`, got `null`"),
    ],
)
def test_a_broken_split_is_one_line(tmp_path, change, says):
    file = tmp_path / "split.json"
    file.write_text(json.dumps(SPLIT | change))
    with pytest.raises(UserError, match=rf"split\.json: not a split file \(.*({says})") as error:
        split_for_search(Dataset(coded_images(10), coded_images(10)), 0.8, 0, file)
    assert "\n" not in str(error.value)


def test_a_good_split_is_read(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps(SPLIT))
    dataset = Dataset(coded_images(10), coded_images(10))
    parts = split_for_search(dataset, 0.8, 0, tmp_path / "split.json")
    assert parts.train.images[:, 0, 0, 0].tolist() == [4, 5, 6, 7, 8, 9]
    assert parts.held_out.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_a_train_portion_of_one_still_holds_images_out(tmp_path):
    dataset = Dataset(coded_images(200), coded_images(10))
    parts = split_for_search(dataset, 1.0, 0, tmp_path / "split.json")
    assert len(parts.train.labels) == 160


def test_a_held_out_part_of_the_data_set_is_what_is_held_out(tmp_path):
    dataset = Dataset(coded_images(100), coded_images(10), held_out=coded_images(40))
    parts = split_for_search(dataset, 0.8, 0, tmp_path / "split.json")
    counts = [len(part.labels) for part in (parts.train, parts.feed, parts.validate)]
    assert counts == [100, 30, 10]


def test_small_image_folders_are_decoded_once(tmp_path):
    write_parts(tmp_path, (20, 12))
    dataset = read(tmp_path, 16)
    assert dataset.train.images.shape == (12, 3, 16, 16)
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.held_out is None


def test_with_a_test_folder_val_is_held_out(tmp_path):
    for name, images in (("train", 4), ("val", 2), ("test", 3)):
        write_folder(tmp_path / name, images=images)
    dataset = read(tmp_path, 16)
    assert (len(dataset.test.labels), len(dataset.held_out.labels)) == (9, 6)


def test_a_test_folder_without_classes_is_not_the_test_part(tmp_path):
    write_parts(tmp_path, (20, 12))
    (tmp_path / "test").mkdir()
    assert len(load_test_images("imagefolder", str(tmp_path), 16, 3).labels) == 6


def test_a_corrupt_image_is_skipped_and_named(tmp_path, capsys):
    write_parts(tmp_path, (20, 12))
    (tmp_path / "train" / "class1" / "2.png").write_bytes(b"no image")
    dataset = read(tmp_path, 16)
    assert len(dataset.train.labels) == 11
    said = capsys.readouterr().err
    assert "class1/2.png" in said
    assert "train: skipped 1 of 12 images" in said


@pytest.mark.parametrize(("size", "workers"), [(16, 0), (80, 0), (80, 2)])
def test_strict_data_stops_at_a_corrupt_image(tmp_path, size, workers):
    write_parts(tmp_path)
    (tmp_path / "val" / "class1" / "1.png").write_bytes(b"no image")

    def read_all():
        images = load_test_images("imagefolder", str(tmp_path), size, 3, strict=True)
        return list(loader(images, 2, PLAIN, workers=workers).epoch())

    with pytest.raises(UserError, match=r"class1/1\.png: cannot be read as an image .*") as caught:
        read_all()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("imagefolder", "train: it must be a folder with a folder of images for each class"),
        ("imagenet_lmdb", r"train\.lmdb: there is no such file; python3 utils/folder2lmdb\.py"),
        ("svhn", "'svhn' cannot be read; allowed are digits"),
    ],
)
def test_missing_data_says_what_to_do(tmp_path, name, says):
    with pytest.raises(UserError, match=says):
        load_dataset(name, str(tmp_path), 16, 3)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_failing_download_says_what_to_do(tmp_path, name, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    says = f"{name} is not there and cannot be downloaded .no route to host.; unpack"
    with pytest.raises(UserError, match=says):
        load_dataset(name, str(tmp_path), 32, 10)


def test_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match="the config says 12, but digits in  has 10"):
        load_dataset("digits", "", 16, 12)


def test_parts_with_other_class_folders_are_refused(tmp_path):
    write_folder(tmp_path / "train"), write_folder(tmp_path / "val", classes=2)
    with pytest.raises(UserError, match=r"val: its classes are not those of .*train: class2"):
        read(tmp_path, 16)


def test_a_portion_that_leaves_nothing_writes_no_split(tmp_path):
    dataset = Dataset(coded_images(100), coded_images(10))
    with pytest.raises(UserError, match=r"train_portion: 0\.999 leaves too few of 100 images"):
        split_for_search(dataset, 0.999, 0, tmp_path / "split.json")
    assert not (tmp_path / "split.json").exists()
