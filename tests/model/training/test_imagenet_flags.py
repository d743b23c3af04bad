"""The flags of ImageNet training: the published lines mean what they meant."""

import shlex

import pytest

import train_imagenet
from model.training.imagenet_flags import add_imagenet_flags
from tests.support import imagenet_command, refused
from utils.command import Parser

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
