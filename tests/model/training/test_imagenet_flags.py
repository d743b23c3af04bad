"""The flags of ImageNet training: the published lines mean what they meant."""

import shlex
from argparse import Namespace

import pytest
from torch import nn

import train_imagenet
from model.training.imagenet import build_training, loaders
from model.training.imagenet_flags import add_imagenet_flags
from tests.support import CPU, imagenet_command, refused
from utils.command import Parser
from utils.data import load_dataset
from utils.run_folder import RunFolder

# The published lines, as the papers' code bases give them.
SGNAS = """DATA --model get_model --epochs 500 --warmup-epochs 5 --batch-size 64 --lr 0.016
  --opt rmsproptf --opt-eps 0.001 --sched step --decay-epochs 3 --decay-rate 0.963
  --color-jitter 0.4 --drop 0.2 -j 8 --num-classes 1000 --model-ema --weight-decay 1e-5 --amp
  --lmdb --target_flops 320 --config_path ./config_file/imagenet_config.yml --bn-momentum 0.001
  --se True --activation hswish"""
NSGANETV2 = """DATA --model nsganetv2_s --model-config net.config
  --initial-checkpoint net.inherited --img-size 224 -b 128 --sched step --epochs 450
  --decay-epochs 2.4 --decay-rate .97 --opt rmsproptf --opt-eps .001 -j 6 --warmup-lr 1e-6
  --weight-decay 1e-5 --drop 0.2 --drop-path 0.2 --model-ema --model-ema-decay 0.9999
  --aa rand-m9-mstd0.5 --remode pixel --reprob 0.2 --amp --lr .024 --teacher SUPERNET"""


def flags(line: str) -> dict:
    parser = Parser("test")
    add_imagenet_flags(parser)
    return vars(parser.parse_args(shlex.split(line)))


def test_the_published_sgnas_line_means_what_it_meant():
    expected = {"data": "DATA", "model": "get_model", "target_flops": 320, "num_classes": 1000}
    expected |= {"opt": "rmsproptf", "opt_eps": 0.001, "lr": 0.016, "weight_decay": 1e-5}
    expected |= {"momentum": 0.9, "sched": "step", "decay_epochs": 3, "decay_rate": 0.963}
    expected |= {"warmup_epochs": 5, "warmup_lr": 1e-4, "min_lr": 1e-5, "cooldown_epochs": 10}
    expected |= {"model_ema_decay": 0.99995, "se": True, "activation": "hswish"}
    expected |= {"bn_momentum": 0.001, "drop": 0.2, "lmdb": True, "amp": True}
    expected |= {"color_jitter": 0.4, "smoothing": 0.1, "scale": [0.08, 1.0]}
    found = flags(SGNAS)
    assert {name: found[name] for name in expected} == expected


def test_the_published_nsganetv2_line_means_what_it_meant():
    expected = {"model": "nsganetv2_s", "model_config": "net.config", "img_size": 224}
    expected |= {"initial_checkpoint": "net.inherited", "batch_size": 128, "decay_epochs": 2.4}
    expected |= {"warmup_lr": 1e-6, "aa": "rand-m9-mstd0.5", "remode": "pixel", "reprob": 0.2}
    expected |= {"drop_path": 0.2, "teacher": "SUPERNET", "kd_ratio": 1.0}
    expected |= {"model_ema_decay": 0.9999}
    found = flags(NSGANETV2)
    assert {name: found[name] for name in expected} == expected


# -- what the lines do -------------------------------------------------------------------------


class Batches(list):
    batch_size = 128


