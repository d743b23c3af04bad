"""Spaces, golden numbers and weights that many tests share."""

import json
from pathlib import Path

import pytest
import torch

import search
from model.spaces.registry import open_problem
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from tests.fill_weights import filled
from utils.config import load_config

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
RELEASED = TESTS.parent.parent / "shared" / "golden"


def golden(name: str):
    return json.loads((GOLDEN / name).read_text())


def released(name: str) -> Path:
    """A file of the published release, which is not part of this project."""
    path = RELEASED / name
    if not path.exists():
        pytest.skip(f"the released {name} is not on this machine ({path})")
    return path


def filled_weights(shapes: dict) -> dict[str, torch.Tensor]:
    """Deterministic weights for key names and shapes."""
    return {
        key: torch.from_numpy(value)
        for key, value in filled({k: tuple(s) for k, s in shapes.items()}).items()
    }


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def imagenet_space() -> UnifiedSpace:
    return open_problem(load_config(GOLDEN / "published_configs" / "imagenet_config.yml")).space


@pytest.fixture(scope="session")
def cifar_space() -> UnifiedSpace:
    return open_problem(load_config(GOLDEN / "published_configs" / "cifar_config.yml")).space


def mixed_space(se: bool = False) -> UnifiedSpace:
    """Layers that differ in everything: expansions 3, 4, 1, 4; kernels with gaps; no skip; one that
    may vanish.
    """
    return UnifiedSpace(
        layers=(
            LayerSpec(6, 8, 2, 3, (5, 3), se=se),
            LayerSpec(8, 8, 1, 4, (3, 7), may_vanish=True, se=se),
            LayerSpec(8, 10, 1, 1, (3,), skip=False),
            LayerSpec(10, 10, 1, 4, (7, 5, 3), skip=False, se=se),
        ),
        image_size=12,
        classes=7,
        stem_channels=5,
        stem_stride=1,
        first_channels=6,
        head_channels=11,
    )


def plain_space() -> UnifiedSpace:
    layers = (LayerSpec(4, 6, 2, 6, (3, 5, 7)), LayerSpec(6, 6, 1, 6, (3, 5, 7)))
    return UnifiedSpace(
        layers, 10, 5, stem_channels=8, stem_stride=1, first_channels=4, head_channels=12
    )


def wide_space() -> UnifiedSpace:
    """Maps on which CPUs have our own weight gradients: 8x8, then 4x4."""
    layers = tuple(LayerSpec(4, 4, stride, 6, (3, 5, 7)) for stride in (1, 2, 1))
    return UnifiedSpace(
        layers, 8, 5, stem_channels=8, stem_stride=1, first_channels=4, head_channels=12
    )


SMALL_SPACES = {
    "plain": plain_space,
    "wide maps": wide_space,
    "mixed": mixed_space,
    "mixed with squeeze-excite": lambda: mixed_space(se=True),
}


@pytest.fixture(params=SMALL_SPACES)
def small_space(request) -> UnifiedSpace:
    return SMALL_SPACES[request.param]()


TINY_CONFIG = """
dataset: digits
classes: 10
input_size: 16
batch_size: 64
seed: 1
log_dir: {log_dir}
crop_padding: 1
horizontal_flip: false
warmup_epochs: 2
search_epochs: 2
epochs: 2
validation_paths: 2
low_flops: 0.1
high_flops: 0.2
pool_size: 2
cost_unit: 0.001
target_step: 0.005
target_jitter: 0.0005
cost_tolerance: 0.0001
eval_step: 0.01
stem_channels: 4
stem_stride: 1
first_channels: 4
head_channels: 16
static_layers: [0]
l_cfgs:
- [6, 8, [3, 5, 7, skip], 2, 4, false]
- [6, 8, [3, 5, 7, skip], 1, 4, false]
"""


@pytest.fixture
def tiny_config(tmp_path) -> Path:
    """A config whose stages take seconds; its runs go under tmp_path/logs."""
    path = tmp_path / "tiny.yml"
    path.write_text(TINY_CONFIG.format(log_dir=tmp_path / "logs"))
    return path


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder with tiny.yml and a finished search of it under logs/tiny."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "tiny.yml").write_text(TINY_CONFIG.format(log_dir=folder / "logs"))
    search.main(["--cfg", str(folder / "tiny.yml")])
    return folder
