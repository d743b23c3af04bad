"""NSGANetV2: search a supernet for accurate and cheap networks, with a surrogate that learns.

    python3 msunas.py --cfg CONFIG --supernet_path SUPERNET --save DIR \\
        [--sec_obj flops|params|cpu|gpu]
    python3 msunas.py --dataset cifar10 --data DIR --save DIR \\
        --supernet_path ofa_mbv3_d234_e346_k357_w1.0

Writes into DIR for each iteration the architectures (iter_k/net_i.subnet) and what they scored
(iter_k/net_i.stats), the archive so far (iter_k.stats) and a picture of the front (iter_k.png).
Architectures that cannot be evaluated go to failed/. The same command resumes where it stopped;
under torchrun the processes share the candidates. Source: Lu et al., "NSGANetV2", ECCV 2020; its
way to choose candidates is `--selection published`, ours is in `model/nsganetv2/nsga2_search.py`.

Without a supernet, --cfg says the space:

    python3 msunas.py --cfg CONFIG --evaluate training-free --save DIR
    python3 msunas.py --cfg CONFIG --evaluate trained --n_doe 8 --n_iter 4 --iterations 3 --save DIR

The first judges candidates by formulas, in minutes and without images (`model/ranking/`); the
second trains each from scratch, and chooses by what it learned from those before
(`model/nsganetv2/pool_search.py`). `--evaluate combined` is both a supernet and formulas.
"""

import argparse
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from model.costs.latency import Latencies
from model.nsganetv2.archive import SearchFolder
from model.nsganetv2.evaluation import ByAccuracy, BySignals, Evaluation
from model.nsganetv2.front_picture import save_front
from model.nsganetv2.nsga2_search import SELECTIONS, Objective, Record, Search
from model.nsganetv2.pareto import non_dominated
from model.nsganetv2.pool_search import Pool, PoolSearch
from model.nsganetv2.supernets import Searched, open_search
from model.nsganetv2.surrogate import SURROGATES
from model.ranking.candidates import CandidateAccuracy, CandidateImages, FineTuning
from model.ranking.combined import FEWEST
from model.ranking.signals import Signals, different_architectures
from model.ranking.training_free import TrainingFree
from model.spaces.contracts import Genome
from utils import checkpoint
from utils.command import (
    Parser,
    add_supernet_options,
    command,
    learning_rate,
    not_negative,
    positive,
)
from utils.data import PACKED, Dataset, load_dataset, split_for_search
from utils.data_record import DataRecord
from utils.distributed import divided, of_first, rank
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.image_sets import known_set
from utils.images import decoded
from utils.loader import Augmentation, Normalisation
from utils.places import output_folder
from utils.runtime import pick_device, stream
from utils.stopping import check_stop, check_stop_together, saved_when_stopped
from utils.table import format_table

