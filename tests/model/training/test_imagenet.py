"""Training at ImageNet scale, on a handful of images."""

import csv
import json
import os
import shlex
import signal
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn import functional as F

import train_imagenet
import validate
from model.sgnas.warm_up import supernet_payload
from model.spaces.elastic.net_config import net_config
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ElasticSpace
from model.spaces.registry import open_problem
from model.spaces.unified.supernet import UnifiedSupernet
from model.training import imagenet as imagenet_training
from model.training.imagenet_flags import add_imagenet_flags
from tests.conftest import rng
from tests.support import (
    CPU,
    Batches,
    imagenet_command,
    recipe_of,
    stop_after,
    trained,
    wait_for,
)
from tests.worlds import Child, launcher
from utils import checkpoint, folder2lmdb
from utils.command import Parser
from utils.config import load_config
from utils.optim import TimmSchedule


@pytest.fixture(name="folder")
def folder_of_images(image_folder):
    return image_folder


def train(folder, *more, experiment: str = "net"):
    """The run folder of a short training."""
    train_imagenet.main([*imagenet_command(folder, *more), "--experiment", experiment])
    return folder / "logs" / experiment


def last(run) -> dict:
    return checkpoint.load(run / "checkpoints" / "last.pth")


def epochs_of(run) -> list[int]:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["epoch"] for line in lines]


def validated(file, capsys) -> dict:
    capsys.readouterr()
    validate.main(["--checkpoint", str(file), "--json"])
    return json.loads(capsys.readouterr().out)


