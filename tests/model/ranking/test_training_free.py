"""Training-free terms, against formulas written out one by one and cases solved by eye."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from model.ranking.training_free import (
    TrainingFree,
    block_passes,
    draw_kaiming,
    entropy,
    trainability,
)
from model.spaces.contracts import SpaceKind
from model.spaces.nasbench201.space import CellSpace, from_string
from model.spaces.paths import Architecture
from model.spaces.registry import KINDS, spec_of
from tests.conftest import mixed_space, rng
from tests.support import BEST_CELL, SMALL_ELASTIC
from utils.errors import UserError
from utils.runtime import stream

SMALL_CELLS = CellSpace(channels=4, cells=2, image_size=8)
NOTHING = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
IDENTITY = "|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"


def specs():
    """A network of each kind."""
    rows = [[3, 5], [7, None, None, 3], [3], [7, 5, 3, 3]]
    space = mixed_space()
    rows = [row + (n - len(row)) * [None] for row, n in zip(rows, (3, 4, 1, 4), strict=True)]
    largest = SMALL_ELASTIC.decode(SMALL_ELASTIC.extremes()[1])
    return {
        "unified": spec_of(space, Architecture.of(rows)),
        "elastic": spec_of(SMALL_ELASTIC, largest),
        "nasbench201": spec_of(SMALL_CELLS, from_string(BEST_CELL)),
    }


def naive_entropy(features: np.ndarray) -> float:
    channels = [features[:, c].ravel() for c in range(features.shape[1])]
    covariance = np.cov(np.stack(channels), bias=True)
    values = np.linalg.eigvals(covariance).real
    shares = [value / values.sum() for value in values if value > 1e-12 * values.sum()]
    return -sum(share * math.log(share) for share in shares)


def naive_trainability(block, x: torch.Tensor, g_y: torch.Tensor) -> float:
    """The sum over images and pixels, and over the pixels of the input that belong to each."""
    x = x.detach().requires_grad_()
    (g_x,) = torch.autograd.grad((block(x) * g_y).sum(), x)
    shrink = x.shape[-1] // g_y.shape[-1]
    A = np.zeros((x.shape[1] * shrink**2, g_y.shape[1]))
    for image in range(len(x)):
        for row in range(g_y.shape[2]):
            for column in range(g_y.shape[3]):
                rows = slice(row * shrink, (row + 1) * shrink)
                columns = slice(column * shrink, (column + 1) * shrink)
                own = g_x[image, :, rows, columns].flatten().numpy()
                A += np.outer(own, g_y[image, :, row, column].numpy())
    s = np.linalg.svd(A / (len(x) * g_y.shape[2] * g_y.shape[3]), compute_uv=False)[0]
    return 2 - s - 1 / s


@pytest.mark.parametrize("kind", specs())
def test_entropies_are_those_of_the_formula(kind):
    spec = specs()[kind]
    network = spec.network({}, rng())
    draw_kaiming(network, stream(3, "training-free", "weights"))
    size = (4, 3, spec.image_size, spec.image_size)
    images = torch.randn(size, generator=stream(3, "training-free", "images"))
    passes = block_passes(network.train(), KINDS[kind].block_modules(network), images)
    entropies = [naive_entropy(y.detach().double().numpy()) for _, y in passes]
    found = TrainingFree(images=4, seed=3).score(spec)
    assert found["expressivity"] == pytest.approx(sum(entropies[1:]), rel=1e-4)
    assert found["progressivity"] == pytest.approx(min(np.diff(entropies)), abs=1e-3)


@pytest.mark.parametrize("kind", specs())
def test_the_parts_of_a_pass_are_those_of_the_network(kind):
    """Blocks cut apart compute what the network does; each one starts where the last one ended."""
    spec = specs()[kind]
    network = spec.network({}, rng()).eval()
    images = torch.randn(2, 3, spec.image_size, spec.image_size, generator=rng())
    expected = network(images)
    passes = block_passes(network, KINDS[kind].block_modules(network), images)
    assert all(torch.equal(x, y) for (_, y), (x, _) in itertools.pairwise(passes))
    assert torch.equal(network(images), expected), "the hooks are gone"


@pytest.mark.parametrize("stride", [1, 2])
def test_trainability_is_that_of_the_formula(stride):
    block = nn.Sequential(nn.Conv2d(3, 5, 3, stride, 1), nn.BatchNorm2d(5), nn.ReLU())
    draw_kaiming(block, rng(1))
    x = torch.randn(2, 3, 6, 6, generator=rng(2)).requires_grad_()
    y = block(x)
    g_y = torch.randint(2, y.shape, generator=rng(3), dtype=torch.int8) * 2.0 - 1
    expected = naive_trainability(block, x, g_y)
    assert trainability(x, y, rng(3)) == pytest.approx(expected, rel=1e-4)


# -- cases solved by eye -------------------------------------------------------------------------


def block_of(matrix: torch.Tensor, seed: int = 0) -> float:
    """The trainability of the map x -> matrix x of each pixel."""
    x = torch.randn(64, matrix.shape[1], 16, 16, generator=rng(seed)).requires_grad_()
    return trainability(x, torch.einsum("oc,bchw->bohw", matrix, x), rng(seed))


def test_an_orthogonal_map_has_trainability_0_and_others_less():
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=rng())).Q
    assert block_of(rotation) == pytest.approx(0, abs=2e-3)
    assert block_of(2 * torch.eye(6)) == pytest.approx(2 - 2 - 1 / 2, abs=4e-2)
    assert block_of(0.5 * rotation) == pytest.approx(2 - 1 / 2 - 2, abs=4e-2)


def test_a_block_without_a_gradient_has_the_least_trainability():
    x = torch.randn(2, 3, 4, 4, generator=rng()).requires_grad_()
    assert trainability(x, torch.zeros(2, 3, 4, 4), rng()) < -1e5
    assert trainability(x, 0 * x, rng()) < -1e5


def test_entropies_solved_by_eye():
    noise = torch.randn(64, 8, 32, 32, generator=rng())
    assert float(entropy(torch.full((2, 3, 4, 4), 7.0))) == 0
    assert float(entropy(noise)) == pytest.approx(math.log(8), abs=1e-3)
    assert float(entropy(noise[:, :1].expand(-1, 8, -1, -1))) == pytest.approx(0, abs=1e-6)
    two = torch.cat([noise[:, :2], torch.zeros(64, 6, 32, 32)], dim=1)
    assert float(entropy(two)) == pytest.approx(math.log(2), abs=1e-3)


def test_blocks_that_hand_on_their_input_are_left_out():
    """Of a network whose cells are identities, only the two reductions count."""
    spec = spec_of(SMALL_CELLS, from_string(IDENTITY))
    network = spec.network({}, rng())
    draw_kaiming(network, stream(0, "training-free", "weights"))
    modules = KINDS["nasbench201"].block_modules(network.train())
    assert len(modules) == 1 + 3 * 2 + 2
    images = torch.randn(4, 3, 8, 8, generator=stream(0, "training-free", "images"))
    passes = block_passes(network, modules, images)
    reductions = [passes[modules.index(module)] for module in network.reductions]
    signs = stream(0, "training-free", "gradients")
    expected = np.mean([trainability(x, y, signs) for x, y in reductions])
    found = TrainingFree(images=4).score(spec)
    assert found["trainability"] == pytest.approx(expected, rel=1e-4)
    assert found["progressivity"] > 0, "both reductions raise the entropy; an identity would not"


def test_a_cell_that_computes_nothing_is_the_worst_of_all_and_still_finite():
    nothing, best = (
        TrainingFree(images=4).score(spec_of(SMALL_CELLS, from_string(cell)))
        for cell in (NOTHING, BEST_CELL)
    )
    assert all(math.isfinite(value) and value < best[name] for name, value in nothing.items())


def test_a_seed_decides_all_and_only_terms_asked_for_are_given():
    spec = specs()["unified"]
    first = TrainingFree(images=4, seed=1).score(spec)
    torch.manual_seed(17)
    assert TrainingFree(images=4, seed=1).score(spec) == first
    assert TrainingFree(images=4, seed=2).score(spec) != first
    alone = TrainingFree(("trainability",), images=4, seed=1).score(spec)
    assert alone == {"trainability": first["trainability"]}


def test_kinds_count_their_blocks_and_name_their_networks():
    unified, elastic, cell = specs().values()
    assert (unified.blocks, elastic.blocks, cell.blocks) == (9, 4, 5)
    assert cell.name == BEST_CELL
    assert len(unified.name) == 8
    assert unified.name != replace(unified, architecture=unified.architecture.canonical()).name


def test_a_kind_that_does_not_say_its_blocks_refuses():
    with pytest.raises(UserError, match=r"toy: .*which modules are blocks"):
        Toy().block_modules(nn.Identity())


class Toy(SpaceKind):
    name = "toy"
