"""How good are architectures expected to be, before any is trained? Signals of each, best first.

    python3 -m tools.score --cfg config_file/cifar10_small_config.yml --count 500 --out scores.jsonl
    python3 -m tools.score logs/small --architectures found.json --out scores.jsonl
    python3 -m tools.score logs/small --cost 5.4:5.6 --calibrate ranking/results.jsonl \\
        --out scores.jsonl

With --cfg no supernet is needed: training-free terms take a fraction of a second for each of COUNT
random architectures, or of a list. With the run folder of search.py its supernet judges them, too.
OUT gets a line for each architecture as it is scored; scores.csv, next to it, has all of them, best
first. Columns there that depend on the whole set are `training_free`, log-ranks of the terms and
the cost, and `combined`, log-ranks of these and the supernet's loss; with --calibrate `calibrated`,
where networks that tools.rank has trained say how much each signal counts, and how well each way
to rank does. The same command resumes, COUNT may grow, and under torchrun the processes share the
architectures.
"""

import argparse
import csv
import io
import json
import math
import sys
from hashlib import sha256
from pathlib import Path

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from model.ranking.architecture_files import genes_of, listed, read_trained
from model.ranking.combined import WAYS, Calibration, Columns, calibrated, sum_of_log_ranks
from model.ranking.score_file import DIGITS, By, ScoreFile, Values
from model.ranking.signals import Signals, different_architectures
from model.ranking.training_free import TERMS, TrainingFree
from model.sgnas.runs import run_config
from model.sgnas.supernet_scores import accuracy_of, held_out_images, scored_by
from model.spaces.contracts import Genes, Genome
from model.spaces.registry import Problem, open_problem
from utils.checkpoint import write_text
from utils.command import Parser, add_config_options, command, not_negative, positive
from utils.config import Config, load_config
from utils.data import load_dataset
from utils.distributed import rank
from utils.errors import UserError
from utils.places import output_file
from utils.runtime import pick_device, stream
from utils.table import format_table

SHOWN = 10  # architectures of the table


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    config = load_config(args.cfg, args.set) if args.cfg else run_config(args.run, args.set)
    problem = open_problem(config)
    genome = problem.kind.genome(problem.space)
    trained = read_trained(args.calibrate, genome) if args.calibrate else {}
    chosen = architectures(args, problem, genome)
    signals, by = open_signals(args, problem, genome, config)
    scores = ScoreFile.open(args.out, by, signals.names)
    genes = chosen | {name: row for name, (row, _) in trained.items()}
    fill(scores, signals, genes)
    ids = list(genes)
    found = {n: np.array([scores.values[i][n] for i in ids], float) for n in signals.names}
    calibration = None
    if trained:
        accuracies = np.array([trained[name][1] for name in trained])
        calibration = calibrated(found, [ids.index(name) for name in trained], accuracies)
    table = ranked(found, calibration)
    file = args.out.with_suffix(".csv")
    order = write_csv(file, ids, table)
    print_best(ids, table, order, problem.unit)
    if calibration:
        print(calibration.report())
    print(f"{len(ids)} architectures, best first, in {file}; as they were scored in {args.out}")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add, file = parser.add_argument, {"type": Path, "metavar": "FILE"}
    add("run", type=Path, nargs="?", metavar="RUN", help="run folder of search.py")
    add("--cfg", metavar="CONFIG", help="config of a space, to score without a supernet")
    add("--out", required=True, type=output_file, metavar="FILE", help="scores.jsonl")
    some = "a list of tools.generate, or lines of JSON with an architecture each"
    add("--architectures", **file, help=some)
    add("--count", type=positive, help="random architectures (default 100 without a list)")
    add("--cost", metavar="LOW:HIGH", help="of the random ones, in M (ms where costs are)")
    names = ", ".join((*TERMS, "supernet"))
    add("--terms", help=f"some of {names} (default: all that there are)")
    add("--images", type=positive, default=16, help="of noise, for each network (default 16)")
    add("--calibrate", **file, help="results.jsonl of tools.rank: what some networks reached")
    add("--seed", type=not_negative, default=0, help="of all that is drawn (default 0)")
    add_config_options(parser)
    args = parser.parse_args(argv)
    if (args.run is None) == (args.cfg is None):
        parser.error("a run folder is needed, or --cfg")
    if args.out.suffix == ".csv":
        parser.error(f"--out {args.out}: the table is written there; choose a name like s.jsonl")
    args.terms = parse_terms(args.terms, args.run is not None)
    if args.architectures is None or args.cost:
        args.count = args.count or 100
    args.cost = parse_range(args.cost)
    return args


