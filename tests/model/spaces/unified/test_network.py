"""Stand-alone networks against the published model zoo."""

import pytest
import torch

from model.costs.counting import count_macs, count_parameters
from model.spaces.paths import Architecture
from model.spaces.unified.network import SubNet
from tests.conftest import filled_weights, golden, rng
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
    architecture = Architecture.of(row["choices"])
    network = SubNet(imagenet_space, architecture, se=True, activation="hswish").eval()
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


def test_drop_path_leaves_out_the_residual_branch_of_some_images_and_keeps_the_mean(cifar_space):
    architecture = Architecture.of([[3, 5, 7, None, None, 3]] * 19)
    network = SubNet(cifar_space, architecture, drop_path=0.5)
    rates = [getattr(block.drop_path, "p", 0.0) for block in network.stages]
    residual = [spec.residual for spec in cifar_space.layers]
    expected = [0.5 * (i + 1) / 19 if kept else 0.0 for i, kept in enumerate(residual)]
    assert rates == pytest.approx(expected)
    assert network.state_dict().keys() == SubNet(cifar_space, architecture).state_dict().keys()
    block = network.stages[17]
    assert block.residual
    for part in block.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    images = torch.rand(400, block.point_wise.conv.in_channels, 2, 2, generator=rng())
    with torch.no_grad():
        torch.manual_seed(0)
        branch = block(images) - images
        whole = block.eval()(images) - images
    dropped = (branch == 0).flatten(1).all(dim=1)
    assert float(dropped.float().mean()) == pytest.approx(0.5 * 18 / 19, abs=0.08)
    kept = whole[~dropped] / (1 - 0.5 * 18 / 19)
    torch.testing.assert_close(branch[~dropped], kept, atol=1e-4, rtol=1e-3)
