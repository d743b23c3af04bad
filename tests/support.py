"""Helpers that several test modules share."""

import os
import pickle
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.spaces.elastic.space import ElasticSpace
from model.spaces.nasbench201.space import positions
from model.spaces.unified.published import from_published
from model.spaces.unified.space import UnifiedSpace
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import TESTS, filled_weights
from tests.fill_weights import image
from tests.reference import ReferenceSupernet
from utils import checkpoint
from utils.config import OptimState
from utils.engine import DeviceContext
from utils.optim import Schedule, make_optimizer
from utils.recipe import EpochMeter, Recipe, train_epoch
from utils.runtime import Progress

CPU = DeviceContext(torch.device("cpu"))
NOWHERE = Path("none.pth")
SMALL_ELASTIC = ElasticSpace(
    stages=(16, 24), strides=(1, 2), activations=("relu", "h_swish"), se=(False, True),
    head=(32, 40), stem_stride=1, depths=(1, 2), resolutions=(16, 20), classes=5,
)  # fmt: skip


def refused(capsys, main, *argv) -> str:
    """The one line that `main` ends with, at exit status 2."""
    with pytest.raises(SystemExit) as error:
        main([str(argument) for argument in argv])
    assert error.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def parameters(network: nn.Module) -> int:
    """Number of weights."""
    return sum(p.numel() for p in network.parameters())


def shapes(network: nn.Module) -> dict[str, list[int]]:
    """The shape of each entry of the state dict."""
    return {key: list(value.shape) for key, value in network.state_dict().items()}


def latency_file(path: Path, keys, milliseconds: Callable[[str], float] = lambda key: 1.0) -> Path:
    """A latency table of `keys`, in the published format."""
    lines = [f"'{key}': {{mean: {milliseconds(key)!r}, var: 0.1}}\n" for key in keys]
    path.write_text("".join(lines))
    return path


# -- cells ---------------------------------------------------------------------------------------

BEST_CELL = (
    "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_1x1~1|"
    "+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"
)
CELLS_CONFIG = """
dataset: digits
classes: 10
input_size: 8
supernet: nasbench201
cell: {channels: 16, cells: 5, supernet_cells: 1}
cuda: false
warmup_epochs: 1
epochs: 1
search_epochs: 1
batch_size: 128
paths_per_step: 5
path_sampling: uniform
validation_paths: 2
bn_recalibration_images: 128
low_flops: 20
high_flops: 200
target_step: 10
eval_step: 60
pool_size: 4
pool_tolerance: 14
straight_through: true
sampled_paths: 2
logit_decay: 0.1
hardware_loss: relative
hardware_loss_limit: 1000
optim_state: {optimizer: sgd, lr: 0.05, momentum: 0.9, weight_decay: 0.0005}
log_dir: logs
"""


def cell_table(path: Path, accuracy: Callable[[str], float]) -> Path:
    """A table of invented accuracies of all cells."""
    lines = [f"{index},{cell},{accuracy(cell)}" for cell, index in positions().items()]
    path.write_text("\n".join(["index,architecture,cifar10_test_accuracy", *lines]) + "\n")
    return path


# -- unified supernets ---------------------------------------------------------------------------


def pair(space: UnifiedSpace) -> tuple[UnifiedSupernet, ReferenceSupernet]:
    """Our supernet and the reference with the same filled weights."""
    reference, ours = ReferenceSupernet(space), UnifiedSupernet(space)
    shapes = {key: value.shape for key, value in reference.state_dict().items()}
    reference.load_state_dict(filled_weights(shapes))
    state = from_published(space, reference.state_dict())
    counters = {key for key in ours.state_dict() if "num_batches" in key}
    state = {key: value for key, value in state.items() if "num_batches" not in key}
    missing = ours.load_state_dict(state, strict=False)
    assert set(missing.missing_keys) <= counters
    assert not missing.unexpected_keys
    return ours, reference


def images_of(space: UnifiedSpace, count: int) -> torch.Tensor:
    """The deterministic images `[count, 3, S, S]` of `fill_weights`."""
    return torch.from_numpy(image(count, space.image_size))


