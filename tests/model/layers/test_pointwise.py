"""The layers that are our own on CPUs, and folded norms, against PyTorch's plain ones."""

import pytest
import torch
from torch.nn import functional as F

from model.layers.pointwise import PointwiseConv, norm_relu6, pointwise_conv, relu6_products
from model.spaces.unified.supernet import UnifiedSupernet
from model.spaces.unified.switchable_norm import Pixels, SwitchableBatchNorm
from tests.conftest import rng


def random(*size, seed=0, layout=torch.channels_last):
    values = torch.randn(*size, generator=rng(seed))
    return (values.to(memory_format=layout) if len(size) == 4 else values).requires_grad_()


def agree(found, expected, inputs):
    """The same values and the same gradients for a random gradient of the result."""
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    gradient = torch.randn(expected.shape, generator=rng(9))
    pairs = zip(*(torch.autograd.grad(y, inputs, gradient) for y in (found, expected)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_pointwise_convolution_in_parts_is_a_convolution(layout):
    x, weight = random(3, 9, 4, 6, layout=layout), random(7, 9, seed=1)
    for maps in ([x], x.split([2, 4, 3], dim=1)):
        agree(pointwise_conv(maps, weight), F.conv2d(x, weight[..., None, None]), (x, weight))


def test_the_module_is_an_ordinary_convolution_with_or_without_a_bias():
    module, x = PointwiseConv(5, 7), random(3, 5, 4, 6)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert shapes == {"weight": (7, 5, 1, 1)}
    agree(module(x), F.conv2d(x, module.weight), (x, module.weight))
    module.bias = torch.nn.Parameter(torch.ones(7))
    torch.testing.assert_close(module(x), F.conv2d(x, module.weight, module.bias))


def test_relu6_of_products_has_the_gradients_of_its_parts():
    rows, weight = random(40, 5), random(7, 5, seed=1)
    found = torch.cat(relu6_products(3 * rows, weight, [2, 5]), dim=1)
    assert {0.0, 6.0} <= set(found.flatten().tolist()), "both ends are reached"
    agree(found, F.relu6(F.linear(3 * rows, weight)), (rows, weight))


def test_a_norm_with_relu6_moves_its_statistics_as_a_batch_norm():
    x, weight, bias = random(4, 6, 5, 5), random(6, seed=1), random(6, seed=2)
    ours, theirs = ([torch.zeros(6), torch.ones(6)] for _ in range(2))
    found = norm_relu6(x, *ours, weight, bias, True, 0.1, 1e-5)
    expected = F.relu6(F.batch_norm(x, *theirs, weight, bias, True, 0.1, 1e-5))
    agree(found, expected, (x, weight, bias))
    torch.testing.assert_close(ours, theirs)


def test_the_supernet_trains_under_autocast(small_space):
    supernet = UnifiedSupernet(small_space, rng()).train()
    images = torch.randn(4, 3, small_space.image_size, small_space.image_size, generator=rng())
    path = small_space.sample(1, rng())[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = supernet(images, path)
    half.float().square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in supernet.parameters())
    whole = UnifiedSupernet(small_space, rng()).train()(images, path)
    near = {"atol": 0.1 * float(whole.detach().abs().max()), "rtol": 0}
    torch.testing.assert_close(half.float(), whole, **near)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("offset", [0.0, 20.0])
def test_norms_folded_into_a_pointwise_convolution_are_norms_after_it(training, offset):
    x = random(4, 5, 6, 3)
    shifted = x + offset  # inputs far from zero: the variance must not be lost in the mean
    norm, index = SwitchableBatchNorm(4, 3).train(training), torch.tensor([3, 1])
    for part, seed in ((norm.weight, 1), (norm.bias, 2), (norm.running_mean, 3)):
        part.data.normal_(generator=rng(seed))
    parts = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, var, scale, bias = (part[index].flatten() for part in parts)
    weight = random(6, 5, seed=4)
    pixels = Pixels.of(shifted, centred=training)
    found = pixels.maps(F.linear(pixels.rows, norm.folded_into(weight, index, pixels)))
    before = F.conv2d(shifted, weight[..., None, None])
    expected = F.batch_norm(before, mean, var, scale, bias, training)
    agree(found, expected, (x, weight, norm.weight, norm.bias))
    torch.testing.assert_close(norm.running_mean[index].flatten(), mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norm.running_var[index].flatten(), var, atol=1e-5, rtol=1e-4)
    untouched = torch.tensor([0, 2])
    torch.testing.assert_close(norm.running_var[untouched], torch.ones(2, 3))
