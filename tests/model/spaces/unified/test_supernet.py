"""The fast supernet against the plain reference, the published logits and its own extracted
networks.
"""

import pytest
import torch
from torch.nn import functional as F

from model.spaces.paths import Architecture
from model.spaces.unified.published import from_published
from model.spaces.unified.soft_supernet import SoftSupernet
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import filled_weights, golden, mixed_space, rng
from tests.fill_weights import image
from tests.reference import ReferenceSupernet
from utils.errors import UserError


def pair(space):
    """Our supernet and the reference with the same filled weights."""
    reference = ReferenceSupernet(space)
    reference.load_state_dict(
        filled_weights({k: v.shape for k, v in reference.state_dict().items()})
    )
    ours = UnifiedSupernet(space)
    state = {
        k: v
        for k, v in from_published(space, reference.state_dict()).items()
        if "num_batches" not in k
    }
    missing = ours.load_state_dict(state, strict=False)
    assert all("num_batches_tracked" in key for key in missing.missing_keys)
    assert not missing.unexpected_keys
    return ours, reference


def close(ours, reference, tolerance=1e-4, scale=None):
    """The largest difference is under `tolerance` of the largest number, or of `scale`."""
    scale = float(reference.detach().abs().max()) if scale is None else scale
    assert float((ours - reference).detach().abs().max()) < tolerance * scale


@pytest.mark.parametrize(
    "case", golden("sgnas_supernet.json")["cases"], ids=lambda case: case["kind"]
)
def test_published_logits(case, cifar_space):
    weights = filled_weights(golden("sgnas_supernet.json")["shapes"])
    supernet = UnifiedSupernet(cifar_space).eval()
    supernet.load_state_dict(from_published(cifar_space, weights), strict=False)
    if case["kind"] == "hard":
        path = cifar_space.encode(Architecture.of(case["choices"]))
    else:
        path = torch.tensor(case["probabilities"])
        skips = path[..., -1].sum(-1).round().tolist()
        assert skips == case["skips_rounded"]
    with torch.no_grad():
        logits = supernet(torch.from_numpy(image(2, 32)), path)
    close(logits[:, :8], torch.tensor(case["logits_first8"]), 1e-3)
    assert float(logits.std()) == pytest.approx(case["logits_std"], rel=1e-3)


def test_the_supernet_drops_only_the_dense_skip_convolutions(cifar_space):
    ours, reference = UnifiedSupernet(cifar_space), ReferenceSupernet(cifar_space)
    count = {id(net): sum(p.numel() for p in net.parameters()) for net in (ours, reference)}
    skips = sum(6 * spec.in_channels**2 for spec in cifar_space.layers)
    assert count[id(reference)] - count[id(ours)] == skips


def test_the_imagenet_supernet_has_five_and_a_half_million_parameters(imagenet_space):
    assert sum(
        p.numel() for p in UnifiedSupernet(imagenet_space).parameters()
    ) / 1e6 == pytest.approx(5.50, abs=5e-3)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_hard_paths_equal_the_reference_in_logits_gradients_and_statistics(small_space, training):
    ours, reference = pair(small_space)
    ours.train(training), reference.train(training)
    images, labels = (
        torch.from_numpy(image(6, small_space.image_size)),
        torch.arange(6) % small_space.classes,
    )
    paths = [*small_space.sample(4, rng()), *small_space.sample_fair(4, rng(1))]
    for path in paths:
        logits, expected = ours(images, path), reference(images, path)
        close(logits, expected)
        F.cross_entropy(logits, labels).backward()
        F.cross_entropy(expected, labels).backward()
    gradients = {
        k: p.grad if p.grad is not None else torch.zeros_like(p)
        for k, p in reference.named_parameters()
    }
    statistics = dict(reference.named_buffers())
    expected = from_published(small_space, {**gradients, **statistics})
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, parameter in ours.named_parameters():
        gradient = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        close(gradient, expected[key], 1e-5, scale=largest)
    # the reference also moves the statistics of expand's inactive channels
    for key, buffer in ours.named_buffers():
        if "num_batches" not in key and "expand_bn" not in key:
            close(buffer, expected[key])


def test_soft_paths_equal_the_reference_in_logits_and_path_gradients(small_space):
    ours, reference = pair(small_space)
    ours.eval(), reference.eval()
    images, labels = (
        torch.from_numpy(image(4, small_space.image_size)),
        torch.arange(4) % small_space.classes,
    )
    for seed, temperature in ((0, 5.0), (1, 1.0), (2, 0.3)):
        logits = torch.randn(small_space.shape, generator=rng(seed))
        path = small_space.relax(logits, temperature, rng(seed))
        mine, theirs = path.clone().requires_grad_(), path.clone().requires_grad_()
        ours_out, reference_out = ours(images, mine), reference(images, theirs)
        close(ours_out, reference_out)
        F.cross_entropy(ours_out, labels).backward()
        F.cross_entropy(reference_out, labels).backward()
        exists = small_space.mask.clone()
        exists[..., -1] = False  # skip contributes zero, whatever its probability
        close(mine.grad * exists, theirs.grad * exists, 1e-3)
    assert all(p.grad is None for p in ours.parameters())