IMAGENET_HELD_OUT = 10_000
LATENCIES = ("gpu", "cpu")
EVALUATIONS = ("supernet", "training-free", "combined", "trained")


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    searched = open_search(args, needs_supernet=args.evaluate in ("supernet", "combined"))
    config, problem = searched.config, searched.problem
    genome = problem.kind.genome(problem.space)
    objective = open_objective(args, searched, genome)
    dataset = open_dataset(args, searched) if args.evaluate != "training-free" else None
    accuracy = open_accuracy(args, searched, dataset) if dataset else None
    lut = args.lut or (problem.kind.published_latency if args.sec_obj == "cpu" else None)
    folder = SearchFolder.open(Path(args.save), settings(args, lut), args.resume)
    if dataset:
        folder.validation = accuracy.images.validated
        folder.check_data(DataRecord.of(config.dataset, config.dataset_dir, dataset))
    evaluation = open_evaluation(args, searched, genome, accuracy)
    folder.evaluate, folder.evaluation = args.evaluate, evaluation
    parts = (genome, objective, args.predictor, SELECTIONS[args.selection])
    genes = len(genome.largest_genes)
    if args.predictor == "rbf" and args.iterations > 0 and args.n_doe <= genes + 1:
        needed = f"rbf needs more than {genes + 1} architectures to learn {genes} genes"
        print(f"warning: --n_doe {args.n_doe}: {needed}")
    if args.evaluate == "trained":
        search = PoolSearch(
            *parts, open_pool=lambda: open_pool(args, searched, genome, accuracy, folder)
        )
    else:
        search = Search(*parts)
    with saved_when_stopped(lambda: None):  # what is evaluated is on disk already
        run(search, evaluation, folder, args)
    report(search, evaluation, folder)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    option = parser.add_argument
    option(
        "--save",
        type=output_folder,
        default=".tmp",
        metavar="DIR",
        help="where results go (default .tmp)",
    )
    resume = (
        "auto: resume the search in --save; none: refuse if there is one; DIR: start after another "
        "search's last iteration, or with the net_*.subnet and .stats of a folder"
    )
    option("--resume", default="auto", metavar="auto|none|DIR", help=resume)
    add_supernet_options(parser)
    evaluate = "by the supernet (default, as published), by formulas, by both, or trained alone"
    option("--evaluate", choices=EVALUATIONS, default="supernet", help=f"candidates: {evaluate}")
    pool = "trained: random architectures, from which those to train are chosen (default 500)"
    option("--pool", type=positive, default=500, help=pool)
    objectives = ("flops", "params", "cpu", "gpu")
    option(
        "--sec_obj", default="flops", choices=objectives, help="second objective (default flops)"
    )
    lut = "latency table for --sec_obj cpu (default: latency_cpu.yaml) or gpu"
    option("--lut", metavar="FILE", help=lut)
    iterations = "below 1: random search, --n_doe architectures"
    option("--iterations", type=int, default=30, help=iterations)
    count = {"type": positive}
    option("--n_doe", **count, default=100, help="architectures to start with (default 100)")
    option("--n_iter", **count, default=8, help="architectures of an iteration (default 8)")
    selection = "by the hypervolume they are expected to gain (default), or even gaps as published"
    choices = tuple(SELECTIONS)
    option(
        "--selection", default="hypervolume", choices=choices, help=f"of candidates: {selection}"
    )
    names = f"{', '.join(SURROGATES)} (default ard; rbf with --selection published)"
    option("--predictor", help=f"surrogate: {names}")
    option("--n_gpus", **count, default=8, help="accepted; torchrun says how many processes")
    option("--gpu", **count, default=1, help="accepted; each process has a GPU")
    option("--data", metavar="DIR", help="where the data set is (default: as --cfg says)")
    option("--dataset", help="its name (default: as --cfg says)")
    workers = "processes that read large images"
    option("--n_workers", type=not_negative, default=4, help=workers)
    option("--vld_size", **count, help="training images held out to validate candidates")
    option("--trn_batch_size", **count, default=128, help="of fine-tuning (default 128)")
    option("--vld_batch_size", **count, default=200, help="of validation (default 200)")
    epochs = "fine-tuning of each candidate, or its training (default 5)"
    option("--n_epochs", type=not_negative, default=5, help=epochs)
    option("--lr", type=learning_rate, help="of fine-tuning (default: as published for the set)")
    test = "validate on the test images: the search will know them"
    option("--test", action="store_true", help=test)
    option("--seed", type=not_negative, default=0)
    args = parser.parse_args(argv)
    if args.evaluate == "trained" and args.n_doe < FEWEST:
        raise UserError(f"--n_doe {args.n_doe}: --evaluate trained begins with {FEWEST} or more")
    if args.evaluate == "trained" and not args.n_epochs:
        raise UserError("--n_epochs 0: --evaluate trained trains each candidate")
    args.predictor = args.predictor or ("rbf" if args.selection == "published" else "ard")
    if args.predictor not in (*SURROGATES, "cart"):
        known = ", ".join(SURROGATES)
        raise UserError(f"--predictor {args.predictor}: unknown; allowed are {known}")
    return args