def parse_terms(text: str | None, has_supernet: bool) -> tuple[str, ...]:
    allowed = (*TERMS, "supernet") if has_supernet else TERMS
    terms = allowed if text is None else tuple(text.split(","))
    for term in terms:
        if term == "supernet" and not has_supernet:
            raise UserError("--terms supernet: this needs a run folder with a supernet, not --cfg")
        if term not in allowed:
            raise UserError(f"--terms {term}: it must be some of {', '.join(allowed)}")
    return terms


def parse_range(text: str | None) -> tuple[float, float]:
    if text is None:
        return (0.0, math.inf)
    try:
        low, high = map(float, text.split(":"))
        if 0 <= low <= high:
            return low, high
    except ValueError:
        pass
    raise UserError(f"--cost {text}: it must be LOW:HIGH, two costs")


# -- which architectures ---------------------------------------------------------------------------


def architectures(args: argparse.Namespace, problem: Problem, genome: Genome) -> dict[str, Genes]:
    """Genes by the names of their networks: those of a list, and random ones."""
    found = {}
    if args.architectures:
        rows = [genes_of(record, genome, where) for record, where in listed(args.architectures)]
        found = {genome.spec(row).name: row for row in rows}
    if args.count:
        rng = np.random.default_rng(stream(args.seed, "score").initial_seed())
        found |= different_architectures(genome, problem.table, args.count, rng, args.cost)
    return found


# -- scores ----------------------------------------------------------------------------------------


def open_signals(
    args: argparse.Namespace, problem: Problem, genome: Genome, config: Config
) -> tuple[Signals, By]:
    """What measures the signals, and what they depend on."""
    terms = tuple(term for term in TERMS if term in args.terms)
    space = json.dumps(problem.space.to_dict(), sort_keys=True).encode()
    by: By = {"unit": problem.unit, "table": problem.table.digest}
    by["space"] = sha256(space).hexdigest()[:DIGITS]
    free, accuracy = None, None
    if terms:
        free = TrainingFree(terms, args.images, seed=args.seed, device=pick_device(config.cuda))
        by |= {"noise_images": args.images, "noise_seed": args.seed}
    if "supernet" in args.terms:
        source = (config.dataset, config.dataset_dir, config.input_size, config.classes)
        images = held_out_images(args.run, config, load_dataset(*source))
        by |= scored_by(args.run, config, images)
        accuracy = accuracy_of(args.run, problem, config, images)
    return Signals(genome, problem.table, free, accuracy), by


def fill(scores: ScoreFile, signals: Signals, genes: dict[str, Genes]) -> None:
    """Score what `scores` does not have yet; all processes call it."""

    def score(ids: list[str]) -> list[Values]:
        return signals.of_all(np.stack([genes[name] for name in ids]))

    written = {name: signals.genome.to_json(row) for name, row in genes.items()}
    scores.fill(genes, score, "scores", written)


def ranked(found: Columns, calibration: Calibration | None) -> Columns:
    """The columns, and those that depend on the whole set; by the last the table is ordered."""
    table = dict(found)
    ways = {"training_free": "training-free"} if set(TERMS) & found.keys() else {}
    if "supernet_loss" in found:
        ways["combined"] = "combined"
    for column, way in ways.items():
        table[column] = sum_of_log_ranks({n: found[n] for n in WAYS[way] if n in found})
    if calibration:
        table["calibrated"] = calibration.scores
    return table


def write_csv(file: Path, ids: list[str], table: Columns) -> list[int]:
    """Write all architectures, best first; their order."""
    best_by = list(table)[-1]
    order = np.argsort(-table[best_by], kind="stable").tolist()
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["id", *table])
    rows.writerows([ids[i], *(f"{column[i]:.6g}" for column in table.values())] for i in order)
    if rank() == 0:
        write_text(file, text.getvalue())
    return order


def print_best(ids: list[str], table: Columns, order: list[int], unit: str) -> None:
    names = {"cost": f"cost {unit}", "params_m": "params M", "supernet": "supernet top-1 %"}
    rows = [[ids[i], *(f"{column[i]:.4g}" for column in table.values())] for i in order[:SHOWN]]
    print(format_table(["id", *(names.get(name, name) for name in table)], rows))


if __name__ == "__main__":
    main()
