"""Training at ImageNet scale, on a handful of images."""

import csv
import json
import os
import shlex
import signal
import subprocess

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn import functional as F

import train_imagenet
import validate
from model.sgnas.warm_up import supernet_payload
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ElasticSpace
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.paths import Architecture
from model.spaces.registry import open_problem
from model.spaces.unified.space import save_architecture
from model.spaces.unified.supernet import UnifiedSupernet
from model.training import imagenet as imagenet_training
from model.training.distillation import DistillationLoss, load_teacher
from model.training.imagenet_flags import add_imagenet_flags
from tests.conftest import TESTS, TINY_CONFIG, rng
from tests.model.spaces.elastic.test_elastic import SMALL
from tests.utils.test_distributed import torchrun, wait_for
from tests.utils.test_recipe import CPU, Batches
from utils import checkpoint, folder2lmdb, stopping
from utils.command import Parser
from utils.config import load_config
from utils.errors import UserError
from utils.optim import TimmSchedule
from utils.recipe import EpochMeter, Recipe, train_epoch
from utils.runtime import Progress

# The published lines, as the papers' code bases give them.
SGNAS = """DATA --model get_model --epochs 500 --warmup-epochs 5 --batch-size 64 --lr 0.016
  --opt rmsproptf --opt-eps 0.001 --sched step --decay-epochs 3 --decay-rate 0.963 --color-jitter 0.4 --drop 0.2 -j 8
  --num-classes 1000 --model-ema --weight-decay 1e-5 --amp --lmdb --target_flops 320
  --config_path ./config_file/imagenet_config.yml --bn-momentum 0.001 --se True --activation hswish"""
NSGANETV2 = """DATA --model nsganetv2_s --model-config net.config --initial-checkpoint net.inherited --img-size 224
  -b 128 --sched step --epochs 450 --decay-epochs 2.4 --decay-rate .97 --opt rmsproptf --opt-eps .001 -j 6
  --warmup-lr 1e-6 --weight-decay 1e-5 --drop 0.2 --drop-path 0.2 --model-ema --model-ema-decay 0.9999
  --aa rand-m9-mstd0.5 --remode pixel --reprob 0.2 --amp --lr .024 --teacher SUPERNET"""


def flags(line: str):
    parser = Parser("test")
    add_imagenet_flags(parser)
    return parser.parse_args(shlex.split(line))


@pytest.fixture(name="folder")
def image_folder(tmp_path):
    """Ten classes of 8 and 3 images, of one colour each; an architecture of the tiny space."""
    random = np.random.RandomState(0)
    for part, count in (("train", 8), ("val", 3)):
        for label in range(10):
            path = tmp_path / part / f"class{label}"
            path.mkdir(parents=True)
            for index in range(count):
                pixels = np.full((24, 30, 3), 25 * label, np.uint8) + random.randint(
                    0, 12, (24, 30, 3), dtype=np.uint8
                )
                Image.fromarray(pixels).save(path / f"{index}.png")
    (tmp_path / "tiny.yml").write_text(TINY_CONFIG.format(log_dir=tmp_path / "logs"))
    space = open_problem(load_config(tmp_path / "tiny.yml")).space
    architecture = Architecture.of(
        [[3, 5, None, None, None, None], [7, None, None, None, None, None]]
    )
    save_architecture(tmp_path / "architecture.json", space, architecture, {}, {})
    return tmp_path


def command(folder, *more: str) -> list[str]:
    given = f"{folder} --architecture {folder}/architecture.json --output {folder}/logs --experiment net -j 0 -b 16"
    recipe = "--opt rmsproptf --opt-eps 0.001 --lr 0.01 --epochs 2 --warmup-epochs 0 --model-ema --model-ema-warmup"
    return [
        *shlex.split(f"{given} {recipe} --se True --activation hswish --seed 1"),
        *map(str, more),
    ]


def train(folder, *more: str):
    train_imagenet.main(command(folder, *more))
    return folder / "logs" / "net"


