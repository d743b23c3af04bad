"""SGNAS: train the unified supernet, then the architecture generator on it.

Source: Huang and Chu, "Searching by Generating: Flexible and Efficient One-Shot NAS with
Architecture Generator", CVPR 2021. Stage 1 is `warm_up`, stage 2 `train_generator`.
"""

import argparse
import json
from pathlib import Path

from model.costs.lookup_table import CostTable
from model.forecast import forecast, forecast_elastic
from model.sgnas.answers import (
    GENERATOR_FILE,
    LATENCY_FILE,
    Generated,
    ReadyGenerator,
    find_generator,
    miss_table,
)
from model.sgnas.generator import PriorPool
from model.sgnas.generator_training import Answers, GeneratorTraining, answers, evaluated_targets
from model.sgnas.warm_up import PathValidation, WarmUp, supernet_payload, top1_of_all, validation_of
from model.spaces.elastic.supernet import ElasticSupernet
from model.spaces.nasbench201.benchmark_table import CellTable
from model.spaces.nasbench201.space import CellSpace
from model.spaces.nasbench201.supernet import CellSupernet
from model.spaces.registry import (
    Supernet,
    build_cost_table,
    build_hardware_loss,
    build_space,
    build_supernet,
    load_supernet,
    prior_pool,
    search_loader,
)
from model.spaces.unified.supernet import UnifiedSupernet
from utils import distributed
from utils.command import Parser, add_checkpoint_minutes, add_config_options, command
from utils.config import Config, load_config
from utils.data import HELD_OUT_BY_DEFAULT, SearchImages, load_dataset, split_for_search
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.run_folder import RunFolder
from utils.runtime import Progress, pick_device, stream
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    config = load_config(args.cfg, args.set + ["strict_data=true"] * args.strict_data)
    truth = open_table(args.table, config)
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    supernet = build_supernet(config).to(context.device)
    if args.dry_run:
        return dry_run(config, supernet, context)

    load_pretrained(supernet, config, args.cfg)
    dataset = load_dataset(
        config.dataset,
        config.dataset_dir,
        config.input_size,
        config.classes,
        strict=config.strict_data,
    )
    # bad portions show before anything is written
    split_for_search(dataset, config.train_portion, config.seed)
    run = RunFolder.open("search", config, args.title or Path(args.cfg).stem, args.resume)
    run.minutes = args.checkpoint_minutes
    generates = config.supernet != "elastic"  # an elastic supernet is for msunas.py
    table = build_cost_table(config, supernet.space) if generates else None
    pool = open_prior_pool(config, table, run) if generates else None
    check_latencies(config, run)
    run.begin(config, context.device)
    if generates:
        keep_latencies(config, run)
        save_prior_pool(pool, config, run)
    images = split_for_search(dataset, config.train_portion, config.seed, run.file("split.json"))
    if config.warmup_epochs:
        warm_up(supernet, images, config, run, context)
    if generates and config.search_epochs:
        train_generator(supernet, pool, table, images, config, run, context)
        ready = find_generator(config, run.path)
        report(ready, config, run)
        if truth is not None:
            look_up(truth, ready, config, run)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--cfg", required=True, help="config file (YAML)")
    parser.add_argument(
        "--title", help="name of the run folder under log_dir; default: the config's name"
    )
    parser.add_argument(
        "--resume",
        default="auto",
        metavar="auto|none|PATH",
        help="auto: go on where this title stopped; none: move an earlier run aside and begin anew; "
        "PATH: begin with the state of another run folder",
    )
    add_config_options(parser)
    add_checkpoint_minutes(parser)
    parser.add_argument(
        "--strict-data", action="store_true", help="stop at an image that cannot be read"
    )
    parser.add_argument(
        "--table", metavar="FILE", help="true accuracies of NAS-Bench-201 (docs/nasbench201.md)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what the run would need, and stop"
    )
    return parser.parse_args(argv)


