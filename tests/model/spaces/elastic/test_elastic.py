"""The elastic space, supernet and stand-alone networks against the published release's numbers."""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.ranking.bn_recalibration import reset_norms
from model.spaces.elastic.network import MobileNetV3
from model.spaces.elastic.space import ElasticArchitecture, ElasticSpace
from model.spaces.elastic.supernet import ElasticSupernet, from_published
from tests.conftest import rng
from utils.engine import DeviceContext
from utils.errors import UserError

GOLDEN = json.loads((Path(__file__).parents[3] / "golden" / "ofa.json").read_text())
CPU = DeviceContext(torch.device("cpu"))
SMALL = ElasticSpace(
    stages=(16, 24), strides=(1, 2), activations=("relu", "h_swish"), se=(False, True), head=(32, 40), stem_stride=1,
    depths=(1, 2), resolutions=(16, 20), classes=5,
)  # fmt: skip


def filled(shapes: dict) -> dict[str, torch.Tensor]:
    """Weights by the golden file's rule, from key names (of the older spelling) and shapes."""
    weights = {}
    for key, shape in shapes.items():
        noise = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
        if key.endswith("_matrix"):
            value = np.eye(shape[0]) + 0.05 * noise
        elif key.endswith("running_var"):
            value = 1 + 0.1 * abs(noise)
        elif key.endswith("num_batches_tracked"):
            value = np.zeros(shape)
        elif len(shape) == 4:
            value = noise * np.sqrt(2 / np.prod(shape[1:]))
        elif len(shape) == 2:
            value = 0.05 * noise
        elif key.endswith("bn.weight"):
            value = 1 + 0.1 * noise
        else:
            value = 0.1 * noise
        weights[key] = torch.tensor(np.asarray(value, dtype=np.float32))
    return weights


def images(seed: int, batch: int, size: int) -> torch.Tensor:
    noise = np.random.RandomState(seed).standard_normal((batch, 3, size, size))
    return torch.tensor(noise.astype(np.float32))


@pytest.fixture(scope="module")
def supernet() -> ElasticSupernet:
    supernet = ElasticSupernet(ElasticSpace()).eval()
    supernet.load_state_dict(
        filled({key: shape for key, shape, _ in GOLDEN["supernet_state_dict"]})
    )
    return supernet


def shapes(network: torch.nn.Module) -> dict:
    return {key: list(value.shape) for key, value in network.state_dict().items()}


# -- space -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "key"), [(1.0, "configs"), (1.2, "width_1_2")])
def test_costs_are_the_published_ones_to_the_last_digit(width, key):
    space, entries = ElasticSpace(width=width), GOLDEN[key]
    macs, parameters = space.costs(
        np.array([space.encode(space.architecture(entry["config"])) for entry in entries])
    )
    assert macs.tolist() == [entry["macs"] for entry in entries]
    assert parameters.tolist() == [entry["params"] for entry in entries]


def test_genes_are_the_published_encoding():
    space = ElasticSpace()
    for entry in GOLDEN["configs"]:
        assert space.encode(space.architecture(entry["config"])) == entry["encode"]
    for entry in GOLDEN["round_trip"]:
        assert space.decode(entry["x"]).to_json() == entry["config"]
        assert space.encode(space.decode(entry["x"])) == entry["x"]


def test_genes_that_are_not_expressed_are_zero_in_canonical_ones():
    space = ElasticSpace()
    for entry in GOLDEN["non_canonical"]:
        assert space.decode(entry["x"]).to_json() == entry["decoded"]
        assert space.canonical(np.array([entry["x"]]))[0].tolist() == entry["canonical_x"]


def test_samples_are_canonical_and_reach_every_value():
    genes = ElasticSpace().sample(500, np.random.default_rng(0))
    assert (ElasticSpace().canonical(genes) == genes).all()
    assert (genes.max(axis=0) == ElasticSpace().largest_genes).all()
    assert (genes.min(axis=0) == 0).all()


@pytest.mark.parametrize(
    "change",
    [
        {"strides": (0, 2)},
        {"activations": ("relu", "swish")},
        {"expansions": (1, 3)},
        {"kernels": (3, 4)},
        {"depths": ()},
        {"se": (True,)},
    ],
)
def test_an_impossible_space_is_refused(change):
    with pytest.raises(UserError):
        replace(SMALL, **change)


