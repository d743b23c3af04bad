"""Every published command line of both papers: it parses, and means what it meant.

Those of train_imagenet.py are in test_imagenet.py.
"""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import msunas
import post_search
import search
import train_cifar
import validate
from model.spaces.elastic.net_config import NetConfigSpec
from model.spaces.elastic.supernet import ElasticSupernet
from tests.conftest import rng
from tests.model.nsganetv2.test_msunas import SPACE
from tests.test_stages import refused
from tests.utils.test_image_sets import any_checksum, write_cifar10  # noqa: F401
from utils import checkpoint
from utils.config import load_config

LINES = {
    "SGNAS search": (search, "--cfg CONFIG --title TITLE", {"cfg": "CONFIG", "title": "TITLE"}),
    "SGNAS from scratch": (train_cifar, "--cfg CONFIG --flops 100 --title TITLE", {"flops": 100}),
    **{
        f"SGNAS-{name}": (
            validate,
            f"IMAGENET --checkpoint CKPT --config_path CONFIG --target_flops {target} --se True --activation hswish",
            {"data": "IMAGENET", "target_flops": target, "se": True, "activation": "hswish"},
        )
        for name, target in (("A", 365), ("B", 320), ("C", 275))
    },
    **{
        f"NSGANetV2 search, {objective}, {epochs} epochs": (
            msunas,
            f"--dataset {dataset} --data DIR --save search-xxx --sec_obj {objective} --n_gpus 8 --supernet_path W "
            f"--vld_size {size} --n_epochs {epochs}",
            {
                "dataset": dataset,
                "vld_size": size,
                "sec_obj": objective,
                "n_epochs": epochs,
                "n_iter": 8,
            },
        )
        for objective in ("params", "flops", "cpu")
        for dataset, size, epochs in (("imagenet", 10000, 0), ("cifar10", 5000, 5))
    },
    "NSGANetV2 search on ImageNet": (
        msunas,
        "--sec_obj flops --n_gpus 8 --gpu 1 --n_workers 4 --n_epochs 0 --data DIR --predictor rbf --supernet_path "
        "data/ofa_mbv3_d234_e346_k357_w1.0 --save search-imagenet-flops-w1.0 --iterations 30 --vld_size 10000",
        {"predictor": "rbf", "iterations": 30, "n_doe": 100},
    ),
    "NSGANetV2 search, latency": (
        msunas,
        "--sec_obj cpu --data DIR --save S",
        {"sec_obj": "cpu", "lut": None},
    ),
    "NSGANetV2 search, adaptive switching": (
        msunas,
        "--sec_obj flops --dataset cifar10 --n_classes 10 --predictor as --n_epochs 5 --vld_size 5000",
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
        "-n 3 --save search-imagenet/final --expr search-imagenet/iter_30.stats --prefer top1#80+flops#150 "
        "--supernet_path W",
        {"n": 3, "prefer": "top1#80+flops#150"},
    ),
    "NSGANetV2, validation": (
        validate,
        "--dataset cifar10 --data DIR --model net.config --pretrained WEIGHTS",
        {"dataset": "cifar10", "data": "DIR", "model": "net.config"},
    ),
    "NSGANetV2 on CIFAR": (
        train_cifar,
        "--data DIR --model nsganetv2_s --model-config net.config --img-size 224 --drop 0.2 --drop-path 0.2 --cutout "
        "--autoaugment --save",
        {
            "dataset_dir": "DIR",
            "network_config": "net.config",
            "dropout": 0.2,
            "cutout": 16,
            "autoaugment": True,
        },
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_published_lines_mean_what_they_meant(name):
    script, line, meaning = LINES[name]
    args = vars(script.parse_arguments(shlex.split(line)))
    assert {key: args[key] for key in meaning} == meaning


def test_the_published_recipe_on_small_images():
    line = "--data DIR --dataset cifar100 --model nsganetv2_s --model-config net.config --img-size 192 --cutout --save"
    config = train_cifar.open_config(train_cifar.parse_arguments(line.split()))
    assert (config.dataset, config.classes, config.input_size, config.network_size) == (
        "cifar100",
        100,
        32,
        192,
    )
    assert (config.batch_size, config.epochs, config.clip_grad, config.label_smoothing) == (
        96,
        150,
        5,
        0,
    )
    state = config.optim_state
    assert (state.lr, state.momentum, state.weight_decay, config.lr_scheduler) == (
        0.01,
        0.9,
        4e-5,
        "cosine",
    )
    assert (config.dropout, config.drop_path, config.cutout, config.autoaugment) == (
        0.2,
        0.2,
        16,
        False,
    )
    config = train_cifar.open_config(
        train_cifar.parse_arguments(["--model-config", "net.config", "--dataset", "dtd"])
    )
    assert (config.classes, config.input_size, config.network_size) == (47, 224, None)
    assert config.dataset_dir == "./data/dtd/"
    line = "--model-config net.config --dataset imagefolder --img-size 96 --cutout --cutout_length 8 --set classes=3"
    config = train_cifar.open_config(train_cifar.parse_arguments(line.split()))
    assert (config.classes, config.input_size, config.network_size, config.cutout) == (
        3,
        96,
        None,
        8,
    )
    line = "--cfg config_file/digits_config.yml --model-config net.config --dataset stl10"
    config = train_cifar.open_config(train_cifar.parse_arguments(line.split()))
    assert (config.supernet, config.input_size, config.network_size, config.crop_padding) == (
        "none",
        96,
        224,
        12,
    )


# -- NSGANetV2 on CIFAR-10, from the search to the validation --------------------------------------


@pytest.fixture
def found(tmp_path, monkeypatch):
    """A tiny archive of CIFAR-10, and in net/ what post_search.py chose for it from a tiny
    supernet.
    """
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path)
    supernet = ElasticSupernet(SPACE, rng())
    payload = {"kind": "supernet", "space": SPACE.to_dict(), "model": supernet.state_dict()}
    checkpoint.save(tmp_path / "supernet.pth", payload)
    options = "--dataset cifar10 --data . --supernet_path supernet.pth --n_classes 10 --vld_size 10 --n_epochs 0"
    msunas.main(
        [*options.split(), "--n_doe", "6", "--n_iter", "2", "--iterations", "1", "--save", "search"]
    )
    post_search.main(
        [
            "-n",
            "1",
            "--save",
            "final",
            "--expr",
            "search/iter_1.stats",
            "--supernet_path",
            "supernet.pth",
        ]
    )
    return sorted((tmp_path / "final").glob("net-*"))[0]


def test_from_a_search_to_a_validated_network(found, tmp_path, capsys):
    line = "--data . --model nsganetv2_s --img-size 16 --drop 0.2 --drop-path 0.2 --cutout --autoaugment --save"
    network = [
        "--model-config",
        f"{found}/net.config",
        "--initial-checkpoint",
        f"{found}/net.inherited",
    ]
    train_cifar.main(
        [*line.split(), *network, "--batch-size", "10", "--epochs", "2", "--title", "tuned"]
    )
    result = json.loads((tmp_path / "logs/tuned/result.json").read_text())
    last = tmp_path / "logs/tuned/checkpoints/last.pth"
    capsys.readouterr()

    line = f"--dataset cifar10 --data . --model {found}/net.config --pretrained {last} --img-size 16 --json"
    validate.main(line.split())
    published = json.loads(capsys.readouterr().out)
    validate.main(["--checkpoint", str(last), "--json"])
    own = json.loads(capsys.readouterr().out)
    assert own["top1"] == published["top1"] == result["top1"]
    assert own["loss"] == pytest.approx(published["loss"])
    assert own["macs_m"] == pytest.approx(result["macs_m"]), (
        "counted at the size that the network sees"
    )


def test_inherited_weights_are_those_of_the_supernet(found):
    architecture = json.loads((found / "net.subnet").read_text())
    supernet = ElasticSupernet(SPACE, rng()).eval()
    expected = supernet.extract(SPACE.architecture(architecture)).eval()
    network = (
        NetConfigSpec.load(found / "net.config").inherited(f"{found}/net.inherited", {}).eval()
    )
    images = torch.randn(2, 3, architecture["r"], architecture["r"], generator=rng())
    torch.testing.assert_close(network(images), expected(images))


def test_a_search_on_another_set_than_the_supernets_needs_no_classes(found):
    supernet = ElasticSupernet(replace(SPACE, classes=1000), rng())
    checkpoint.save(
        "wide.pth",
        {"kind": "supernet", "space": supernet.space.to_dict(), "model": supernet.state_dict()},
    )
    line = "--dataset cifar10 --data . --save other --sec_obj flops --n_gpus 8 --supernet_path wide.pth --vld_size 10"
    msunas.main([*line.split(), "--n_epochs", "1", "--n_doe", "2", "--iterations", "0"])
    assert 0 <= json.loads(Path("other/iter_0/net_0.stats").read_text())["top1"] <= 100


def test_weights_for_other_classes_keep_all_but_the_classifier(found, tmp_path):
    line = f"--data . --dataset cifar10 --model-config {found}/net.config --initial-checkpoint {found}/net.inherited"
    config = train_cifar.open_config(
        train_cifar.parse_arguments([*line.split(), "--set", "classes=7"])
    )
    tuned = train_cifar.described_network(config).inherited(config.inherit, {}, rng())
    given = checkpoint.weights(checkpoint.load(found / "net.inherited"), found)
    own = tuned.state_dict()
    assert all(own[key].equal(given[key]) for key in own if not key.startswith("classifier"))
    assert own["classifier.linear.weight"].shape[0] == 7


@pytest.mark.parametrize(
    ("main", "line", "words"),
    [
        (train_cifar.main, "--model-config none.config", "none.config: no network description"),
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
    kinds = {
        "digits_elastic_config": "elastic",
        "cifar10_elastic_config": "elastic",
        "nsganetv2_config": "none",
    }
    assert {name: load_config(f"config_file/{name}.yml").supernet for name in kinds} == kinds
