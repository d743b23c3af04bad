"""How few trainings does a search need? On NAS-Bench-201 a training is a look-up in its table.

    python3 -m tools.score --cfg config_file/nasbench201_config.yml --count 1000 --out free.jsonl
    python3 -m benchmarks.look_ups --signals free.jsonl --table FILE [--seeds 20] [--json FILE]

Four searches look up 8 cells, and then 4 at a time: random ones; the published search (radial basis
functions on genes); ours on genes; and ours on the signals of a pool, which cost no look-up
(`msunas.py --evaluate trained`). After 8, 12, 16, ... look-ups each ceiling is answered by the best
cell found within it, or, where none was found, by a random one: the mean regret is what the answers
lack to the optima, and the table is used for nothing else.
"""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from model.nsganetv2.nsga2_search import SELECTIONS, Objective, Record, Search
from model.nsganetv2.pool_search import Pool, PoolSearch
from model.ranking.score_file import ScoreFile
from model.spaces.nasbench201.benchmark_table import CellTable
from model.spaces.nasbench201.kind import KIND
from model.spaces.nasbench201.space import CellSpace
from utils.command import Parser, command, positive
from utils.errors import UserError
from utils.table import format_table

CEILINGS = torch.arange(20, 201, 20)
FIRST, MORE = 8, 4  # look-ups at the beginning, and of each iteration
SHARE = 0.5  # of the cells with signals that the pool of a seed has
SIGNALS = ("expressivity", "progressivity", "trainability", "cost", "params_m", "blocks")
GENOME = KIND.genome(CellSpace())
OBJECTIVE = Objective("flops", GENOME)
METHODS = {"random": "random cells", "published": "published", "genes": "ours, genes"}
METHODS |= {"signals": "ours, signals of a pool"}


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--table", required=True, metavar="FILE", help="true accuracies (docs/nasbench201.md)")
    add("--signals", required=True, type=Path, metavar="FILE", help="scores.jsonl of tools.score")
    add("--seeds", type=positive, default=20, help="of each search (default 20)")
    add("--look-ups", type=positive, default=40, help="of each search (default 40)")
    add("--json", type=Path, metavar="FILE", help="add a line for each search to FILE")
    args = parser.parse_args(argv)
    table, pool = CellTable.load(args.table), pool_of(args.signals)
    seeds = tqdm(range(args.seeds), desc="seeds")
    lines = [line for seed in seeds for line in searched(seed, pool, table, args)]
    if args.json:
        with args.json.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
    print_regrets(lines)


def pool_of(file: Path) -> Pool:
    """The cells of a file of tools.score; UserError when it lacks signals."""
    scores = ScoreFile.open(file)
    try:
        genes = [GENOME.from_json(scores.architectures[name]) for name in scores.values]
        rows = [[values[name] for name in SIGNALS] for values in scores.values.values()]
    except KeyError as error:
        raise UserError(f"{file}: no scores of cells by tools.score, they lack {error}") from None
    if not rows:
        raise UserError(f"{file}: it holds no scores")
    return Pool(np.array(genes), dict(zip(SIGNALS, np.array(rows, dtype=float).T, strict=True)))


def searched(seed: int, pool: Pool, table: CellTable, args: Namespace) -> list[dict]:
    """The mean regret of each search of one seed, by the number of its look-ups."""
    return [
        {"method": name, "seed": seed, "regret": regrets_of(name, seed, pool, table, args.look_ups)}
        for name in METHODS
    ]


def regrets_of(
    method: str, seed: int, pool: Pool, table: CellTable, look_ups: int
) -> dict[str, float]:
    search, rng = search_of(method, seed, pool), np.random.default_rng([seed, 1])
    search.add(looked_up(search.doe(FIRST, rng, extremes=method != "random"), table))
    found = {len(search.archive): mean_regret(search, table)}
    while len(search.archive) < look_ups:
        if method == "random":
            proposed = search.doe(MORE, rng, extremes=False)
        else:
            proposed = search.propose(MORE, rng).genes
        search.add(looked_up(proposed, table))
        found[len(search.archive)] = mean_regret(search, table)
    return found


def search_of(method: str, seed: int, pool: Pool) -> Search:
    if method == "signals":
        rows = np.random.default_rng([seed, 0]).permutation(len(pool.genes))
        rows = rows[: int(SHARE * len(rows))]
        part = Pool(pool.genes[rows], {name: v[rows] for name, v in pool.signals.items()})
        parts = (GENOME, OBJECTIVE, "ard", SELECTIONS["hypervolume"])
        return PoolSearch(*parts, open_pool=lambda: part)
    if method == "genes":
        return Search(GENOME, OBJECTIVE, "ard", SELECTIONS["hypervolume"])
    return Search(GENOME, OBJECTIVE, "rbf", SELECTIONS["published"])


def looked_up(genes: NDArray, table: CellTable) -> list[Record]:
    paths = torch.stack([GENOME.choice(row) for row in genes])
    errors, costs = 100 - table.accuracy(paths), table.cost(paths)
    rows = zip(map(tuple, genes.tolist()), errors.tolist(), costs.tolist(), strict=True)
    return [Record(*row) for row in rows]


def mean_regret(search: Search, table: CellTable) -> float:
    _, errors, costs = search.arrays()
    regrets = []
    for ceiling in CEILINGS.tolist():
        within = costs <= ceiling
        found = 100 - errors[within].min() if within.any() else mean_within(table, ceiling)
        regrets.append(table.optimum(ceiling) - found)
    return float(np.mean(regrets))


def mean_within(table: CellTable, ceiling: float) -> float:
    return float(table.accuracies[table.within(ceiling)].mean())


def print_regrets(lines: list[dict]) -> None:
    """Mean and deviation over the seeds, by method and number of look-ups."""
    counts = list(lines[0]["regret"])
    rows = []
    for name, title in METHODS.items():
        found = np.array(
            [list(line["regret"].values()) for line in lines if line["method"] == name]
        )
        spans = zip(found.mean(axis=0), found.std(axis=0, ddof=len(found) > 1), strict=True)
        rows.append([title, *(f"{mean:.2f} +- {deviation:.2f}" for mean, deviation in spans)])
    print(format_table(["mean regret, points", *(f"{count} look-ups" for count in counts)], rows))


if __name__ == "__main__":
    main()
