"""SGNAS: train the supernet, then the architecture generator on it.

Source: Huang and Chu, "Searching by Generating: Flexible and Efficient One-Shot NAS with
Architecture Generator", CVPR 2021. Stage 1 is `warm_up`, stage 2 `train_generator`.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model.ranking import reliability
from model.ranking.supernet_accuracy import AccuracyRecipe, SupernetAccuracy
from model.sgnas.answer_ranking import answer_ranking
from model.sgnas.answers import (
    Answers,
    Generated,
    Rank,
    ReadyGenerator,
    answers,
    evaluated_targets,
    miss_table,
    rows_of,
)
from model.sgnas.dry_run import data_of, dry_run
from model.sgnas.generator_training import GeneratorRecipe, GeneratorTraining
from model.sgnas.hardware_loss import HardwareLoss
from model.sgnas.prior_pool import PoolRecipe, PriorPool, open_pool
from model.sgnas.runs import GENERATOR_FILE, LATENCY_FILE, find_generator
from model.sgnas.warm_up import WarmUp, WarmUpRecipe, supernet_payload
from model.spaces.registry import Problem, completed, open_problem
from utils import distributed
from utils.capacity import check_one_image
from utils.command import Parser, add_checkpoint_minutes, add_config_options, command
from utils.config import Config, load_config
from utils.data import SearchImages, load_dataset, split_for_search
from utils.data_record import DataRecord
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.loader import BatchRecipe
from utils.run_folder import RunFolder
from utils.runtime import Progress, pick_device, stream
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    strict = ["strict_data=true"] * args.strict_data
    config = completed(load_config(args.cfg, args.set + strict))
    config.part(WarmUpRecipe)  # a learning rate of 0 shows before writing
    problem = open_problem(config)
    truth = open_benchmark(args.table, problem, config)
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    supernet = problem.supernet(config).to(context.device)
    load_pretrained(supernet, problem, config, args.cfg)
    if config.batch_size < 2 * distributed.size():
        kind, flag = problem.kind, f"batch_size: {config.batch_size}"
        check_one_image(kind.largest(supernet), kind.image_size(supernet), flag)
    source = (config.dataset, config.dataset_dir, config.input_size, config.classes)
    if args.dry_run:
        dataset = data_of(config)
    else:
        dataset = load_dataset(*source, strict=config.strict_data)
    if dataset is not None:  # bad portions show before writing
        split_for_search(dataset, config.train_portion, config.seed)
    run = RunFolder.open("search", config, args.title or Path(args.cfg).stem, args.resume)
    run.minutes = args.checkpoint_minutes
    generates = problem.kind.has_generator
    pool = open_prior_pool(config, problem, run) if generates else None
    check_latencies(problem, run)
    if args.dry_run:
        return dry_run(problem, supernet, dataset, config, context)
    run.check_data(DataRecord.of(config.dataset, config.dataset_dir, dataset))
    run.begin(config, context.device)
    if generates:
        keep_latencies(problem, run)
        save_prior_pool(pool, config, run)
    images = split_for_search(dataset, config.train_portion, config.seed, run.file("split.json"))
    if config.warmup_epochs:
        warm_up(supernet, problem, images, config, run, context)
    if generates and config.search_epochs:
        train_generator(supernet, pool, problem, images, config, run, context)
        ready = find_generator(config, problem, run.path)
        rank = answer_ranking(config, problem, run.path)
        report(ready, rank, config, run)
        if truth is not None:
            look_up(truth, ready, rank, targets_of(config), run)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    option = parser.add_argument
    option("--cfg", required=True, help="config file (YAML)")
    option("--title", help="name of the run folder under log_dir; default: the config's name")
    resume = (
        "auto: resume where this title stopped; none: move an earlier run aside and start again; "
        "PATH: start with the state of another run folder"
    )
    option("--resume", default="auto", metavar="auto|none|PATH", help=resume)
    add_config_options(parser)
    add_checkpoint_minutes(parser)
    option("--strict-data", action="store_true", help="stop at an image that cannot be read")
    option("--table", metavar="FILE", help="true accuracies (docs/nasbench201.md)")
    option("--dry-run", action="store_true", help="say what the run would need, and stop")
    return parser.parse_args(argv)


def targets_of(config: Config) -> Tensor:
    """The evaluated targets."""
    return evaluated_targets(config.low_flops, config.high_flops, config.eval_step)


def open_benchmark(file: str | None, problem: Problem, config: Config):
    """The published accuracies of the space, where a file of them is given."""
    if file is None:
        return None
    if not config.search_epochs:
        raise UserError(f"--table {file}: with search_epochs 0 there are no answers to look up")
    return problem.kind.benchmark(file, problem.space)


def load_pretrained(supernet: nn.Module, problem: Problem, config: Config, cfg: str) -> None:
    """Without a warm-up, the supernet must come from `model_pretrained`."""
    if config.warmup_epochs == 0:
        if not config.model_pretrained:
            raise UserError(
                f"{cfg}: model_pretrained: with warmup_epochs 0 it must name a trained supernet"
            )
        problem.kind.load(supernet, config.model_pretrained)


def open_prior_pool(config: Config, problem: Problem, run: RunFolder) -> PriorPool:
    """The pool of the run that is resumed or started from, else the config's."""
    folder = run.path if run.continues else run.origin
    kept = folder / "prior_pool.json" if folder else None
    return open_pool(config.part(PoolRecipe), problem.table, kept)