def settings(args: argparse.Namespace, lut: str | None) -> dict:
    """What must stay the same for a search to resume; the number of iterations may grow."""
    free = ("save", "resume", "iterations", "n_gpus", "gpu", "n_workers", "data")
    files = {"cfg": args.cfg, "supernet_path": args.supernet_path, "lut": lut}
    kept = {key: value for key, value in vars(args).items() if key not in (*free, *files)}
    files = {name: checkpoint.digest(file) if file else None for name, file in files.items()}
    kept["pool"] = args.pool if args.evaluate == "trained" else None
    return {**kept, **files, "random search": args.iterations < 1}


# -- what is searched ----------------------------------------------------------------------------


def open_objective(args: argparse.Namespace, searched: Searched, genome: Genome) -> Objective:
    if args.sec_obj not in LATENCIES:
        return Objective(args.sec_obj, genome)
    kind, config = searched.problem.kind, searched.config
    file = args.lut or (kind.published_latency if args.sec_obj == "cpu" else None)
    options = kind.latency_options(config)
    if file is None:
        kind.latency_parts(searched.problem.space, options)  # UserError where there are none
        raise UserError(
            f"--sec_obj {args.sec_obj}: --lut must name a latency table; "
            "python3 -m tools.profile_latency makes one"
        )
    table = kind.latency_table(Latencies.read(file), searched.problem.space, options)
    return Objective(args.sec_obj, genome, partial(genome.cost_by, table))


def classes_of(args: argparse.Namespace, searched: Searched) -> int:
    """Of the data; candidates that are fine-tuned as published get a classifier of their own."""
    tuned = args.cfg is None and args.n_epochs
    own = known_set(searched.config.dataset) if tuned else searched.problem.space
    return args.n_classes or own.classes


def open_dataset(args: argparse.Namespace, searched: Searched) -> Dataset:
    config = searched.config
    source = (config.dataset, config.dataset_dir, config.input_size, classes_of(args, searched))
    return load_dataset(*source, strict=config.strict_data)


def open_accuracy(
    args: argparse.Namespace, searched: Searched, dataset: Dataset
) -> CandidateAccuracy:
    """Images decoded once, at the greatest resolution where they are large.

    With --cfg, candidates are judged by images that did not train the supernet, and prepared as the
    config says; without, as published.
    """
    config, published, known = searched.config, args.cfg is None, known_set(searched.config.dataset)
    if published:
        dataset = dataset.seen(known.view)
        most, images = len(dataset.train.labels) - 1, partial(CandidateImages.split, dataset.train)
        augment = {"crop_scale": (0.08, 1.0), **known.augment}
    else:
        split = split_file(args.supernet_path) if args.supernet_path else None
        parts = split_for_search(dataset, config.train_portion, config.seed, split)
        most, images = len(parts.held_out.labels), partial(CandidateImages.of_search, parts)
        augment = {"horizontal_flip": config.horizontal_flip}
    of_imagenet = config.dataset in ("imagenet", PACKED)
    usual = IMAGENET_HELD_OUT if of_imagenet else len(dataset.train.labels) // 10
    count = args.vld_size or min(usual, most)
    if count > most:
        raise UserError(f"--vld_size {count}: {most} training images can be held out")
    images = images(count)
    if args.test:
        said = "the search is guided by the test images, whose accuracy then says nothing"
        print(f"warning: --test: {said}", flush=True)
        images = replace(images, validate=decoded(dataset.test))
    lr, decay = known.lr if known else 0.01, FineTuning.weight_decay
    if args.evaluate == "trained":  # from fresh weights, not as published
        lr, decay = config.optim_state.lr, config.optim_state.weight_decay
    tuning = FineTuning(
        args.n_epochs,
        args.lr or lr,
        decay,
        args.trn_batch_size,
        classes_of(args, searched),
        Augmentation(config.crop_padding, **augment),
        args.n_workers,
    )
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    supernet = searched.supernet
    return CandidateAccuracy(
        searched.problem.kind,
        supernet.to(context.device) if supernet else None,
        images,
        Normalisation(config.mean, config.std),
        context,
        args.vld_batch_size,
        tuning,
        args.seed,
    )


