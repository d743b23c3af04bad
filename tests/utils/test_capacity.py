"""Batches that a machine or a network cannot take: a line, or a batch that is left out."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import search
import train_imagenet
from model.ranking.bn_recalibration import recalibrated
from model.spaces.registry import open_problem
from tests.conftest import TINY_CONFIG
from tests.support import CPU, Batches, recipe_of, refused, trained
from tests.worlds import in_world
from utils import capacity, checkpoint
from utils.capacity import check_one_image
from utils.config import load_config
from utils.errors import UserError


def batch(images: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(images)
    return torch.randn(images, 3, 2, 2, generator=rng), torch.zeros(images, dtype=torch.long)


class OnePixel(nn.Sequential):
    """A network whose last maps have one pixel."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))


def passes(network: nn.Module):
    return lambda images, labels, rng: [(network(images), labels)]


# -- training ------------------------------------------------------------------------------------


def test_a_batch_of_one_image_or_none_is_left_out_and_named(capsys):
    network, nothing = OnePixel(), (torch.empty(0, 3, 1, 1), torch.empty(0, dtype=torch.long))
    meter = trained(passes(network), Batches([batch(4), batch(1), nothing]), recipe_of(network))
    assert (meter.steps, meter.passes, meter.seen) == (3, 1, 4)
    said = capsys.readouterr().err
    assert "step 2 is left out: 1 images could be read" in said
    assert "step 3 is left out: 0 images could be read" in said


def test_a_step_that_is_left_out_moves_no_weight():
    network = OnePixel()
    recipe = recipe_of(network, lr=0.1)
    recipe.optimizer.param_groups[0]["momentum"] = 0.9
    trained(passes(network), Batches([batch(4)]), recipe)
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(UserError, match="no batch could be trained on"):
        trained(passes(network), Batches([batch(1)]), recipe)
    assert all(p.equal(old) for p, old in zip(network.parameters(), before, strict=True))


def test_one_image_trains_where_maps_are_larger():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    assert trained(passes(network), Batches([batch(1)]), recipe_of(network)).seen == 1
    check_one_image(network, 2, "-b 1")
    with pytest.raises(UserError, match="-b 1: one image for each process; at 2 pixels"):
        check_one_image(OnePixel(), 2, "-b 1")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_too_little_memory_is_a_line_with_the_batch_size(error):
    with pytest.raises(UserError, match="out of memory for a batch of 4 images; choose a smaller"):
        trained(failing(error), Batches([batch(4)]), recipe_of(OnePixel()))


def test_other_errors_stay_what_they_are():
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1"):
        trained(failing(error), Batches([batch(4)]), recipe_of(OnePixel()))


def failing(error: Exception):
    def fails(images, labels, rng):
        raise error

    return fails


def test_so_is_a_real_allocation_that_fails():
    with pytest.raises(UserError, match="batch of 7 images"), capacity.batch_of(7):
        torch.empty(2**60)
    with pytest.raises(UserError, match="out of memory"), capacity.batch_of(7):
        torch.empty(2**62, 2**62)


# -- whole stages --------------------------------------------------------------------------------

LAST_MAP_OF_ONE_PIXEL = """
input_size: 8
low_flops: 0.03
high_flops: 0.05
target_step: 0.002
eval_step: 0.01
epochs: 1
warmup_epochs: 1
search_epochs: 1
l_cfgs:
- [6, 8, [3, 5, 7, skip], 2, 4, false]
- [6, 8, [3, 5, 7, skip], 2, 4, false]
- [6, 8, [3, 5, 7, skip], 2, 4, false]
"""


@pytest.fixture
def one_pixel(tmp_path) -> Path:
    """A config whose networks have last maps of one pixel."""
    names = {line.split(":")[0] for line in LAST_MAP_OF_ONE_PIXEL.splitlines()}
    text = TINY_CONFIG.format(log_dir=tmp_path / "logs")
    kept = [line for line in text.splitlines() if line.split(":")[0] not in names]
    kept = [line for line in kept if not line.startswith("- [")]
    (tmp_path / "one.yml").write_text("\n".join(kept) + LAST_MAP_OF_ONE_PIXEL)
    return tmp_path / "one.yml"


