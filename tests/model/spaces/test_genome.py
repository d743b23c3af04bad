"""Genomes: what the evolutionary search sees of the spaces."""

import numpy as np
import pytest
import torch

from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.genome import ElasticGenome, UnifiedGenome
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import rng
from tests.model.nsganetv2.test_msunas import SPACE


@pytest.fixture
def unified(small_space) -> UnifiedGenome:
    return UnifiedGenome(UnifiedSupernet(small_space, rng()).eval())


def test_genes_of_the_unified_space_are_its_paths(unified):
    genes = unified.sample(20, np.random.default_rng(0))
    assert (genes <= unified.largest_genes).all()
    assert (unified.canonical(genes) == genes).all(), "samples are legal already"
    for row in genes:
        assert unified.genes(unified.record(row)) == row.tolist()


def test_unified_layers_with_too_few_sub_blocks_are_mended(unified):
    genes = unified.canonical(unified.largest_genes[None])
    active = unified.space.active(unified.paths(genes))[0]
    for n, spec in zip(active, unified.space.layers, strict=True):
        assert n >= spec.least_active(2) or (spec.may_vanish and n == 0)


def test_extremes_of_the_unified_space_cost_least_and_most(unified):
    costs = unified.costs(unified.canonical(unified.extremes()))[0]
    others = unified.costs(unified.sample(50, np.random.default_rng(1)))[0]
    assert costs[0] <= others.min() <= others.max() <= costs[1]


def computes_the_same(genome, row: np.ndarray, which) -> None:
    network, size = genome.network(row)
    images = torch.randn(2, 3, size, size, generator=rng())
    with torch.no_grad():
        expected = genome.supernet(images, which)
        torch.testing.assert_close(network.eval()(images), expected, atol=1e-4, rtol=1e-4)


def test_the_network_of_elastic_genes_computes_what_the_supernet_computes():
    genome = ElasticGenome(SPACE, ElasticSupernet(SPACE, rng()).eval())
    row = genome.sample(1, np.random.default_rng(3))[0]
    computes_the_same(genome, row, genome.space.decode(row))


def test_the_network_of_unified_genes_computes_what_the_supernet_computes():
    layers = (LayerSpec(4, 6, 2, 6, (3, 5, 7)), LayerSpec(6, 6, 1, 4, (3, 7)))
    genome = UnifiedGenome(UnifiedSupernet(UnifiedSpace(layers, 10, 5, 8, 1, 4, 12), rng()).eval())
    row = genome.sample(1, np.random.default_rng(3))[0]
    computes_the_same(genome, row, genome.paths(row[None])[0])
