"""Surrogate-assisted bi-objective search: which architectures to evaluate next.

`Search` holds the archive of what was evaluated and proposes candidates: a surrogate learns top-1
error from genes, NSGA-II minimises its prediction and the exact cost, and of what it finds some are
selected: as published (Lu et al., "NSGANetV2", ECCV 2020, algorithm 1), or for the hypervolume that
they are expected to gain. Axes: N architectures, G genes.
"""

from collections.abc import Callable
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
from threadpoolctl import threadpool_limits

from model.nsganetv2.gene_features import features
from model.nsganetv2.pareto import hypervolume, non_dominated
from model.nsganetv2.subset_selection import Candidates, select_by_gain, select_even_gaps
from model.nsganetv2.surrogate import Quality, make_surrogate, quality
from model.spaces.contracts import Genes, Genome

Draw = Callable[[int, np.random.Generator], Genes]  # so many random genes, not yet canonical
# the reference point of a hypervolume, in units of the worst error and cost (published)
NADIR = 1.01
# How much of the posterior std counts in the expected gain. Among many candidates the most
# promising ones are those whose std is overrated: with all of it the fronts were worse than with a
# quarter of it on four of five synthetic oracles, and with none of it on all five.
EXPLORATION_WEIGHT = 0.25


@dataclass(frozen=True)
class Selection:
    """How a search starts, how far NSGA-II looks, and what counts in a candidate."""

    population: int
    generations: int
    # selects what is expected to gain most hypervolume, and starts with architectures of all costs
    by_gain: bool


SELECTIONS = {
    "hypervolume": Selection(population=200, generations=30, by_gain=True),
    "published": Selection(population=40, generations=20, by_gain=False),
}


@dataclass(frozen=True)
class Record:
    """One evaluated architecture: canonical genes `[G]`, top-1 error in %, cost."""

    genes: tuple[int, ...]
    error: float
    cost: float


@dataclass(frozen=True)
class Proposal:
    """Candidates `genes [K, G]`, the errors predicted for them, and the surrogate that did."""

    genes: Genes
    predicted: NDArray
    winner: str


class Objective:
    """The cost that is minimised next to the error: flops or params (millions), or by `costs`."""

    def __init__(self, name: str, genome: Genome, costs: Callable[[Genes], NDArray] | None = None):
        self.name, self.genome, self.costs = name, genome, costs

    def __call__(self, genes: Genes) -> NDArray:
        """Costs `[N]` of genes `[N, G]`."""
        if self.costs is not None:
            return self.costs(genes)
        if len(genes) == 0:
            return np.empty(0)
        macs, parameters = self.genome.costs(genes)
        return parameters if self.name == "params" else macs


