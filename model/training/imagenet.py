"""The published ImageNet recipes, by timm: batches, optimiser, schedule, averages and teacher.

SGNAS, section 4.1; NSGANetV2, section 4. The flags are those of `model/training/imagenet_flags.py`.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from timm.data import Mixup, create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from model.training.distillation import DistillationLoss, Teacher, load_teacher
from model.training.from_scratch import ScratchTraining
from utils import distributed
from utils.data import Dataset
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.image_sets import IMAGE_SETS
from utils.loader import FileLoader, Normalisation, evaluation_transform
from utils.optim import TimmSchedule
from utils.recipe import Recipe
from utils.run_folder import RunFolder
from utils.runtime import stream

MEAN, STD = IMAGE_SETS["imagenet"].mean, IMAGE_SETS["imagenet"].std


def loaders(dataset: Dataset, size: int, args: argparse.Namespace) -> tuple[FileLoader, FileLoader]:
    """Training batches of all processes and accumulated parts together; and test batches."""
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
        raise UserError(
            f"--aa {args.aa}, --color-jitter {args.color_jitter}: timm refuses it ({error})"
        ) from None
    normalise, seed = Normalisation(MEAN, STD), stream(args.seed, "imagenet batches").initial_seed()
    together = args.batch_size * distributed.size() * args.accumulate
    batches = FileLoader(dataset.train, together, augment, True, seed, args.workers)
    of_test = args.validation_batch_size or args.batch_size
    return batches, FileLoader(
        dataset.test, of_test, evaluation_transform(size, normalise), False, 0, args.workers
    )


def build_training(
    network: nn.Module,
    classes: int,
    batches: FileLoader,
    described: dict,
    args: argparse.Namespace,
    context: DeviceContext,
    run: RunFolder,
) -> tuple[ScratchTraining, int]:
    """With the number of epochs, which the schedule decides."""
    optional = {"eps": args.opt_eps} if args.opt_eps is not None else {}
    given = {
        "lr": args.lr,
        "weight_decay": args.weight_decay,
        "momentum": args.momentum,
        **optional,
    }
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
        # which waits for a score, and scores choose nothing here
        if scheduler is None or args.sched == "plateau":
            raise ValueError("a schedule of the epoch is needed")
        schedule = TimmSchedule(scheduler, len(batches))
        schedule.check(optimizer, epochs)
    except (ValueError, TypeError, AssertionError, OverflowError, UserError) as error:
        raise UserError(
            f"--opt {args.opt}, --sched {args.sched}: {' '.join(str(error).split())}"
        ) from None
    mixes = bool(args.mixup or args.cutmix)
    smoothing = 0.0 if mixes else args.smoothing  # mixed labels are smoothed as they are mixed
    teacher = load_teacher(args.teacher, classes, args.teacher_checkpoint) if args.teacher else None
    recipe = Recipe(
        DistillationLoss(args.kd_ratio, smoothing)
        if teacher
        else nn.CrossEntropyLoss(label_smoothing=smoothing),
        optimizer,
        schedule,
        context,
        (args.seed, "imagenet"),
        run.checkpoint("last"),
        args.clip_grad or 0.0,
        1 / args.accumulate,
        torch.amp.GradScaler(context.device.type, enabled=args.amp and args.amp_dtype == "float16"),
        **({"mix": even_mix(args, classes)} if mixes else {}),
    )
    average = (
        ModelEmaV3(network, args.model_ema_decay, use_warmup=args.model_ema_warmup)
        if args.model_ema
        else None
    )

    def move_average(steps: int) -> None:
        if average:
            average.update(network, steps if args.model_ema_warmup else None)

    compiled = torch.compile(network) if args.compile else network
    forwards = partial(
        passes, compiled, teacher.to(context.device) if teacher else None, args.accumulate, context
    )
    return ScratchTraining(
        network, recipe, described, batches.batch_size, average, move_average, forwards
    ), epochs


def passes(
    network: nn.Module,
    teacher: Teacher | None,
    parts: int,
    context: DeviceContext,
    images: Tensor,
    labels: Tensor,
    rng: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor]]:
    """A step: the accumulated parts of a batch one after another, with the answers of the teacher
    if there is one.
    """
    for some, theirs in zip(images.chunk(parts), labels.chunk(parts), strict=True):
        with context.autocast():
            logits = network(some)
            targets = theirs if teacher is None else (theirs, teacher(some))
        yield logits, targets


def even_mix(
    args: argparse.Namespace, classes: int
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Mixup and CutMix of timm, which pairs images: of an odd number, the last one is left out."""
    mix = Mixup(args.mixup, args.cutmix, label_smoothing=args.smoothing, num_classes=classes)

    def mixed(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        count = len(images) // 2 * 2
        return mix(images[:count].clone(), labels[:count])

    return mixed
