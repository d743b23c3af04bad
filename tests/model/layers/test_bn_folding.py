"""Batch norms in evaluation mode as affine maps, and folded into a convolution."""

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model.layers.blocks import conv
from model.layers.bn_folding import affine, folded_conv
from model.spaces.unified.switchable_norm import SwitchableBatchNorm
from tests.conftest import rng


@torch.no_grad()
def lively(norm: nn.Module) -> nn.Module:
    for seed, part in enumerate((norm.weight, norm.bias, norm.running_mean)):
        part.normal_(generator=rng(seed))
    norm.running_var.uniform_(0.1, 3, generator=rng(3))
    return norm.eval()


def test_a_norm_is_an_affine_map():
    norm, x = lively(nn.BatchNorm2d(5)), torch.randn(2, 5, 3, 3, generator=rng(4))
    scale, shift = (part[:, None, None] for part in affine(norm))
    torch.testing.assert_close(x * scale + shift, norm(x))


def test_norms_of_any_shape_are_affine_maps():
    norm = lively(SwitchableBatchNorm(3, 5))
    for found, expected in zip(affine(norm), norm.affine(), strict=True):
        assert found.shape == (3, 5)
        assert found.equal(expected)


@pytest.mark.parametrize("layer", [conv(4, 6), conv(4, 6, 3), nn.Conv2d(4, 6, 1)])
def test_a_folded_convolution_has_the_bits_of_pytorch_s(layer):
    norm = lively(nn.BatchNorm2d(6))
    found, expected = folded_conv(layer, norm), fuse_conv_bn_eval(layer.eval(), norm)
    assert type(found) is type(layer)
    assert found.weight.equal(expected.weight)
    assert found.bias.equal(expected.bias)


@pytest.mark.parametrize("precision", [None, torch.float64])
def test_a_convolution_may_have_some_channels_of_a_norm(precision):
    layer, norm, x = conv(4, 2), lively(nn.BatchNorm2d(6)), torch.randn(2, 4, 3, 3)
    found = folded_conv(layer, norm, slice(2, 4), precision)
    assert found.weight.dtype == found.bias.dtype == torch.float32
    expected = norm(torch.cat([torch.zeros(2, 2, 3, 3), layer(x), torch.zeros(2, 2, 3, 3)], dim=1))
    torch.testing.assert_close(found(x), expected[:, 2:4])