@dataclass
class Search:
    """The archive, and what the surrogates predicted before each evaluation."""

    genome: Genome
    objective: Objective
    predictor: str
    selection: Selection
    archive: list[Record] = field(default_factory=list)
    # (predicted, evaluated) error
    predictions: list[tuple[float, float]] = field(default_factory=list)
    # genes of what could not be evaluated
    failed: set[tuple[int, ...]] = field(default_factory=set)

    def doe(self, count: int, rng: np.random.Generator, extremes: bool = True) -> Genes:
        """The design of experiments: `count` different architectures `[count, G]` to start with.

        Both extremes are among them when asked for.
        """
        draw = self._of_all_costs if extremes and self.selection.by_gain else self.genome.sample
        if extremes:
            first = self.genome.canonical(self.genome.extremes())
        else:
            first = self.genome.sample(count, rng)
        return self._filled_up(first[:count], count, rng, draw)

    # for matrices this small, threads cost more than they give
    @threadpool_limits.wrap(limits=1, user_api="blas")
    def propose(self, count: int, rng: np.random.Generator) -> Proposal:
        """`count` architectures that are not in the archive: one iteration of the search."""
        # The surrogate learns the error from all that was evaluated.
        X, errors, costs = self.arrays()
        surrogate = make_surrogate(self.predictor, int(rng.integers(2**31)))

        def columns(genes: Genes) -> NDArray[np.float64]:
            as_features = surrogate.encoding == "features"
            return features(self.genome, genes) if as_features else genes.astype(np.float64)

        def predict(genes: Genes) -> NDArray[np.float64]:
            return surrogate.predict(columns(genes)) if len(genes) else np.empty(0)

        surrogate.fit(columns(X), errors)
        # NSGA-II starts from the front of the archive, and goes by the predicted error.
        points = np.column_stack([errors, costs])
        front = non_dominated(points)
        problem = GeneProblem(self.genome, predict, self.objective)
        found = self._unseen(evolve(problem, X[front], self.selection, rng))
        # Few of its last population can be evaluated; how sure a prediction is counts among them.
        found_costs = self.objective(found)
        if self.selection.by_gain and len(found):
            std = EXPLORATION_WEIGHT * surrogate.predict_std(columns(found))
            candidates = Candidates(predict(found), std, found_costs)
            chosen = select_by_gain(candidates, points[front], self._reference(points), count)
        else:
            chosen = select_even_gaps(found_costs, costs[front], count, rng)
        chosen = self._filled_up(found[chosen], count, rng, self.genome.sample)
        return Proposal(chosen, predict(chosen), surrogate.winner)

    def add(self, records: list[Record], predicted: list[float] | None = None) -> None:
        """Take evaluated architectures into the archive, and what was predicted of their errors."""
        self.archive += records
        if predicted is not None:
            pairs = zip(predicted, records, strict=True)
            self.predictions += [(float(error), record.error) for error, record in pairs]

    def arrays(self) -> tuple[Genes, NDArray, NDArray]:
        """Genes `[N, G]`, errors `[N]` and costs `[N]` of the archive."""
        return tuple(
            np.array([getattr(record, name) for record in self.archive])
            for name in ("genes", "error", "cost")
        )

    def worst(self) -> tuple[float, float]:
        """The greatest error and cost of the archive: with only the DOE, the reference point."""
        _, errors, costs = self.arrays()
        return float(errors.max()), float(costs.max())

    def hypervolume(self, reference: tuple[float, float]) -> float:
        """Normalised, up to `NADIR` times the reference point (error, cost)."""
        _, errors, costs = self.arrays()
        return hypervolume(np.column_stack([errors, costs]), NADIR * np.array(reference))

    def surrogate_quality(self) -> Quality:
        """Of all predictions so far, each made before its architecture was evaluated."""
        return quality(*np.array(self.predictions).reshape(-1, 2).T)

    def _reference(self, points: NDArray) -> NDArray:
        """The reference point of gains: also the most expensive architecture can gain something."""
        most_expensive = self.objective(self.genome.extremes()).max()
        return NADIR * np.maximum(points.max(axis=0), [0.0, most_expensive])

    def _unseen(self, genes: Genes) -> Genes:
        """The different rows of canonical `genes` that are neither in the archive nor failed."""
        known = {record.genes for record in self.archive} | self.failed
        rows = dict.fromkeys(map(tuple, genes.tolist()))
        unseen = [row for row in rows if row not in known]
        return np.array(unseen, dtype=np.int64).reshape(len(unseen), genes.shape[1])

    def _filled_up(self, genes: Genes, count: int, rng: np.random.Generator, draw: Draw) -> Genes:
        """`genes` and random ones, `count` together; fewer if the space has (almost) no more."""
        genes = self._unseen(genes)
        for _ in range(100):
            if len(genes) >= count:
                break
            genes = self._unseen(np.concatenate([genes, self.genome.canonical(draw(count, rng))]))
        return genes[:count]

    def _of_all_costs(self, count: int, rng: np.random.Generator) -> Genes:
        """Random genes `[count, G]`, in each row another share taken from one of the extremes.

        With all genes uniform, costs crowd in the middle, and the surrogate has to guess at both
        ends of the front.
        """
        largest = self.genome.largest_genes
        pull = rng.uniform(-1, 1, (count, 1))
        ends = self.genome.extremes()[(pull[:, 0] > 0).astype(int)]
        pulled = rng.random((count, len(largest))) < abs(pull)
        return np.where(pulled, ends, rng.integers(0, largest + 1, ends.shape))


# -- NSGA-II ---------------------------------------------------------------------------------------


class GeneProblem(Problem):
    """Genes `[N, G]` to errors and costs `[N, 2]`, by the functions given."""

    def __init__(
        self, genome: Genome, errors: Callable[[Genes], NDArray], costs: Callable[[Genes], NDArray]
    ):
        largest = genome.largest_genes
        super().__init__(n_var=len(largest), n_obj=2, xl=0, xu=largest, vtype=int)
        self.genome, self.errors, self.costs = genome, errors, costs

    def _evaluate(self, x, out, *args, **kwargs):
        genes = np.asarray(x, dtype=np.int64)
        out["F"] = np.column_stack([self.errors(genes), self.costs(genes)])


class _Canonical(Repair):
    """Offspring as canonical genes, so that equal networks count as duplicates."""

    def _do(self, problem, X, **kwargs):
        return problem.genome.canonical(np.asarray(X, dtype=np.int64))


def nsga2(genome: Genome, first: Genes, population: int) -> NSGA2:
    """NSGA-II (Deb et al., 2002) with the published operators, from the rows `first [N, G]`.

    A generation: parents by binary tournament on (rank, crowding distance), two-point crossover,
    polynomial mutation of one gene on average, rounded; of parents and offspring, without
    duplicates, the `population` best by rank and crowding distance survive.
    """
    one_gene = 1 / len(genome.largest_genes)
    mutation = PM(prob=1.0, prob_var=one_gene, eta=1.0, vtype=float, repair=RoundingRepair())
    return NSGA2(
        pop_size=population,
        sampling=first,
        crossover=TwoPointCrossover(prob=0.9),
        mutation=mutation,
        repair=_Canonical(),
        eliminate_duplicates=True,
    )


def evolve(
    problem: GeneProblem, first: Genes, selection: Selection, rng: np.random.Generator
) -> Genes:
    """The last population `[P, G]`, not all of it on the front."""
    algorithm, seed = nsga2(problem.genome, first, selection.population), int(rng.integers(2**31))
    result = minimize(problem, algorithm, ("n_gen", selection.generations), seed=seed)
    return np.asarray(result.pop.get("X"), dtype=np.int64)