def open_table(file: str | None, config: Config) -> CellTable | None:
    if file is None:
        return None
    if config.supernet != "nasbench201" or build_space(config) != CellSpace():
        raise UserError(
            f"--table {file}: it is of the published cells and their network; the config is of others"
        )
    if not config.search_epochs:
        raise UserError(f"--table {file}: with search_epochs 0 there are no answers to look up")
    return CellTable.load(file)


def load_pretrained(supernet: Supernet, config: Config, cfg: str) -> None:
    """Without a warm-up, the supernet must come from `model_pretrained`."""
    if config.warmup_epochs == 0:
        if not config.model_pretrained:
            raise UserError(
                f"{cfg}: model_pretrained: with warmup_epochs 0 it must name a trained supernet"
            )
        load_supernet(supernet, config.model_pretrained)


def open_prior_pool(config: Config, table: CostTable, run: RunFolder) -> PriorPool:
    """The pool of the run that is continued or begun from, else the config's."""
    folder = run.path if run.continues else run.origin
    return prior_pool(config, table, folder / "prior_pool.json" if folder else None)


def check_latencies(config: Config, run: RunFolder) -> None:
    """A run that goes on must still have the latency table that it began with."""
    kept = run.file(LATENCY_FILE)
    asked = Path(config.latency_table) if config.cost == "latency" else kept
    if run.continues and kept.exists() and kept.read_bytes() != asked.read_bytes():
        raise UserError(
            f"latency_table: {asked}: it has changed since this run began, whose own is {kept}"
        )


def keep_latencies(config: Config, run: RunFolder) -> None:
    if config.cost == "latency":
        run.write_text(LATENCY_FILE, Path(config.latency_table).read_text())


def save_prior_pool(pool: PriorPool, config: Config, run: RunFolder) -> None:
    if distributed.rank():
        return
    for file in filter(None, (config.path_to_prior_pool, run.file("prior_pool.json"))):
        if not Path(file).exists():
            pool.save(file)


# -- stage 1 ---------------------------------------------------------------------------------------


def warm_up(
    supernet: Supernet, images: SearchImages, config: Config, run: RunFolder, context: DeviceContext
) -> None:
    """Train all sub-networks by fairly sampled single paths (SGNAS, section 3.2); the best supernet
    stays loaded.

    Those of an elastic supernet by the sandwich rule.
    """
    batches = search_loader(images.train, config, "warm-up", training=True)
    validation = validation_of(supernet, images, config, context)
    validated = validation.sample(config.validation_paths, stream(config.seed, "validation paths"))
    training = WarmUp(supernet, len(batches), config, context, run.checkpoint("supernet_last"))

    def one_epoch(epoch: int) -> None:
        title = f"warm-up {epoch + 1}/{config.warmup_epochs}"
        with Progress(title, len(batches), config.print_freq, training.meter.steps) as progress:
            means = training.epoch(batches, epoch, progress)
        top1 = top1_of_all(validation, validated)
        mean = sum(top1) / len(top1)
        print(f"{title} loss {means.loss:.4f}, random networks top-1 {mean:.2f} %", flush=True)
        run.log("warm-up", epoch + 1, loss=means.loss, top1=means.top1, random_path_top1=mean)
        write_validation(validation.costs(validated), top1, config, run)
        if mean > training.best_top1:
            training.best_top1 = mean
            run.save(
                "supernet_best", supernet_payload(supernet, epoch + 1), config.path_to_save_model
            )

    run.train("warm-up", "supernet_last", training, config.warmup_epochs, one_epoch)
    load_supernet(supernet, run.checkpoint("supernet_best"))


def write_validation(costs: list[float], top1: list[float], config: Config, run: RunFolder) -> None:
    rows = [(f"{cost:.4f}", f"{t:.2f}") for cost, t in zip(costs, top1, strict=True)]
    run.write_csv("supernet_evaluate.csv", ("flops", "top1"), rows, config.path_to_supernet_eval)