def refused(capsys, folder, *more: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        train(folder, *more)
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


# -- flags -----------------------------------------------------------------------------------------


def test_the_published_sgnas_line_means_what_it_meant():
    args = flags(SGNAS)
    assert (args.data, args.model, args.target_flops, args.num_classes) == (
        "DATA",
        "get_model",
        320,
        1000,
    )
    assert (args.opt, args.opt_eps, args.lr, args.weight_decay, args.momentum) == (
        "rmsproptf",
        0.001,
        0.016,
        1e-5,
        0.9,
    )
    assert (args.sched, args.decay_epochs, args.decay_rate, args.warmup_epochs) == (
        "step",
        3,
        0.963,
        5,
    )
    assert (args.warmup_lr, args.min_lr, args.cooldown_epochs, args.model_ema_decay) == (
        1e-4,
        1e-5,
        10,
        0.99995,
    )
    assert (args.se, args.activation, args.bn_momentum, args.drop, args.lmdb) == (
        True,
        "hswish",
        0.001,
        0.2,
        True,
    )
    assert (args.amp, args.color_jitter, args.smoothing, args.scale) == (
        True,
        0.4,
        0.1,
        [0.08, 1.0],
    )


def test_the_published_nsganetv2_line_means_what_it_meant():
    args = flags(NSGANETV2)
    assert (args.model, args.model_config, args.initial_checkpoint) == (
        "nsganetv2_s",
        "net.config",
        "net.inherited",
    )
    assert (args.img_size, args.batch_size, args.decay_epochs, args.warmup_lr) == (
        224,
        128,
        2.4,
        1e-6,
    )
    assert (args.aa, args.remode, args.reprob, args.drop_path) == (
        "rand-m9-mstd0.5",
        "pixel",
        0.2,
        0.2,
    )
    assert (args.teacher, args.kd_ratio, args.model_ema_decay) == ("SUPERNET", 1.0, 0.9999)


def test_false_is_false_and_unknown_flags_are_errors(capsys, folder):
    assert flags("DATA --se False").se is False
    assert "unrecognized arguments: --bce" in refused(capsys, folder, "--bce")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--model", "resnet50", "--architecture", ""],
            "--model resnet50: --model-config must name its net.config",
        ),
        (["--model-config", "none.config"], "none.config: no network description"),
        (["--num-classes", "7"], "--num-classes 7: the network has 10"),
        (["--sync-bn"], "--sync-bn: it needs GPUs"),
        (
            ["--teacher", "no_such_net"],
            "--teacher no_such_net: neither a supernet checkpoint nor the name of",
        ),
        (["--lmdb"], "train.lmdb: there is no such file; python3 utils/folder2lmdb.py makes it"),
        (["--opt", "sgdd"], "--opt sgdd"),
        (["--sched", "stairs"], "--sched stairs: Unknown"),
        (["--sched", "plateau"], "--sched plateau: a schedule of the epoch is needed"),
        (["--aa", "foo"], "--aa foo, --color-jitter 0.4: timm refuses it"),
        (["--mixup", "-1"], "argument --mixup: invalid not_negative_number value"),
    ],
)
def test_bad_input_is_one_line(capsys, folder, flags, said):
    assert said in refused(capsys, folder, *flags)
    assert not (folder / "logs").exists()


# -- a run -----------------------------------------------------------------------------------------


