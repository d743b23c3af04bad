"""Train one architecture on ImageNet, or on any folder of large images, in one process or under torchrun.

    torchrun --nproc_per_node=4 train_imagenet.py DATA_DIR --model get_model --target_flops 320 \\
        --config_path config_file/imagenet_config.yml --se True --activation hswish ...     (SGNAS)
    torchrun --nproc_per_node=8 train_imagenet.py DATA_DIR --model nsganetv2_s --model-config net.config \\
        --initial-checkpoint net.inherited --teacher SUPERNET ...                           (NSGANetV2)

DATA_DIR has train/ and val/, or with --lmdb what utils/folder2lmdb.py made of them. Optimisers, schedules, averaged
weights, augmentation and mixup are those of timm. The batch size is that of each process. The same command goes on
where it stopped.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
import yaml
from timm.data import Mixup, create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from model.blueprint import Blueprint, PlainBlueprint, blueprint_of, costs_of, load_blueprint
from model.build import build_space
from model.generation import choose
from model.scratch_training import ScratchTraining
from model.teacher import DistillationLoss, Teacher, load_teacher
from utils import checkpoint, distributed
from utils.command import Parser, command
from utils.config import load_config
from utils.data import Dataset, load_dataset
from utils.engine import Placement, Recipe, Score
from utils.errors import UserError
from utils.image_sets import IMAGE_SETS
from utils.imagenet_flags import add_imagenet_flags, flags_that_matter
from utils.loader import FileLoader, Normalisation, evaluation_transform
from utils.optim import TimmSchedule
from utils.run_folder import RunFolder
from utils.runtime import Progress, pick_device, stream
from utils.table import format_table

MEAN, STD = IMAGE_SETS["imagenet"].mean, IMAGE_SETS["imagenet"].std
DRY_STEPS = 3


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add_imagenet_flags(parser)
    args = parser.parse_args(argv)
    place = Placement(pick_device(args.cuda), args.channels_last, args.amp, getattr(torch, args.amp_dtype))
    run = RunFolder.open("train_imagenet", Flags.of(args), args.experiment or default_name(args), args.resume)
    run.minutes = args.checkpoint_minutes
    blueprint, source = stored(run) or chosen(args)
    size = args.img_size or blueprint.image_size
    network = build_network(blueprint, args, place, from_checkpoint=not run.checkpoint("last").exists())
    dataset = load_dataset(kind_of(args), args.data, size, None, strict=args.strict_data, in_memory=0)
    classes = int(dataset.train.labels.max()) + 1
    if classes > blueprint.classes or (classes < blueprint.classes and args.num_classes is None):
        raise UserError(f"{args.data}: it has {classes} classes, the network {blueprint.classes}; see --num-classes")
    batches, test = loaders(dataset, size, args)
    costs = costs_of(blueprint, network, size)
    described = describe(blueprint, args, size, classes)
    training, epochs = build_training(network, blueprint.classes, batches, described, args, place, run)
    if args.dry_run:
        return dry_run(training, batches, epochs, costs, args)
    run.begin(Flags.of(args), place.device)
    print(f"architecture from {source}")
    provenance = {"source": source, "target": args.target_flops}
    run.write_once("architecture.json", lambda file: blueprint.save(file, costs, provenance))
    scores = train(training, batches, test, epochs, args, run)
    report(scores, costs, epochs, run)


@dataclass(frozen=True)
class Flags:
    """What a run was begun with, as far as its results depend on it."""

    values: dict
    log_dir: str = ""
    write_dir: str | None = None
    title_flag = "--experiment"
    length_keys = frozenset({"epochs"})

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Flags":
        return cls(flags_that_matter(args), args.output)

    def to_dict(self) -> dict:
        return self.values

    @classmethod
    def read(cls, file: Path) -> "Flags":
        return cls(yaml.safe_load(file.read_text()))


def kind_of(args: argparse.Namespace) -> str:
    """The data set, as `utils/data.py` names it."""
    return "imagenet_lmdb" if args.lmdb else "imagenet"


def describe(blueprint: Blueprint, args: argparse.Namespace, size: int, classes: int) -> dict:
    """What a checkpoint says of its network and of its data, so that `validate.py` needs nothing else."""
    data = {"dataset": kind_of(args), "dataset_dir": args.data, "mean": list(MEAN), "std": list(STD)}
    data |= {"image_size": size, "classes": classes, "in_memory": 0}
    return {**blueprint.describe(), "options": options_of(blueprint, args), "data": data}


def default_name(args: argparse.Namespace) -> str:
    """What is trained."""
    parts = [args.model]
    parts += [f"{args.target_flops:g}M"] if args.target_flops else []
    parts += [Path(args.architecture).stem] if args.architecture else []
    parts += [Path(args.model_config).resolve().parent.name] if args.model_config else []
    return "-".join([*parts, *([str(args.img_size)] if args.img_size else [])])


# -- what is trained -------------------------------------------------------------------------------------------------


def stored(run: RunFolder) -> tuple[Blueprint, str] | None:
    """The architecture that a run was begun with that is continued, or whose state a new one begins with."""
    folder = run.path if run.continues else run.origin
    if folder is None or not (folder / "architecture.json").exists():
        return None
    return load_blueprint(folder / "architecture.json")[0], f"{folder}, as it was begun"


def chosen(args: argparse.Namespace) -> tuple[Blueprint, str]:
    """The architecture of a file, of a `net.config`, or that a generator gives for a target."""
    if args.model_config:
        blueprint = PlainBlueprint.load(args.model_config, args.img_size)
        return (blueprint.with_classes(args.num_classes) if args.reset_classifier else blueprint), args.model_config
    if args.model != "get_model":
        raise UserError(f"--model {args.model}: --model-config must name its net.config; or use --model get_model")
    if not args.config_path:
        if not args.architecture:
            raise UserError("--architecture, or --config_path with --target_flops, must say what to train")
        return load_blueprint(args.architecture)[0], str(args.architecture)
    if args.target_flops is None and not args.architecture:
        raise UserError("--target_flops or --architecture must say what to train")
    config = load_config(args.config_path, [f"classes={args.num_classes}"] if args.num_classes else [])
    space = build_space(config)
    found = choose(config, space, args.target_flops, Path(args.architecture) if args.architecture else None)
    return blueprint_of(space, found.architecture), found.source


def options_of(blueprint: Blueprint, args: argparse.Namespace) -> dict:
    """What makes the network of an architecture, beside the architecture."""
    for name in ("se", "activation"):
        if getattr(args, name) is not None and name not in blueprint.names:
            raise UserError(f"--{name}: networks of this kind have it as their architecture says")
    flags = {"se": bool(args.se), "activation": args.activation or "relu6"}
    flags |= {"dropout": args.drop, "drop_path": args.drop_path}
    return {name: flags[name] for name in blueprint.names}


def build_network(blueprint: Blueprint, args: argparse.Namespace, place: Placement, from_checkpoint: bool) -> nn.Module:
    """With the weights of --initial-checkpoint, unless those of a continued run will replace them."""
    rng, options = stream(args.seed, "imagenet"), options_of(blueprint, args)
    classes = blueprint.classes
    if args.num_classes not in (None, classes):
        change = "; --reset-classifier changes that" if args.model_config else ""
        raise UserError(f"--num-classes {args.num_classes}: the network has {classes}{change}")
    network = blueprint.network(options, rng)
    if args.initial_checkpoint and from_checkpoint:
        weights = checkpoint.weights(checkpoint.load(args.initial_checkpoint), args.initial_checkpoint)
        if args.reset_classifier:
            own = network.state_dict()
            weights |= {key: own[key] for key in own if key.startswith("classifier.")}
        checkpoint.load_into(network, weights, args.initial_checkpoint)
    if args.bn_momentum is not None:
        for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.momentum = args.bn_momentum
    if args.sync_bn:
        if place.device.type != "cuda":
            raise UserError("--sync-bn: it needs GPUs")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    layout = torch.channels_last if place.channels_last else torch.contiguous_format
    return network.to(place.device, memory_format=layout)


# -- how it is trained -----------------------------------------------------------------------------------------------


def loaders(dataset: Dataset, size: int, args: argparse.Namespace) -> tuple[FileLoader, FileLoader]:
    """Training batches of all processes and all accumulated parts together, augmented by timm; and test batches."""
    try:
        augment = create_transform(
            size,
            is_training=True,
            scale=tuple(args.scale),
            hflip=args.hflip,
            color_jitter=args.color_jitter,
            auto_augment=args.aa,
            interpolation=args.train_interpolation,
            mean=MEAN,
            std=STD,
            re_prob=args.reprob,
            re_mode=args.remode,
            re_count=args.recount,
        )
    except (ValueError, TypeError, AssertionError, KeyError, IndexError) as error:
        raise UserError(f"--aa {args.aa}, --color-jitter {args.color_jitter}: timm refuses it ({error})") from None
    normalise, seed = Normalisation(MEAN, STD), stream(args.seed, "imagenet batches").initial_seed()
    together = args.batch_size * distributed.size() * args.accumulate
    batches = FileLoader(dataset.train, together, augment, True, seed, args.workers)
    of_test = args.validation_batch_size or args.batch_size
    return batches, FileLoader(dataset.test, of_test, evaluation_transform(size, normalise), False, 0, args.workers)


def build_training(
    network: nn.Module,
    classes: int,
    batches: FileLoader,
    described: dict,
    args: argparse.Namespace,
    place: Placement,
    run: RunFolder,
) -> tuple[ScratchTraining, int]:
    """With the number of epochs, which the schedule decides."""
    optional = {"eps": args.opt_eps} if args.opt_eps is not None else {}
    given = {"lr": args.lr, "weight_decay": args.weight_decay, "momentum": args.momentum, **optional}
    try:
        optimizer = create_optimizer_v2(network, args.opt, **given)
        scheduler, epochs = create_scheduler_v2(
            optimizer,
            args.sched,
            num_epochs=args.epochs,
            decay_epochs=args.decay_epochs,
            decay_rate=args.decay_rate,
            cooldown_epochs=args.cooldown_epochs,
            min_lr=args.min_lr,
            warmup_lr=args.warmup_lr,
            warmup_epochs=args.warmup_epochs,
        )
        if scheduler is None or args.sched == "plateau":  # which waits for a score, and scores choose nothing here
            raise ValueError("a schedule of the epoch is needed")
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"--opt {args.opt}, --sched {args.sched}: {' '.join(str(error).split())}") from None
    mixes = bool(args.mixup or args.cutmix)
    smoothing = 0.0 if mixes else args.smoothing  # mixed labels are smoothed as they are mixed
    teacher = load_teacher(args.teacher, classes, args.teacher_checkpoint) if args.teacher else None
    recipe = Recipe(
        DistillationLoss(args.kd_ratio, smoothing) if teacher else nn.CrossEntropyLoss(label_smoothing=smoothing),
        optimizer,
        TimmSchedule(scheduler, len(batches)),
        place,
        (args.seed, "imagenet"),
        run.checkpoint("last"),
        args.clip_grad or 0.0,
        1 / args.accumulate,
        torch.amp.GradScaler(place.device.type, enabled=args.amp and args.amp_dtype == "float16"),
        **({"mix": even_mix(args, classes)} if mixes else {}),
    )
    average = ModelEmaV3(network, args.model_ema_decay, use_warmup=args.model_ema_warmup) if args.model_ema else None

    def move_average(steps: int) -> None:
        if average:
            average.update(network, steps if args.model_ema_warmup else None)

    compiled = torch.compile(network) if args.compile else network
    forwards = partial(passes, compiled, teacher.to(place.device) if teacher else None, args.accumulate, place)
    return ScratchTraining(network, recipe, described, batches.batch_size, average, move_average, forwards), epochs


def passes(
    network: nn.Module,
    teacher: Teacher | None,
    parts: int,
    place: Placement,
    images: Tensor,
    labels: Tensor,
    rng: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """A step: the accumulated parts of a batch one after another, with the answers of the teacher if there is one."""
    for some, theirs in zip(images.chunk(parts), labels.chunk(parts), strict=True):
        with place.autocast():
            logits = network(some)
            targets = theirs if teacher is None else (theirs, teacher(some))
        yield logits, targets


def even_mix(args: argparse.Namespace, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mixup and CutMix of timm, which pairs images: of an odd number, the last one is left out."""
    mix = Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=classes)

    def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        count = len(images) // 2 * 2
        return mix(images[:count].clone(), labels[:count])

    return mixed


