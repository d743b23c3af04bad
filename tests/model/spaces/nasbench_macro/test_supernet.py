"""The supernet of blocks against plain convolutions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.spaces.nasbench_macro.kind import KIND
from model.spaces.nasbench_macro.supernet import BlockSupernet
from model.spaces.paths import SoftPathSupernet
from tests.conftest import rng
from tests.model.spaces.nasbench_macro.spaces import SMALL
from tests.support import CPU


@pytest.fixture(scope="module")
def supernet() -> BlockSupernet:
    """With batch norms that are no identity."""
    net = BlockSupernet(SMALL, rng(), width=2.0).train()
    for path in SMALL.sample(6, rng(1)):
        net(torch.randn(16, 3, 9, 9, generator=rng(2)), path)
    return net.eval()


def images() -> torch.Tensor:
    return torch.randn(4, 3, 9, 9, generator=rng(3))


def plain_logits(net: BlockSupernet, x: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """Layer by layer, as the space is written down."""
    x = net.first[1](F.conv2d(x, net.first[0].weight, padding=1)).relu()
    for layer, module, (row,) in zip(SMALL.layers, net.layers, path, strict=True):
        choice = int(row.argmax())
        if choice == len(SMALL.blocks):
            if layer.is_first:
                short = module.identity
                x = short.bn(F.conv2d(x, short.conv.weight, stride=layer.stride))
            continue
        expansion, kernel = SMALL.blocks[choice]
        block = module.blocks[f"e{expansion}k{kernel}"]
        y = block.expand_bn(F.conv2d(x, block.expand.weight)).relu()
        weight = block.depthwise.weight
        assert weight.shape == (expansion * x.shape[1], 1, kernel, kernel)
        y = F.conv2d(y, weight, stride=layer.stride, padding=kernel // 2, groups=len(weight))
        y = block.project_bn(F.conv2d(block.depthwise_bn(y).relu(), block.project.weight))
        x = x + y if not layer.is_first else y
    x = net.head_bn(F.conv2d(x, net.head.weight)).relu()
    return net.classifier(x.mean(dim=(2, 3)))


def test_the_supernet_computes_what_the_space_says(supernet):
    for path in SMALL.all()[::5]:
        torch.testing.assert_close(supernet(images(), path), plain_logits(supernet, images(), path))


def test_stand_alone_networks_inherit_what_the_supernet_computes(supernet):
    for path in SMALL.all()[::7]:
        network = supernet.extract(path)
        torch.testing.assert_close(network(images()), supernet(images(), path))
        blocks = sum(len(layer.blocks) for layer in network.layers)
        assert blocks == int(SMALL.active(path).sum()), "it has no weights that it does not use"


def test_soft_paths_are_mixtures_and_give_the_path_their_gradient(supernet):
    soft, hard = SoftPathSupernet(supernet), SMALL.sample(1, rng(4))[0]
    torch.testing.assert_close(soft(images(), hard), soft.supernet(images(), hard))
    path = SMALL.relax(torch.randn(SMALL.shape, generator=rng(5)), 1.0).requires_grad_()
    soft(images(), path).square().sum().backward()
    assert (path.grad != 0).all()


def test_without_scales_and_shifts_batch_norms_learn_nothing():
    net = BlockSupernet(SMALL, rng(), affine=False).train()
    for loss, labels in KIND.passes(
        net, SMALL.sample(2, rng()), CPU, images(), torch.zeros(4, dtype=torch.long)
    ):
        F.cross_entropy(loss, labels).backward()
    for norm in (module for module in net.modules() if isinstance(module, nn.BatchNorm2d)):
        assert norm.weight.grad is None
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()
    assert net.head.weight.grad is not None
    path = SMALL.sample(1, rng())[0]
    assert all(part.requires_grad for part in net.extract(path).parameters())