def check_latencies(problem: Problem, run: RunFolder) -> None:
    """A run that is resumed must still have the latency table that it started with."""
    kept, latencies = run.file(LATENCY_FILE), getattr(problem.table, "latencies", None)
    if latencies and run.continues and kept.exists() and kept.read_text() != latencies.text:
        raise UserError(
            f"{latencies.where}: it has changed since this run started, whose own is {kept}"
        )


def keep_latencies(problem: Problem, run: RunFolder) -> None:
    if latencies := getattr(problem.table, "latencies", None):
        run.write_text(LATENCY_FILE, latencies.text)


def save_prior_pool(pool: PriorPool, config: Config, run: RunFolder) -> None:
    if distributed.rank():
        return
    for file in filter(None, (config.path_to_prior_pool, run.file("prior_pool.json"))):
        if not Path(file).exists():
            pool.save(file)


# -- stage 1 -------------------------------------------------------------------------------------


def warm_up(
    supernet: nn.Module,
    problem: Problem,
    images: SearchImages,
    config: Config,
    run: RunFolder,
    context: DeviceContext,
) -> None:
    """Train all sub-networks at once (SGNAS, section 3.2); the best supernet stays loaded."""
    kind, recipe = problem.kind, config.part(WarmUpRecipe)
    batches = config.part(BatchRecipe).batches(images.train, "warm-up", training=True)
    rng = stream(config.seed, "validation paths")
    validated = kind.choices(problem.space, config.validation_paths, rng)
    costs = problem.table(validated).tolist()
    accuracy = SupernetAccuracy.on_search_images(
        kind, supernet, images, config.part(AccuracyRecipe), context
    )
    last = run.checkpoint("supernet_last")
    training = WarmUp(problem, supernet, len(batches), recipe, context, last)
    if recipe.lr_scheduler != "step" and recipe.length > recipe.epochs:
        covered = f"the {recipe.lr_scheduler} covers the {recipe.length} of the warm-up"
        print(f"epochs: {recipe.epochs}, warmup_epochs: {recipe.length}: {covered}", flush=True)

    def one_epoch(epoch: int) -> None:
        title = f"warm-up {epoch + 1}/{config.warmup_epochs}"
        with Progress(title, len(batches), config.print_freq, training.meter.steps) as progress:
            means = training.epoch(batches, epoch, progress)
        top1 = accuracy.top1_of_all(validated)
        mean = sum(top1) / len(top1)
        print(f"{title} loss {means.loss:.4f}, random networks top-1 {mean:.2f} %", flush=True)
        run.log("warm-up", epoch + 1, loss=means.loss, top1=means.top1, random_path_top1=mean)
        write_validation(costs, top1, config, run)
        if mean > training.best_top1:
            training.best_top1 = mean
            payload = supernet_payload(supernet, epoch + 1)
            run.save("supernet_best", payload, config.path_to_save_model)

    run.train("warm-up", "supernet_last", training, config.warmup_epochs, one_epoch)
    kind.load(supernet, run.checkpoint("supernet_best"))
    say_reliability(accuracy, problem, images, config, run)


