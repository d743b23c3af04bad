"""Reading, splitting, cropping and batching images."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import rng
from utils.data import Dataset, load_dataset, load_test_images, split_for_search, stratified_split
from utils.errors import UserError
from utils.images import EncodedImages, ImageData
from utils.loader import (
    Augmentation,
    MemoryLoader,
    Normalisation,
    autoaugment,
    crop_and_flip,
    cutout,
    loader,
)

PLAIN = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def coded_images(count, size=6):
    """Images whose pixels say which image they belong to."""
    return ImageData(
        torch.arange(count, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, size, size),
        torch.arange(count) % 5,
    )


def write_folder(root, classes=3, images=4, size=(20, 12)):
    random = np.random.RandomState(0)
    for label in range(classes):
        folder = root / f"class{label}"
        folder.mkdir(parents=True)
        for index in range(images):
            pixels = random.randint(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")


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
    seen = [
        set(part.images[:, 0, 0, 0].tolist()) for part in (parts.train, parts.feed, parts.validate)
    ]
    assert [len(s) for s in seen] == [160, 30, 10]
    assert set.union(*seen) == set(range(200))


def test_the_split_is_written_once_and_reused(tmp_path):
    dataset = Dataset(coded_images(200), coded_images(10))
    first = split_for_search(dataset, 0.8, 0, tmp_path / "split.json")
    again = split_for_search(dataset, 0.5, 99, tmp_path / "split.json")
    assert first.validate.images.equal(again.validate.images)
    with pytest.raises(UserError, match="it splits 200 images; the data set has 100"):
        split_for_search(
            Dataset(coded_images(100), coded_images(10)), 0.8, 0, tmp_path / "split.json"
        )


def test_a_train_portion_of_one_still_holds_images_out(tmp_path):
    parts = split_for_search(
        Dataset(coded_images(200), coded_images(10)), 1.0, 0, tmp_path / "split.json"
    )
    assert len(parts.train.labels) == 160


def test_a_held_out_part_of_the_data_set_is_what_is_held_out(tmp_path):
    dataset = Dataset(coded_images(100), coded_images(10), held_out=coded_images(40))
    parts = split_for_search(dataset, 0.8, 0, tmp_path / "split.json")
    assert (len(parts.train.labels), len(parts.feed.labels), len(parts.validate.labels)) == (
        100,
        30,
        10,
    )


def test_crop_and_flip_equal_the_naive_loop():
    images = torch.randint(255, (40, 3, 5, 5), generator=rng(), dtype=torch.uint8)
    result = crop_and_flip(images, 2, True, rng(1))
    candidates = 0
    for image, got in zip(images, result, strict=True):
        padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
        crops = [padded[:, y : y + 5, x : x + 5] for y in range(5) for x in range(5)]
        options = [*crops, *(crop.flip(2) for crop in crops)]
        candidates += any(got.equal(option) for option in options)
    assert candidates == 40
    shifts = {
        tuple(image[0, 2].tolist())
        for image in crop_and_flip(images[:1].expand(200, -1, -1, -1), 2, True, rng())
    }
    assert len(shifts) > 20  # each image of a batch is cropped and flipped on its own


def test_no_padding_and_no_flip_change_nothing():
    images = torch.randint(255, (4, 3, 5, 5), generator=rng(), dtype=torch.uint8)
    assert crop_and_flip(images, 0, False, rng()).equal(images)


def test_cutout_equals_the_naive_loop():
    images = torch.rand(20, 3, 8, 8, generator=rng()) + 1
    cut = cutout(images, 3, rng(1))
    corners = (torch.randint(8, (2, 20, 1), generator=rng(1)) - 1)[:, :, 0].T.tolist()
    for image, found, (top, left) in zip(images, cut, corners, strict=True):
        expected = image.clone()
        for row in range(max(top, 0), min(top + 3, 8)):
            for column in range(max(left, 0), min(left + 3, 8)):
                expected[:, row, column] = 0
        assert found.equal(expected)
    assert (cut == 0).any()


def test_autoaugment_draws_for_each_image_by_the_stream_alone():
    image = torch.randint(256, (1, 3, 12, 12), generator=rng()).to(torch.uint8)
    first = autoaugment(image.repeat(16, 1, 1, 1), rng(1))
    state = torch.get_rng_state()
    again = autoaugment(image.repeat(16, 1, 1, 1), rng(1))
    assert first.equal(again)
    assert torch.get_rng_state().equal(state)
    assert len({tuple(one.flatten().tolist()) for one in first}) > 8
    assert not first.equal(autoaugment(image.repeat(16, 1, 1, 1), rng(2)))


@pytest.mark.parametrize("size", [16, 80])
def test_augmentation_is_for_training_alone(tmp_path, size):
    (
        write_folder(tmp_path / "train", size=(90, 90)),
        write_folder(tmp_path / "val", images=2, size=(90, 90)),
    )
    dataset = load_dataset("imagefolder", str(tmp_path), size, 3)
    augment = Augmentation(0, False, (0.99, 1.0), autoaugment=True, cutout=8)
    first, again = (
        [images for images, _ in loader(dataset.train, 4, PLAIN, augment, 1).epoch(2)]
        for _ in range(2)
    )
    assert all(one.equal(other) for one, other in zip(first, again, strict=True))
    whole = (torch.cat(first) == 0).all(dim=1).flatten(1).sum(dim=1)  # pixels of the mean colour
    assert int(whole.min()) >= 4 * 4
    plain = torch.cat([images for images, _ in loader(dataset.test, 4, PLAIN).epoch()])
    assert int((plain == 0).all(dim=1).sum()) == 0


def test_normalisation_is_per_channel():
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    result = Normalisation((0.0, 0.5, 1.0), (1.0, 0.5, 2.0))(images)
    assert result[0, :, 0, 0].tolist() == [1.0, 1.0, 0.0]


def test_an_epoch_is_a_function_of_seed_and_number():
    batches = MemoryLoader(coded_images(50), 8, PLAIN, Augmentation(1, True), seed=3)
    first = [labels.tolist() for _, labels in batches.epoch(0)]
    assert first == [labels.tolist() for _, labels in batches.epoch(0)]
    assert first != [labels.tolist() for _, labels in batches.epoch(1)]
    assert len(first) == len(batches) == 6  # whole batches only


def test_evaluation_sees_every_image_once_in_order():
    batches = MemoryLoader(coded_images(50), 8, PLAIN)
    assert len(batches) == 7
    assert torch.cat([labels for _, labels in batches.epoch()]).equal(coded_images(50).labels)


def test_small_image_folders_are_decoded_once(tmp_path):
    write_folder(tmp_path / "train"), write_folder(tmp_path / "val", images=2)
    dataset = load_dataset("imagefolder", str(tmp_path), 16, 3)
    assert dataset.train.images.shape == (12, 3, 16, 16)
    assert dataset.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert dataset.held_out is None


def test_with_a_test_folder_val_is_held_out(tmp_path):
    for name, images in (("train", 4), ("val", 2), ("test", 3)):
        write_folder(tmp_path / name, images=images)
    dataset = load_dataset("imagefolder", str(tmp_path), 16, 3)
    assert (len(dataset.test.labels), len(dataset.held_out.labels)) == (9, 6)


def test_a_test_folder_without_classes_is_not_the_test_part(tmp_path):
    write_folder(tmp_path / "train"), write_folder(tmp_path / "val", images=2)
    (tmp_path / "test").mkdir()
    assert len(load_test_images("imagefolder", str(tmp_path), 16, 3).labels) == 6


def test_large_images_are_read_from_disk_in_training_and_evaluation_form(tmp_path):
    (
        write_folder(tmp_path / "train", size=(100, 90)),
        write_folder(tmp_path / "val", images=2, size=(100, 90)),
    )
    dataset = load_dataset("imagefolder", str(tmp_path), 80, 3)
    assert isinstance(dataset.train, EncodedImages)
    training = loader(dataset.train, 4, PLAIN, Augmentation(), seed=1)
    first = [images for images, _ in training.epoch(0)]
    again = [images for images, _ in training.epoch(0)]
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert [tuple(images.shape) for images in first] == [(4, 3, 80, 80)] * 3
    (images, labels), *_ = loader(dataset.test, 6, PLAIN).epoch()
    assert images.shape == (6, 3, 80, 80)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_corrupt_image_is_skipped_and_named(tmp_path, capsys):
    write_folder(tmp_path / "train"), write_folder(tmp_path / "val", images=2)
    (tmp_path / "train" / "class1" / "2.png").write_bytes(b"no image")
    dataset = load_dataset("imagefolder", str(tmp_path), 16, 3)
    assert len(dataset.train.labels) == 11
    said = capsys.readouterr().err
    assert "class1/2.png" in said
    assert "train: skipped 1 of 12 images" in said


@pytest.mark.parametrize(("size", "workers"), [(16, 0), (80, 0), (80, 2)])
def test_strict_data_stops_at_a_corrupt_image(tmp_path, size, workers):
    (
        write_folder(tmp_path / "train", size=(90, 90)),
        write_folder(tmp_path / "val", images=2, size=(90, 90)),
    )
    (tmp_path / "val" / "class1" / "1.png").write_bytes(b"no image")

    def read():
        images = load_test_images("imagefolder", str(tmp_path), size, 3, strict=True)
        return list(loader(images, 2, PLAIN, workers=workers).epoch())

    with pytest.raises(UserError, match=r"class1/1\.png: cannot be read as an image .*") as caught:
        read()
    assert "\n" not in str(caught.value)


def test_missing_data_says_what_to_do(tmp_path):
    with pytest.raises(
        UserError, match="train: it must be a folder with a folder of images for each class"
    ):
        load_dataset("imagefolder", str(tmp_path), 16, 3)
    with pytest.raises(
        UserError, match=r"train\.lmdb: there is no such file; python3 utils/folder2lmdb\.py"
    ):
        load_dataset("imagenet_lmdb", str(tmp_path), 16, 3)
    with pytest.raises(UserError, match="'svhn' cannot be read; allowed are digits"):
        load_dataset("svhn", str(tmp_path), 16, 3)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_failing_download_says_what_to_do(tmp_path, name, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(
        UserError, match=f"{name} is not there and cannot be downloaded .no route to host.; unpack"
    ):
        load_dataset(name, str(tmp_path), 32, 10)


def test_another_number_of_classes_is_refused():
    with pytest.raises(UserError, match="the config says 12, but digits in  has 10"):
        load_dataset("digits", "", 16, 12)


def test_parts_with_other_class_folders_are_refused(tmp_path):
    write_folder(tmp_path / "train"), write_folder(tmp_path / "val", classes=2)
    with pytest.raises(UserError, match=r"val: its classes are not those of .*train: class2"):
        load_dataset("imagefolder", str(tmp_path), 16, 3)


def test_a_portion_that_leaves_nothing_writes_no_split(tmp_path):
    dataset = Dataset(coded_images(100), coded_images(10))
    with pytest.raises(UserError, match=r"train_portion: 0\.999 leaves too few of 100 images"):
        split_for_search(dataset, 0.999, 0, tmp_path / "split.json")
    assert not (tmp_path / "split.json").exists()


def test_a_large_corrupt_image_is_skipped_and_named(tmp_path, capsys):
    (
        write_folder(tmp_path / "train", size=(90, 90)),
        write_folder(tmp_path / "val", images=2, size=(90, 90)),
    )
    (tmp_path / "val" / "class1" / "1.png").write_bytes(b"no image")
    dataset = load_dataset("imagefolder", str(tmp_path), 80, 3)
    batches = list(loader(dataset.test, 2, PLAIN).epoch())
    assert [len(labels) for _, labels in batches] == [2, 1, 2]
    assert "class1/1.png" in capsys.readouterr().err


def test_an_epoch_of_files_can_begin_at_any_batch(tmp_path):
    (
        write_folder(tmp_path / "train", size=(90, 90)),
        write_folder(tmp_path / "val", images=2, size=(90, 90)),
    )
    dataset = load_dataset("imagefolder", str(tmp_path), 80, 3)
    batches = loader(dataset.train, 4, PLAIN, Augmentation(cutout=9), 1)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, 1))
    assert len(whole) == len(batches) == 3
    assert len(rest) == 2
    for (images, labels), (again, same) in zip(whole[1:], rest, strict=True):
        assert images.equal(again)
        assert labels.equal(same)


def test_files_that_cannot_be_opened_are_no_broken_images(tmp_path):
    (
        write_folder(tmp_path / "train", size=(90, 90)),
        write_folder(tmp_path / "val", images=2, size=(90, 90)),
    )
    dataset = load_dataset("imagefolder", str(tmp_path), 80, 3)
    for file in (tmp_path / "train").rglob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"\.png: cannot be read .No such file or directory."):
        next(loader(dataset.train, 4, PLAIN, Augmentation()).epoch())


def test_a_training_batch_of_broken_images_stops_and_they_are_counted(tmp_path, capsys):
    (
        write_folder(tmp_path / "train", size=(90, 90)),
        write_folder(tmp_path / "val", images=2, size=(90, 90)),
    )
    dataset = load_dataset("imagefolder", str(tmp_path), 80, 3)
    for file in (tmp_path / "train").rglob("*.png"):
        file.write_bytes(b"x")
    with pytest.raises(UserError, match="train: a whole batch of 4 images cannot be read"):
        next(loader(dataset.train, 4, PLAIN, Augmentation()).epoch())
    capsys.readouterr()
    (tmp_path / "val" / "class1" / "1.png").write_bytes(b"x")
    list(loader(dataset.test, 4, PLAIN).epoch())
    assert "val: skipped 1 of 6 images" in capsys.readouterr().err


def test_workers_change_nothing(tmp_path):
    (
        write_folder(tmp_path / "train", size=(90, 90)),
        write_folder(tmp_path / "val", images=2, size=(90, 90)),
    )
    dataset = load_dataset("imagefolder", str(tmp_path), 80, 3)
    alone, helped = (
        torch.cat(
            [
                images
                for images, _ in loader(dataset.train, 4, PLAIN, Augmentation(), 1, workers).epoch(
                    2
                )
            ]
        )
        for workers in (0, 2)
    )
    assert alone.equal(helped)
