"""No training has a learning rate of 0 in silence: the schedule covers it, or it is refused."""

import json
import math

import pytest
import torch
from timm.scheduler import create_scheduler_v2
from torch import nn

import msunas
import search
import train_cifar
import train_imagenet
from model.sgnas.warm_up import WarmUpRecipe
from model.training.from_scratch import ScratchRecipe
from tests.conftest import GOLDEN, TESTS
from tests.support import refused
from utils.config import load_config
from utils.errors import UserError
from utils.optim import TimmSchedule

SMALL = TESTS.parent / "config_file" / "cifar10_small_config.yml"


def rates(recipe, epochs: int, steps: int = 5) -> list[float]:
    """The learning rate of each step."""
    schedule = recipe.schedule(steps)
    return [schedule.at(step) for step in range(epochs * steps)]


def warm_up_of(file, *settings) -> WarmUpRecipe:
    return load_config(file, settings).part(WarmUpRecipe)


def test_the_cosine_of_a_warm_up_longer_than_epochs_covers_it():
    found = rates(warm_up_of(SMALL, "warmup_epochs=60", "lr_warmup_steps=0"), 60)
    assert found[0] == warm_up_of(SMALL).optim_state.lr
    assert found[150] == pytest.approx(found[0] / 2)
    assert min(found) == found[-1] > 1e-7
    assert found == sorted(found, reverse=True)


def test_published_warm_ups_keep_their_learning_rates():
    """Their period is `epochs`, of training from scratch, which is longer."""
    recipe = warm_up_of(GOLDEN / "published_configs" / "cifar_config.yml")
    assert (recipe.warmup_epochs, recipe.epochs, recipe.lr_scheduler) == (1, 200, "cosine")
    lr = recipe.optim_state.lr
    expected = [lr * 0.5 * (1 + math.cos(math.pi * step / 1000)) for step in range(5)]
    assert rates(recipe, 1) == expected


def test_training_from_scratch_has_its_own_length():
    recipe = load_config(SMALL, ["warmup_epochs=60", "lr_warmup_steps=0"]).part(ScratchRecipe)
    expected = recipe.optim_state.lr * 0.5 * (1 + math.cos(math.pi * 25 / 50))
    assert rates(recipe, 10)[25] == pytest.approx(expected)


@pytest.mark.slow
def test_a_longer_warm_up_trains_to_its_end_and_says_so(tiny_config, capsys):
    given = ["warmup_epochs=3", "epochs=1", "search_epochs=0", "lr_scheduler=cosine"]
    given += ["print_freq=1", "batch_size=256"]
    search.main(["--cfg", str(tiny_config), "--title", "long", "--set", *given])
    said = capsys.readouterr().out
    assert said.count("epochs: 1, warmup_epochs: 3: the cosine covers the 3 of the warm-up") == 1
    shown = [
        float(line.split(" lr ")[1].split()[0]) for line in said.splitlines() if " lr " in line
    ]
    assert shown
    assert min(shown) > 0


STEPS = ["lr_scheduler=step", "step_size=1", "epochs=60", "warmup_epochs=60"]


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ([*STEPS, "decay_ratio=0.1"], "step_size, decay_ratio: 1, 0.1: the learning rate of epoch"),
        ([*STEPS, "decay_ratio=1e9"], "step_size, decay_ratio: 1, 1e+09: the learning rate of"),
        (["lr_warmup_steps=1e15"], "lr_warmup_steps: 1000000000000000"),
        (["optim_state.lr=1e-300"], "optim_state.lr: 1e-300 is not allowed"),
        (["g_optim_state.lr=1e-300"], "g_optim_state.lr: 1e-300 is not allowed"),
    ],
)
def test_a_schedule_that_ends_at_nothing_is_refused(tiny_config, capsys, settings, names):
    for more in ([], ["--dry-run"]):
        line = refused(capsys, search.main, "--cfg", tiny_config, *more, "--set", *settings)
        assert names in line
    assert not (tiny_config.parent / "logs").exists()


def test_so_are_those_of_training_from_scratch(tiny_config, capsys):
    found = {"target": 0.15, "macs_m": 0.15, "params_m": 0.01}
    found["choices"] = [[3, 5, None, None, None, None]] * 2
    file = tiny_config.parent / "found.json"
    file.write_text(json.dumps([found]))
    given = ["--cfg", tiny_config, "--flops", 0.15, "--architecture", file, "--set", *STEPS]
    assert "step_size, decay_ratio: 1, 0.1" in refused(capsys, train_cifar.main, *given)
    assert not (tiny_config.parent / "logs").exists()
    assert "--lr" in refused(capsys, msunas.main, "--lr", "1e-300")
    assert "--lr" in refused(capsys, train_imagenet.main, "data", "--lr", "1e-300")


def test_a_published_step_schedule_is_allowed():
    steps = warm_up_of(SMALL, "lr_scheduler=step", "step_size=80", "warmup_epochs=200")
    assert rates(steps, 200)[-1] == pytest.approx(steps.optim_state.lr / 100)


def timm_rates(name: str, **options) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    scheduler, epochs = create_scheduler_v2(optimizer, name, **options)
    TimmSchedule(scheduler, 3).check(optimizer, epochs)


def test_schedules_of_timm_are_checked_for_every_epoch():
    cosine = {"num_epochs": 5, "cooldown_epochs": 10}
    timm_rates("cosine", **cosine, min_lr=1e-5)
    with pytest.raises(UserError, match=r"epoch 6 of 15 would be 0;.*--min-lr"):
        timm_rates("cosine", **cosine, min_lr=0.0)
    with pytest.raises(UserError, match="epoch 1 of 5 would be 0;"):
        timm_rates("step", num_epochs=5, warmup_epochs=2, warmup_lr=0.0)
    with pytest.raises(UserError, match=r"epoch 1[23] of 20 would be"):
        timm_rates("step", num_epochs=20, decay_epochs=1, decay_rate=0.1)
