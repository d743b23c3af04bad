"""Spaces, golden numbers and weights that many tests share."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import search
import train_cifar
from model.nsganetv2 import nsga2_search
from model.nsganetv2.nsga2_search import Selection
from model.ranking import candidates, reliability
from model.spaces.paths import Architecture
from model.spaces.registry import open_problem, save_spec, spec_of
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
    weights = filled({key: tuple(shape) for key, shape in shapes.items()})
    return {key: torch.from_numpy(value) for key, value in weights.items()}


def published_table() -> Path:
    """The published accuracies of the cells of NAS-Bench-201, which are other people's."""
    path = RELEASED.parent / "data" / "nasbench201_cifar10.csv"
    if not path.exists():
        pytest.skip(f"the published table is not on this machine ({path})")
    return path


def macro_table() -> Path:
    """The open half of the published accuracies of NAS-Bench-Macro, which are other people's."""
    path = RELEASED.parent / "data" / "nas_bench_macro_open_half.json"
    if not path.exists():
        pytest.skip(f"the published table is not on this machine ({path})")
    return path


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def imagenet_space() -> UnifiedSpace:
    return open_problem(load_config(GOLDEN / "published_configs" / "imagenet_config.yml")).space


@pytest.fixture(scope="session")
def cifar_space() -> UnifiedSpace:
    return open_problem(load_config(GOLDEN / "published_configs" / "cifar_config.yml")).space


def mixed_space(se: bool = False) -> UnifiedSpace:
    """Layers that differ in expansions, kernels and skips; one may vanish."""
    layers = (
        LayerSpec(6, 8, 2, 3, (5, 3), se=se),
        LayerSpec(8, 8, 1, 4, (3, 7), may_vanish=True, se=se),
        LayerSpec(8, 10, 1, 1, (3,), skip=False),
        LayerSpec(10, 10, 1, 4, (7, 5, 3), skip=False, se=se),
    )
    stem = {"stem_channels": 5, "stem_stride": 1, "first_channels": 6}
    return UnifiedSpace(layers, image_size=12, classes=7, head_channels=11, **stem)


SMALL_STEM = {"stem_channels": 8, "stem_stride": 1, "first_channels": 4, "head_channels": 12}


def plain_space() -> UnifiedSpace:
    layers = (LayerSpec(4, 6, 2, 6, (3, 5, 7)), LayerSpec(6, 6, 1, 6, (3, 5, 7)))
    return UnifiedSpace(layers, 10, 5, **SMALL_STEM)


def wide_space() -> UnifiedSpace:
    """Maps on which CPUs have our own weight gradients: 8x8, then 4x4."""
    layers = tuple(LayerSpec(4, 4, stride, 6, (3, 5, 7)) for stride in (1, 2, 1))
    return UnifiedSpace(layers, 8, 5, **SMALL_STEM)


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
batch_size: 128
seed: 1
log_dir: {log_dir}
crop_padding: 1
horizontal_flip: false
warmup_epochs: 2
search_epochs: 2
epochs: 2
paths_per_step: 2
validation_paths: 2
bn_recalibration_images: 128
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


@pytest.fixture
def image_folder(tmp_path, tiny_config) -> Path:
    """Ten classes of 8 and 3 images, of one colour each; an architecture of the tiny space."""
    random = np.random.RandomState(0)
    for part, count in (("train", 8), ("val", 3)):
        for label in range(10):
            folder = tmp_path / part / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                noise = random.randint(0, 12, (24, 30, 3), dtype=np.uint8)
                pixels = np.full((24, 30, 3), 25 * label, np.uint8) + noise
                Image.fromarray(pixels).save(folder / f"{index}.png")
    space = open_problem(load_config(tiny_config)).space
    rows = [[3, 5, None, None, None, None], [7, None, None, None, None, None]]
    save_spec(tmp_path / "architecture.json", spec_of(space, Architecture.of(rows)), {}, {})
    return tmp_path


@pytest.fixture(scope="session")
def searched_once(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("searched-once")
    (folder / "tiny.yml").write_text(TINY_CONFIG.format(log_dir=folder / "logs"))
    search.main(["--cfg", str(folder / "tiny.yml")])
    return folder


@pytest.fixture(scope="session")
def trained_once(searched_once) -> Path:
    options = ["--flops", "0.15", "--title", "net", "--ema", "0.5"]
    train_cifar.main(["--cfg", str(searched_once / "tiny.yml"), *options])
    return searched_once


@pytest.fixture(scope="module")
def searched(searched_once, tmp_path_factory) -> Path:
    """A folder with tiny.yml and a finished search of it under logs/tiny."""
    folder = tmp_path_factory.mktemp("searched")
    for name in ("tiny.yml", "logs/tiny"):
        moved(searched_once, folder, name)
    return folder


@pytest.fixture(scope="module")
def net(trained_once, searched) -> Path:
    """The run folder, among those of `searched`, of a network trained with an average."""
    return moved(trained_once, searched, "logs/net")


def moved(source: Path, target: Path, name: str) -> Path:
    """Copy a file or folder, in which texts name the new place instead of the old one."""
    if (source / name).is_dir():
        shutil.copytree(source / name, target / name)
    else:
        shutil.copy(source / name, target / name)
    copied = [target / name, *(target / name).rglob("*")]
    for file in copied:
        if file.suffix in (".yml", ".json", ".jsonl"):
            file.write_text(file.read_text().replace(str(source), str(target)))
    return target / name


SMALL_SEARCHES = {
    "hypervolume": Selection(population=40, generations=6, by_gain=True),
    "published": Selection(population=20, generations=6, by_gain=False),
}
FULL_SEARCHES, FULL_NORMS = dict(nsga2_search.SELECTIONS), candidates.NORMS_IMAGES


@pytest.fixture(scope="session", autouse=True)
def _small_searches():
    """Searches look less far, and judge supernets and batch norms of candidates by less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates, "NORMS_IMAGES", 100)
        patch.setattr(reliability, "RANKED", 3)
        for name, selection in SMALL_SEARCHES.items():
            patch.setitem(nsga2_search.SELECTIONS, name, selection)
        yield


@pytest.fixture
def full_searches(monkeypatch):
    """Evolutionary searches of the size that users get."""
    monkeypatch.setattr(candidates, "NORMS_IMAGES", FULL_NORMS)
    for name, selection in FULL_SEARCHES.items():
        monkeypatch.setitem(nsga2_search.SELECTIONS, name, selection)


@pytest.fixture
def any_checksum(monkeypatch):
    """Our archives are tiny; their checksums are not those of the real ones."""
    import torchvision.datasets as sets

    for module in (sets.cifar, sets.stl10, sets.flowers102):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: True)
