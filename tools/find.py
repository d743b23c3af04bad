"""Find, train and export a network for your own images, in one command.

    python3 -m tools.find FOLDER --at-most 20M [--at-most 5M] [--minutes 60] [--out DIR]

FOLDER has a folder of images for each class, or such folders in train/ and val/ (or test/). A
budget is a ceiling, in millions of multiply-adds. What else is needed is derived and printed first.
For each budget random architectures of equal cost are ranked without training; the best one and a
random one are trained from scratch by the same recipe, and the best one is written as an ONNX file.
DIR/networks.json says what was found. The same command resumes.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypedDict

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from model.layers.bn_folding import plain
from model.ranking.combined import WAYS, sum_of_log_ranks
from model.ranking.score_file import ScoreFile
from model.ranking.signals import Signals, different_architectures
from model.ranking.training_free import TERMS, TrainingFree
from model.spaces.contracts import Genes, NetworkSpec
from model.trained import Trained, open_own
from model.training.from_scratch import ScratchRecipe, train_from_scratch
from tools.export import about
from tools.finding.plan import NEAR, Plan, parse_budget
from tools.formats import onnx_file
from utils.command import Parser, add_config_options, command, not_negative, positive
from utils.data_record import DataRecord
from utils.distributed import of_first, rank
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.forecast import random_batch, seconds
from utils.json_file import read_json, write_json
from utils.places import output_folder
from utils.run_folder import RunFolder
from utils.runtime import pick_device, stream
from utils.table import format_table
from utils.timing import Timer

BEST, RANDOM = "best ranked", "random"
EPOCHS = (5, 200)  # of a training, at least and at most
STEPS = 6000  # of a training, at most
FOR_TRAINING = 0.8  # of the time
SHOWN = 20  # classes whose accuracies are printed
WARM_UP, IN_A_ROW = 3, 10  # runs of a turn that are not timed, and that are


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    find(args, partial(print, flush=True))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    option = parser.add_argument
    option("folder", type=Path, metavar="FOLDER", help="a folder of images for each class")
    budget = {"type": parse_budget, "action": "append", "required": True, "metavar": "20M"}
    option("--at-most", **budget, help="millions of multiply-adds; several give several networks")
    option("--minutes", type=positive, default=60, help="about so many in all (default 60)")
    option("--count", type=positive, default=200, help="ranked of each budget (default 200)")
    out = {"type": output_folder, "default": "found", "metavar": "DIR"}
    option("--out", **out, help="where all goes (default found)")
    option("--img-size", type=positive, metavar="PIXELS", help="default: as the images are, to 64")
    option("--seed", type=not_negative, default=0, help="of all that is drawn (default 0)")
    option("--dry-run", action="store_true", help="only say what it would do")
    add_config_options(parser)
    args = parser.parse_args(argv)
    args.out = Path(args.out)
    if args.count < 2:
        raise UserError("--count 1: at least 2 are compared")
    return args


@dataclass(frozen=True)
class Candidate:
    """An architecture to train: which one it is, for which budget."""

    method: str  # BEST or RANDOM
    budget: float
    spec: NetworkSpec

    @property
    def title(self) -> str:
        """The name of its run folder."""
        return f"{self.budget:g}M-{self.method.replace(' ', '-')}"


def find(args: argparse.Namespace, say: Callable[[str], None]) -> list[dict]:
    """All of it; returns the rows of networks.json. `say` gets lines of progress."""
    plan = Plan.of(args)
    check_same(args, plan)
    for line in plan.lines():
        say(line)
    candidates = [one for budget in plan.budgets for one in ranked(budget, plan, args)]
    plan = replace(plan, config=replace(plan.config, epochs=epochs_for(candidates, plan, args)))
    steps = plan.config.epochs * max(1, len(plan.dataset.train.labels) // plan.config.batch_size)
    say(f"trains {len(candidates)} networks for {plan.config.epochs} epochs, {steps} steps each")
    if args.dry_run:
        return []
    done, rows = [], []
    for one in sorted(candidates, key=lambda one: one.method != BEST):  # answers come first
        result = train(one, plan)
        trained = open_own(Path(result["checkpoint"]))
        done.append((one, result, milliseconds(trained.network, trained.image_size)))
        if one.method == BEST:
            rows.append(row_of(*done[-1], trained, args))
            write(args.out / "networks.json", rows)  # usable, whatever comes later
    report(done, rows, plan, args, say)
    return rows


def write(file: Path, value: dict | list | int) -> None:
    """Plain values as JSON; one of several processes writes."""
    if rank() == 0:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, value, indent=1)


def check_same(args: argparse.Namespace, plan: Plan) -> None:
    """Keep what was asked for in OUT; UserError when another search is there."""
    asked = {"budgets": list(plan.budgets), "minutes": args.minutes, "count": args.count}
    asked |= {"config": plan.config.to_dict()}
    file = args.out / "plan.json"
    if of_first(file.exists()):
        if json.loads(json.dumps(asked)) != read_json(file, dict, "the plan of a search"):
            raise UserError(f"--out {args.out}: it holds another search; choose another folder")
    elif not args.dry_run:
        write(file, asked)


# -- search ----------------------------------------------------------------------------------------


def ranked(budget: float, plan: Plan, args: argparse.Namespace) -> list[Candidate]:
    """The architecture of a budget that is ranked best, and a random one."""
    problem, genome = plan.problem, plan.problem.kind.genome(plan.problem.space)
    rng = np.random.default_rng(stream(args.seed, "find", f"{budget:g}").initial_seed())
    between = (NEAR * budget, budget)
    count = 2 if args.dry_run else args.count
    genes = different_architectures(genome, problem.table, count, rng, between)
    first, *_ = genes.values()
    best = first if args.dry_run else best_ranked(genes, budget, plan, args)
    others = [row for row in genes.values() if not np.array_equal(row, best)]
    specs = {BEST: genome.spec(best), RANDOM: genome.spec(others[0])}
    return [Candidate(method, budget, spec) for method, spec in specs.items()]


def best_ranked(
    genes: dict[str, Genes], budget: float, plan: Plan, args: argparse.Namespace
) -> Genes:
    """By equal log-ranks of the training-free terms and the cost."""
    problem, genome = plan.problem, plan.problem.kind.genome(plan.problem.space)
    terms = TrainingFree(TERMS, seed=args.seed, device=pick_device(plan.config.cuda))
    signals = Signals(genome, problem.table, terms)
    by = {"unit": problem.unit, "table": problem.table.digest, "noise_seed": args.seed}
    scores = ScoreFile.open(args.out / f"scores-{budget:g}M.jsonl", by, signals.names)
    written = {name: genome.to_json(row) for name, row in genes.items()}
    scores.fill(
        genes,
        lambda ids: signals.of_all(np.stack([genes[name] for name in ids])),
        f"{budget:g} M: ranking",
        written,
    )
    names = WAYS["training-free"]
    found = {name: np.array([scores.values[i][name] for i in genes], float) for name in names}
    return list(genes.values())[int(sum_of_log_ranks(found).argmax())]


# -- training --------------------------------------------------------------------------------------


def epochs_for(candidates: list[Candidate], plan: Plan, args: argparse.Namespace) -> int:
    """Epochs of each training, by the time of a step; those of before, when it resumes."""
    file = args.out / "epochs.json"
    if of_first(file.exists()):
        return read_json(file, int, "a number of epochs")
    config = plan.config
    context = context_of(plan)
    recipe, total = config.part(ScratchRecipe), 0.0
    for one in candidates:
        network = recipe.network(one.spec).to(context.device).train()
        rng = stream(0, "forecast")
        images, labels = random_batch(config.batch_size, config.input_size, context, rng)

        def step(network=network, images=images, labels=labels) -> None:
            F.cross_entropy(network(images), labels).backward()

        total += seconds(step, context)
    steps = max(1, len(plan.dataset.train.labels) // config.batch_size)
    possible = of_first(int(60 * FOR_TRAINING * args.minutes / (total * steps)))
    least, most = EPOCHS
    epochs = max(least, min(possible, most, max(least, STEPS // steps)))
    if not args.dry_run:
        write(file, epochs)
    return epochs


def context_of(plan: Plan) -> DeviceContext:
    config = plan.config
    return DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)


class _Result(TypedDict):
    """What is read of the result.json of a finished training."""

    macs_m: float
    params_m: float
    top1: float
    checkpoint: str


def train(one: Candidate, plan: Plan) -> _Result:
    """What result.json says of a candidate; a finished training is only read."""
    config, context = plan.config, context_of(plan)
    record = DataRecord.of("imagefolder", config.dataset_dir, plan.dataset)
    run = RunFolder.open("tools.find", config, one.title, data=record)
    if run.continues and run.file("result.json").exists():
        return read_json(run.file("result.json"), _Result, "the result of a training")
    provenance = {"source": f"tools.find, {one.method}", "target": one.budget, "unit": "M"}
    provenance["classes"] = list(plan.dataset.names)
    recipe = config.part(ScratchRecipe)
    run.begin(config, context.device)
    parts = (one.spec, recipe.network(one.spec), plan.dataset, recipe, run, context, provenance)
    return train_from_scratch(*parts)


# -- results ---------------------------------------------------------------------------------------


def row_of(
    one: Candidate, result: dict, ms: float, trained: Trained, args: argparse.Namespace
) -> dict:
    """The row of networks.json of a network that is handed out, with its ONNX file."""
    return {
        "budget": f"{one.budget:g}M",
        "macs_m": result["macs_m"],
        "latency_ms": round(ms, 4),
        "params_m": result["params_m"],
        "top1": result["top1"],
        "checkpoint": result["checkpoint"],
        "onnx": as_onnx(trained, args.out / f"net-{one.budget:g}M.onnx"),
        "architecture": one.spec.to_json(),
    }


@torch.inference_mode()
def milliseconds(network: nn.Module, size: int) -> float:
    """The median time of one image on the CPU, with this process's threads."""
    network = network.eval().to(memory_format=torch.channels_last)
    image = torch.zeros(1, 3, size, size).to(memory_format=torch.channels_last)
    [ms] = Timer(50, WARM_UP, IN_A_ROW).median_ms([lambda: network(image)])
    return ms


