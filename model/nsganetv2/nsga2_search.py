"""Surrogate-assisted bi-objective search: which architectures are worth evaluating next.

`Search` holds the archive of what was evaluated and proposes candidates: a surrogate learns top-1
error from genes, NSGA-II minimises its prediction and the exact cost, and of what it finds some are
taken. A `Selection` says how: as published (Lu et al., "NSGANetV2", ECCV 2020, algorithm 1), or for
the hypervolume that they are expected to gain. Axes: N architectures, G genes.
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

from model.nsganetv2.pareto import hypervolume, most_expected, non_dominated, spread_subset
from model.nsganetv2.surrogate import Quality, Surrogate, make_surrogate, quality
from model.spaces.contracts import Genes, Genome

Draw = Callable[[int, np.random.Generator], Genes]  # so many random genes, not yet canonical
# the reference point of a hypervolume, in units of the worst error and cost (published)
NADIR = 1.01
# How much of its uncertainty counts for a candidate. Of many candidates the most promising ones are
# those whose deviation is overrated: all of it found worse fronts than a quarter of it on four of
# five synthetic oracles, and none of it on all five.
CURIOSITY = 0.25


def features(genome: Genome, genes: Genes) -> NDArray[np.float64]:
    """`[N, F]` for models that learn from few architectures: each gene one-hot, and its value from
    0 to 1.

    A gene that is not expressed has no one-hot, and a half for its value.
    """
    largest, expressed = genome.largest_genes, genome.expressed(genes)
    values = np.arange(largest.max() + 1)
    one_hot = (genes[:, :, None] == values) & expressed[:, :, None]
    level = np.where(expressed, genes / np.maximum(largest, 1), 0.5)
    return np.concatenate([one_hot[:, values <= largest[:, None]], level], axis=1)


@dataclass(frozen=True)
class Selection:
    """How a search begins, how far NSGA-II looks, and what counts in a candidate."""

    population: int
    generations: int
    # takes what is expected to gain most hypervolume, and begins with architectures of all costs
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
    selection: Selection
    archive: list[Record] = field(default_factory=list)
    # (predicted, evaluated) error
    predicted: list[tuple[float, float]] = field(default_factory=list)
    # genes of what could not be evaluated
    failed: set[tuple[int, ...]] = field(default_factory=set)

    def doe(self, count: int, rng: np.random.Generator, extremes: bool = True) -> Genes:
        """`count` different architectures to begin with, `[count, G]`; both extremes among them
        when asked for.
        """
        first = (
            self.genome.canonical(self.genome.extremes())
            if extremes
            else self.genome.sample(count, rng)
        )
        draw = self._of_all_costs if extremes and self.selection.by_gain else self.genome.sample
        return self._filled_up(first[:count], count, rng, draw)

    # for matrices this small, threads cost more than they give
    @threadpool_limits.wrap(limits=1, user_api="blas")
    def propose(self, count: int, rng: np.random.Generator) -> Proposal:
        """`count` architectures that are not in the archive: one iteration of the search."""
        X, errors, costs = self.arrays()
        model = _ErrorModel(self.genome, make_surrogate(self.predictor, int(rng.integers(2**31))))
        model.fit(X, errors)
        points = np.column_stack([errors, costs])
        front = non_dominated(points)
        problem = GeneProblem(self.genome, model.predict, self.objective)
        found = self._new(_evolve(problem, X[front], self.selection, rng))
        # NSGA-II goes by what is predicted; how sure that is counts among what it found
        if self.selection.by_gain:
            beliefs = (
                model.predict(found),
                CURIOSITY * model.deviation(found),
                self.objective(found),
            )
            chosen = most_expected(*beliefs, points[front], self._reference(points), count)
        else:
            chosen = spread_subset(self.objective(found), costs[front], count, rng)
        chosen = self._filled_up(found[chosen], count, rng, self.genome.sample)
        return Proposal(chosen, model.predict(chosen), model.name)

    def add(self, records: list[Record], predicted: list[float] | None = None) -> None:
        self.archive += records
        if predicted is not None:
            self.predicted += [
                (float(p), record.error) for p, record in zip(predicted, records, strict=True)
            ]

    def arrays(self) -> tuple[Genes, NDArray, NDArray]:
        """Genes `[N, G]`, errors `[N]` and costs `[N]` of the archive."""
        X = np.array([record.genes for record in self.archive])
        return X, *(
            np.array([getattr(record, name) for record in self.archive])
            for name in ("error", "cost")
        )

    def worst(self) -> tuple[float, float]:
        """The greatest error and the greatest cost of the archive: the reference point, when only
        the DOE is in it.
        """
        _, errors, costs = self.arrays()
        return float(errors.max()), float(costs.max())

    def hypervolume(self, reference: tuple[float, float]) -> float:
        """Normalised, up to `NADIR` times the reference point (error, cost)."""
        _, errors, costs = self.arrays()
        return hypervolume(np.column_stack([errors, costs]), NADIR * np.array(reference))

    def surrogate_quality(self) -> Quality:
        """Of all predictions so far, each made before its architecture was evaluated."""
        predicted, evaluated = np.array(self.predicted).T if self.predicted else np.empty((2, 0))
        return quality(predicted, evaluated)

    def _reference(self, points: NDArray) -> NDArray:
        """For gains beyond what was evaluated so far: no architecture is too dear to be worth
        anything.
        """
        dearest = self.objective(self.genome.extremes()).max()
        return NADIR * np.maximum(points.max(axis=0), [0.0, dearest])

    def _new(self, genes: Genes) -> Genes:
        """The different rows of canonical `genes` that are neither in the archive nor failed."""
        known = {record.genes for record in self.archive} | self.failed
        rows = dict.fromkeys(map(tuple, genes.tolist()))
        new = [row for row in rows if row not in known]
        return np.array(new, dtype=np.int64).reshape(len(new), genes.shape[1])

    def _filled_up(self, genes: Genes, count: int, rng: np.random.Generator, draw: Draw) -> Genes:
        """`genes` and random ones, `count` together; fewer only when the space has (almost) no
        more.
        """
        genes = self._new(genes)
        for _ in range(100):
            if len(genes) >= count:
                break
            genes = self._new(np.concatenate([genes, self.genome.canonical(draw(count, rng))]))
        return genes[:count]

    def _of_all_costs(self, count: int, rng: np.random.Generator) -> Genes:
        """Random genes `[count, G]`, of each architecture another share replaced by those of one of
        the extremes.

        With all genes uniform, costs crowd in the middle, and the surrogate has to guess at both
        ends of the front.
        """
        largest = self.genome.largest_genes
        pull = rng.uniform(-1, 1, (count, 1))
        ends = self.genome.extremes()[(pull[:, 0] > 0).astype(int)]
        return np.where(
            rng.random((count, len(largest))) < abs(pull),
            ends,
            rng.integers(0, largest + 1, ends.shape),
        )


class Objective:
    """The cost that the search minimises beside the error: `flops`, `params` (both in millions), or
    `costs`.
    """

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


class _ErrorModel:
    """A surrogate that reads genes."""

    def __init__(self, genome: Genome, surrogate: Surrogate):
        self.genome, self.surrogate = genome, surrogate

    @property
    def name(self) -> str:
        """Of the surrogate, or of the one that it switched to."""
        return getattr(self.surrogate, "winner", self.surrogate.name)

    def fit(self, genes: Genes, errors: NDArray) -> None:
        self.surrogate.fit(self._encoded(genes), errors)

    def predict(self, genes: Genes) -> NDArray:
        """Errors `[N]` of genes `[N, G]`."""
        return self.surrogate.predict(self._encoded(genes)) if len(genes) else np.empty(0)

    def deviation(self, genes: Genes) -> NDArray:
        """How far off each may be, `[N]`."""
        return self.surrogate.deviation(self._encoded(genes)) if len(genes) else np.empty(0)

    def _encoded(self, genes: Genes) -> NDArray[np.float64]:
        as_features = self.surrogate.encoding == "features"
        return features(self.genome, genes) if as_features else genes.astype(np.float64)


class _Canonical(Repair):
    """Offspring as canonical genes, so that equal networks count as duplicates."""

    def _do(self, problem, X, **kwargs):
        return problem.genome.canonical(np.asarray(X, dtype=np.int64))


class GeneProblem(Problem):
    """Genes `[N, G]` to errors and costs `[N, 2]`, by the functions given."""

    def __init__(
        self, genome: Genome, errors: Callable[[Genes], NDArray], costs: Callable[[Genes], NDArray]
    ):
        super().__init__(
            n_var=len(genome.largest_genes), n_obj=2, xl=0, xu=genome.largest_genes, vtype=int
        )
        self.genome, self.errors, self.costs = genome, errors, costs

    def _evaluate(self, x, out, *args, **kwargs):
        genes = np.asarray(x, dtype=np.int64)
        out["F"] = np.column_stack([self.errors(genes), self.costs(genes)])


def nsga2(genome: Genome, first: Genes, population: int) -> NSGA2:
    """NSGA-II (Deb et al., 2002) on genes, with the published operators, beginning with the rows
    `first`.
    """
    return NSGA2(
        pop_size=population,
        sampling=first,
        crossover=TwoPointCrossover(prob=0.9),
        mutation=PM(
            prob=1.0,
            prob_var=1 / len(genome.largest_genes),
            eta=1.0,
            vtype=float,
            repair=RoundingRepair(),
        ),
        repair=_Canonical(),
        eliminate_duplicates=True,
    )


def _evolve(
    problem: GeneProblem, first: Genes, selection: Selection, rng: np.random.Generator
) -> Genes:
    """The last population `[P, G]`, not all of it on the front."""
    algorithm = nsga2(problem.genome, first, selection.population)
    result = minimize(
        problem, algorithm, ("n_gen", selection.generations), seed=int(rng.integers(2**31))
    )
    return np.asarray(result.pop.get("X"), dtype=np.int64)