def open_evaluation(
    args: argparse.Namespace,
    searched: Searched,
    genome: Genome,
    accuracy: CandidateAccuracy | None,
) -> Evaluation:
    """What judges the candidates, as --evaluate says."""
    if args.evaluate == "supernet":
        return ByAccuracy(
            lambda row, name: accuracy.score(genome.choice(row), genome.spec(row).image_size, name)
        )
    if args.evaluate == "trained":
        return ByAccuracy(lambda row, name: accuracy.score_from_scratch(genome.spec(row), name))
    return BySignals(open_signals(args, searched, genome, accuracy), args.evaluate)


def open_signals(
    args: argparse.Namespace,
    searched: Searched,
    genome: Genome,
    accuracy: CandidateAccuracy | None,
) -> Signals:
    """Sizes and training-free terms, and the scores of the supernet where there is one."""
    terms = TrainingFree(seed=args.seed, device=pick_device(searched.config.cuda))
    in_place = accuracy.in_place if accuracy and searched.supernet else None
    return Signals(genome, searched.problem.table, terms, in_place)


def open_pool(
    args: argparse.Namespace,
    searched: Searched,
    genome: Genome,
    accuracy: CandidateAccuracy,
    folder: SearchFolder,
) -> Pool:
    """Random architectures, with the signals that cost little; all processes call it."""
    rng = np.random.default_rng(stream(args.seed, "msunas", "pool").initial_seed())
    genes = different_architectures(genome, searched.problem.table, args.pool, rng)
    signals = open_signals(args, searched, genome, accuracy)
    scores = folder.scores(signals.names)
    written = {name: genome.to_json(row) for name, row in genes.items()}
    scores.fill(
        genes, lambda ids: signals.of_all(np.stack([genes[i] for i in ids])), "signals", written
    )
    found = {n: np.array([scores.values[i][n] for i in genes], float) for n in signals.names}
    return Pool(np.stack(list(genes.values())), found)


def split_file(supernet: str) -> Path | None:
    """How the run that trained the supernet split the training images, when its folder is there."""
    file = Path(supernet).parent.parent / "split.json"
    return file if file.exists() else None


# -- the search ------------------------------------------------------------------------------------


def run(
    search: Search, evaluation: Evaluation, folder: SearchFolder, args: argparse.Namespace
) -> None:
    """All iterations that are left; number 0 is the design of experiments."""
    done = folder.restore(search)
    if done < 0:
        first = folder.first_archive(search)
        if not first:
            genes = of_first(search.doe(args.n_doe, draws(args, 0), extremes=args.iterations > 0))
            first = evaluated(genes, 0, search, evaluation, folder)
        search.add(first)
        folder.reference = search.worst()
        finish(0, search, first, evaluation, folder, None)
    for iteration in range(max(1, done + 1), args.iterations + 1):
        check_stop_together()
        proposal = of_first(search.propose(args.n_iter, draws(args, iteration)))
        if len(proposal.genes) == 0:
            print("the space has no architecture left that was not evaluated")
            break
        records = evaluated(proposal.genes, iteration, search, evaluation, folder)
        predicted = dict(zip(map(tuple, proposal.genes.tolist()), proposal.predicted, strict=True))
        search.add(records, [predicted[record.genes] for record in records])
        finish(iteration, search, records, evaluation, folder, proposal.winner)


def draws(args: argparse.Namespace, iteration: int) -> np.random.Generator:
    """Each iteration has a random stream of its own, so that resuming needs no other state."""
    return np.random.default_rng(stream(args.seed, "msunas", iteration).initial_seed())


