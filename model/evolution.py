"""Surrogate-assisted bi-objective search: which architectures are worth evaluating next.

`Search` holds the archive of what was evaluated and proposes candidates: a surrogate learns top-1 error from genes,
NSGA-II minimises its prediction and the exact cost, and of what it finds those are taken that fill the gaps of the
front. Axes: N architectures, G genes. Source: Lu et al., "NSGANetV2", ECCV 2020, algorithm 1.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem
from pymoo.core.repair import Repair
from pymoo.operators.crossover.pntx import TwoPointCrossover
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.optimize import minimize

from model.elastic_space import Genes
from model.genome import Genome
from utils.pareto import hypervolume, non_dominated, spread_subset
from utils.surrogate import Quality, make_surrogate, quality

POPULATION, GENERATIONS = 40, 20  # of the inner NSGA-II, as published


@dataclass(frozen=True)
class Record:
    """One evaluated architecture: canonical genes `[G]`, top-1 error in %, cost."""

    genes: tuple[int, ...]
    error: float
    cost: float


@dataclass(frozen=True)
class Proposal:
    """Candidates `genes [K, G]` with the errors predicted for them, and the model that predicted."""

    genes: Genes
    predicted: NDArray
    winner: str


@dataclass
class Search:
    """The archive, and what the surrogates said before each evaluation."""

    genome: Genome
    objective: "Objective"
    predictor: str
    archive: list[Record] = field(default_factory=list)
    foretold: list[tuple[float, float]] = field(default_factory=list)  # (predicted, evaluated) error
    failed: set[tuple[int, ...]] = field(default_factory=set)  # genes of what could not be evaluated

    def doe(self, count: int, rng: np.random.Generator, extremes: bool = True) -> Genes:
        """`count` different architectures to begin with, `[count, G]`; both extremes among them when asked for."""
        first = self.genome.canonical(self.genome.extremes()) if extremes else self.genome.sample(count, rng)
        return self._filled_up(first[:count], count, rng)

    def propose(self, count: int, rng: np.random.Generator) -> Proposal:
        """`count` architectures that are not in the archive: one iteration of the search."""
        X, errors, costs = self.arrays()
        surrogate = make_surrogate(self.predictor, int(rng.integers(2**31)))
        surrogate.fit(X.astype(np.float64), errors)
        front = non_dominated(np.column_stack([errors, costs]))
        problem = _Candidates(self.genome, self.objective, surrogate)
        found = self._new(_evolve(problem, X[front], rng))
        chosen = found[spread_subset(self.objective(found), costs[front], count, rng)]
        chosen = self._filled_up(chosen, count, rng)
        predicted = surrogate.predict(chosen.astype(np.float64)) if len(chosen) else np.empty(0)
        return Proposal(chosen, predicted, getattr(surrogate, "winner", surrogate.name))

    def add(self, records: list[Record], predicted: list[float] | None = None) -> None:
        self.archive += records
        if predicted is not None:
            self.foretold += [(float(p), record.error) for p, record in zip(predicted, records, strict=True)]

    def arrays(self) -> tuple[Genes, NDArray, NDArray]:
        """Genes `[N, G]`, errors `[N]` and costs `[N]` of the archive."""
        X = np.array([record.genes for record in self.archive])
        return X, *(np.array([getattr(record, name) for record in self.archive]) for name in ("error", "cost"))

    def worst(self) -> tuple[float, float]:
        """The greatest error and the greatest cost of the archive: the reference point, when only the DOE is in it."""
        _, errors, costs = self.arrays()
        return float(errors.max()), float(costs.max())

    def hypervolume(self, reference: tuple[float, float]) -> float:
        """Normalised, up to 1.01 times the reference point (error, cost), as published."""
        _, errors, costs = self.arrays()
        return hypervolume(np.column_stack([errors, costs]), 1.01 * np.array(reference))

    def surrogate_quality(self) -> Quality:
        """Of all predictions so far, each made before its architecture was evaluated."""
        predicted, evaluated = np.array(self.foretold).T if self.foretold else np.empty((2, 0))
        return quality(predicted, evaluated)

    def _new(self, genes: Genes) -> Genes:
        """The different rows of canonical `genes` that are neither in the archive nor failed."""
        known = {record.genes for record in self.archive} | self.failed
        rows = dict.fromkeys(map(tuple, genes.tolist()))
        new = [row for row in rows if row not in known]
        return np.array(new, dtype=np.int64).reshape(len(new), genes.shape[1])

    def _filled_up(self, genes: Genes, count: int, rng: np.random.Generator) -> Genes:
        """`genes` and random ones, `count` together; fewer only when the space has no more."""
        genes = self._new(genes)
        for _ in range(100):
            if len(genes) >= count:
                break
            genes = self._new(np.concatenate([genes, self.genome.canonical(self.genome.sample(count, rng))]))
        return genes[:count]


class Objective:
    """The cost that the search minimises beside the error: `flops`, `params` (both in millions), or a latency table."""

    def __init__(self, name: str, genome: Genome, latency=None):
        self.name, self.genome, self.latency = name, genome, latency

    def __call__(self, genes: Genes) -> NDArray:
        """Costs `[N]` of genes `[N, G]`."""
        if self.latency is not None:
            return self.latency(genes)
        if len(genes) == 0:
            return np.empty(0)
        macs, parameters = self.genome.costs(genes)
        return parameters if self.name == "params" else macs


class _Canonical(Repair):
    """Offspring as canonical genes, so that equal networks count as duplicates."""

    def _do(self, problem, X, **kwargs):
        return problem.genome.canonical(np.asarray(X, dtype=np.int64))


class _Candidates(Problem):
    """Genes to (predicted error, cost), for all rows at once."""

    def __init__(self, genome: Genome, objective: Objective, surrogate):
        super().__init__(n_var=len(genome.largest_genes), n_obj=2, xl=0, xu=genome.largest_genes, vtype=int)
        self.genome, self.objective, self.surrogate = genome, objective, surrogate

    def _evaluate(self, x, out, *args, **kwargs):
        genes = np.asarray(x, dtype=np.int64)
        errors = self.surrogate.predict(genes.astype(np.float64))
        out["F"] = np.column_stack([errors, self.objective(genes)])


def _evolve(problem: Problem, first: Genes, rng: np.random.Generator) -> Genes:
    """The last population `[P, G]` of NSGA-II that begins with the rows `first`."""
    variables = problem.n_var
    algorithm = NSGA2(
        pop_size=POPULATION,
        sampling=first,
        crossover=TwoPointCrossover(prob=0.9),
        mutation=PM(prob=1.0, prob_var=1 / variables, eta=1.0, vtype=float, repair=RoundingRepair()),
        repair=_Canonical(),
        eliminate_duplicates=True,
    )
    result = minimize(problem, algorithm, ("n_gen", GENERATIONS), seed=int(rng.integers(2**31)))
    return np.asarray(result.pop.get("X"), dtype=np.int64)