@pytest.mark.slow
def test_a_search_with_a_last_batch_of_one_goes_on(one_pixel, capsys):
    given = ["--cfg", str(one_pixel), "--set", "batch_size=73", "bn_recalibration_images=74"]
    search.main(given)
    assert "all files are in" in capsys.readouterr().out
    line = refused(capsys, search.main, *given[:-1], "bn_recalibration_images=1", "--title", "x")
    assert "bn_recalibration_images: 1 is not allowed; it must be 0, or at least 2" in line
    assert not (one_pixel.parent / "logs" / "x").exists()


def search_with_two_images(config: Path) -> str:
    """What a process of two says, which would get one image of each batch."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit, match="2"):
        search.main(["--cfg", str(config), "--set", "batch_size=2"])
    return said.getvalue()


def test_a_search_refuses_one_image_for_each_process_before_it_begins(one_pixel, tmp_path):
    said = "".join(in_world(2, search_with_two_images, tmp_path, one_pixel))
    assert "batch_size: 2: one image for each process; at 8 pixels" in said
    assert not (tmp_path / "logs").exists()


def test_norms_are_re_estimated_without_batches_of_one_wherever_they_stand():
    found = []
    for batches in ([batch(1), batch(4)], [batch(4), batch(1)], [batch(4)]):
        network = OnePixel()
        nn.init.constant_(network[0].weight, 0.1)
        nn.init.zeros_(network[0].bias)
        with recalibrated(network, network, batches, CPU):
            found.append(network[1].running_var.clone())
    assert found[0].equal(found[1])
    assert found[1].equal(found[2])
    with (
        pytest.raises(UserError, match="batch size: 1: maps of one pixel need"),
        recalibrated(network, network, [batch(1)], CPU),
    ):
        pass


@pytest.fixture
def images(one_pixel) -> Path:
    """Ten classes of images on disk, one of them broken, and an architecture."""
    folder = one_pixel.parent
    for part, count in (("train", 2), ("val", 1)):
        for label in range(10):
            (folder / part / f"class{label}").mkdir(parents=True)
            for index in range(count):
                pixels = np.full((12, 12, 3), 25 * label, np.uint8)
                Image.fromarray(pixels).save(folder / part / f"class{label}" / f"{index}.png")
    (folder / "train" / "class3" / "0.png").write_bytes(b"broken")
    space = open_problem(load_config(one_pixel)).space
    choices = [[3, 5, None, None, None, None]] * len(space.layers)
    found = {"target": 0.04, "macs_m": 0.04, "params_m": 0.01, "choices": choices}
    (folder / "found.json").write_text(json.dumps([found]))
    return folder


def imagenet(folder: Path, *more) -> list[str]:
    given = f"{folder} --architecture {folder}/found.json --config_path {folder}/one.yml -j 0"
    given += f" --target_flops 0.04 --output {folder}/logs --experiment net --epochs 1"
    given += " --cooldown-epochs 0 --warmup-epochs 0 --validation-batch-size 8"
    return [*given.split(), *map(str, more)]


def test_imagenet_refuses_one_image_and_survives_a_broken_one(images, capsys):
    line = refused(capsys, train_imagenet.main, *imagenet(images, "-b", 1))
    assert "-b 1: one image for each process; at 8 pixels this network has maps of one" in line
    assert not (images / "logs").exists()
    train_imagenet.main(imagenet(images, "-b", 2, "--mixup", 0.2))
    said = capsys.readouterr().err
    assert said.count("is left out: 1 images could be read") == 1
    state = checkpoint.load(images / "logs" / "net" / "checkpoints" / "last.pth")
    assert state["epoch"] == 1