def training_of(line: str):
    """The training of a small network by a line, 10 batches an epoch; and its length."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10))
    args = Namespace(**flags(line.replace("--teacher SUPERNET", "")))
    parts = (network, 10, Batches(10 * [None]), {}, args, CPU, RunFolder("nowhere"))
    return build_training(*parts)


def rates(training, epochs: range) -> list[float]:
    """The learning rate in each of some epochs."""
    found = []
    for epoch in epochs:
        training.recipe.schedule.apply(training.recipe.optimizer, 10 * epoch)
        found.append(training.recipe.optimizer.param_groups[0]["lr"])
    return found


def test_the_published_sgnas_line_does_what_it_did():
    """Warm-up over 5 epochs from 1e-4, then 3.7 % less every 3 epochs."""
    training, epochs = training_of(SGNAS)
    assert epochs == 500
    warm = [1e-4 + n / 5 * (0.016 - 1e-4) for n in range(5)]
    assert rates(training, range(5)) == pytest.approx(warm)
    assert rates(training, range(5, 12)) == pytest.approx(
        [0.016 * 0.963 ** (n // 3) for n in range(5, 12)]
    )
    optimizer = training.recipe.optimizer
    assert type(optimizer).__name__ == "RMSpropTF"
    options = {name: optimizer.defaults[name] for name in ("alpha", "eps", "momentum")}
    assert options == {"alpha": 0.9, "eps": 0.001, "momentum": 0.9}
    decays = {group["weight_decay"]: len(group["params"]) for group in optimizer.param_groups}
    assert decays == {0.0: 4, 1e-5: 2}, "none for biases and batch norms"
    assert training.average.decay == 0.99995
    assert training.recipe.criterion.label_smoothing == 0.1


def test_the_published_nsganetv2_line_does_what_it_did():
    """Warm-up over 3 epochs from 1e-6, then 3 % less every 2.4 epochs."""
    training, epochs = training_of(NSGANETV2)
    assert epochs == 450
    warm = [1e-6 + n / 3 * (0.024 - 1e-6) for n in range(3)]
    assert rates(training, range(3)) == pytest.approx(warm)
    assert rates(training, range(3, 30)) == pytest.approx(
        [0.024 * 0.97 ** (n // 2.4) for n in range(3, 30)]
    )
    assert training.average.decay == 0.9999


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        (SGNAS, ["ColorJitter(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4)"]),
        (NSGANETV2, ["RandAugment(n=2", "m=9, mstd=0.5", "RandomErasing(p=0.2, mode=pixel"]),
    ],
)
def test_the_published_lines_augment_images_as_they_did(image_folder, line, steps):
    dataset = load_dataset("imagefolder", str(image_folder), 224, 10)
    args = Namespace(**flags(line))
    training, test = loaders(dataset, 224, args)
    said = repr(training.transform)
    assert "RandomResizedCropAndInterpolation(size=(224, 224), scale=(0.08, 1.0)" in said
    assert "RandomHorizontalFlip(p=0.5)" in said
    assert all(step in said for step in steps), said
    assert "CenterCrop(size=(224, 224))" in repr(test.transform)


def test_false_is_false():
    assert flags("DATA --se False")["se"] is False


WRONG = {
    "--bce": "unrecognized arguments: --bce",
    "--model resnet50 --architecture ''": "--model-config must name its net.config",
    "--model-config none.config": "none.config: cannot be read",
    "--num-classes 7": "--num-classes 7: the network has 10",
    "--sync-bn": "--sync-bn: it needs GPUs",
    "--teacher no_such_net": "--teacher no_such_net: neither a supernet checkpoint nor the name of",
    "--lmdb": "train.lmdb: there is no such file; python3 utils/folder2lmdb.py makes it",
    "--opt sgdd": "--opt sgdd",
    "--sched stairs": "--sched stairs: Unknown",
    "--sched plateau": "--sched plateau: a schedule of the epoch is needed",
    "--aa foo": "--aa foo, --color-jitter 0.4: timm refuses it",
    "--mixup -1": "argument --mixup: invalid not_negative_number value",
}


@pytest.mark.parametrize(("flags", "said"), WRONG.items())
def test_bad_input_is_one_line(capsys, image_folder, flags, said):
    command = imagenet_command(image_folder, *shlex.split(flags))
    assert said in refused(capsys, train_imagenet.main, *command)
    assert not (image_folder / "logs").exists()
