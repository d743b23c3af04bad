"""Genomes: what the evolutionary search sees of the spaces."""

import numpy as np
import pytest
import torch

from model.costs.lookup_table import LookUpTable
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.nasbench201.space import CellSpace, from_string, to_string
from model.spaces.nasbench201.supernet import CellSupernet
from model.spaces.paths import PathGenome
from model.spaces.registry import KINDS
from model.spaces.unified.space import LayerSpec, UnifiedSpace
from model.spaces.unified.supernet import UnifiedSupernet
from tests.conftest import mixed_space, rng
from tests.support import SMALL_ELASTIC
from utils.errors import UserError

SPACES = {"unified": mixed_space(), "nasbench201": CellSpace(), "elastic": SMALL_ELASTIC}
LAYERS = (LayerSpec(4, 6, 2, 6, (3, 5, 7)), LayerSpec(6, 6, 1, 4, (3, 7)))
SUPERNETS = {
    "unified": lambda: UnifiedSupernet(UnifiedSpace(LAYERS, 10, 5, 8, 1, 4, 12), rng()),
    "nasbench201": lambda: CellSupernet(CellSpace(channels=4), rng(), image_size=8),
    "elastic": lambda: ElasticSupernet(SMALL_ELASTIC, rng()),
}


@pytest.fixture(params=SPACES)
def genome(request):
    return KINDS[request.param].genome(SPACES[request.param])


@pytest.fixture
def unified(small_space) -> PathGenome:
    return KINDS["unified"].genome(small_space)


def some(genome, count: int = 20, seed: int = 0) -> np.ndarray:
    return genome.sample(count, np.random.default_rng(seed))


def test_samples_are_canonical_and_within_their_bounds(genome):
    genes = some(genome)
    assert (genes >= 0).all()
    assert (genes <= genome.largest_genes).all()
    assert (genome.canonical(genes) == genes).all()
    assert genome.expressed(genes).shape == genes.shape


def test_an_architecture_is_written_and_read_back(genome):
    for row in some(genome):
        record = genome.to_json(row)
        assert genome.from_json(record) == row.tolist()
        assert genome.spec(row).to_json() == record
    with pytest.raises(UserError, match="architecture"):
        genome.from_json([["nothing"]])


def test_costs_are_those_of_the_specs_and_of_another_table(genome):
    genes = some(genome, 5)
    macs, parameters = genome.costs(genes)
    assert macs == pytest.approx([genome.spec(row).macs_m for row in genes])
    weights = [sum(p.numel() for p in genome.spec(row).network({}).parameters()) for row in genes]
    assert parameters * 1e6 == pytest.approx(weights)
    kind = KINDS[genome.space.kind]
    table = genome.table if isinstance(genome, PathGenome) else kind.table(genome.space, None)
    assert genome.cost_by(table, genes) == pytest.approx(macs)


def test_extremes_cost_least_and_most(genome):
    costs = genome.costs(genome.canonical(genome.extremes()))[0]
    others = genome.costs(some(genome, 50, seed=1))[0]
    assert costs[0] <= others.min() <= others.max() <= costs[1]


@pytest.mark.parametrize("kind", SUPERNETS)
def test_the_extracted_network_computes_what_the_supernet_computes(kind):
    supernet, kind = SUPERNETS[kind]().eval(), KINDS[kind]
    genome = kind.genome(supernet.space)
    row = some(genome, 1, seed=3)[0]
    choice, size = genome.choice(row), genome.spec(row).image_size
    images = torch.randn(2, 3, size, size, generator=rng())
    with torch.no_grad():
        found = kind.extract(supernet, choice).eval()(images)
        expected = kind.forward(supernet, choice)(images)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# -- paths ---------------------------------------------------------------------------------------


def test_genes_of_a_unified_space_are_its_paths(unified):
    genes = some(unified)
    paths = unified.paths(genes)
    assert not paths[:, ~unified.space.allowed].any()
    assert (unified.of_paths(paths) == genes).all()
    assert all(unified.choice(row).equal(path) for row, path in zip(genes, paths, strict=True))


def test_unified_layers_with_too_few_sub_blocks_are_mended(unified):
    genes = unified.canonical(unified.largest_genes[None])
    active = unified.space.active(unified.paths(genes))[0]
    for n, spec in zip(active, unified.space.layers, strict=True):
        assert n >= spec.least_active(2) or (spec.may_vanish and n == 0)


def test_genes_of_cells_are_the_numbers_of_their_operations():
    space = CellSpace()
    genome = KINDS["nasbench201"].genome(space)
    genes = some(genome)
    paths = space.of_index(torch.from_numpy(genes)[..., None])
    assert genome.paths(genes).equal(paths)
    np.testing.assert_allclose(genome.costs(genes)[0], LookUpTable(space)(paths).numpy())
    for row, path in zip(genes, paths, strict=True):
        cell = to_string(space.decode(path))
        assert genome.to_json(row) == cell
        rows = [list(choices) for choices in from_string(cell).choices]
        for older in ({"cell": cell}, rows, {"choices": rows}):
            assert genome.from_json(older) == row.tolist()
    with pytest.raises(UserError, match="architecture"):
        genome.from_json({"cell": "|none~0|"})


def test_older_records_of_unified_architectures_are_read(unified):
    row = some(unified, 1)[0]
    assert unified.from_json({"choices": unified.to_json(row)}) == row.tolist()