def evaluated(
    genes: np.ndarray,
    iteration: int,
    search: Search,
    evaluation: Evaluation,
    folder: SearchFolder,
) -> list[Record]:
    """The records of `genes [K, G]`, written as they come; what fails is kept apart.

    Several processes share the work. UserError when all fail.
    """
    macs, parameters = search.genome.costs(genes)
    costs, objective = search.objective(genes), search.objective.name
    described = [search.genome.to_json(row) for row in genes]

    def stats(index: int) -> dict:
        check_stop()
        known = folder.stats(iteration, index, described[index], evaluation.needed)
        if known is not None:
            return known
        name = f"iter_{iteration}/net_{index}"
        measured = evaluation.measure(genes[index], name)
        cost = round(float(costs[index]), 2)
        found = {
            "params": round(float(parameters[index]), 2),
            "flops": round(float(macs[index]), 2),
            **dict.fromkeys(LATENCIES),
            **({objective: cost} if objective in LATENCIES else {}),
            **measured,
        }
        folder.write_stats(iteration, index, described[index], found)
        print(f"{name}  {said_of(found)}{objective} {cost:.2f}", flush=True)
        return found

    def said_of(found: dict) -> str:
        return f"top-1 {found['top1']:.2f} %  " if "top1" in evaluation.needed else ""

    outcomes, kept, measured = divided(len(genes), stats), [], []
    for index, (outcome, row) in enumerate(zip(outcomes, map(tuple, genes.tolist()), strict=True)):
        if outcome.process != rank() and outcome.error is None:
            said = f"{said_of(outcome.result)}by process {outcome.process}"
            print(f"iter_{iteration}/net_{index}  {said}")
        if outcome.error is None:
            kept.append((row, float(costs[index])))
            measured.append(outcome.result)
        else:  # it must neither end the search nor become a number
            failure = f"{type(outcome.error).__name__}: {outcome.error}"
            search.failed.add(row)
            folder.write_failure(iteration, index, described[index], failure)
    if not kept:
        none = f"none of {len(genes)} architectures could be evaluated"
        raise UserError(f"iteration {iteration}: {none} ({failure})")
    errors = evaluation.errors(measured)
    return [Record(row, error, cost) for (row, cost), error in zip(kept, errors, strict=True)]


def finish(
    iteration: int,
    search: Search,
    new: list[Record],
    evaluation: Evaluation,
    folder: SearchFolder,
    winner: str | None,
) -> None:
    """Write what the search knows after an iteration, and say it in a line."""
    volume, quality = search.hypervolume(folder.reference), search.surrogate_quality()
    name = "adaptive switching" if search.predictor == "as" else search.predictor
    surrogate = {"model": search.predictor, "name": name, "winner": winner, **asdict(quality)}
    folder.write_iteration(iteration, search, new, volume, surrogate)
    _, errors, costs = search.arrays()
    if rank() == 0:
        picture = folder.path / f"iter_{iteration}.png"
        shown = evaluation.shown(errors)
        save_front(picture, errors, shown, costs, len(new), evaluation.title, search.objective.name)
    predicted, best = "", evaluation.shown(errors.min())
    if winner is not None:
        predicted = f"  {winner}: tau {quality.tau:.3f}, RMSE {quality.rmse:.2f} out of sample"
    best = f"best {evaluation.title} {best:.2f}"
    summary = f"Iter {iteration}: hv = {volume:.4f}  {best}  archive {len(errors)}"
    print(summary + predicted, flush=True)


def report(search: Search, evaluation: Evaluation, folder: SearchFolder) -> None:
    _, errors, costs = search.arrays()
    front = np.flatnonzero(non_dominated(np.column_stack([errors, costs])))
    front = front[np.argsort(costs[front])]
    rows = [[f"{costs[i]:.2f}", f"{evaluation.shown(errors[i]):.2f}"] for i in front]
    print(format_table([search.objective.name, evaluation.title], rows))
    learned = search.calibration() if isinstance(search, PoolSearch) else None
    if learned:
        print(learned.report())
    print(f"front of {len(errors)} architectures; {folder.path}: iter_k.stats, iter_k.png, iter_k/")


if __name__ == "__main__":
    main()