def as_onnx(trained: Trained, file: Path) -> str | None:
    """Write it as an ONNX file with all metadata; None where onnx is not installed."""
    try:
        onnx_file.check_installed()
    except UserError as error:
        print(f"no ONNX file: {str(error).removeprefix('--format onnx: ')}", flush=True)
        return None
    size, opset = trained.image_size, onnx_file.USUAL_OPSET
    onnx_file.write(file, plain(trained.network), size, opset, about(trained))
    return str(file)


def report(
    done: list[tuple[Candidate, dict, float]],
    rows: list[dict],
    plan: Plan,
    args: argparse.Namespace,
    say: Callable[[str], None],
) -> None:
    """A table of all trainings, the accuracy of each class, and the next commands."""
    table = [
        [f"{one.budget:g} M", one.method, f"{result['macs_m']:.3f}", f"{ms:.2f}",
         f"{result['params_m']:.3f}", f"{result['top1']:.2f}"]
        for one, result, ms in done
    ]  # fmt: skip
    columns = ["budget", "network", "cost M", "ms", "params M", "test top-1 %"]
    say(format_table(columns, table))
    usual = plan.dataset.train.labels.bincount().argmax()
    constant = 100 * float((plan.dataset.test.labels == usual).float().mean())
    say(f"{len(plan.dataset.test.labels)} test images; the most frequent class: {constant:.2f} %")
    best = max(rows, key=lambda row: row["top1"])
    say(per_class(Path(best["checkpoint"]), plan))
    say(f"{args.out}/networks.json says what was found. Next:")
    say(f"  python3 -m tools.predict {best['onnx'] or best['checkpoint']} IMAGE")
    say(f"  python3 validate.py --checkpoint {best['checkpoint']}")
    folders = " ".join(str(Path(row["checkpoint"]).parents[1]) for row in rows)
    say(f"  python3 -m tools.report {folders} --out {args.out}/report.html")


@torch.inference_mode()
def per_class(checkpoint: Path, plan: Plan) -> str:
    """How many test images of each class are recognised, and what others are mostly taken for."""
    trained, names = open_own(checkpoint), plan.dataset.names
    confusion = torch.zeros(len(names), len(names), dtype=torch.long)
    for images, labels in trained.batches(plan.dataset.test, 256).epoch():
        answers = trained.network(images).argmax(dim=1)
        confusion.index_put_((labels, answers), torch.ones_like(labels), accumulate=True)
    rows = []
    for number, (name, row) in enumerate(zip(names, confusion, strict=True)):
        others = row.clone()
        others[number] = 0
        mistaken = f"{names[int(others.argmax())]} ({int(others.max())})" if others.any() else "-"
        share = 100 * float(row[number]) / max(1, int(row.sum()))
        rows.append([name, f"{int(row.sum())}", f"{share:.1f}", mistaken])
    worst = sorted(rows, key=lambda row: float(row[2]))[:SHOWN]
    columns = ["class", "test images", "recognised %", "mostly taken for"]
    return format_table(columns, rows if len(rows) <= SHOWN else worst)


if __name__ == "__main__":
    main()
