"""The published sets of images, read from tiny archives that are laid out as the real ones."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.transforms import v2

from tests.conftest import rng
from tests.support import write_cifar, write_cifar10
from tests.utils.image_files import write_folder
from utils.data import load_dataset, load_test_images
from utils.errors import UserError
from utils.image_sets import IMAGE_SETS
from utils.images import EncodedImages, ImageData, evaluation_steps
from utils.loader import Augmentation, Normalisation, loader, training_transform

pytestmark = pytest.mark.usefixtures("any_checksum")
PLAIN = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def picture(path, shade: int, size=(40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), shade, np.uint8)).save(path)


def write_cifar100(root):
    write_cifar(root, 100, "cifar-100-python", {"train": 100, "test": 200}, "fine_labels")
    return 100, 200


def write_cinic10(root):
    for part, count in (("train", 3), ("valid", 2), ("test", 1)):
        for label in range(10):
            for index in range(count):
                picture(root / part / f"class{label}" / f"{index}.png", label, (32, 32))
    return 50, 10


def write_stl10(root):
    (root / "stl10_binary").mkdir()
    for part, count in (("train", 10), ("test", 20)):
        labels = np.arange(count) % 10
        pixels = np.repeat(labels.astype(np.uint8)[:, None], 3 * 96 * 96, axis=1)
        pixels.tofile(root / "stl10_binary" / f"{part}_X.bin")
        (labels + 1).astype(np.uint8).tofile(root / "stl10_binary" / f"{part}_y.bin")
    (root / "stl10_binary" / "class_names.txt").write_text("\n".join(map(str, range(10))))
    (root / "stl10_binary" / "fold_indices.txt").write_text("0\n")
    return 10, 20


def write_flowers102(root):
    base, count = root / "flowers-102", 408
    for image in range(1, count + 1):
        picture(base / "jpg" / f"image_{image:05d}.jpg", 2 * ((image - 1) % 102))
    savemat(base / "imagelabels.mat", {"labels": np.arange(count) % 102 + 1})
    ids = np.arange(1, count + 1).reshape(4, 102)
    savemat(base / "setid.mat", {"trnid": ids[0], "valid": ids[1], "tstid": ids[2:].flatten()})
    return 204, 204


def write_dtd(root):
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for part, count in (("train", 2), ("val", 1), ("test", 1)):
        each = [(label, index) for label in range(47) for index in range(count)]
        names = [(label, f"texture{label:02d}/{part}_{index}.jpg") for label, index in each]
        (base / "labels" / f"{part}1.txt").write_text("".join(f"{name}\n" for _, name in names))
        for label, name in names:
            picture(base / "images" / name, 5 * label)
    return 141, 47


def write_pets(root):
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for part, count in (("trainval", 2), ("test", 1)):
        lines = []
        for label in range(37):
            for index in range(count):
                # the archive counts on, whatever the case
                name = f"{'Bb'[label % 2]}reed{label:02d}_{part}{index}"
                picture(base / "images" / f"{name}.jpg", 6 * (label // 2 + 19 * (label % 2)))
                lines.append(f"{name} {label + 1} {1 + label % 2} 1\n")
        (base / "annotations" / f"{part}.txt").write_text("".join(lines))
    return 74, 37


def write_aircraft(root):
    base = root / "fgvc-aircraft-2013b" / "data"
    base.mkdir(parents=True)
    (base / "variants.txt").write_text("".join(f"Variant {label:03d}\n" for label in range(100)))
    for part, count in (("trainval", 2), ("test", 1)):
        each = [(label, index) for label in range(100) for index in range(count)]
        names = [(label, f"{part}{label:03d}{index}") for label, index in each]
        lines = [f"{name} Variant {label:03d}\n" for label, name in names]
        (base / f"images_variant_{part}.txt").write_text("".join(lines))
        for label, name in names:
            picture(base / "images" / f"{name}.jpg", 2 * label)
    return 200, 100


ARCHIVES = {
    "cifar10": write_cifar10,
    "cifar100": write_cifar100,
    "cinic10": write_cinic10,
    "stl10": write_stl10,
    "flowers102": write_flowers102,
    "dtd": write_dtd,
    "pets": write_pets,
    "aircraft": write_aircraft,
}


def test_every_set_that_is_read_here_has_an_archive():
    assert {name for name, known in IMAGE_SETS.items() if known.read} == set(ARCHIVES)


@pytest.mark.parametrize("name", ARCHIVES)
def test_images_and_labels_belong_together(tmp_path, name):
    train, test = ARCHIVES[name](tmp_path)
    known = IMAGE_SETS[name]
    dataset = load_dataset(name, str(tmp_path), 32, known.classes, download=False)
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (train, test)
    for part in (dataset.train, dataset.test):
        assert isinstance(part, ImageData)
        assert len(part.labels.unique()) == known.classes
        shades = part.images.float().mean(dim=(1, 2, 3))
        order = shades.argsort(stable=True)
        assert (part.labels[order].diff() >= 0).all(), "the shade of an image rises with its label"


@pytest.mark.parametrize("name", ["flowers102", "dtd", "pets", "aircraft"])
def test_large_images_stay_on_disk_and_become_batches(tmp_path, name):
    ARCHIVES[name](tmp_path)
    known = IMAGE_SETS[name]
    dataset = load_dataset(name, str(tmp_path), 72, known.classes, download=False)
    assert isinstance(dataset.train, EncodedImages)
    assert dataset.test.view == known.view
    test = load_test_images(name, str(tmp_path), 72, known.classes)
    assert test.labels.equal(dataset.test.labels)
    augment = Augmentation(**{"crop_scale": (0.08, 1.0), **known.augment})
    images, labels = next(iter(loader(dataset.train, 8, PLAIN, augment).epoch()))
    assert images.shape == (8, 3, 72, 72)
    assert labels.shape == (8,)


def test_stl10_keeps_its_size(tmp_path):
    write_stl10(tmp_path)
    dataset = load_dataset("stl10", str(tmp_path), 96, 10, download=False)
    assert dataset.train.images.shape[2:] == (96, 96)


@pytest.mark.parametrize(
    ("name", "test"),
    [("cifar10", "test"), ("flowers102", "test"), ("dtd", "valid"), ("pets", "valid")],
)
def test_the_folders_of_the_authors_are_read_too(tmp_path, name, test):
    write_folder(tmp_path / "train", classes=3)
    write_folder(tmp_path / test, classes=3, images=2)
    dataset = load_dataset(name, str(tmp_path), 16, 3)
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (12, 6)
    shutil.rmtree(tmp_path / test / "class0")
    with pytest.raises(UserError, match=r"its classes are not those of .*train: class0"):
        load_dataset(name, str(tmp_path), 16, 3)


def test_aircraft_as_its_users_kept_it(tmp_path):
    counts = write_aircraft(tmp_path)
    inside = tmp_path / "fgvc-aircraft-2013b"
    folders = (str(tmp_path), str(inside))
    outer, inner = (load_dataset("aircraft", path, 16, 100, download=False) for path in folders)
    assert (len(inner.train.labels), len(inner.test.labels)) == counts
    assert inner.train.labels.equal(outer.train.labels)
    assert inner.train.images.equal(outer.train.images)


@pytest.mark.parametrize(("name", "classes"), [("cifar100", 10), ("cifar10", 1000), ("pets", 36)])
def test_a_network_of_other_classes_is_refused(tmp_path, name, classes):
    ARCHIVES[name](tmp_path)
    says = f"the network has {classes}, but {name} in .* has {IMAGE_SETS[name].classes}"
    with pytest.raises(UserError, match=says):
        load_test_images(name, str(tmp_path), 32, classes)


def test_cinic10_as_its_users_merged_it(tmp_path):
    write_folder(tmp_path / "train_and_valid", classes=10)
    write_folder(tmp_path / "test", classes=10, images=2)
    dataset = load_dataset("cinic10", str(tmp_path), 32, 10)
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (40, 20)


@pytest.mark.parametrize("name", ARCHIVES)
def test_missing_data_is_one_line_that_says_what_to_put_where(tmp_path, name, monkeypatch):
    import torchvision.datasets as sets

    def fail(*args, **kwargs):
        raise OSError("no route to host")

    for kind in (sets.CIFAR10, sets.CIFAR100, sets.STL10, sets.Flowers102):
        monkeypatch.setattr(kind, "_check_integrity", lambda self: False)
    for module in ("cifar", "stl10", "flowers102", "dtd", "oxford_iiit_pet", "fgvc_aircraft"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", fail)
    with pytest.raises(UserError) as error:
        load_dataset(name, str(tmp_path), 32, None)
    message = str(error.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    says = f"{name} is not there and cannot be downloaded (no route to host); "
    says += IMAGE_SETS[name].layout
    if name == "cinic10":
        says = "train: it must be a folder with a folder of images for each class"
    assert says in message


# -- how NSGANetV2 sees and tunes on them ----------------------------------------------------------


def test_views_of_an_image():
    pixels = np.arange(60 * 120 * 3, dtype=np.uint32).astype(np.uint8)
    wide = Image.fromarray(pixels.reshape(60, 120, 3))
    seen = {"bicubic": (37, "bicubic"), "bilinear": (37, "bilinear"), "squash": (32, "bicubic")}
    for view, (first, interpolation) in seen.items():
        steps = evaluation_steps(32, view)
        assert min(steps[0](wide).size) == first, view
        assert steps[0].interpolation.value == interpolation
        assert v2.Compose(steps)(wide).size == (32, 32)
    assert evaluation_steps(33, "bilinear")[0].size == [38], "37.7 is rounded up, as published"


def test_balanced_batches_draw_rare_classes_as_often(tmp_path):
    labels = torch.tensor([0] * 900 + [1] * 100)
    data = ImageData(torch.zeros(1000, 3, 4, 4, dtype=torch.uint8), labels)
    batches = loader(data, 100, PLAIN, Augmentation(0, balanced=True))
    drawn, again = (torch.cat([labels for _, labels in batches.epoch()]) for _ in range(2))
    assert len(drawn) == 1000
    assert 430 < int(drawn.sum()) < 570
    assert drawn.equal(again)


def test_the_extras_of_each_set_are_among_the_steps():
    def steps(name):
        augment = Augmentation(**{"crop_scale": (0.08, 1.0), **IMAGE_SETS[name].augment})
        return [type(step).__name__ for step in training_transform(64, PLAIN, augment).transforms]

    ending = ["PILToTensor", "ToDtype", "Normalize"]
    flipped = ["RandomResizedCrop", "RandomHorizontalFlip"]
    assert steps("flowers102") == ["RandomAffine", "RandomResizedCrop", *ending]
    assert steps("imagenet") == [*flipped, "ColorJitter", *ending]
    for name in ("dtd", "pets", "aircraft"):
        assert steps(name) == [*flipped, "RandAugment", *ending]
    noise = torch.randint(0, 256, (64, 64, 3), generator=rng()).to(torch.uint8).numpy()
    augment = Augmentation(**IMAGE_SETS["dtd"].augment)
    assert training_transform(32, PLAIN, augment)(Image.fromarray(noise)).shape == (3, 32, 32)
