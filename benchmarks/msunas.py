"""How good the evolutionary search is: hypervolume of its front by the number of architectures
evaluated.

    python3 -m benchmarks.msunas [--oracle FILE.py] [--seeds 0-9] [--evaluations 340] [--json]
    python3 -m benchmarks.msunas --methods ours published random nsga2
    python3 -m benchmarks.msunas --cfg CONFIG --supernet_path SUPERNET --data DIR --known FILE --n_doe 60 ...

An oracle is a module with the functions of `benchmarks/nsga_oracle.py`: an invented error for each
architecture of the published once-for-all space. With a supernet, an evaluation is that of
`msunas.py`, on held-out images; what was evaluated is kept in `--known FILE`, so that a benchmark
that was stopped goes on with the same command. The reference point is the module's `REF`, or 1.01
times the error of the smallest and the cost of the largest architecture.
"""

import json
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pymoo.optimize import minimize
from scipy.stats import mannwhitneyu
from tqdm import tqdm

from benchmarks.oracles import ModuleOracle, Oracle, SupernetOracle
from model.nsganetv2.nsga2_search import SELECTIONS, GeneProblem, Record, Search, nsga2
from model.nsganetv2.pareto import hypervolume
from model.nsganetv2.surrogate import SURROGATES
from model.spaces.elastic.space import Genes
from utils.command import Parser, command, positive
from utils.errors import UserError
from utils.table import format_table

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
    parser.add_argument("--oracle", type=Path, default=ORACLE, metavar="FILE.py")
    parser.add_argument("--seeds", type=seeds, default=range(10), metavar="A-B", help="default 0-9")
    parser.add_argument(
        "--evaluations", type=positive, default=340, help="architectures of a search (default 340)"
    )
    parser.add_argument(
        "--n_doe", type=positive, default=100, help="of them, to begin with (default 100)"
    )
    parser.add_argument(
        "--n_iter", type=positive, default=8, help="of them, in an iteration (default 8)"
    )
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=["ours"], help="default ours"
    )
    parser.add_argument(
        "--predictor", choices=SURROGATES, default="ard", help="surrogate of ours (default ard)"
    )
    parser.add_argument("--cfg", help="config of a supernet, to search it instead of an oracle")
    parser.add_argument("--supernet_path", metavar="CHECKPOINT", help="its checkpoint")
    parser.add_argument(
        "--data", metavar="DIR", help="where its data set is (default: as the config says)"
    )
    parser.add_argument(
        "--vld_size", type=positive, help="held-out images of an evaluation (default 10 %% of all)"
    )
    parser.add_argument("--known", type=Path, metavar="FILE", help="keeps what was evaluated")
    parser.add_argument(
        "--json", action="store_true", help="end with the results as a line of JSON"
    )
    args = parser.parse_args(argv)
    if args.cfg and not (args.supernet_path and args.known):
        raise UserError("--cfg: --supernet_path and --known are needed, too")
    useless = [
        name
        for name in ("supernet_path", "data", "vld_size", "known")
        if getattr(args, name) is not None
    ]
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
    """Hypervolumes of a method: means by number of evaluations, the last of each seed, and seconds
    of a search.

    Whatever the method asks for counts as an evaluation, known before or not; the time of
    evaluations does not count.
    """
    volumes, took = [], []
    for seed in tqdm(args.seeds, f"{oracle.name}, {name}", disable=None):
        archive, waited = [], 0.0

        def evaluate(genes: Genes) -> list[Record]:
            nonlocal waited
            began = time.perf_counter()
            records = [Record(tuple(row), *oracle.evaluate(tuple(row))) for row in genes.tolist()]
            archive.extend(records)
            waited += time.perf_counter() - began
            return records

        began = time.perf_counter()
        METHODS[name](oracle, evaluate, seed, args)
        took.append(time.perf_counter() - began - waited)
        points = np.array([(record.error, record.cost) for record in archive])
        volumes.append([hypervolume(points[:n], oracle.reference) for n in shown(args)])
    means = dict(zip(map(str, shown(args)), np.mean(volumes, axis=0).tolist(), strict=True))
    return {
        "hypervolume": means,
        "per_seed": [row[-1] for row in volumes],
        "seconds": float(np.mean(took)),
    }