def say_reliability(
    accuracy: SupernetAccuracy,
    problem: Problem,
    images: SearchImages,
    config: Config,
    run: RunFolder,
) -> None:
    """Say once what the supernet's own images tell of its ranking."""
    file = run.file("reliability.json")
    if distributed.of_first(file.exists()):
        return
    rng = stream(config.seed, "reliability")
    choices = problem.kind.sample(problem.space, reliability.RANKED, rng)
    costs = np.asarray(problem.table(choices), dtype=np.float64)
    recipe = config.part(AccuracyRecipe)
    found = reliability.reliability_of(accuracy, images.validate, recipe, choices, costs)
    if distributed.rank() == 0:
        run.write_text(file.name, json.dumps(asdict(found)) + "\n")
        print(found)
        for doubt in found.doubts:
            print(f"warning: {doubt}", flush=True)


def write_validation(costs: list[float], top1: list[float], config: Config, run: RunFolder) -> None:
    rows = [(f"{cost:.4f}", f"{t:.2f}") for cost, t in zip(costs, top1, strict=True)]
    run.write_csv("supernet_evaluate.csv", ("flops", "top1"), rows, config.path_to_supernet_eval)


# -- stage 2 -------------------------------------------------------------------------------------


def train_generator(
    supernet: nn.Module,
    pool: PriorPool,
    problem: Problem,
    images: SearchImages,
    config: Config,
    run: RunFolder,
    context: DeviceContext,
) -> None:
    """Train the architecture generator against the soft supernet (SGNAS, section 3.4)."""
    kind, table = problem.kind, problem.table
    batches = config.part(BatchRecipe).batches(images.feed, "generator", training=True)
    accuracy = SupernetAccuracy.on_search_images(
        kind, supernet, images, config.part(AccuracyRecipe), context
    )
    hardware_loss, targets = config.part(HardwareLoss), targets_of(config)
    soft, last = kind.soft(supernet.eval()), run.checkpoint("generator_last")
    recipe = config.part(GeneratorRecipe)
    training = GeneratorTraining(
        soft, pool, table, hardware_loss, len(batches), recipe, context, last
    )

    def one_epoch(epoch: int) -> None:
        title = f"generator {epoch + 1}/{config.search_epochs}"
        with Progress(title, len(batches), config.print_freq, training.meter.steps) as progress:
            training.epoch(batches, epoch, progress)
        average = training.average.module.eval()
        ready = ReadyGenerator(average, pool, table, title, config.priors_per_target)
        answered = answers(ready, hardware_loss, targets)
        middle = problem.space.encode(answered.middle.architecture)
        [top1] = accuracy.top1_of_all(middle[None])
        log_answers(answered, top1, table.unit, title, epoch + 1, run)
        keep_generator(training, answered, top1, epoch + 1, config, run)

    run.train("generator", "generator_last", training, config.search_epochs, one_epoch)


def log_answers(
    answered: Answers, top1: float, unit: str, title: str, epochs: int, run: RunFolder
) -> None:
    middle = answered.middle
    print(
        f"{title} hardware loss {answered.hardware_loss:.4f}, "
        f"Kendall tau {answered.kendall_tau:.3f}, mean miss {100 * answered.mean_miss:.2f} %, "
        f"target {middle.target:g} {unit}: {middle.cost:.2f} {unit}, top-1 {top1:.2f} %",
        flush=True,
    )
    names = ("hardware_loss", "kendall_tau", "mean_miss", "prior_kept")
    numbers = {name: getattr(answered, name) for name in names}
    run.log("generator", epochs, **numbers, middle_top1=top1)