def test_a_run_leaves_checkpoints_that_validate_alone(folder, capsys):
    run = train(folder, "--epochs", 3)
    result = json.loads((run / "result.json").read_text())
    rows = list(csv.DictReader((run / "summary.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["eval_top1"]) == result["last"]["top1"]
    assert float(rows[-1]["ema_top1"]) == result["ema"]["top1"]
    assert "state_dict_ema" in checkpoint.load(run / "checkpoints" / "ema.pth")
    for name in ("last", "ema"):
        capsys.readouterr()
        validate.main(["--checkpoint", str(run / "checkpoints" / f"{name}.pth"), "--json"])
        scored = json.loads(capsys.readouterr().out)
        assert (scored["top1"], scored["images"]) == (pytest.approx(result[name]["top1"]), 30)


def test_averages_of_short_runs_move_where_asked(folder):
    far = []
    for more in ([], ["--model-ema-warmup"]):
        line = [
            flag
            for flag in command(folder, "--experiment", f"ema{len(far)}")
            if flag != "--model-ema-warmup"
        ]
        train_imagenet.main([*line, *more])
        state = checkpoint.load(folder / "logs" / f"ema{len(far)}" / "checkpoints" / "last.pth")
        key = next(key for key in state["model"] if key.endswith("conv.weight"))
        average = state["average"].get(f"module.{key}")
        far.append(float((state["model"][key] - average).norm()))
    assert far[1] < 0.9 * far[0]


def test_a_run_begins_with_the_state_of_another(folder, capsys):
    train(folder)
    train(folder, "--experiment", "longer", "--epochs", 3, "--resume", folder / "logs" / "net")
    rows = [
        json.loads(line)
        for line in (folder / "logs" / "longer" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_an_architecture_of_a_list_needs_its_config(folder):
    found = {
        "target": 0.15,
        "macs_m": 0.15,
        "params_m": 0.01,
        "choices": [[3, 5, None, None, None, None]] * 2,
    }
    (folder / "found.json").write_text(json.dumps([found]))
    run = train(
        folder,
        "--architecture",
        folder / "found.json",
        "--config_path",
        folder / "tiny.yml",
        "--epochs",
        1,
    )
    assert json.loads((run / "architecture.json").read_text())["choices"] == found["choices"]


def state_of(run) -> dict[str, torch.Tensor]:
    state = checkpoint.load(run / "checkpoints" / "last.pth")
    return {
        **state["model"],
        **{f"average.{key}": value for key, value in state["average"].items()},
    }


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())


def test_lmdb_workers_and_folders_give_the_same_bits(folder):
    plain = state_of(
        train(folder, "--aa", "rand-m9-mstd0.5", "--reprob", 0.5, "--mixup", 0.2, "--cutmix", 0.5)
    )
    for split in ("train", "val"):
        folder2lmdb.main([str(folder), "--split", split])
    more = [
        "--aa",
        "rand-m9-mstd0.5",
        "--reprob",
        0.5,
        "--mixup",
        0.2,
        "--cutmix",
        0.5,
        "--experiment",
        "packed",
    ]
    train(folder, *more, "--lmdb", "-j", 2)
    assert same(plain, state_of(folder / "logs" / "packed"))


def test_a_run_stopped_inside_an_epoch_goes_on_to_the_same_bits(folder, monkeypatch):
    unbroken = state_of(train(folder))
    pending_requests, count = stopping.pending_requests, []
    # once a step
    monkeypatch.setattr(
        "utils.recipe.pending_requests", lambda: (count.append(0) or len(count) == 7, False)
    )
    with pytest.raises(SystemExit):
        train(folder, "--experiment", "broken")
    kept = checkpoint.load(folder / "logs" / "broken" / "checkpoints" / "last.pth")
    assert (kept["epoch"], kept["tally"]["steps"]) == (1, 2)
    monkeypatch.setattr("utils.recipe.pending_requests", pending_requests)
    train(folder, "--experiment", "broken")
    assert same(unbroken, state_of(folder / "logs" / "broken"))


def test_checkpoints_come_by_the_clock(folder, monkeypatch):
    kept, keep = [], train_imagenet.RunFolder._keep

    def counted(run, name, training):
        kept.append((training.epochs, training.meter.steps))
        keep(run, name, training)

    monkeypatch.setattr(train_imagenet.RunFolder, "_keep", counted)
    train(folder, "--epochs", 1, "--cooldown-epochs", 0, "--checkpoint-minutes", 1e-6)
    assert kept == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 0)]


def test_a_dry_run_writes_nothing(folder, capsys):
    train(
        folder, "--dry-run", "--teacher", "resnet18", "--teacher-checkpoint", teacher_file(folder)
    )
    said = capsys.readouterr().out
    assert all(
        name in said for name in ("parameters", "multiply-adds", "peak memory", "projected time")
    )
    assert not (folder / "logs").exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_learns(folder, dtype):
    run = train(folder, "--amp", "--amp-dtype", dtype, "--clip-grad", 5)
    assert np.isfinite(json.loads((run / "result.json").read_text())["last"]["loss"])


def test_a_run_goes_on_with_another_batch_size_behind_as_many_images(folder, monkeypatch):
    pending_requests, count = stopping.pending_requests, []
    monkeypatch.setattr(
        "utils.recipe.pending_requests", lambda: (count.append(0) or len(count) == 4, False)
    )
    with pytest.raises(SystemExit):
        train(folder, "-b", 8)
    assert (
        checkpoint.load(folder / "logs" / "net" / "checkpoints" / "last.pth")["tally"]["steps"] == 4
    )
    monkeypatch.setattr("utils.recipe.pending_requests", pending_requests)
    run = train(folder, "-b", 16)
    assert checkpoint.load(run / "checkpoints" / "last.pth")["epoch"] == 2


def test_a_killed_worker_is_replaced_inside_an_epoch(folder):
    run = folder / "logs" / "net"
    script = TESTS.parent / "train_imagenet.py"
    more = ["--epochs", 4, "-b", 4, "--checkpoint-minutes", 0.001, "--cooldown-epochs", 0]
    launched = torchrun(2, folder, script, *command(folder, *more), restarts=3)
    wait_for(
        lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_text().count("\n")
    )
    workers = subprocess.run(
        ["pgrep", "-P", str(launched.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    said = launched.communicate(timeout=300)[0]
    assert launched.returncode == 0, said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert said.count("run folder") == 2, said  # it was begun twice


# -- what timm does --------------------------------------------------------------------------------


def test_fifty_steps_are_those_of_timm_itself():
    batches = Batches(
        [
            (
                torch.randn(8, 6, 1, 1, generator=rng(i)),
                torch.randint(3, (8,), generator=rng(i + 100)),
            )
            for i in range(5)
        ]
    )
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(6, 3)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    made = []
    for network in networks:
        optimizer = create_optimizer_v2(
            network, "rmsproptf", lr=0.016, weight_decay=1e-5, eps=0.001
        )
        given = {
            "decay_epochs": 2.4,
            "decay_rate": 0.97,
            "warmup_epochs": 3,
            "warmup_lr": 1e-4,
            "num_epochs": 10,
        }
        made.append((optimizer, create_scheduler_v2(optimizer, "step", **given)[0]))
    (ours, scheduler), (theirs, plain) = made
    recipe = Recipe(nn.CrossEntropyLoss(), ours, TimmSchedule(scheduler, 5), CPU, (0, "test"), None)
    rates = []
    for epoch in range(10):
        with Progress("test", 5) as progress:
            train_epoch(
                lambda x, y, _: [(networks[0](x), y)],
                recipe,
                batches,
                epoch,
                EpochMeter(),
                progress,
            )
        plain.step(epoch)
        for images, labels in batches:
            theirs.zero_grad()
            F.cross_entropy(networks[1](images), labels).backward()
            theirs.step()
        rates.append(theirs.param_groups[0]["lr"])
        assert ours.param_groups[0]["lr"] == rates[-1]
    assert networks[0][1].weight.equal(networks[1][1].weight)
    expected = [1e-4 + t * (0.016 - 1e-4) / 3 for t in range(3)] + [
        0.016 * 0.97 ** (t // 2.4) for t in range(3, 10)
    ]
    assert rates == pytest.approx(expected)


def test_rmsprop_is_that_of_tensorflow():
    """Squared gradients begin at 1, eps is inside the root, and the learning rate inside the
    momentum.
    """
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = create_optimizer_v2([weight], "rmsproptf", lr=0.1, eps=0.001, momentum=0.9)
    value, square, moved = weight.detach().clone(), torch.ones(2), torch.zeros(2)
    for step in range(50):
        optimizer.zero_grad()
        (weight**2 * (step % 3 + 1)).sum().backward()
        gradient = 2 * value * (step % 3 + 1)
        square += (gradient**2 - square) * 0.1
        moved = 0.9 * moved + 0.1 * gradient / (square + 0.001).sqrt()
        value = value - moved
        optimizer.step()
    torch.testing.assert_close(weight.detach(), value)


def test_training_images_have_the_size_and_statistics_they_should(folder):
    args = flags(f"{folder} --reprob 0 --color-jitter 0 --img-size 20 -b 40 -j 0")
    dataset = train_imagenet.load_dataset("imagenet", str(folder), 20, 10, in_memory=0)
    batches, test = imagenet_training.loaders(dataset, 20, args)
    for images, labels in (next(batches.epoch(0)), next(test.epoch())):
        assert images.shape == (len(labels), 3, 20, 20)
        # class l is of grey 25 l, and some noise up to 12
        for image, label in zip(images, labels, strict=True):
            grey = (25 * int(label) + 5.5) / 255
            expected = (grey - torch.tensor(imagenet_training.MEAN)) / torch.tensor(
                imagenet_training.STD
            )
            assert ((image.mean(dim=(1, 2)) - expected).abs() < 0.1).all()


def test_accumulated_parts_give_the_gradient_of_the_whole():
    images, labels = (
        torch.randn(8, 6, 1, 1, generator=rng()),
        torch.randint(3, (8,), generator=rng(1)),
    )
    gradients = []
    for parts in (1, 4):
        network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3, bias=False))
        with torch.no_grad():
            network[1].weight.copy_(torch.randn(3, 6, generator=rng(2)))
        optimizer = torch.optim.SGD(network.parameters(), 1e-9)
        schedule = TimmSchedule(create_scheduler_v2(optimizer, "step")[0], 1)
        recipe = Recipe(
            nn.CrossEntropyLoss(), optimizer, schedule, CPU, (0, "test"), None, pass_share=1 / parts
        )
        meter = EpochMeter()

        def forwards(x, y, g, network=network, parts=parts):
            return imagenet_training.passes(network, None, parts, CPU, x, y, g)

        with Progress("test", 1) as progress:
            train_epoch(forwards, recipe, Batches([(images, labels)]), 0, meter, progress)
        gradients.append(network[1].weight.grad)
        assert (meter.passes, meter.seen) == (parts, 8)
    torch.testing.assert_close(*gradients)


# -- teachers and published networks ---------------------------------------------------------------


def teacher_file(folder) -> str:
    network = timm.create_model("resnet18", num_classes=10)
    checkpoint.save(folder / "teacher.pth", {"state_dict": network.state_dict()})
    return str(folder / "teacher.pth")


def test_the_distillation_loss_is_the_published_one():
    logits = torch.randn(5, 4, generator=rng())
    labels, taught = torch.arange(5) % 4, torch.randn(5, 4, generator=rng(1)).softmax(dim=1)
    soft = -(taught * logits.log_softmax(dim=1)).sum(dim=1).mean()
    expected = (3 * soft + F.cross_entropy(logits, labels)) * 2 / (3 + 1)
    torch.testing.assert_close(DistillationLoss(3.0)(logits, (labels, taught)), expected)


def test_a_supernet_teaches_by_its_largest_network_on_the_statistics_of_the_batch(folder):
    space = open_problem(load_config(folder / "tiny.yml")).space
    supernet = UnifiedSupernet(space, rng())
    checkpoint.save(folder / "supernet.pth", supernet_payload(supernet, 1))
    images = torch.randn(6, 3, 16, 16, generator=rng())
    taught = load_teacher(str(folder / "supernet.pth"), 10)(images)
    expected = supernet.train()(images, space.extremes()[1]).softmax(dim=1)
    torch.testing.assert_close(taught, expected.detach())
    assert not taught.requires_grad
    with pytest.raises(UserError, match="it has 10 classes, not 7"):
        load_teacher(str(folder / "supernet.pth"), 7)
    run = train(folder, "--teacher", folder / "supernet.pth", "--epochs", 1)
    assert json.loads((run / "result.json").read_text())["last"]["images"] == 30


def test_an_elastic_supernet_teaches_by_its_largest_network(folder):
    supernet = ElasticSupernet(SMALL, rng())
    checkpoint.save(folder / "elastic.pth", supernet_payload(supernet, 1))
    images = torch.randn(4, 3, 32, 32, generator=rng())
    taught = load_teacher(str(folder / "elastic.pth"), SMALL.classes)(images)
    largest = supernet.train()(images, SMALL.decode(SMALL.extremes()[1]))
    torch.testing.assert_close(taught, largest.softmax(dim=1).detach())


def test_a_network_of_timm_teaches_in_evaluation_mode(folder):
    teacher = load_teacher("resnet18", 10, teacher_file(folder))
    images = torch.randn(2, 3, 32, 32, generator=rng())
    alone = teacher(images[:1])
    torch.testing.assert_close(teacher(images)[:1], alone)


def test_a_published_network_is_tuned_from_what_it_inherited(folder, capsys):
    space = ElasticSpace(classes=1000)
    network = MobileNetV3.of(space, space.decode(space.extremes()[0]))
    (folder / "net.config").write_text(json.dumps(network.config()))
    checkpoint.save(folder / "net.inherited", {"state_dict": network.state_dict()})
    line = f"{folder} --model nsganetv2_s --model-config {folder}/net.config"
    line += f" --initial-checkpoint {folder}/net.inherited --reset-classifier --num-classes 10 --img-size 32"
    line += " -b 16 -j 0 --epochs 1 --cooldown-epochs 0 --lr 1e-9 --warmup-epochs 0 --drop 0.2 --drop-path 0.2"
    train_imagenet.main(shlex.split(f"{line} --output {folder}/logs --experiment net"))
    trained = checkpoint.load(folder / "logs" / "net" / "checkpoints" / "last.pth")
    first = next(iter(network.state_dict()))
    torch.testing.assert_close(
        trained["model"][first], network.state_dict()[first], atol=1e-5, rtol=0
    )
    capsys.readouterr()
    validate.main(
        ["--checkpoint", str(folder / "logs" / "net" / "checkpoints" / "last.pth"), "--json"]
    )
    assert json.loads(capsys.readouterr().out)["images"] == 30


def test_squeeze_excite_is_as_the_flag_says(folder):
    for said, expected in (("True", True), ("False", False)):
        run = train(
            folder, "--se", said, "--epochs", 1, "--cooldown-epochs", 0, "--experiment", f"se{said}"
        ).parent
        keys = checkpoint.load(run / f"se{said}" / "checkpoints" / "last.pth")["model"]
        assert any("se" in key.split(".") or ".se" in key for key in keys) is expected
