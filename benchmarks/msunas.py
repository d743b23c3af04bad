"""How good the evolutionary search is: hypervolume of its front by architectures evaluated.

    python3 -m benchmarks.msunas [--oracle FILE.py] [--seeds 0-9] [--evaluations 340] [--json]
    python3 -m benchmarks.msunas --methods ours published random nsga2
    python3 -m benchmarks.msunas --cfg CONFIG --supernet_path SUPERNET --data DIR --known FILE ...

An oracle is a module with the functions of `benchmarks/nsga_oracle.py`: an invented error for each
architecture of the published once-for-all space. With a supernet, an evaluation is that of
`msunas.py`, on held-out images; what was evaluated is kept in `--known FILE`, so that a benchmark
that was stopped resumes with the same command. The reference point is the module's `REF`, or 1.01
times the error of the smallest and the cost of the largest architecture.
"""

import json
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from pymoo.optimize import minimize
from scipy.stats import mannwhitneyu
from tqdm import tqdm

from benchmarks.oracles import ModuleOracle, Oracle, SupernetOracle
from model.nsganetv2.nsga2_search import SELECTIONS, GeneProblem, Record, Search, nsga2
from model.nsganetv2.pareto import hypervolume
from model.nsganetv2.surrogate import SURROGATES
from model.spaces.contracts import Genes
from utils.command import Parser, command, positive
from utils.errors import UserError
from utils.json_file import read_json
from utils.table import format_table
from utils.timing import seconds_of

HERE = Path(__file__).parent
ORACLE = HERE / "nsga_oracle.py"
SHOWN = (148, 204, 260, 340)
POPULATION = 40  # of NSGA-II without a surrogate

Evaluate = Callable[[Genes], list[Record]]


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    if args.cfg:
        oracle = SupernetOracle(args.cfg, args.supernet_path, args.data, args.vld_size, args.known)
    else:
        oracle = ModuleOracle(args.oracle)
    results = {name: measured(name, oracle, args) for name in args.methods}
    print_table(results, args, oracle)
    if args.json:
        first = results[args.methods[0]]
        print(json.dumps({**first, "oracle": oracle.name, "methods": results}))


def parse_arguments(argv: list[str] | None) -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--oracle", type=Path, default=ORACLE, metavar="FILE.py")
    add("--seeds", type=seeds, default=range(10), metavar="A-B", help="default 0-9")
    add("--evaluations", type=positive, default=340, help="architectures of a search (default 340)")
    add("--n_doe", type=positive, default=100, help="of them, to start with (default 100)")
    add("--n_iter", type=positive, default=8, help="of them, in an iteration (default 8)")
    add("--methods", nargs="+", choices=METHODS, default=["ours"], help="default ours")
    add("--predictor", choices=SURROGATES, default="ard", help="surrogate of ours (default ard)")
    add("--cfg", help="config of a supernet, to search it instead of an oracle")
    add("--supernet_path", metavar="CHECKPOINT", help="its checkpoint")
    add("--data", metavar="DIR", help="where its data set is (default: as the config says)")
    count = "held-out images of an evaluation (default 10 %% of all)"
    add("--vld_size", type=positive, help=count)
    add("--known", type=Path, metavar="FILE", help="keeps what was evaluated")
    add("--json", action="store_true", help="end with the results as a line of JSON")
    args = parser.parse_args(argv)
    if args.cfg and not (args.supernet_path and args.known):
        raise UserError("--cfg: --supernet_path and --known are needed, too")
    of_supernet = ("supernet_path", "data", "vld_size", "known")
    useless = [name for name in of_supernet if getattr(args, name) is not None]
    if useless and not args.cfg:
        raise UserError(f"--{useless[0]}: without --cfg an oracle is searched, which needs none")
    return args


def seeds(text: str) -> range:
    """An argparse type: `3` or `0-9`."""
    first, _, last = text.partition("-")
    found = range(int(first), int(last or first) + 1)
    if len(found) == 0:
        raise ValueError(text)
    return found


# -- measuring -------------------------------------------------------------------------------------


def measured(name: str, oracle: Oracle, args: Namespace) -> dict:
    """Hypervolumes of a method (means by evaluations, the last of each seed), seconds of a search.

    Whatever the method asks for counts as an evaluation, known before or not; the time of
    evaluations does not count.
    """
    volumes, took = [], []
    for seed in tqdm(args.seeds, f"{oracle.name}, {name}", disable=None):
        archive, waited = [], 0.0

        def evaluate(genes: Genes) -> list[Record]:
            nonlocal waited
            records = []
            rows = map(tuple, genes.tolist())
            waited += seconds_of(
                lambda: records.extend(Record(row, *oracle.evaluate(row)) for row in rows)
            )
            archive.extend(records)
            return records

        took.append(seconds_of(partial(METHODS[name], oracle, evaluate, seed, args)) - waited)
        points = np.array([(record.error, record.cost) for record in archive])
        volumes.append([hypervolume(points[:n], oracle.reference) for n in shown(args)])
    means = dict(zip(map(str, shown(args)), np.mean(volumes, axis=0).tolist(), strict=True))
    last = [row[-1] for row in volumes]
    return {"hypervolume": means, "per_seed": last, "seconds": float(np.mean(took))}