def keep_generator(
    training: GeneratorTraining,
    answered: Answers,
    top1: float,
    epochs: int,
    config: Config,
    run: RunFolder,
) -> None:
    """The generator of this epoch as the last; as the best where it is, by loss or by accuracy."""
    payload = training.payload(epochs)
    write_evaluation(answered, "generator_evaluate.csv", run, config.path_to_generator_eval)
    if answered.hardware_loss < training.best_loss:
        training.best_loss = answered.hardware_loss
        mirror = config.path_to_generator_eval_avg
        write_evaluation(answered, "generator_evaluate_avg.csv", run, mirror)
        run.save(GENERATOR_FILE, payload, config.path_to_best_avg_generator)
    if answered.hardware_loss < config.hardware_loss_limit and top1 > training.best_top1:
        training.best_top1 = top1
        write_validated(answered.middle, top1, run, config.path_to_save_evaluate_architecture)
        run.save("generator_best", payload, config.path_to_save_generator)
    run.save("generator_final", payload, config.path_to_final_generator)


def write_evaluation(answered: Answers, name: str, run: RunFolder, mirror: str | None) -> None:
    rows = [(f"{g.cost:.4f}", f"{g.target:g}") for g in answered.found]
    run.write_csv(name, ("gen_flops", "true_flops"), rows, mirror)


def write_validated(found: Generated, top1: float, run: RunFolder, mirror: str | None) -> None:
    columns = ("true_flops", "gen_flops", "top1", "choices")
    row = (f"{found.target:g}", f"{found.cost:.4f}", f"{top1:.2f}", found.architecture.text)
    run.write_csv("evaluate_architecture.csv", columns, [row], mirror)


# -- results -------------------------------------------------------------------------------------


def report(ready: ReadyGenerator, rank: Rank | None, config: Config, run: RunFolder) -> None:
    """The answers of the generator of least hardware loss: a table and its files."""
    chosen = (rank, config.answer_tolerance)
    answered = answers(ready, config.part(HardwareLoss), targets_of(config), *chosen)
    found = answered.found
    listed = json.dumps(rows_of(found, ready.table.space)) + "\n"
    run.write_text("architectures.json", listed)
    rows = [(f"{g.target:g}", f"{g.cost:.4f}", g.architecture.text) for g in found]
    columns, mirror = ("true_flops", "gen_flops", "choices"), config.path_to_save_architecture
    run.write_csv("architecture.csv", columns, rows, mirror)
    print(format_table(*miss_table(found)))
    print(
        f"mean miss {100 * answered.mean_miss:.2f} % of the target, "
        f"Kendall tau {answered.kendall_tau:.3f}, "
        f"{100 * answered.prior_kept:.0f} % of the choices are those of the priors"
    )
    print(f"all files are in {run.path}")


def look_up(
    truth, ready: ReadyGenerator, rank: Rank | None, targets: Tensor, run: RunFolder
) -> None:
    """The true accuracy of each answer, and the best that its target, a ceiling, allows."""
    found, unmet = ready.within(targets, rank)
    paths = torch.stack([ready.table.space.encode(g.architecture) for g in found])
    columns = ("target M", "cost M", "true top-1 %", "optimum %", "regret")
    rows = []
    for g, accuracy in zip(found, truth.accuracy(paths).tolist(), strict=True):
        best = truth.optimum(g.target)
        regret = "" if g.target in unmet else f"{best - accuracy:.2f}"
        numbers = (f"{accuracy:.2f}", f"{best:.2f}", regret)
        rows.append((f"{g.target:g}", f"{g.macs_m:.3f}", *numbers))
    run.write_csv("true_accuracy.csv", columns, rows, None)
    print(format_table(list(columns), [list(row) for row in rows]))
    regrets = [float(row[-1]) for row in rows if row[-1]]
    mean = f"{sum(regrets) / len(regrets):.2f} points" if regrets else "unknown"
    over = (
        f" of {len(regrets)} targets; {len(unmet)} answers cost more than theirs" if unmet else ""
    )
    print(f"mean regret {mean}{over}; {run.file('true_accuracy.csv')}")


if __name__ == "__main__":
    main()