def shown(args: Namespace) -> list[int]:
    """Numbers of evaluations that the table has: the published ones, or else four between beginning
    and end.
    """
    numbers = SHOWN
    if (args.n_doe, args.n_iter) != (100, 8):
        iterations = max(1, (args.evaluations - args.n_doe) // args.n_iter)
        numbers = range(args.n_doe, args.evaluations, args.n_iter * -(-iterations // 4))
    return [*(n for n in numbers if n < args.evaluations), args.evaluations]


def ours(oracle: Oracle, evaluate: Evaluate, seed: int, args: Namespace) -> None:
    _search(oracle, evaluate, seed, args, "hypervolume", args.predictor)


def published(oracle: Oracle, evaluate: Evaluate, seed: int, args: Namespace) -> None:
    _search(oracle, evaluate, seed, args, "published", "rbf")


def _search(
    oracle, evaluate: Evaluate, seed: int, args: Namespace, selection: str, predictor: str
) -> None:
    search = Search(oracle.genome, oracle.objective, predictor, SELECTIONS[selection])
    search.add(evaluate(search.doe(min(args.n_doe, args.evaluations), _draws(seed, 0))))
    iteration = 0
    while (left := args.evaluations - len(search.archive)) > 0:
        iteration += 1
        proposal = search.propose(min(args.n_iter, left), _draws(seed, iteration))
        if len(proposal.genes) == 0:
            break
        search.add(evaluate(proposal.genes))


def random(oracle: Oracle, evaluate: Evaluate, seed: int, args: Namespace) -> None:
    """Both extremes, and all genes uniform."""
    search = Search(oracle.genome, oracle.objective, "rbf", SELECTIONS["published"])
    evaluate(search.doe(args.evaluations, _draws(seed, 0)))


def without_surrogate(oracle: Oracle, evaluate: Evaluate, seed: int, args: Namespace) -> None:
    """NSGA-II that evaluates whatever it breeds, from the same beginning as the published search."""
    search = Search(oracle.genome, oracle.objective, "rbf", SELECTIONS["published"])
    first = search.doe(min(args.n_doe, args.evaluations), _draws(seed, 0))
    left = args.evaluations

    def errors(genes: Genes) -> np.ndarray:
        nonlocal left
        records = evaluate(genes[:left])  # the last generation may be more than are left
        left -= len(records)
        return np.pad(
            [record.error for record in records],
            (0, len(genes) - len(records)),
            constant_values=100.0,
        )

    problem = GeneProblem(oracle.genome, errors, oracle.objective)
    minimize(
        problem, nsga2(oracle.genome, first, POPULATION), ("n_eval", args.evaluations), seed=seed
    )


METHODS = {"ours": ours, "published": published, "random": random, "nsga2": without_surrogate}


def _draws(seed: int, iteration: int) -> np.random.Generator:
    return np.random.default_rng([seed, iteration])


# -- reporting -------------------------------------------------------------------------------------


def print_table(results: dict[str, dict], args: Namespace, oracle: Oracle) -> None:
    first, numbers = args.methods[0], [str(n) for n in shown(args)]
    rows = [
        [
            name,
            *(f"{result['hypervolume'][n]:.4f}" for n in numbers),
            *_spread(result, results[first]),
        ]
        for name, result in {**results, **_release(args)}.items()
    ]
    print(
        format_table(
            ["method", *(f"after {n}" for n in numbers), "sd", "seconds", f"p of {first}"], rows
        )
    )
    print(
        f"{oracle.name}: normalised hypervolume, means of {len(args.seeds)} seeds, their sd at the end; seconds of a"
    )
    print(
        f"search without its evaluations; p, one-sided Mann-Whitney, of {first} being no better than the method"
    )


def _spread(result: dict, first: dict) -> list[str]:
    volumes, seconds = result["per_seed"], result.get("seconds")
    deviation = f"{np.std(volumes, ddof=1):.4f}" if len(volumes) > 1 else ""
    better = mannwhitneyu(first["per_seed"], volumes, alternative="greater", method="exact")
    p = "" if result is first else f"{better.pvalue:.1e}"
    return [deviation, "" if seconds is None else f"{seconds:.1f}", p]


def _release(args: Namespace) -> dict[str, dict]:
    """What the published release itself reached with seeds 0 to 9, where that was measured."""
    same = args.cfg is None and args.oracle == ORACLE
    if not same or (args.n_doe, args.n_iter, args.evaluations) != (100, 8, 340):
        return {}
    return {"the release": json.loads((HERE / "nsga_release.json").read_text())}


if __name__ == "__main__":
    main()