# -- stage 2 ---------------------------------------------------------------------------------------


def train_generator(
    supernet: UnifiedSupernet | CellSupernet,
    pool: PriorPool,
    table: CostTable,
    images: SearchImages,
    config: Config,
    run: RunFolder,
    context: DeviceContext,
) -> None:
    """Train the architecture generator against the frozen supernet (SGNAS, section 3.4)."""
    hardware_loss = build_hardware_loss(config)
    batches = search_loader(images.feed, config, "generator", training=True)
    validation = PathValidation(supernet, images, config, context)
    frozen, last = supernet.eval().frozen(), run.checkpoint("generator_last")
    training = GeneratorTraining(
        frozen, pool, table, hardware_loss, len(batches), config, context, last
    )

    def one_epoch(epoch: int) -> None:
        title = f"generator {epoch + 1}/{config.search_epochs}"
        with Progress(title, len(batches), config.print_freq, training.meter.steps) as progress:
            training.epoch(batches, epoch, progress)
        ready = ReadyGenerator(
            training.average.module.eval(), pool, table, title, config.priors_per_target
        )
        answered = answers(ready, hardware_loss, config)
        [top1] = top1_of_all(validation, [supernet.space.encode(answered.middle.architecture)])
        log_answers(answered, top1, table.unit, title, epoch + 1, run)
        keep_generator(training, answered, top1, epoch + 1, config, run)

    run.train("generator", "generator_last", training, config.search_epochs, one_epoch)


def log_answers(
    answered: Answers, top1: float, unit: str, title: str, epochs: int, run: RunFolder
) -> None:
    middle = answered.middle
    print(
        f"{title} hardware loss {answered.hardware_loss:.4f}, Kendall tau {answered.kendall_tau:.3f}, "
        f"mean miss {100 * answered.mean_miss:.2f} %, target {middle.target:g} {unit}: {middle.cost:.2f} {unit}, "
        f"top-1 {top1:.2f} %",
        flush=True,
    )
    names = ("hardware_loss", "kendall_tau", "mean_miss", "prior_kept")
    run.log(
        "generator", epochs, **{name: getattr(answered, name) for name in names}, middle_top1=top1
    )


def keep_generator(
    training: GeneratorTraining,
    answered: Answers,
    top1: float,
    epochs: int,
    config: Config,
    run: RunFolder,
) -> None:
    """The generator of this epoch as the last; and as the best where it is, by hardware loss or by
    accuracy.
    """
    payload = training.payload(epochs)
    write_evaluation(answered, "generator_evaluate.csv", run, config.path_to_generator_eval)
    if answered.hardware_loss < training.best_loss:
        training.best_loss = answered.hardware_loss
        write_evaluation(
            answered, "generator_evaluate_avg.csv", run, config.path_to_generator_eval_avg
        )
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
    row = (f"{found.target:g}", f"{found.cost:.4f}", f"{top1:.2f}", choices_text(found))
    run.write_csv(
        "evaluate_architecture.csv", ("true_flops", "gen_flops", "top1", "choices"), [row], mirror
    )


def choices_text(found: Generated) -> str:
    """Choices as one CSV cell: layers apart by spaces, sub-blocks by dashes, 0 for skip."""
    return " ".join(
        "-".join(str(choice or 0) for choice in row) for row in found.architecture.choices
    )


# -- what comes out --------------------------------------------------------------------------------


def report(ready: ReadyGenerator, config: Config, run: RunFolder) -> None:
    """Generate for all evaluated targets with the generator of least hardware loss; a table and its
    files.
    """
    answered = answers(ready, build_hardware_loss(config), config)
    found = answered.found
    run.write_text("architectures.json", json.dumps([g.to_dict() for g in found]) + "\n")
    rows = [(f"{g.target:g}", f"{g.cost:.4f}", choices_text(g)) for g in found]
    run.write_csv(
        "architecture.csv",
        ("true_flops", "gen_flops", "choices"),
        rows,
        config.path_to_save_architecture,
    )
    print(format_table(*miss_table(found)))
    print(
        f"mean miss {100 * answered.mean_miss:.2f} % of the target, Kendall tau {answered.kendall_tau:.3f}, "
        f"{100 * answered.prior_kept:.0f} % of the choices are those of the priors"
    )
    print(f"all files are in {run.path}")


