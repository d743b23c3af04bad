"""The elastic supernet and its extracted networks against the published release's numbers."""

import zlib

import numpy as np
import pytest
import torch

from model.ranking.bn_recalibration import reset_norms
from model.spaces.elastic.kind import KIND
from model.spaces.elastic.space import ElasticSpace
from model.spaces.elastic.supernet import (
    ElasticSupernet,
    from_published,
    sandwich,
    sandwich_choices,
)
from tests.conftest import golden, rng
from tests.support import CPU, SMALL_ELASTIC, parameters, shapes

OFA = golden("ofa.json")


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
    supernet.load_state_dict(filled({key: shape for key, shape, _ in OFA["supernet_state_dict"]}))
    return supernet


def test_the_supernet_has_the_published_keys(supernet):
    assert shapes(supernet) == {key: shape for key, shape, _ in OFA["supernet_state_dict"]}
    assert parameters(supernet) == OFA["supernet_params"]


def test_the_newer_spelling_of_keys_is_read(supernet):
    state = supernet.state_dict()
    newer = {key.replace(".mobile_inverted_conv.", ".conv."): part for key, part in state.items()}
    assert newer.keys() != state.keys()
    assert from_published(newer).keys() == state.keys()


@pytest.mark.parametrize("case", OFA["forward"], ids=lambda case: f"architecture {case['index']}")
def test_logits_are_the_published_ones_before_and_after_batch_norms_are_reset(supernet, case):
    architecture = KIND.parse(OFA["configs"][case["index"]]["config"])
    network, size = supernet.extract(architecture), architecture.r
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
    first, scale = torch.tensor(expected["first8"]), float(logits.abs().max())
    torch.testing.assert_close(logits[:, :8], first, atol=1e-4 * scale, rtol=0)
    torch.testing.assert_close(logits.norm(dim=1).tolist(), expected["l2"], atol=1e-3, rtol=1e-4)


def test_gradients_reach_the_kernel_matrices_of_smaller_kernels_only_when_used():
    supernet = ElasticSupernet(SMALL_ELASTIC, rng()).train()
    architecture = KIND.parse({"ks": [3, 7], "e": [6, 3], "d": [1, 1], "r": 16})
    supernet(torch.randn(4, 3, 16, 16, generator=rng()), architecture).sum().backward()
    matrices = [(n, p) for n, p in supernet.named_parameters() if n.endswith("_matrix")]
    used = {name for name, matrix in matrices if matrix.grad is not None}
    kernels = "blocks.1.mobile_inverted_conv.depth_conv.conv"
    assert used == {f"{kernels}.7to5_matrix", f"{kernels}.5to3_matrix"}


def test_a_sandwich_is_the_largest_the_smallest_and_random_networks_at_one_resolution():
    """The largest learns the labels, the others its answers."""
    supernet, batch = ElasticSupernet(SMALL_ELASTIC, rng()).eval(), images(0, 4, 20)
    labels = torch.arange(4)
    choices = sandwich_choices(SMALL_ELASTIC, 4, rng(1))
    passes = list(sandwich(supernet, choices, CPU, batch, labels))
    assert len(passes) == 4
    (logits, targets), (smallest, taught) = passes[:2]
    assert targets is labels
    assert all(answers.equal(logits.detach().softmax(dim=1)) for _, answers in passes[1:])
    assert not taught.requires_grad
    both = []  # the smallest and the largest network at each resolution
    for resolution in range(len(SMALL_ELASTIC.resolutions)):
        rows = [np.array([*row[:-1], resolution]) for row in SMALL_ELASTIC.extremes()]
        both.append([KIND.forward(supernet, row)(batch) for row in rows])
    assert any(small.equal(smallest) and large.equal(logits) for small, large in both)