def test_costs_of_a_small_space_are_those_of_the_built_networks():
    genes = SMALL.sample(6, np.random.default_rng(0))
    for row, parameters in zip(genes, SMALL.costs(genes)[1], strict=True):
        network = MobileNetV3.of(SMALL, SMALL.decode(row))
        assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize(
    "record",
    [
        {"ks": [3], "e": [3], "d": [1], "r": 16},
        {"ks": [3, 9], "e": [3, 3], "d": [1, 1], "r": 16},
        {"ks": [3, 3, 3], "e": [3, 3, 3], "d": [1, 1], "r": 16},
        {"ks": [3, 3], "e": [3, 3], "d": [1, 1], "r": 17},
        {"ks": [3, 3], "e": [3, 3], "d": [1, 1]},
        [1, 2],
    ],
)
def test_a_foreign_architecture_is_refused(record):
    with pytest.raises(UserError):
        SMALL.architecture(record)


def test_a_space_survives_json():
    assert ElasticSpace.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL


# -- networks --------------------------------------------------------------------------------------


def test_the_supernet_has_the_published_keys(supernet):
    assert shapes(supernet) == {key: shape for key, shape, _ in GOLDEN["supernet_state_dict"]}
    assert sum(p.numel() for p in supernet.parameters()) == GOLDEN["supernet_params"]


def test_the_newer_spelling_of_keys_is_read(supernet):
    newer = {
        key.replace(".mobile_inverted_conv.", ".conv."): value
        for key, value in supernet.state_dict().items()
    }
    assert from_published(newer).keys() == supernet.state_dict().keys()


@pytest.mark.parametrize(
    "case", GOLDEN["forward"], ids=lambda case: f"architecture {case['index']}"
)
def test_logits_are_the_published_ones_before_and_after_batch_norms_are_reset(supernet, case):
    entry = GOLDEN["configs"][case["index"]]["config"]
    architecture, size = supernet.space.architecture(entry), entry["r"]
    network = supernet.extract(architecture)
    with torch.no_grad():
        logits = supernet(images(1234, 2, size), architecture)
        assert (network(images(1234, 2, size)) - logits).norm() < 1e-4 * logits.norm()
        check(logits, case["eval"])
        if "after_bn_reset" not in case:
            return
        reset_norms(network, [(images(77 + j, 4, size), torch.zeros(4)) for j in range(2)], CPU)
        check(network(images(1234, 2, size)), case["after_bn_reset"])
    bn = network.first_conv.bn
    expected = case["bn_reset_first_conv_running_mean4"], case["bn_reset_first_conv_running_var4"]
    for found, values in zip((bn.running_mean, bn.running_var), expected, strict=True):
        torch.testing.assert_close(found[:4], torch.tensor(values), atol=1e-5, rtol=1e-4)


def check(logits: torch.Tensor, expected: dict) -> None:
    assert logits.argmax(dim=1).tolist() == expected["argmax"]
    scale = float(logits.abs().max())
    torch.testing.assert_close(
        logits[:, :8], torch.tensor(expected["first8"]), atol=1e-4 * scale, rtol=0
    )
    torch.testing.assert_close(logits.norm(dim=1).tolist(), expected["l2"], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "entry", GOLDEN["subnets"], ids=lambda entry: f"architecture {entry['config_index']}"
)
def test_net_config_is_written_as_published_and_read_in_both_spellings(entry):
    space = ElasticSpace()
    network = MobileNetV3.of(space, space.architecture(entry["config"]))
    assert shapes(network) == {key: shape for key, shape, _ in entry["state_dict"]}
    assert network.config() == entry["net_config_ofa004"]
    for spelling in ("net_config_ofa004", "net_config_ofa010"):
        assert shapes(MobileNetV3.from_config(entry[spelling])) == shapes(network)


def test_gradients_reach_the_kernel_matrices_of_smaller_kernels_only_when_used():
    supernet = ElasticSupernet(SMALL, rng()).train()
    architecture = SMALL.architecture({"ks": [3, 7], "e": [6, 3], "d": [1, 1], "r": 16})
    supernet(torch.randn(4, 3, 16, 16, generator=rng()), architecture).sum().backward()
    gradients = {
        name: p.grad for name, p in supernet.named_parameters() if name.endswith("_matrix")
    }
    used = {
        name.split(".")[1] + " " + name.split(".")[-1]
        for name, grad in gradients.items()
        if grad is not None
    }
    assert used == {"1 7to5_matrix", "1 5to3_matrix"}


def test_a_classifier_is_replaced_and_drop_path_grows_with_depth():
    architecture = ElasticArchitecture((3, 3, 3, 3), (3, 3, 3, 3), (2, 2), 16)
    network = MobileNetV3.of(SMALL, architecture, drop_path=0.5)
    network.reset_classifier(7, rng())
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    rates = [getattr(block.drop_path, "p", 0.0) for block in network.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.0, 0.4])  # the first of stage 2 has no residual