# -- a run ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_leaves_checkpoints_that_validate_alone(folder, capsys):
    run = train(folder, "--epochs", 3)
    result = json.loads((run / "result.json").read_text())
    rows = list(csv.DictReader((run / "summary.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[-1]["eval_top1"]) == result["last"]["top1"]
    assert float(rows[-1]["ema_top1"]) == result["ema"]["top1"]
    assert "state_dict_ema" in checkpoint.load(run / "checkpoints" / "ema.pth")
    for name in ("last", "ema"):
        scored = validated(run / "checkpoints" / f"{name}.pth", capsys)
        assert (scored["top1"], scored["images"]) == (pytest.approx(result[name]["top1"]), 30)


@pytest.mark.slow
def test_averages_of_short_runs_move_where_asked(folder):
    far = []
    for more in ([], ["--model-ema-warmup"]):
        name = f"ema{len(far)}"
        plain = [flag for flag in imagenet_command(folder) if flag != "--model-ema-warmup"]
        train_imagenet.main([*plain, *more, "--experiment", name])
        state = last(folder / "logs" / name)
        key = next(key for key in state["model"] if key.endswith("conv.weight"))
        far.append(float((state["model"][key] - state["average"][f"module.{key}"]).norm()))
    assert far[1] < 0.9 * far[0]


@pytest.mark.slow
def test_a_run_starts_with_the_state_of_another(folder):
    first = train(folder)
    longer = train(folder, "--epochs", 3, "--resume", first, experiment="longer")
    assert epochs_of(longer) == [1, 2, 3]


def test_an_architecture_of_a_list_needs_its_config(folder):
    rows = [[3, 5, None, None, None, None]] * 2
    found = {"target": 0.15, "macs_m": 0.15, "params_m": 0.01, "choices": rows}
    (folder / "found.json").write_text(json.dumps([found]))
    config = ["--architecture", folder / "found.json", "--config_path", folder / "tiny.yml"]
    run = train(folder, *config, "--epochs", 1)
    assert json.loads((run / "architecture.json").read_text())["architecture"] == rows


def state_of(run) -> dict[str, torch.Tensor]:
    state = last(run)
    averages = {f"average.{key}": value for key, value in state["average"].items()}
    return {**state["model"], **averages}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(value.equal(other[key]) for key, value in one.items())


@pytest.mark.slow
def test_lmdb_workers_and_folders_give_the_same_bits(folder):
    recipe = ["--aa", "rand-m9-mstd0.5", "--reprob", "0.5", "--mixup", "0.2", "--cutmix", "0.5"]
    plain = state_of(train(folder, *recipe))
    for split in ("train", "val"):
        folder2lmdb.main([str(folder), "--split", split])
    packed = train(folder, *recipe, "--lmdb", "-j", 2, experiment="packed")
    assert same(plain, state_of(packed))


@pytest.mark.slow
def test_a_run_stopped_inside_an_epoch_resumes_to_the_same_bits(folder, monkeypatch):
    unbroken = state_of(train(folder))
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(SystemExit):
            train(folder, experiment="broken")
    kept = last(folder / "logs" / "broken")
    assert (kept["epoch"], kept["tally"]["steps"]) == (1, 2)
    assert same(unbroken, state_of(train(folder, experiment="broken")))


@pytest.mark.slow
def test_checkpoints_come_by_the_clock(folder, monkeypatch):
    kept, save = [], train_imagenet.RunFolder.save

    def counted(run, name, payload, *mirror):
        kept.extend([(payload["epoch"], payload["tally"]["steps"])] if name == "last" else [])
        save(run, name, payload, *mirror)

    monkeypatch.setattr(train_imagenet.RunFolder, "save", counted)
    train(folder, "--epochs", 1, "--cooldown-epochs", 0, "--checkpoint-minutes", 1e-6)
    assert kept == [(0, 1), (0, 2), (0, 3), (0, 4), (0, 5), (1, 0)]


@pytest.mark.slow
def test_a_dry_run_writes_nothing(folder, capsys):
    network = timm.create_model("resnet18", num_classes=10)
    checkpoint.save(folder / "teacher.pth", {"state_dict": network.state_dict()})
    teacher = ["--teacher", "resnet18", "--teacher-checkpoint", folder / "teacher.pth"]
    train_imagenet.main(imagenet_command(folder, "--dry-run", *teacher))
    said = capsys.readouterr().out
    for name in ("parameters", "multiply-adds", "peak memory", "projected time"):
        assert name in said
    assert not (folder / "logs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_learns(folder, dtype):
    run = train(folder, "--amp", "--amp-dtype", dtype, "--clip-grad", 5)
    assert np.isfinite(json.loads((run / "result.json").read_text())["last"]["loss"])


@pytest.mark.slow
def test_a_run_resumes_with_another_batch_size_after_as_many_images(folder, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(SystemExit):
            train(folder, "-b", 8)
    assert last(folder / "logs" / "net")["tally"]["steps"] == 4
    assert last(train(folder, "-b", 16))["epoch"] == 2


@pytest.mark.slow
def test_a_killed_worker_is_replaced_inside_an_epoch(folder):
    run = folder / "logs" / "net"
    more = ["--epochs", 3, "-b", 4, "--checkpoint-minutes", 0.001, "--cooldown-epochs", 0]
    line = shlex.join(["train_imagenet.py", *imagenet_command(folder, *more)])
    launched = Child(folder, launcher, 2, 3, line)
    metrics = run / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text().count("\n"))
    os.kill(launched.workers[-1], signal.SIGKILL)
    assert launched.wait() == 0, launched.errors
    assert epochs_of(run) == [1, 2, 3]
    assert launched.said.count("run folder") == 2, launched.said  # it was started twice


@pytest.mark.slow
def test_squeeze_excite_is_as_the_flag_says(folder):
    for said, expected in (("True", True), ("False", False)):
        run = train(folder, "--se", said, "--epochs", 1, "--cooldown-epochs", 0, experiment=said)
        keys = last(run)["model"]
        assert any("se" in key.split(".") or ".se" in key for key in keys) is expected


def test_a_supernet_teaches(folder):
    space = open_problem(load_config(folder / "tiny.yml")).space
    supernet = supernet_payload(UnifiedSupernet(space, rng()), 1)
    checkpoint.save(folder / "supernet.pth", supernet)
    run = train(folder, "--teacher", folder / "supernet.pth", "--epochs", 1)
    assert json.loads((run / "result.json").read_text())["last"]["images"] == 30


@pytest.mark.slow
def test_a_published_network_is_tuned_from_what_it_inherited(folder, capsys):
    space = ElasticSpace(classes=1000)
    network = MobileNetV3.of(space, space.decode(space.extremes()[0]))
    (folder / "net.config").write_text(json.dumps(net_config(network)))
    checkpoint.save(folder / "net.inherited", {"state_dict": network.state_dict()})
    line = f"{folder} --model nsganetv2_s --model-config {folder}/net.config --img-size 32"
    line += f" --initial-checkpoint {folder}/net.inherited --reset-classifier --num-classes 10"
    line += " -b 16 -j 0 --epochs 1 --cooldown-epochs 0 --lr 1e-9 --warmup-epochs 0 --drop 0.2"
    line += f" --drop-path 0.2 --output {folder}/logs --experiment net"
    train_imagenet.main(line.split())
    first = next(iter(network.state_dict()))
    found, inherited = last(folder / "logs" / "net")["model"][first], network.state_dict()[first]
    torch.testing.assert_close(found, inherited, atol=1e-5, rtol=0)
    scored = validated(folder / "logs" / "net" / "checkpoints" / "last.pth", capsys)
    assert scored["images"] == 30


# -- what timm does ------------------------------------------------------------------------------


def test_fifty_steps_are_those_of_timm_itself():
    images = [torch.randn(8, 6, 1, 1, generator=rng(i)) for i in range(5)]
    labels = [torch.randint(3, (8,), generator=rng(i + 100)) for i in range(5)]
    batches = Batches(zip(images, labels, strict=True))
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(6, 3)) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    given = {"decay_epochs": 2.4, "decay_rate": 0.97, "warmup_epochs": 3, "warmup_lr": 1e-4}
    made = []
    for network in networks:
        numbers = {"lr": 0.016, "weight_decay": 1e-5, "eps": 0.001}
        optimizer = create_optimizer_v2(network, "rmsproptf", **numbers)
        made.append((optimizer, create_scheduler_v2(optimizer, "step", num_epochs=10, **given)[0]))
    (ours, scheduler), (theirs, plain) = made
    recipe = replace(recipe_of(networks[0]), optimizer=ours, schedule=TimmSchedule(scheduler, 5))
    rates = []
    for epoch in range(10):
        trained(lambda x, y, _: [(networks[0](x), y)], batches, recipe, epoch)
        plain.step(epoch)
        for x, y in batches:
            theirs.zero_grad()
            F.cross_entropy(networks[1](x), y).backward()
            theirs.step()
        rates.append(theirs.param_groups[0]["lr"])
        assert ours.param_groups[0]["lr"] == rates[-1]
    assert networks[0][1].weight.equal(networks[1][1].weight)
    expected = [1e-4 + t * (0.016 - 1e-4) / 3 for t in range(3)]
    expected += [0.016 * 0.97 ** (t // 2.4) for t in range(3, 10)]
    assert rates == pytest.approx(expected)


def test_rmsprop_is_that_of_tensorflow():
    """Squared gradients begin at 1; eps is inside the root, and the rate inside the momentum."""
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
    parser = Parser("test")
    add_imagenet_flags(parser)
    args = f"{folder} --reprob 0 --color-jitter 0 --img-size 20 -b 40 -j 0"
    dataset = train_imagenet.load_dataset("imagenet", str(folder), 20, 10, in_memory=0)
    batches, test = imagenet_training.loaders(dataset, 20, parser.parse_args(args.split()))
    mean, std = (torch.tensor(part) for part in (imagenet_training.MEAN, imagenet_training.STD))
    for images, labels in (next(batches.epoch(0)), next(test.epoch())):
        assert images.shape == (len(labels), 3, 20, 20)
        # class l is of grey 25 l, and some noise up to 12
        expected = ((25 * labels[:, None] + 5.5) / 255 - mean) / std
        assert ((images.mean(dim=(2, 3)) - expected).abs() < 0.1).all()


def test_accumulated_parts_give_the_gradient_of_the_whole():
    images = torch.randn(8, 6, 1, 1, generator=rng())
    labels, gradients = torch.randint(3, (8,), generator=rng(1)), []
    for parts in (1, 4):
        network = nn.Sequential(nn.Flatten(), nn.Linear(6, 3, bias=False))
        with torch.no_grad():
            network[1].weight.copy_(torch.randn(3, 6, generator=rng(2)))
        forwards = partial(imagenet_training.passes, network, None, parts, CPU)
        recipe = recipe_of(network, pass_share=1 / parts)
        meter = trained(forwards, Batches([(images, labels)]), recipe)
        gradients.append(network[1].weight.grad)
        assert (meter.passes, meter.seen) == (parts, 8)
    torch.testing.assert_close(*gradients)
