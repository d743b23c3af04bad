"""How many trainings until a search has a network that is as good as the best of equal cost?

    python3 -m benchmarks.nasbench_macro rank RUN --count 3969
    python3 -m benchmarks.band_look_ups RUN [RUN ...] --table FILE [--free FILE] [--seeds 50]
        [--json FILE]

On NAS-Bench-Macro a training is a look-up in its table. The candidates are the networks of the
table that cost 0.9 to 1 times a ceiling. Searches look up 6 of them, and then 2 at a time: random
ones; those that the published surrogate (radial basis functions on genes) predicts to be best; and
ours, by signals that cost no look-up (`msunas.py --evaluate trained`), with and without those of
the supernet of RUN. Counted are the look-ups until the best network found lacks at most 0.3 points
to the best candidate.
"""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.nasbench_macro import BANDS, FREE, GENOME, Scored, config_of, in_band
from model.nsganetv2.nsga2_search import SELECTIONS, Objective, Record
from model.nsganetv2.pool_search import Pool, PoolSearch
from model.nsganetv2.surrogate import make_surrogate
from model.ranking.combined import Columns
from model.spaces.nasbench_macro.benchmark_table import BlockTable
from utils.command import Parser, command, positive
from utils.table import format_table

FIRST, MORE = 6, 2  # look-ups at the beginning, and at a time
ENOUGH = 0.3  # points that the best found may lack to the best candidate
METHODS = {
    "random": "random networks",
    "published": "published surrogate, genes",
    "free": "ours, free signals",
    "supernet": "ours, free signals and supernet",
}
NO_COST = Objective("flops", GENOME, lambda genes: np.ones(len(genes)))  # all cost the same


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folder of search.py")
    add("--table", required=True, metavar="FILE", help="the published accuracies")
    add("--free", type=Path, metavar="FILE", help="training-free scores (default RUN/free.jsonl)")
    add("--seeds", type=positive, default=50, help="of each search (default 50)")
    add("--json", type=Path, metavar="FILE", help="add a line for each search to FILE")
    args = parser.parse_args(argv)
    table, lines = BlockTable.load(args.table), []
    for run in args.runs:
        config_of(run, [])
        bands = [Band.of(ceiling, scored_of(run, args), table) for ceiling in BANDS]
        for band in tqdm(bands, desc=str(run)):
            lines += [
                {"run": str(run), "ceiling": band.ceiling, "method": method, "seed": seed,
                 "candidates": len(band.accuracies), "look_ups": look_ups(method, seed, band)}
                for method in METHODS for seed in range(args.seeds)
            ]  # fmt: skip
    if args.json:
        with args.json.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    print_counts(lines)


def scored_of(run: Path, args: Namespace) -> Scored:
    return Scored.read(args.free or run / "free.jsonl", run / "ranking.jsonl")


@dataclass(frozen=True)
class Band:
    """Candidates of equal cost: genes `[N, G]`, accuracies `[N]`, signals `[N]` by name."""

    ceiling: float
    genes: NDArray
    accuracies: NDArray
    signals: Columns

    @classmethod
    def of(cls, ceiling: float, scored: Scored, table: BlockTable) -> "Band":
        """Those that the table has and the supernet scored."""
        truth = table.accuracy(scored.paths).numpy()
        known = ~np.isnan(truth) & ~np.isnan(scored.signals["supernet_loss"])
        here = known & in_band(scored.costs, ceiling)
        signals = {name: values[here] for name, values in scored.signals.items()}
        return cls(ceiling, GENOME.of_paths(scored.paths)[here], truth[here], signals)

    def pool(self, method: str) -> Pool:
        names = (*FREE, "supernet_loss") if method == "supernet" else FREE
        return Pool(self.genes, {name: self.signals[name] for name in names})


Chosen = NDArray[np.intp]
Choose = Callable[[list[int], np.random.Generator], Chosen]


def look_ups(method: str, seed: int, band: Band) -> int:
    """How many of a band's candidates are looked up until one is good enough."""
    rng, choose = np.random.default_rng([seed, int(band.ceiling)]), chooser(method, band)
    good, known = band.accuracies >= band.accuracies.max() - ENOUGH, []
    while True:
        for index in choose(known, rng):
            known.append(int(index))
            if good[index]:
                return len(known)


def chooser(method: str, band: Band) -> Choose:
    """What chooses the next candidates, given the indices of those that were looked up."""
    if method in ("free", "supernet"):
        return by_signals(band, band.pool(method))
    return by_genes(band) if method == "published" else by_chance(band)


def by_chance(band: Band) -> Choose:
    return lambda known, rng: rng.permutation(unknown(band, known))[: FIRST if not known else MORE]


def by_genes(band: Band) -> Choose:
    random = by_chance(band)

    def choose(known: list[int], rng: np.random.Generator) -> Chosen:
        if not known:
            return random(known, rng)
        surrogate, left = make_surrogate("rbf", 0), unknown(band, known)
        surrogate.fit(band.genes[known].astype(float), 100 - band.accuracies[known])
        predicted = surrogate.predict(band.genes[left].astype(float))
        return left[np.argsort(predicted, kind="stable")[:MORE]]

    return choose


def by_signals(band: Band, pool: Pool) -> Choose:
    def choose(known: list[int], rng: np.random.Generator) -> Chosen:
        parts = (GENOME, NO_COST, "ard", SELECTIONS["hypervolume"])
        search = PoolSearch(*parts, open_pool=lambda: pool)
        if not known:
            genes = search.doe(FIRST, rng)
        else:
            errors = 100 - band.accuracies[known]
            rows = zip(pool.genes[known].tolist(), errors.tolist(), strict=True)
            search.add([Record(tuple(row), error, 1.0) for row, error in rows])
            genes = search.propose(MORE, rng).genes
        return np.array([pool.index[tuple(row)] for row in genes.tolist()], dtype=np.intp)

    return choose


def unknown(band: Band, known: list[int]) -> Chosen:
    return np.setdiff1d(np.arange(len(band.accuracies)), known)


def print_counts(lines: list[dict]) -> None:
    """Mean number of look-ups over runs and seeds, in each band and in all."""
    rows = []
    for method, title in METHODS.items():
        own = [line for line in lines if line["method"] == method]
        found = [[o["look_ups"] for o in own if o["ceiling"] == ceiling] for ceiling in BANDS]
        every = np.concatenate(found)
        error = every.std() / np.sqrt(len(every))
        means = [f"{np.mean(counts):.1f}" for counts in found]
        rows.append([title, *means, f"{every.mean():.1f} +- {error:.1f}"])
    titles = [f"{ceiling} M" for ceiling in BANDS]
    print(format_table(["look-ups until good enough", *titles, "all bands"], rows))


if __name__ == "__main__":
    main()
