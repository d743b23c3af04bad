"""The state of an optimiser is whole, or refused before a step fails on it."""

import copy

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from utils.config import OptimState
from utils.optim import load_optimizer, make_optimizer

KINDS = {
    "sgd": OptimState(lr=0.1),
    "adam": OptimState("adam", lr=0.1),
}


def stepped(kind: str, steps: int = 2):
    network = nn.Linear(3, 2)
    optimizer = make_optimizer(network.parameters(), KINDS[kind])
    for _ in range(steps):
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [0, 2])
def test_a_state_is_loaded_whole(kind, steps):
    kept = copy.deepcopy(stepped(kind, steps).state_dict())
    optimizer = stepped(kind, 0)
    load_optimizer(optimizer, copy.deepcopy(kept))
    found = optimizer.state_dict()
    assert found["param_groups"] == kept["param_groups"]
    for number, entries in kept["state"].items():
        for name, value in entries.items():
            assert torch.equal(
                torch.as_tensor(found["state"][number][name]), torch.as_tensor(value)
            )


def broken(change) -> dict:
    state = copy.deepcopy(stepped("adam").state_dict())
    change(state)
    return state


BROKEN = {
    "a shape": lambda s: s["state"][0].update(exp_avg=torch.ones(5)),
    "NaN": lambda s: s["state"][0]["exp_avg"].fill_(float("nan")),
    "infinity": lambda s: s["state"][1]["exp_avg_sq"].fill_(float("inf")),
    "a missing entry": lambda s: s["state"][1].pop("exp_avg_sq"),
    "a learning rate that is a text": lambda s: s["param_groups"][0].update(lr="high"),
    "betas of another type": lambda s: s["param_groups"][0].update(betas=0.9),
    "a missing option": lambda s: s["param_groups"][0].pop("eps"),
    "other parameters": lambda s: s["param_groups"][0].update(params=[0]),
    "another optimiser": lambda s: s["param_groups"][0].pop("betas"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_state_is_refused(case):
    with pytest.raises((ValueError, KeyError)):
        load_optimizer(stepped("adam", 0), broken(BROKEN[case]))


def test_factored_statistics_are_loaded_too():
    """They have other shapes than their parameters, and other names for vectors."""
    networks = [nn.Linear(40, 40) for _ in range(2)]
    first, second = (create_optimizer_v2(n, "adafactor", lr=0.1) for n in networks)
    networks[0](torch.ones(1, 40)).sum().backward()
    first.step()
    load_optimizer(second, copy.deepcopy(first.state_dict()))
    assert len(second.state) == 2
