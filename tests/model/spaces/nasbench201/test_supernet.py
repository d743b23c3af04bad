"""The supernet of cells against a plain sum over edges."""

import copy

import pytest
import torch
from torch.nn import functional as F

from model.spaces.nasbench201.kind import KIND
from model.spaces.nasbench201.space import EDGES, CellSpace
from model.spaces.nasbench201.supernet import CellSupernet
from model.spaces.paths import Architecture, SoftPathSupernet
from tests.conftest import rng
from tests.support import CPU

SPACE = CellSpace()


@pytest.fixture(scope="module")
def supernet() -> CellSupernet:
    """With batch norms that are no identity."""
    net = CellSupernet(SPACE, rng(), cells=2, image_size=16).train()
    for path in SPACE.sample(6, rng(1)):
        net(torch.randn(16, 3, 16, 16, generator=rng(2)), path)
    return net.eval()


def images() -> torch.Tensor:
    return torch.randn(4, 3, 16, 16, generator=rng(3))


def plain_logits(net: CellSupernet, x: torch.Tensor, path: torch.Tensor) -> torch.Tensor:
    """Operation by operation, edge by edge, as the mixture is written down."""
    x = net.first(x)
    for index, stage in enumerate(net.stages):
        for cell in stage:
            nodes = [x, 0, 0, 0]
            for (to, source), edge, (share,) in zip(EDGES, cell.edges, path, strict=True):
                y, one, three = nodes[source], edge["nor_conv_1x1"], edge["nor_conv_3x3"]
                outputs = [
                    y,
                    F.avg_pool2d(y, 3, 1, 1, count_include_pad=False),
                    one.bn(F.conv2d(y.relu(), one.conv.weight)),
                    three.bn(F.conv2d(y.relu(), three.conv.weight, padding=1)),
                    torch.zeros_like(y),
                ]
                nodes[to] = nodes[to] + sum(p * out for p, out in zip(share, outputs, strict=True))
            x = nodes[3]
        if index < 2:
            x = net.reductions[index](x)
    return net.classifier(net.last_bn(x).relu().mean(dim=(2, 3)))


def test_the_supernet_computes_the_sum_over_edges(supernet):
    for path in [*SPACE.sample(4, rng(5)), *SPACE.extremes()]:
        torch.testing.assert_close(supernet(images(), path), plain_logits(supernet, images(), path))


def test_stand_alone_networks_inherit_what_the_supernet_computes(supernet):
    for path in [*SPACE.sample(4, rng(6)), *SPACE.extremes()]:
        network = supernet.extract(path)
        torch.testing.assert_close(network(images()), supernet(images(), path))
        edges = [name for name in network.state_dict() if "edges" in name]
        weights = [name for name in edges if name.endswith("conv.weight")]
        chosen = 3 * 2 * path[:, 0, 2:4].sum()
        assert len(weights) == chosen, "three stages of two cells, only what is chosen"


def test_a_step_of_cells_that_connect_nothing_is_a_step(supernet):
    empty = SPACE.encode(Architecture.of([[None]] * 6))[None]
    net, labels = copy.deepcopy(supernet).train(), torch.zeros(4, dtype=torch.long)
    for logits, targets in KIND.passes(net, empty, CPU, images(), labels):
        F.cross_entropy(logits, targets).backward()
    assert net.classifier.bias.grad is not None


# -- soft paths ----------------------------------------------------------------------------------


def test_soft_paths_are_mixtures_and_give_the_path_their_gradient(supernet):
    soft = SPACE.relax(torch.randn(SPACE.shape, generator=rng()), 1.0).requires_grad_()
    weights = torch.randn(4, 10, generator=rng(1))
    mixture = SoftPathSupernet(supernet)
    before = {name: value.clone() for name, value in mixture.named_buffers()}
    training = copy.deepcopy(supernet).train()  # batches are normalised by their own statistics
    results = []
    for net in (mixture, lambda x, p: plain_logits(training, x, p)):
        logits = net(images(), soft)
        results.append((logits, torch.autograd.grad((logits * weights).sum(), soft)[0]))
    (found, gradient), (expected, its_gradient) = results
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gradient, its_gradient, rtol=1e-3, atol=1e-4)
    running = [(name, b) for name, b in mixture.named_buffers() if "running" in name]
    assert all(value.equal(before[name]) for name, value in running)


def test_a_mixture_is_computed_alike_with_and_without_a_gradient(supernet):
    soft = SPACE.relax(torch.randn(SPACE.shape, generator=rng()), 1.0)
    mixture = SoftPathSupernet(supernet)
    plain = mixture(images(), soft)
    torch.testing.assert_close(mixture(images(), soft.requires_grad_()), plain)


def test_choices_without_a_share_get_their_gradient_too(supernet):
    hard = SPACE.sample(1, rng(2))[0]
    path, changed = (hard.clone().requires_grad_() for _ in range(2))
    SoftPathSupernet(supernet)(images(), path)[:, 0].sum().backward()
    plain_logits(copy.deepcopy(supernet).train(), images(), changed)[:, 0].sum().backward()
    torch.testing.assert_close(path.grad, changed.grad, rtol=1e-3, atol=1e-4)
    assert (path.grad[hard == 0] != 0).any()


def test_the_soft_supernet_gives_weights_no_gradient(supernet):
    soft = SPACE.relax(torch.zeros(SPACE.shape), 1.0).requires_grad_()
    mixture = SoftPathSupernet(supernet)
    mixture(images(), soft).sum().backward()
    assert soft.grad is not None
    assert all(p.grad is None for p in mixture.parameters())