def test_hard_equals_soft_for_one_hot_probabilities(small_space):
    ours, _ = pair(small_space)
    ours.eval()
    images = torch.from_numpy(image(4, small_space.image_size))
    frozen = SoftSupernet(ours)
    for path in small_space.sample(6, rng()):
        with torch.no_grad():
            close(frozen(images, path), ours(images, path))
        close(ours(images, path.clone().requires_grad_()).detach(), ours(images, path).detach())


def test_a_vanished_layer_is_the_identity_hard_soft_and_extracted():
    space = mixed_space()
    ours, _ = pair(space)
    ours.eval()
    path = space.encode(Architecture.of([[3, None, 5], [None] * 4, [3], [3, 5, 7, 3]]))
    images = torch.from_numpy(image(4, space.image_size))
    with torch.no_grad():
        close(SoftSupernet(ours)(images, path), ours(images, path))
        close(ours.extract(path).eval()(images), ours(images, path))


def test_an_extracted_network_equals_its_path(small_space):
    ours, _ = pair(small_space)
    ours.eval()
    images = torch.from_numpy(image(4, small_space.image_size))
    for path in small_space.sample(8, rng()):
        network = ours.extract(path)
        assert not network.training
        with torch.no_grad():
            close(network(images), ours(images, path))


def test_extracting_expansion_one_is_refused_unless_it_need_not_be_exact(cifar_space):
    supernet = UnifiedSupernet(cifar_space).eval()
    path = cifar_space.encode(Architecture.of([[3] * 6] * 4 + [[3] + [None] * 5] + [[3] * 6] * 14))
    with pytest.raises(ValueError, match="layer 4 has 1 active sub-blocks"):
        supernet.extract(path)
    layer = supernet.extract(path, exact=False).stages[4]
    assert layer.point_wise is None
    assert layer.depthwise.blocks[0].weight.equal(supernet.stages[4].depthwise["3"][0])


def test_training_one_path_leaves_inactive_slices_without_gradient(cifar_space):
    supernet = UnifiedSupernet(cifar_space)
    path = cifar_space.encode(Architecture.of([[3, None, 5, None, None, 7]] * 19))
    before = supernet.stages[0].expand_bn.running_mean.clone()
    supernet(torch.randn(2, 3, 32, 32, generator=rng()), path).sum().backward()
    block = supernet.stages[0]
    inactive, active = [1, 3, 4], [0, 2, 5]
    assert not block.expand.grad[inactive].any()
    assert block.expand.grad[active].flatten(1).any(dim=1).all()
    assert block.expand_bn.running_mean[inactive].equal(before[inactive])
    assert not block.expand_bn.running_mean[active].equal(before[active])
    assert not block.project.grad[:, inactive].any()


def test_a_checkpoint_of_another_table_names_the_layer(cifar_space):
    weights = filled_weights(golden("sgnas_supernet.json")["shapes"])
    del weights["stages.7.sbn.2.weight"]
    with pytest.raises(UserError, match="layer 7 does not fit"):
        from_published(cifar_space, weights)


def test_aligned_choices_begin_as_nearly_the_same_function(cifar_space):
    def spread(alignment):
        """How much the logits of random paths of three sub-blocks differ, against how much those of
        images do.
        """
        supernet = UnifiedSupernet(cifar_space, rng(), alignment)
        images = torch.randn(8, 3, 32, 32, generator=rng())
        rows = [rng(seed) for seed in range(6)]
        paths = [cifar_space.sample(1, row)[0] for row in rows]
        with torch.no_grad():
            logits = torch.stack([supernet(images, path) for path in paths])
        return float(logits.std(dim=0).mean() / logits.mean(dim=0).std(dim=0).mean())

    assert spread(1.0) < 0.5 * spread(0.0)


def test_alignment_puts_small_kernels_into_large_ones():
    supernet = UnifiedSupernet(mixed_space(), rng(), alignment=1.0)
    block = supernet.stages[1]
    small, large = block.depthwise["3"], block.depthwise["7"]
    assert large[..., 2:5, 2:5].equal(small)
    assert large.abs().sum() == small.abs().sum()
    assert small.equal(small[:1].expand_as(small))
    assert block.project.equal(block.project[:, :1].expand_as(block.project))


def test_mixed_precision_differs_little_in_logits_and_gradients(small_space):
    supernet, _ = pair(small_space)
    frozen, images = (
        SoftSupernet(supernet.eval()),
        torch.from_numpy(image(4, small_space.image_size)),
    )
    hard = small_space.sample(1, rng())[0]
    results = []
    for amp in (False, True):
        path = small_space.relax(
            torch.randn(small_space.shape, generator=rng()), 2.0
        ).requires_grad_()
        supernet.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            logits, hard_logits = frozen(images, path), supernet(images, hard)
        (logits.float().square().mean() + hard_logits.float().square().mean()).backward()
        results.append(
            (
                logits.float(),
                path.grad,
                hard_logits.float(),
                supernet.classifier.weight.grad.clone(),
            )
        )
    for half, full in zip(results[1], results[0], strict=True):
        close(half, full, 0.1)