def train(
    training: ScratchTraining,
    batches: FileLoader,
    test: FileLoader,
    epochs: int,
    args: argparse.Namespace,
    run: RunFolder,
) -> dict[str, Score]:
    """All epochs; returns the test scores of the final weights, "last" and maybe "ema"."""

    def one_epoch(epoch: int) -> None:
        title = f"epoch {epoch + 1}/{epochs}"
        with Progress(title, len(batches), args.log_interval, training.tally.steps) as progress:
            means = training.epoch(batches, epoch, progress)
        scores = training.score(test)
        shown = ", ".join(f"{name} {score.top1:.2f} %" for name, score in scores.items())
        print(f"{title} loss {means.loss:.4f}, test top-1: {shown}", flush=True)
        [lr, *_] = (group["lr"] for group in training.recipe.optimizer.param_groups)
        numbers = {"train_loss": means.loss, "train_top1": means.top1, "lr": lr}
        for name, score in scores.items():
            start = "eval" if name == "last" else name
            numbers |= {f"{start}_{key}": getattr(score, key) for key in ("loss", "top1", "top5")}
        run.log("imagenet", epoch + 1, **numbers)
        write_summary(run)
        training.keep_beside(run, epoch + 1, None)

    run.train("imagenet", "last", training, epochs, one_epoch)
    return training.scores


