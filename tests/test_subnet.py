"""Stand-alone networks against the published model zoo."""

import pytest
import torch

from model.space import Architecture
from model.subnet import SubNet, count_macs, count_parameters
from tests.conftest import filled_weights, golden
from tests.fill_weights import image
from utils.errors import UserError


@pytest.mark.parametrize("row", golden("model_zoo.json")["rows"], ids=lambda row: row["name"])
def test_the_model_zoo_has_its_published_costs(row, imagenet_space):
    network = SubNet(imagenet_space, Architecture.of(row["choices"]), se=True, activation="hswish")
    assert count_macs(network, 224) == pytest.approx(row["macs_m"], abs=1e-3)
    assert count_parameters(network) == pytest.approx(row["params_m"], abs=1e-4)


def test_sgnas_a_has_the_published_keys_and_logits(imagenet_space):
    row = golden("model_zoo.json")["rows"][0]
    shapes = golden("sgnas_a_state_dict.json")["shapes"]
    network = SubNet(imagenet_space, Architecture.of(row["choices"]), se=True, activation="hswish").eval()
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == shapes
    network.load_state_dict(filled_weights(shapes))
    with torch.no_grad():
        logits = network(torch.from_numpy(image(2, 224)))
    expected = torch.tensor(row["logits_first8"])
    assert (logits[:, :8] - expected).abs().max() / expected.abs().max() < 1e-3
    assert float(logits.std()) == pytest.approx(row["logits_std"], rel=1e-3)
    assert float(logits.abs().mean()) == pytest.approx(row["logits_abs_mean"], rel=1e-3)


def test_counting_leaves_the_network_as_it_was(cifar_space):
    network = SubNet(cifar_space, Architecture.of([[3, 5, 7, None, None, 3]] * 19))
    keys = list(network.state_dict())
    count_macs(network, 32)
    assert list(network.state_dict()) == keys
    assert network.training


def test_an_unknown_activation_is_refused(cifar_space):
    with pytest.raises(UserError, match="'gelu' is unknown; allowed are relu6, hswish"):
        SubNet(cifar_space, Architecture.of([[3] * 6] * 19), activation="gelu")
