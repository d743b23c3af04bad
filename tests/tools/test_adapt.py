"""A trained network for other images: what it keeps, what it learns, and what it takes."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import validate
from model.trained import open_own
from tests.support import refused, run
from tests.tools.painted import paint
from tools import adapt
from tools.reporting.run_results import read_run
from utils.data import load_dataset, load_test_images
from utils.errors import UserError


@pytest.fixture(scope="module")
def painted(tmp_path_factory) -> Path:
    return paint(tmp_path_factory.mktemp("painted") / "colours", 20)


@pytest.fixture(scope="module")
def trained(net) -> Path:
    """The checkpoint of a network that was trained on digits."""
    return net / "checkpoints" / "last.pth"


# -- folders without parts -------------------------------------------------------------------------


def test_about_a_fifth_of_the_images_test(painted):
    dataset = load_dataset("imagefolder", str(painted), 8, 3)
    tests = torch.bincount(dataset.test.labels)
    assert (torch.bincount(dataset.train.labels) + tests).tolist() == [20] * 3
    assert all(1 <= count <= 9 for count in tests.tolist())
    both = torch.cat([dataset.train.images, dataset.test.images]).flatten(1)
    assert len(both.unique(dim=0)) == 60  # no image is in both
    assert dataset.held_out is None
    again = load_test_images("imagefolder", str(painted), 8, 3)
    assert again.images.equal(dataset.test.images)
    assert dataset.names == ("blue", "green", "red")


def test_images_that_are_added_move_no_other(tmp_path):
    folder = paint(tmp_path / "colours", 20)
    before = load_dataset("imagefolder", str(folder), 8, 3)
    for file in paint(tmp_path / "more", 25).glob("*/2[0-4].png"):
        file.rename(folder / file.relative_to(tmp_path / "more"))
    after = load_dataset("imagefolder", str(folder), 8, 3)
    assert len(after.train.labels) + len(after.test.labels) == 75
    for old, new in ((before.train, after.train), (before.test, after.test)):
        kept = {tuple(image.tolist()) for image in new.images.flatten(1)}
        assert all(tuple(image.tolist()) in kept for image in old.images.flatten(1))


def test_a_class_of_two_images_has_one_of_each_kind_and_one_of_one_is_refused(tmp_path):
    paint(tmp_path, 2)
    dataset = load_dataset("imagefolder", str(tmp_path), 8, 3)
    assert dataset.train.labels.tolist() == dataset.test.labels.tolist() == [0, 1, 2]
    (tmp_path / "red" / "00.png").unlink()
    with pytest.raises(UserError, match="red: one image; at least 2 are needed"):
        load_dataset("imagefolder", str(tmp_path), 8, 3)


def test_folders_with_parts_are_as_they_were(tmp_path):
    paint(tmp_path / "train", 6)
    paint(tmp_path / "val", 2)
    dataset = load_dataset("imagefolder", str(tmp_path), 8, 3)
    assert [len(dataset.train.labels), len(dataset.test.labels)] == [18, 6]
    assert dataset.names == ("blue", "green", "red")


# -- adapting --------------------------------------------------------------------------------------


def adapted(folder: Path, trained: Path, data: Path, more: str = "") -> dict:
    line = f"--checkpoint {trained} --data {data} {more} --title mine --set log_dir={folder}"
    run(adapt.main, line)
    return json.loads((folder / "mine" / "result.json").read_text())


@pytest.mark.slow
def test_a_network_learns_colours_and_its_checkpoint_says_all(trained, painted, tmp_path, capsys):
    result = adapted(tmp_path, trained, painted, "--epochs 40")
    assert result["top1"] >= 90  # by eye there is no doubt
    said = capsys.readouterr().out
    assert re.search(r"4\d training and 1\d test images of 3 classes at 16 pixels", said)
    assert re.search(r"always the most frequent class +[234]\d\.\d\d", said)
    record = json.loads((tmp_path / "mine" / "architecture.json").read_text())
    assert record["provenance"]["classes"] == ["blue", "green", "red"]
    methods = {one.method for one in read_run(tmp_path / "mine", "mine").found}
    assert methods == {"fine-tuned from another data set"}
    run(validate.main, "--checkpoint", result["checkpoint"], "--json")
    scored = json.loads(capsys.readouterr().out)
    assert scored["top1"] == result["top1"]
    assert scored["images"] == len(load_dataset("imagefolder", str(painted), 16, 3).test.labels)


def test_all_except_the_classifier_starts_as_it_was(trained, painted, tmp_path):
    args = adapt.parse_arguments(["--checkpoint", str(trained), "--data", str(painted)])
    own = open_own(trained)
    config = adapt.recipe(args, own, load_dataset("imagefolder", str(painted), 16, 3))
    network = adapt.with_new_classifier(own.spec.with_classes(3), own, config)
    state, old = network.state_dict(), own.payload["model"]
    assert state["classifier.1.weight"].shape == (3, 16)
    assert all(state[key].equal(old[key]) for key in old if not key.startswith("classifier."))
    assert 10 <= config.batch_size <= 13  # a quarter of the images
    assert config.epochs == 100


def test_what_is_finished_is_not_trained_again(trained, painted, tmp_path):
    first = adapted(tmp_path, trained, painted, "--epochs 2")
    before = (tmp_path / "mine" / "metrics.jsonl").read_bytes()
    assert adapted(tmp_path, trained, painted, "--epochs 2") == first
    assert (tmp_path / "mine" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_run_killed_before_its_first_checkpoint_starts_the_same(trained, painted, tmp_path):
    first = adapted(tmp_path, trained, painted, "--epochs 2")
    for file in [*(tmp_path / "mine").glob("checkpoints/*"), tmp_path / "mine" / "result.json"]:
        file.unlink()
    assert adapted(tmp_path, trained, painted, "--epochs 2") == first


def test_few_images_are_enough_and_one_class_is_not(trained, tmp_path, capsys):
    result = adapted(tmp_path, trained, paint(tmp_path / "few", 2), "--epochs 1")
    assert result["epochs"] == 1
    one = paint(tmp_path / "one", 3)
    for name in ("green", "blue"):
        shutil.rmtree(one / name)
    assert "it has one class" in refused(capsys, adapt.main, "--checkpoint", trained, "--data", one)


@pytest.mark.slow
def test_larger_images_are_read_from_disk(trained, painted, tmp_path):
    result = adapted(tmp_path, trained, painted, "--epochs 1 --img-size 72")
    own = open_own(Path(result["checkpoint"]))
    assert own.image_size == 72
    assert result["macs_m_counted"] > 10 * result["macs_m"]  # the table's are those of 16 pixels


def test_a_dry_run_writes_nothing(trained, painted, tmp_path, capsys):
    line = f"--checkpoint {trained} --data {painted} --dry-run --set log_dir={tmp_path / 'logs'}"
    run(adapt.main, line)
    assert "100 epochs of 4 steps: about" in capsys.readouterr().out
    assert not (tmp_path / "logs").exists()


def test_errors_are_one_line(trained, painted, searched, tmp_path, capsys):
    supernet = searched / "logs" / "tiny" / "checkpoints" / "supernet_best.pth"
    said = refused(capsys, adapt.main, "--checkpoint", supernet, "--data", painted)
    assert "it does not describe its network" in said
    (tmp_path / "empty").mkdir()
    said = refused(capsys, adapt.main, "--checkpoint", trained, "--data", tmp_path / "empty")
    assert "it must be a folder with a folder of images for each class" in said
