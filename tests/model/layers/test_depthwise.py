"""Our weight gradients of depthwise convolutions against PyTorch's own."""

import pytest
import torch
from torch.nn import functional as F

from model.layers.depthwise import (
    DepthwiseConv,
    depthwise_conv,
    gradient_by_products,
    gradient_by_windows,
)
from tests.conftest import rng


def case(size, k, stride, channels=6, batch=3, dtype=torch.float64):
    x = torch.randn(batch, channels, *size, generator=rng()).to(dtype).requires_grad_()
    weight = torch.randn(channels, 1, k, k, generator=rng(1)).to(dtype).requires_grad_()
    out = F.conv2d(x, weight, None, stride, k // 2, 1, channels)
    return x, weight, out, torch.randn(out.shape, generator=rng(2)).to(dtype)


MAPS = [((4, 4), 1), ((8, 8), 2), ((5, 3), 2), ((1, 1), 1), ((2, 7), 1)]  # sizes and strides


@pytest.mark.parametrize("k", [3, 5, 7, 9])
@pytest.mark.parametrize(("size", "stride"), MAPS)
def test_products_of_all_pairs_give_the_gradient(size, stride, k):
    x, weight, out, gradient = case(size, k, stride)
    expected = torch.autograd.grad(out, weight, gradient)[0]
    found = gradient_by_products(gradient, x.detach(), weight.detach(), stride)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("k", [3, 5, 7, 9])
@pytest.mark.parametrize("size", [(8, 8), (11, 32), (3, 9), (6, 2)])
def test_windows_give_the_gradient(size, k):
    x, weight, out, gradient = case(size, k, 1)
    expected = torch.autograd.grad(out, weight, gradient)[0]
    torch.testing.assert_close(gradient_by_windows(gradient, x.detach(), weight.detach()), expected)


OURS = [((4, 4), 1, 5), ((4, 4), 2, 7), ((3, 5), 2, 5), ((12, 9), 1, 7), ((8, 8), 1, 15)]
PYTORCH = [((12, 12), 2, 5), ((12, 12), 1, 3), ((8, 8), 1, 17)]
CASES = [*((*case, True) for case in OURS), *((*case, False) for case in PYTORCH)]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("size", "stride", "k", "ours"), CASES)
def test_both_gradients_of_the_convolution_are_those_of_pytorch(size, stride, k, ours, layout):
    x, weight, out, gradient = case(size, k, stride, dtype=torch.float32)
    expected = torch.autograd.grad(out, (x, weight), gradient)
    found = depthwise_conv(x.to(memory_format=layout), weight, stride)
    assert ("_DepthwiseConv" in type(found.grad_fn).__name__) == ours
    torch.testing.assert_close(found, out, atol=1e-5, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(found, (x, weight), gradient), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_module_is_an_ordinary_convolution_with_or_without_a_bias():
    module, x = DepthwiseConv(6, 5, 2), torch.randn(2, 6, 4, 4, generator=rng())
    assert list(module.state_dict()) == ["weight"]
    torch.testing.assert_close(module(x), F.conv2d(x, module.weight, None, 2, 2, 1, 6))
    module.bias = torch.nn.Parameter(torch.ones(6))
    torch.testing.assert_close(module(x), F.conv2d(x, module.weight, module.bias, 2, 2, 1, 6))
