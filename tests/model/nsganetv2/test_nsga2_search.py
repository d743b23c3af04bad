"""The evolutionary search on toys: what it starts with, what it proposes, and when it ends."""

import numpy as np
import pytest
import torch

from model.nsganetv2.nsga2_search import SELECTIONS, Record
from model.nsganetv2.surrogate import SURROGATES
from model.spaces.elastic.kind import ElasticGenome
from model.spaces.elastic.space import ElasticSpace
from tests.model.nsganetv2.problems import (
    GENOME,
    TINY,
    draws,
    searched,
    toy_records,
    toy_search,
)


def test_the_design_of_experiments_has_both_extremes_and_no_doubles():
    found = searched(0).arrays()[0].tolist()
    assert all(extreme in found for extreme in GENOME.extremes().tolist())
    assert len({tuple(row) for row in found}) == 12


def test_proposals_are_new_canonical_and_as_many_as_asked_for():
    X = searched(5).arrays()[0]
    assert len({tuple(row) for row in X.tolist()}) == len(X) == 12 + 5 * 4
    assert (GENOME.canonical(X) == X).all()


@pytest.mark.slow
def test_a_search_beats_as_many_random_architectures_on_a_toy():
    reference, random = (60.0, 5.0), []
    ours = np.mean([searched(8, seed).hypervolume(reference) for seed in range(3)])
    for seed in range(3):
        search = toy_search("published", "rbf")
        search.add(toy_records(search, search.doe(12 + 8 * 4, draws(seed))))
        random.append(search.hypervolume(reference))
    assert ours > np.mean(random)


def test_the_same_seed_searches_the_same_and_leaves_global_streams_alone():
    state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (searched(2, seed=5).archive for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002


def test_the_quality_of_a_surrogate_is_that_of_predictions_made_beforehand():
    search = searched(3)
    assert len(search.predictions) == 3 * 4
    assert search.surrogate_quality().tau > 0.5, "a sum of genes is easily learned"


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("predictor", ["ard", "rbf", "gp", "carts"])
def test_a_space_that_is_searched_out_ends_the_proposals(predictor, selection):
    space = ElasticSpace(**TINY, head=(16, 16), depths=(1,), kernels=(3,), resolutions=(8, 12))
    search = toy_search(selection, predictor, ElasticGenome(space))
    genes = search.doe(10, draws(0))
    assert len(genes) == 4
    search.add([Record(tuple(row), float(i), float(i)) for i, row in enumerate(genes.tolist())])
    assert len(search.propose(3, draws(0)).genes) == 0


def test_an_architecture_that_failed_is_not_proposed_again():
    search = searched(1)
    search.failed |= set(map(tuple, search.propose(4, draws(7)).genes.tolist()))
    again = search.propose(4, draws(7))
    assert not search.failed & set(map(tuple, again.genes.tolist()))


def test_a_search_that_starts_with_cheap_architectures_finds_expensive_ones():
    """What costs more than all that was evaluated must not count as beyond the reference point."""
    search = toy_search()
    genes = search.doe(60, draws(0))
    costs = search.objective(genes)
    cheap = costs.argsort()[:12]
    search.add(toy_records(search, genes[cheap]))
    found = search.propose(4, draws(1)).genes
    assert search.objective(found).max() > 1.01 * costs[cheap].max()


@pytest.mark.slow
@pytest.mark.parametrize("selection", SELECTIONS)
def test_both_selections_work_with_any_surrogate(selection):
    for predictor in SURROGATES:
        assert len(searched(1, selection=selection, predictor=predictor).archive) == 12 + 4


def test_a_search_for_hypervolume_starts_with_architectures_of_all_costs():
    genome = ElasticGenome(ElasticSpace())
    does = (toy_search(name, genome=genome).doe(100, draws(0)) for name in SELECTIONS)
    spread, uniform = (genome.costs(genes)[0] for genes in does)
    ends = spread.min(), spread.max()
    tenths = [np.histogram(costs, 10, ends)[0] for costs in (spread, uniform)]
    assert (tenths[0] >= 2).all()
    assert (tenths[1] == 0).any(), "with uniform genes, costs crowd in the middle"