def shown(args: Namespace) -> list[int]:
    """The evaluations that the table has: the published ones, or four between first and last."""
    numbers = SHOWN
    if (args.n_doe, args.n_iter) != (100, 8):
        iterations = max(1, (args.evaluations - args.n_doe) // args.n_iter)
        numbers = range(args.n_doe, args.evaluations, args.n_iter * -(-iterations // 4))
    return [*(n for n in numbers if n < args.evaluations), args.evaluations]


def surrogate_assisted(
    oracle: Oracle, evaluate: Evaluate, seed: int, args: Namespace, *, published: bool
) -> None:
    """`msunas.py` with its defaults and `--predictor`, or as published."""
    selection, predictor = ("published", "rbf") if published else ("hypervolume", args.predictor)
    search = Search(oracle.genome, oracle.objective, predictor, SELECTIONS[selection])
    search.add(evaluate(search.doe(min(args.n_doe, args.evaluations), draws(seed, 0))))
    iteration = 0
    while (left := args.evaluations - len(search.archive)) > 0:
        iteration += 1
        proposal = search.propose(min(args.n_iter, left), draws(seed, iteration))
        if len(proposal.genes) == 0:
            break
        search.add(evaluate(proposal.genes))


def random(oracle: Oracle, evaluate: Evaluate, seed: int, args: Namespace) -> None:
    """Both extremes, and all genes uniform."""
    search = Search(oracle.genome, oracle.objective, "rbf", SELECTIONS["published"])
    evaluate(search.doe(args.evaluations, draws(seed, 0)))


def without_surrogate(oracle: Oracle, evaluate: Evaluate, seed: int, args: Namespace) -> None:
    """NSGA-II that evaluates all that it breeds, from the same start as the published search."""
    search = Search(oracle.genome, oracle.objective, "rbf", SELECTIONS["published"])
    first = search.doe(min(args.n_doe, args.evaluations), draws(seed, 0))
    left = args.evaluations

    def errors(genes: Genes) -> np.ndarray:
        nonlocal left
        known = [record.error for record in evaluate(genes[:left])]
        left -= len(known)
        # the last generation may be more than are left
        return np.pad(known, (0, len(genes) - len(known)), constant_values=100.0)

    problem = GeneProblem(oracle.genome, errors, oracle.objective)
    algorithm = nsga2(oracle.genome, first, POPULATION)
    minimize(problem, algorithm, ("n_eval", args.evaluations), seed=seed)


METHODS = {
    "ours": partial(surrogate_assisted, published=False),
    "published": partial(surrogate_assisted, published=True),
    "random": random,
    "nsga2": without_surrogate,
}


def draws(seed: int, iteration: int) -> np.random.Generator:
    return np.random.default_rng([seed, iteration])


# -- reporting -------------------------------------------------------------------------------------


def print_table(results: dict[str, dict], args: Namespace, oracle: Oracle) -> None:
    first, numbers = args.methods[0], [str(n) for n in shown(args)]
    rows = []
    for name, result in {**results, **_release(args)}.items():
        means = (f"{result['hypervolume'][n]:.4f}" for n in numbers)
        rows.append([name, *means, *_spread(result, results[first])])
    columns = ["method", *(f"after {n}" for n in numbers), "sd", "seconds", f"p of {first}"]
    print(format_table(columns, rows))
    print(
        f"{oracle.name}: normalised hypervolume, means of {len(args.seeds)} seeds, their sd at the "
        "end; seconds of a\nsearch without its evaluations; p, one-sided Mann-Whitney, of "
        f"{first} being no better than the method"
    )


def _spread(result: dict, first: dict) -> list[str]:
    """What the table says behind the means: sd, seconds and p."""
    volumes, seconds = result["per_seed"], result.get("seconds")
    sd = f"{np.std(volumes, ddof=1):.4f}" if len(volumes) > 1 else ""
    better = mannwhitneyu(first["per_seed"], volumes, alternative="greater", method="exact")
    p = "" if result is first else f"{better.pvalue:.1e}"
    return [sd, "" if seconds is None else f"{seconds:.1f}", p]


def _release(args: Namespace) -> dict[str, dict]:
    """What the published release itself reached with seeds 0 to 9, where that was measured."""
    same = args.cfg is None and args.oracle == ORACLE
    if not same or (args.n_doe, args.n_iter, args.evaluations) != (100, 8, 340):
        return {}
    return {"the release": read_json(HERE / "nsga_release.json")}


if __name__ == "__main__":
    main()