def look_up(truth: CellTable, ready: ReadyGenerator, config: Config, run: RunFolder) -> None:
    """What the answers are really worth: for each target, a ceiling, beside the best that it
    allows.
    """
    found, _ = ready.repaired(evaluated_targets(config), at_most=True)
    columns = ("target M", "cost M", "true top-1 %", "optimum %", "regret")
    rows = []
    for g in found:
        accuracy, best = (
            float(truth.accuracy(ready.table.space.encode(g.architecture))),
            truth.optimum(g.target),
        )
        rows.append(
            (
                f"{g.target:g}",
                f"{g.macs_m:.3f}",
                f"{accuracy:.2f}",
                f"{best:.2f}",
                f"{best - accuracy:.2f}",
            )
        )
    run.write_csv("true_accuracy.csv", columns, rows, None)
    print(format_table(list(columns), [list(row) for row in rows]))
    print(
        f"mean regret {sum(float(row[-1]) for row in rows) / len(rows):.2f} points; {run.file('true_accuracy.csv')}"
    )


def dry_run(config: Config, supernet: Supernet, context: DeviceContext) -> None:
    """Print the reachable costs, the parameters, and the memory and time that the run would take."""
    rng, space = stream(config.seed, "dry run"), supernet.space
    if elastic := isinstance(supernet, ElasticSupernet):
        needs = forecast_elastic(supernet, config.batch_size, config.paths_per_step, context, rng)
        unit, (least, most) = "M", space.costs(space.extremes())[0] / 1e6
    else:
        needs = forecast(
            supernet, config.batch_size, config.paths_per_step, config.sampled_paths, context, rng
        )
        table = build_cost_table(config, space)
        unit, (least, most) = table.unit, table.reach()
    print(f"reachable cost    {least:.3f} to {most:.3f} {unit}{' multiply-adds' * (unit == 'M')}")
    if not elastic:
        print(f"targets           {config.low_flops:g} to {config.high_flops:g} {unit}")
    print(f"parameters        supernet {sum(p.numel() for p in supernet.parameters()) / 1e6:.2f} M")
    print(
        f"peak memory       about {needs.peak_bytes / 2**30:.2f} GiB at batch {config.batch_size}"
    )
    steps = f"warm-up {needs.warmup_seconds:.2f} s"
    steps += "" if elastic else f", generator {needs.generator_seconds:.2f} s"
    print(
        f"time of a step    {steps} on {context.device}, scaled from a batch of {min(config.batch_size, 16)}"
    )
    try:
        dataset = load_dataset(
            config.dataset, config.dataset_dir, config.input_size, config.classes, download=False
        )
    except UserError as error:
        return print(f"projected time    unknown: {error}")
    images = len(dataset.train.labels)
    portion = config.train_portion if config.train_portion < 1 else HELD_OUT_BY_DEFAULT
    train, held_out = portion * images, (1 - portion) * images
    if dataset.held_out is not None:
        train, held_out = images, len(dataset.held_out.labels)
    warm_up_minutes = config.warmup_epochs * train / config.batch_size * needs.warmup_seconds / 60
    generator_minutes = (
        config.search_epochs * 0.75 * held_out / config.batch_size * needs.generator_seconds / 60
    )
    stages = f"warm-up {warm_up_minutes:.1f} min"
    stages += "" if elastic else f", generator {generator_minutes:.1f} min"
    print(f"projected time    {stages}, validation not counted")


if __name__ == "__main__":
    main()