def write_summary(run: RunFolder) -> None:
    """summary.csv: a row for each epoch."""
    if distributed.rank() == 0:
        rows = [json.loads(line) for line in run.file("metrics.jsonl").read_text().splitlines()]
        columns = [key for key in rows[0] if key != "stage"]
        run.write_csv("summary.csv", tuple(columns), [tuple(row.get(key, "") for key in columns) for row in rows])


def report(scores: dict[str, Score], costs: dict, epochs: int, run: RunFolder) -> None:
    result = {**costs, **{name: score.to_dict() for name, score in scores.items()}, "epochs": epochs}
    run.write_text("result.json", json.dumps(result, indent=1) + "\n")
    numbers = [f"{costs[key]:.3f}" for key in ("macs_m", "macs_m_counted", "params_m")]
    rows = [
        [name, *numbers, f"{score.top1:.2f}", f"{score.top5:.2f}", str(run.checkpoint(name))]
        for name, score in scores.items()
    ]
    print(format_table(["weights", "cost M", "counted M", "params M", "test top-1 %", "top-5 %", "checkpoint"], rows))
    print(f"{epochs} epochs; summary.csv and result.json are in {run.path}")


class _First:
    """The first batches of a loader."""

    def __init__(self, batches: FileLoader, count: int):
        self.batches, self.count = batches, min(count, len(batches))

    def __len__(self) -> int:
        return self.count

    def epoch(self, epoch: int = 0, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        yield from islice(self.batches.epoch(epoch), self.count)


def dry_run(training: ScratchTraining, batches: FileLoader, epochs: int, costs: dict, args: argparse.Namespace) -> None:
    """Three steps, and what the whole run would take."""
    few, began = _First(batches, DRY_STEPS), time.monotonic()
    with Progress("dry run", len(few)) as progress:
        training.epoch(few, 0, progress)
    seconds = (time.monotonic() - began) / len(few)
    device = training.recipe.place.device
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device) / 2**30
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    hours = seconds * len(batches) * epochs / 3600
    print(f"parameters        {costs['params_m']:.3f} M")
    print(f"multiply-adds     {costs['macs_m_counted']:.3f} M")
    print(f"peak memory       {peak:.2f} GiB of this process, on {device}")
    parts = f"{distributed.size()} processes, {args.accumulate} parts of {args.batch_size}"
    print(f"images of a step  {batches.batch_size}: {parts}")
    print(f"time of a step    {seconds:.2f} s, the start of the readers included")
    print(f"projected time    {hours:.1f} h for {epochs} epochs of {len(batches)} steps, validation not counted")


if __name__ == "__main__":
    main()
