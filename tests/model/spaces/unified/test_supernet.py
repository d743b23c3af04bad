"""The fast supernet against the plain reference, published logits and extracted networks."""

import pytest
import torch
from torch.nn import functional as F

from model.spaces.paths import Architecture
from model.spaces.unified.published import from_published
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import filled_weights, golden, mixed_space, rng
from tests.reference import ReferenceSupernet
from tests.support import close, images_of, pair, parameters
from utils.errors import UserError

HARD = [case for case in golden("sgnas_supernet.json")["cases"] if case["kind"] == "hard"]


@pytest.mark.parametrize("case", HARD)
def test_published_logits(case, cifar_space):
    weights = filled_weights(golden("sgnas_supernet.json")["shapes"])
    supernet = UnifiedSupernet(cifar_space).eval()
    supernet.load_state_dict(from_published(cifar_space, weights), strict=False)
    path = cifar_space.encode(Architecture.of(case["choices"]))
    with torch.no_grad():
        logits = supernet(images_of(cifar_space, 2), path)
    close(logits[:, :8], torch.tensor(case["logits_first8"]), 1e-3)
    assert float(logits.std()) == pytest.approx(case["logits_std"], rel=1e-3)


def test_a_published_checkpoint_of_another_config_names_the_layer(cifar_space):
    weights = filled_weights(golden("sgnas_supernet.json")["shapes"])
    del weights["stages.7.sbn.2.weight"]
    with pytest.raises(UserError, match="layer 7 does not fit"):
        from_published(cifar_space, weights)


def test_the_supernet_drops_only_the_dense_skip_convolutions(cifar_space):
    skips = sum(6 * spec.in_channels**2 for spec in cifar_space.layers)
    ours, reference = UnifiedSupernet(cifar_space), ReferenceSupernet(cifar_space)
    assert parameters(reference) - parameters(ours) == skips


def test_the_imagenet_supernet_has_five_and_a_half_million_parameters(imagenet_space):
    found = parameters(UnifiedSupernet(imagenet_space)) / 1e6
    assert found == pytest.approx(5.50, abs=5e-3)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_hard_paths_equal_the_reference_in_logits_gradients_and_statistics(small_space, training):
    ours, reference = pair(small_space)
    ours.train(training), reference.train(training)
    images, labels = images_of(small_space, 6), torch.arange(6) % small_space.classes
    for path in [*small_space.sample(4, rng()), *small_space.sample_fair(4, rng(1))]:
        logits, expected = ours(images, path), reference(images, path)
        close(logits, expected)
        F.cross_entropy(logits, labels).backward()
        F.cross_entropy(expected, labels).backward()
    gradients = {name: _gradient(p) for name, p in reference.named_parameters()}
    expected = from_published(small_space, {**gradients, **dict(reference.named_buffers())})
    largest = max(float(gradient.abs().max()) for gradient in gradients.values())
    for key, parameter in ours.named_parameters():
        close(_gradient(parameter), expected[key], 1e-5, scale=largest)
    # the reference also moves the statistics of expand's inactive channels
    for key, buffer in ours.named_buffers():
        if "num_batches" not in key and "expand_bn" not in key:
            close(buffer, expected[key])


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def test_training_one_path_leaves_inactive_slices_without_gradient(cifar_space):
    supernet = UnifiedSupernet(cifar_space)
    path = cifar_space.encode(Architecture.of([[3, None, 5, None, None, 7]] * 19))
    block = supernet.stages[0]
    before = block.expand_bn.running_mean.clone()
    supernet(torch.randn(2, 3, 32, 32, generator=rng()), path).sum().backward()
    inactive, active = [1, 3, 4], [0, 2, 5]
    assert not block.expand.grad[inactive].any()
    assert block.expand.grad[active].flatten(1).any(dim=1).all()
    assert block.expand_bn.running_mean[inactive].equal(before[inactive])
    assert not block.expand_bn.running_mean[active].equal(before[active])
    assert not block.project.grad[:, inactive].any()


# -- extracted networks --------------------------------------------------------------------------


def test_an_extracted_network_equals_its_path(small_space):
    ours, images = pair(small_space)[0].eval(), images_of(small_space, 4)
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


# -- alignment -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_aligned_choices_begin_as_nearly_the_same_function(cifar_space):
    def spread(alignment: float) -> float:
        """How much the logits of random paths differ, compared with those of images."""
        supernet = UnifiedSupernet(cifar_space, rng(), alignment)
        images = torch.randn(8, 3, 32, 32, generator=rng())
        paths = [cifar_space.sample(1, rng(seed))[0] for seed in range(6)]
        with torch.no_grad():
            logits = torch.stack([supernet(images, path) for path in paths])
        return float(logits.std(dim=0).mean() / logits.mean(dim=0).std(dim=0).mean())

    assert spread(1.0) < 0.5 * spread(0.0)


def test_alignment_puts_small_kernels_into_large_ones():
    block = UnifiedSupernet(mixed_space(), rng(), alignment=1.0).stages[1]
    small, large = block.depthwise["3"], block.depthwise["7"]
    assert large[..., 2:5, 2:5].equal(small)
    assert large.abs().sum() == small.abs().sum()
    assert small.equal(small[:1].expand_as(small))
    assert block.project.equal(block.project[:, :1].expand_as(block.project))