def close(found, expected, tolerance: float = 1e-4, scale: float | None = None) -> None:
    """The largest difference is below `tolerance` of the largest number, or of `scale`."""
    scale = float(expected.detach().abs().max()) if scale is None else scale
    assert float((found - expected).detach().abs().max()) < tolerance * scale


# -- training ------------------------------------------------------------------------------------


class Batches(list):
    """A list of batches as a loader."""

    def epoch(self, epoch: int = 0, first: int = 0, every: int = 1):
        return iter(self[first::every])


def recipe_of(network: nn.Module, criterion=None, lr: float = 1e-9, **options) -> Recipe:
    """A recipe of plain steps, whose random streams are those of `(0, "test")`."""
    state = OptimState(lr=lr, momentum=0.0, weight_decay=0.0)
    optimizer, schedule = (
        make_optimizer(network.parameters(), state),
        Schedule("constant", lr, 1, 1),
    )
    parts = (criterion or nn.CrossEntropyLoss(), optimizer, schedule, CPU, (0, "test"), NOWHERE)
    return Recipe(*parts, **options)


def trained(forwards, batches, recipe: Recipe, epoch: int = 0, meter=None) -> EpochMeter:
    """What an epoch, or what is left of it, adds up to."""
    meter = meter or EpochMeter()
    with Progress("test", len(batches)) as progress:
        train_epoch(forwards, recipe, batches, epoch, meter, progress)
    return meter


def stop_after(monkeypatch, steps: int) -> None:
    """A request to stop arrives in step number `steps` of training, from now on."""
    count = []
    asked = lambda: (count.append(0) or len(count) == steps, False)  # noqa: E731
    monkeypatch.setitem(train_epoch.__globals__, "pending_requests", asked)


# -- ImageNet ------------------------------------------------------------------------------------


def imagenet_command(folder: Path, *more) -> list[str]:
    """A short training on the fixture `image_folder`; its run is folder/logs/net."""
    line = f"{folder} --architecture {folder}/architecture.json --output {folder}/logs -j 0 -b 16"
    line += " --experiment net --opt rmsproptf --opt-eps 0.001 --lr 0.01 --epochs 2 --seed 1"
    line += " --warmup-epochs 0 --model-ema --model-ema-warmup --se True --activation hswish"
    return [*shlex.split(line), *map(str, more)]


# -- processes -----------------------------------------------------------------------------------


def torchrun(processes: int, folder: Path, *command, restarts: int = 0) -> subprocess.Popen:
    """Start a command in some processes that work together."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    return subprocess.Popen(
        [*launcher, "--standalone", f"--max-restarts={restarts}", *map(str, command)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.02)


# -- stages --------------------------------------------------------------------------------------


class Killed(BaseException):
    """What a test raises where a process could be killed."""


def run(main, *words) -> None:
    """Call the `main` of a stage; words are apart by spaces."""
    main([part for word in words for part in str(word).split()])


def run_weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint of a run folder."""
    return checkpoint.weights(checkpoint.load(run / "checkpoints" / f"{name}.pth"), run)


def same(one: dict, other: dict) -> bool:
    """Whether two state dicts are equal to the last bit."""
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


# -- published sets of images --------------------------------------------------------------------


def write_cifar(root, classes: int, folder: str, parts: dict[str, int], key: str) -> None:
    """The published files of CIFAR, with images of which each is its label's shade of grey."""
    for name, count in parts.items():
        labels = [i % classes for i in range(count)]
        pixels = np.repeat(np.array(labels, np.uint8)[:, None], 3072, axis=1)
        (root / folder).mkdir(exist_ok=True)
        (root / folder / name).write_bytes(pickle.dumps({"data": pixels, key: labels}))
    meta, key = ("batches.meta", "label_names") if classes == 10 else ("meta", "fine_label_names")
    (root / folder / meta).write_bytes(pickle.dumps({key: [str(i) for i in range(classes)]}))


def write_cifar10(root) -> tuple[int, int]:
    """Returns how many images train and test."""
    parts = {**{f"data_batch_{i}": 10 for i in range(1, 6)}, "test_batch": 20}
    write_cifar(root, 10, "cifar-10-batches-py", parts, "labels")
    return 50, 20
