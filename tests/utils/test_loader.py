"""Cropping, augmenting and batching images, in memory and from files."""

import pytest
import torch

from tests.conftest import rng
from tests.utils.image_files import PLAIN, coded_images, read, write_parts
from utils.errors import UserError
from utils.images import EncodedImages
from utils.loader import (
    Augmentation,
    MemoryLoader,
    Normalisation,
    autoaugment,
    crop_and_flip,
    cutout,
    loader,
)


@pytest.fixture
def parts(tmp_path):
    return write_parts(tmp_path)


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
    many = crop_and_flip(images[:1].expand(200, -1, -1, -1), 2, True, rng())
    shifts = {tuple(image[0, 2].tolist()) for image in many}
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
def test_augmentation_is_for_training_alone(parts, size):
    dataset = read(parts, size)
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


def test_large_images_are_read_from_disk_in_training_and_evaluation_form(tmp_path):
    write_parts(tmp_path, (100, 90))
    dataset = read(tmp_path)
    assert isinstance(dataset.train, EncodedImages)
    training = loader(dataset.train, 4, PLAIN, Augmentation(), seed=1)
    first = [images for images, _ in training.epoch(0)]
    again = [images for images, _ in training.epoch(0)]
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert [tuple(images.shape) for images in first] == [(4, 3, 80, 80)] * 3
    (images, labels), *_ = loader(dataset.test, 6, PLAIN).epoch()
    assert images.shape == (6, 3, 80, 80)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_large_corrupt_image_is_skipped_and_named(parts, capsys):
    (parts / "val" / "class1" / "1.png").write_bytes(b"no image")
    dataset = read(parts)
    batches = list(loader(dataset.test, 2, PLAIN).epoch())
    assert [len(labels) for _, labels in batches] == [2, 1, 2]
    assert "class1/1.png" in capsys.readouterr().err


def test_an_epoch_of_files_can_begin_at_any_batch(parts):
    dataset = read(parts)
    batches = loader(dataset.train, 4, PLAIN, Augmentation(cutout=9), 1)
    whole, rest = list(batches.epoch(2)), list(batches.epoch(2, 1))
    assert len(whole) == len(batches) == 3
    assert len(rest) == 2
    for (images, labels), (again, same) in zip(whole[1:], rest, strict=True):
        assert images.equal(again)
        assert labels.equal(same)


def test_files_that_cannot_be_opened_are_no_broken_images(parts):
    dataset = read(parts)
    for file in (parts / "train").rglob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"\.png: cannot be read .No such file or directory."):
        next(loader(dataset.train, 4, PLAIN, Augmentation()).epoch())


def test_an_epoch_of_broken_images_stops_and_they_are_counted(parts, capsys):
    dataset = read(parts)
    for file in (parts / "train").rglob("*.png"):
        file.write_bytes(b"x")
    with pytest.raises(UserError, match=r"train: none of \d+ images can be read"):
        list(loader(dataset.train, 4, PLAIN, Augmentation()).epoch())
    capsys.readouterr()
    (parts / "val" / "class1" / "1.png").write_bytes(b"x")
    list(loader(dataset.test, 4, PLAIN).epoch())
    assert "val: skipped 1 of 6 images" in capsys.readouterr().err


def test_workers_change_nothing(parts):
    dataset = read(parts)
    alone, helped = (loader(dataset.train, 4, PLAIN, Augmentation(), 1, n) for n in (0, 2))
    for (images, _), (same, _) in zip(alone.epoch(2), helped.epoch(2), strict=True):
        assert images.equal(same)
