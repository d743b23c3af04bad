"""Every published command line of both papers: it parses, and means what it meant.

Those of train_imagenet.py are in test_imagenet.py.
"""

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import msunas
import post_search
import search
import train_cifar
import validate
from model.spaces.elastic.kind import KIND
from model.spaces.elastic.net_config import NetConfigSpec
from model.spaces.elastic.space import ElasticSpace
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.registry import supernet_record
from model.training.from_scratch import ScratchRecipe
from tests.conftest import rng
from tests.support import refused, run, write_cifar10
from utils import checkpoint
from utils.command import boolean
from utils.config import load_config

pytestmark = pytest.mark.usefixtures("any_checksum")
SPACE = ElasticSpace(
    stages=(8, 16), strides=(2, 2), activations=("relu", "h_swish"), se=(False, True),
    head=(16, 24), stem_channels=8, depths=(1, 2), resolutions=(12, 16), classes=10,
)  # fmt: skip

NSGANETV2_SEARCHES = {
    f"NSGANetV2 search, {objective}, {epochs} epochs": (
        msunas,
        f"--dataset {dataset} --data DIR --save search-xxx --sec_obj {objective} --n_gpus 8 "
        f"--supernet_path W --vld_size {size} --n_epochs {epochs}",
        {"dataset": dataset, "vld_size": size, "sec_obj": objective, "n_epochs": epochs}
        | {"n_iter": 8},
    )
    for objective in ("params", "flops", "cpu")
    for dataset, size, epochs in (("imagenet", 10000, 0), ("cifar10", 5000, 5))
}
MODEL_ZOO = {
    f"SGNAS-{name}": (
        validate,
        "IMAGENET --checkpoint CKPT --config_path CONFIG --se True --activation hswish "
        f"--target_flops {target}",
        {"data": "IMAGENET", "target_flops": target, "se": True, "activation": "hswish"},
    )
    for name, target in (("A", 365), ("B", 320), ("C", 275))
}
LINES = {
    "SGNAS search": (search, "--cfg CONFIG --title TITLE", {"cfg": "CONFIG", "title": "TITLE"}),
    "SGNAS from scratch": (train_cifar, "--cfg CONFIG --flops 100 --title TITLE", {"flops": 100}),
    **MODEL_ZOO,
    **NSGANETV2_SEARCHES,
    "NSGANetV2 search on ImageNet": (
        msunas,
        "--sec_obj flops --n_gpus 8 --gpu 1 --n_workers 4 --n_epochs 0 --data DIR --predictor rbf "
        "--supernet_path data/ofa_mbv3_d234_e346_k357_w1.0 --save search-imagenet-flops-w1.0 "
        "--iterations 30 --vld_size 10000",
        {"predictor": "rbf", "iterations": 30, "n_doe": 100},
    ),
    "NSGANetV2 search, latency": (
        msunas,
        "--sec_obj cpu --data DIR --save S",
        {"sec_obj": "cpu", "lut": None},
    ),
    "NSGANetV2 search, adaptive switching": (
        msunas,
        "--sec_obj flops --dataset cifar10 --n_classes 10 --predictor as --n_epochs 5 "
        "--vld_size 5000",
        {"predictor": "as", "n_classes": 10},
    ),
    "NSGANetV2, random": (
        msunas,
        "--n_doe 350 --data DIR --iterations 0",
        {"n_doe": 350, "iterations": 0},
    ),
    "NSGANetV2, other flags": (
        msunas,
        "--trn_batch_size 96 --vld_batch_size 250 --test --resume auto",
        {"trn_batch_size": 96, "vld_batch_size": 250, "test": True},
    ),
    "NSGANetV2, choosing": (
        post_search,
        "-n 3 --save search-imagenet/final --expr search-imagenet/iter_30.stats "
        "--prefer top1#80+flops#150 --supernet_path W",
        {"n": 3, "prefer": "top1#80+flops#150"},
    ),
    "NSGANetV2, validation": (
        validate,
        "--dataset cifar10 --data DIR --model net.config --pretrained WEIGHTS",
        {"dataset": "cifar10", "data": "DIR", "model": "net.config"},
    ),
    "NSGANetV2 on CIFAR": (
        train_cifar,
        "--data DIR --model nsganetv2_s --model-config net.config --img-size 224 --drop 0.2 "
        "--drop-path 0.2 --cutout --autoaugment --save",
        {
            **{"dataset_dir": "DIR", "network_config": "net.config", "dropout": 0.2},
            **{"cutout": 16, "autoaugment": True},
        },
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_published_lines_mean_what_they_meant(name):
    script, line, meaning = LINES[name]
    args = vars(script.parse_arguments(shlex.split(line)))
    assert {key: args[key] for key in meaning} == meaning


def config_of(line: str):
    """The config that a command line of train_cifar.py means."""
    return train_cifar.open_config(train_cifar.parse_arguments(line.split()))


def keys_of(config, names: str) -> list:
    return [getattr(config, name) for name in names.split()]


def test_the_published_recipe_on_small_images():
    sizes = "classes input_size network_size"
    config = config_of(
        "--data DIR --dataset cifar100 --model nsganetv2_s --model-config net.config "
        "--img-size 192 --cutout --save"
    )
    assert keys_of(config, f"dataset {sizes}") == ["cifar100", 100, 32, 192]
    assert keys_of(config, "batch_size epochs clip_grad label_smoothing") == [96, 150, 5, 0]
    assert keys_of(config.optim_state, "lr momentum weight_decay") == [0.01, 0.9, 4e-5]
    assert config.lr_scheduler == "cosine"
    assert keys_of(config, "dropout drop_path cutout autoaugment") == [0.2, 0.2, 16, False]
    config = config_of("--model-config net.config --dataset dtd")
    assert keys_of(config, f"{sizes} dataset_dir") == [47, 224, None, "./data/dtd/"]
    config = config_of(
        "--model-config net.config --dataset imagefolder --img-size 96 --cutout "
        "--cutout_length 8 --set classes=3"
    )
    assert keys_of(config, f"{sizes} cutout") == [3, 96, None, 8]
    config = config_of(
        "--cfg config_file/digits_config.yml --model-config net.config --dataset stl10"
    )
    names = "supernet input_size network_size crop_padding"
    assert keys_of(config, names) == ["none", 96, 224, 12]


# -- NSGANetV2 on CIFAR-10, from the search to the validation --------------------------------------


@pytest.fixture
def found(tmp_path, monkeypatch):
    """What post_search.py chose from a tiny search on a tiny CIFAR-10."""
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    save_supernet("supernet.pth", SPACE, older=True)
    run(
        msunas.main,
        "--dataset cifar10 --data . --supernet_path supernet.pth --n_classes 10 --vld_size 10",
        "--n_epochs 0 --n_doe 6 --n_iter 2 --iterations 1 --save search",
    )
    expr = "--expr search/iter_1.stats --supernet_path supernet.pth"
    run(post_search.main, expr, "-n 1 --save final")
    return sorted((tmp_path / "final").glob("net-*"))[0]


def save_supernet(file: str, space: ElasticSpace, older: bool = False) -> None:
    """The checkpoint of a supernet; as earlier versions wrote it, it does not say its kind."""
    supernet = ElasticSupernet(space, rng())
    record = {"kind": "supernet", "space": space.to_dict()} if older else supernet_record(supernet)
    checkpoint.save(file, {**record, "model": supernet.state_dict()})


def test_from_a_search_to_a_validated_network(found, tmp_path, capsys):
    run(
        train_cifar.main,
        "--data . --model nsganetv2_s --img-size 16 --drop 0.2 --drop-path 0.2 --cutout",
        f"--autoaugment --save --model-config {found}/net.config",
        f"--initial-checkpoint {found}/net.inherited --batch-size 10 --epochs 2 --title tuned",
    )
    result = json.loads((tmp_path / "logs/tuned/result.json").read_text())
    last = tmp_path / "logs/tuned/checkpoints/last.pth"

    def validated(line: str) -> dict:
        capsys.readouterr()
        run(validate.main, line, "--json")
        return json.loads(capsys.readouterr().out)

    published = validated(
        f"--dataset cifar10 --data . --model {found}/net.config --pretrained {last} --img-size 16"
    )
    own = validated(f"--checkpoint {last}")
    assert own["top1"] == published["top1"] == result["top1"]
    assert own["loss"] == pytest.approx(published["loss"])
    says = "counted at the size that the network sees"
    assert own["macs_m"] == pytest.approx(result["macs_m"]), says


def test_inherited_weights_are_those_of_the_supernet(found):
    architecture = KIND.parse(json.loads((found / "net.subnet").read_text()))
    supernet = ElasticSupernet(SPACE, rng()).eval()
    expected = supernet.extract(architecture).eval()
    network = NetConfigSpec.load(found / "net.config").inherited(f"{found}/net.inherited", {})
    images = torch.randn(2, 3, architecture.r, architecture.r, generator=rng())
    torch.testing.assert_close(network.eval()(images), expected(images))


def test_a_search_on_another_set_than_the_supernets_needs_no_classes(found):
    save_supernet("wide.pth", replace(SPACE, classes=1000))
    run(
        msunas.main,
        "--dataset cifar10 --data . --save other --sec_obj flops --n_gpus 8",
        "--supernet_path wide.pth --vld_size 10 --n_epochs 1 --n_doe 2 --iterations 0",
    )
    assert 0 <= json.loads(Path("other/iter_0/net_0.stats").read_text())["top1"] <= 100


def test_weights_for_other_classes_keep_all_except_the_classifier(found):
    config = config_of(
        f"--data . --dataset cifar10 --model-config {found}/net.config "
        f"--initial-checkpoint {found}/net.inherited --set classes=7"
    )
    spec = train_cifar.named_network(config, None, None).spec
    own = config.part(ScratchRecipe).network(spec).state_dict()
    given = checkpoint.weights(checkpoint.load(found / "net.inherited"), found)
    assert all(own[key].equal(given[key]) for key in own if not key.startswith("classifier"))
    assert own["classifier.linear.weight"].shape[0] == 7


# -- lines that are refused, and imports -----------------------------------------------------------


@pytest.mark.parametrize(
    ("main", "line", "words"),
    [
        (train_cifar.main, "--model-config none.config", "none.config: cannot be read"),
        (train_cifar.main, "--flops 3 --evaluate", "--evaluate: validate.py"),
        (
            train_cifar.main,
            "--flops 3 --model-config n",
            "--model-config goes without --flops and --architecture",
        ),
        (train_cifar.main, "--flops 3 --img-size 64", "--img-size goes with --model-config"),
        (validate.main, "--pretrained W --dataset cifar10", "--dataset goes with --model"),
        (
            train_cifar.main,
            "--title x",
            "one of --flops, --architecture and --model-config is needed",
        ),
        (
            validate.main,
            "--pretrained W --model net.config --dataset cifar10",
            "--dataset and --data must say",
        ),
    ],
)
def test_incomplete_lines_are_refused(tmp_path, monkeypatch, capsys, main, line, words):
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "W", {"model": {}})
    assert words in refused(capsys, main, *line.split())


def test_the_configs_of_nsganetv2_load():
    kinds = {"digits_elastic": "elastic", "cifar10_elastic": "elastic", "nsganetv2": "none"}
    found = {name: load_config(f"config_file/{name}_config.yml").supernet for name in kinds}
    assert found == kinds


def test_false_means_false():
    assert [boolean(text) for text in ("True", "false", "0", "yes")] == [True, False, False, True]
    with pytest.raises(ValueError, match="maybe"):
        boolean("maybe")


@pytest.mark.slow
def test_importing_does_nothing(tmp_path):
    root = Path(search.__file__).parent
    scripts = [file.stem for file in root.glob("*.py")]
    tools = [f"tools.{file.stem}" for file in root.glob("tools/*.py")]
    assert {"search", "tools.adapt"} < {*scripts, *tools}
    command = [sys.executable, "-c", f"import {', '.join(scripts + tools)}"]
    environment = {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert not done.stdout
    assert not list(tmp_path.iterdir())
