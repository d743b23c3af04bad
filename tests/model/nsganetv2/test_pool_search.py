"""Searches with few evaluations: toys whose good architectures are known."""

import numpy as np

from model.nsganetv2.nsga2_search import SELECTIONS, Objective, Record
from model.nsganetv2.pareto import non_dominated
from model.nsganetv2.pool_search import Pool, PoolSearch
from model.ranking.combined import FEWEST, sum_of_log_ranks
from tests.model.nsganetv2.problems import GENOME, draws


def pool(seed: int = 0) -> Pool:
    """Different architectures with two signals, of which one is the truth and the other noise."""
    rng = draws(seed)
    genes = np.unique(GENOME.sample(200, rng), axis=0)
    truth, noise = rng.normal(size=(2, len(genes)))
    return Pool(genes, {"truth": truth, "noise": noise})


def search_of(given: Pool) -> PoolSearch:
    parts = (GENOME, Objective("flops", GENOME), "ard", SELECTIONS["hypervolume"])
    return PoolSearch(*parts, open_pool=lambda: given)


def trained(search: PoolSearch, genes: np.ndarray) -> list[Record]:
    """The error of an architecture is 50 % less 10 for each unit of the first signal."""
    costs = search.objective(genes)
    rows = [search.pool.index[tuple(row)] for row in genes.tolist()]
    errors = 50 - 10 * search.pool.signals["truth"][rows]
    return [
        Record(tuple(row), float(error), float(cost))
        for row, error, cost in zip(genes.tolist(), errors, costs, strict=True)
    ]


def test_it_starts_with_the_front_by_equal_ranks_and_with_random_ones():
    search = search_of(pool())
    genes = search.doe(12, draws(1))
    assert len(np.unique(genes, axis=0)) == 12
    known = [search.pool.index[tuple(row)] for row in genes.tolist()]
    penalties = -sum_of_log_ranks(search.pool.signals)
    front = non_dominated(np.column_stack([penalties, search.objective(search.pool.genes)]))
    assert front[known[:4]].all()
    assert not front[known[6:]].any(), "a few of many"
    assert max(penalties[known[:6]]) < max(penalties[known[6:]])


def test_what_it_learns_from_trainings_decides_what_is_trained_next():
    search = search_of(pool())
    first = search.doe(12, draws(1))
    search.add(trained(search, first))
    proposal = search.propose(4, draws(2))
    assert len(np.unique(np.concatenate([first, proposal.genes]), axis=0)) == 16
    found = trained(search, proposal.genes)
    best, known = [min(record.error for record in r) for r in (found, search.archive)]
    assert best <= known + 5
    assert np.mean([record.error for record in found]) < 45, "random ones have 50"
    tau = search.calibration().tau
    assert tau["calibrated"] > max(0.6, tau["noise"])
    expected = [record.error for record in found]
    assert np.corrcoef(proposal.predicted, expected)[0, 1] > 0.9


def test_the_same_seed_proposes_the_same():
    proposals = []
    for _ in range(2):
        search = search_of(pool())
        search.add(trained(search, search.doe(8, draws(3))))
        proposals.append(search.propose(3, draws(4)))
    assert np.array_equal(proposals[0].genes, proposals[1].genes)


def test_a_pool_that_is_trained_out_or_too_few_trainings_propose_nothing():
    search = search_of(Pool(pool().genes[:6], {"truth": np.arange(6.0)}))
    search.add(trained(search, search.pool.genes[: FEWEST - 1]))
    assert len(search.propose(2, draws(0)).genes) == 0
    search.add(trained(search, search.pool.genes[FEWEST - 1 : 5]))
    assert np.array_equal(search.propose(2, draws(0)).genes, search.pool.genes[5:])
    search.add(trained(search, search.pool.genes[5:]))
    assert len(search.propose(2, draws(0)).genes) == 0


def test_an_archive_may_have_networks_that_the_pool_lacks():
    search = search_of(pool())
    search.add(trained(search, search.doe(8, draws(1))))
    foreign = next(
        r for r in GENOME.sample(500, draws(9)).tolist() if tuple(r) not in search.pool.index
    )
    search.add([Record(tuple(foreign), 30.0, 1.0)])
    assert len(search.propose(3, draws(0)).genes) == 3


def test_equal_errors_are_no_reason_to_stop():
    search = search_of(pool())
    genes = search.doe(8, draws(1))
    search.add([Record(tuple(row), 90.0, 1.0 + i) for i, row in enumerate(genes.tolist())])
    assert len(search.propose(3, draws(0)).genes) == 3
