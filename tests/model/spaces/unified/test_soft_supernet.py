"""The soft supernet against the plain reference, published logits and the hard supernet."""

import pytest
import torch
from torch.nn import functional as F

from model.spaces.paths import Architecture
from model.spaces.unified.published import from_published
from model.spaces.unified.soft_supernet import SoftSupernet
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import filled_weights, golden, mixed_space, rng
from tests.support import close, images_of, pair

SOFT = [case for case in golden("sgnas_supernet.json")["cases"] if case["kind"] != "hard"]


@pytest.mark.parametrize("case", SOFT, ids=lambda case: case["kind"])
def test_published_logits(case, cifar_space):
    weights = filled_weights(golden("sgnas_supernet.json")["shapes"])
    supernet = UnifiedSupernet(cifar_space).eval()
    supernet.load_state_dict(from_published(cifar_space, weights), strict=False)
    path = torch.tensor(case["probabilities"])
    assert path[..., -1].sum(-1).round().tolist() == case["skips_rounded"]
    with torch.no_grad():
        logits = SoftSupernet(supernet)(images_of(cifar_space, 2), path)
    close(logits[:, :8], torch.tensor(case["logits_first8"]), 1e-3)
    assert float(logits.std()) == pytest.approx(case["logits_std"], rel=1e-3)


def test_mixtures_equal_the_reference_in_logits_and_path_gradients(small_space):
    ours, reference = (net.eval() for net in pair(small_space))
    soft = SoftSupernet(ours)
    images, labels = images_of(small_space, 4), torch.arange(4) % small_space.classes
    exists = small_space.mask.clone()
    exists[..., -1] = False  # skip contributes zero, whatever its probability
    for seed, temperature in ((0, 5.0), (1, 1.0), (2, 0.3)):
        logits = torch.randn(small_space.shape, generator=rng(seed))
        path = small_space.relax(logits, temperature, rng(seed))
        mine, theirs = path.clone().requires_grad_(), path.clone().requires_grad_()
        found, expected = soft(images, mine), reference(images, theirs)
        close(found, expected)
        F.cross_entropy(found, labels).backward()
        F.cross_entropy(expected, labels).backward()
        close(mine.grad * exists, theirs.grad * exists, 1e-3)
    assert all(p.grad is None for p in [*ours.parameters(), *soft.parameters()])


def test_soft_equals_hard_for_one_hot_paths(small_space):
    ours, images = pair(small_space)[0].eval(), images_of(small_space, 4)
    soft = SoftSupernet(ours)
    for path in small_space.sample(6, rng()):
        with torch.no_grad():
            close(soft(images, path), ours(images, path))
        close(soft(images, path.clone().requires_grad_()), ours(images, path))


def test_a_vanished_layer_is_the_identity_hard_soft_and_extracted():
    space = mixed_space()
    ours, images = pair(space)[0].eval(), images_of(space, 4)
    path = space.encode(Architecture.of([[3, None, 5], [None] * 4, [3], [3, 5, 7, 3]]))
    with torch.no_grad():
        close(SoftSupernet(ours)(images, path), ours(images, path))
        close(ours.extract(path).eval()(images), ours(images, path))


def test_it_is_made_of_a_supernet_in_evaluation_mode():
    with pytest.raises(AssertionError, match="evaluation mode"):
        SoftSupernet(UnifiedSupernet(mixed_space()).train())


def test_mixed_precision_differs_little_in_logits_and_gradients(small_space):
    supernet, images = pair(small_space)[0].eval(), images_of(small_space, 4)
    soft, hard = SoftSupernet(supernet), small_space.sample(1, rng())[0]
    logits = torch.randn(small_space.shape, generator=rng())
    results = []
    for amp in (False, True):
        path = small_space.relax(logits, 2.0).requires_grad_()
        supernet.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            found = [soft(images, path).float(), supernet(images, hard).float()]
        sum(part.square().mean() for part in found).backward()
        results.append([*found, path.grad, supernet.classifier.weight.grad.clone()])
    for half, full in zip(results[1], results[0], strict=True):
        close(half, full, 0.1)
