"""The flags of ImageNet training: those of the two published lines, and ours."""

import argparse

from utils.command import (
    add_checkpoint_minutes,
    boolean,
    learning_rate,
    not_negative,
    positive,
    positive_number,
)

# Flags that may change between two sessions of one run.
FREE = {
    "data", "lmdb", "workers", "strict_data", "model", "batch_size", "accumulate",
    "validation_batch_size", "compile", "cuda", "local_rank", "output", "experiment", "resume",
    "log_interval", "checkpoint_minutes", "dry_run",
}  # fmt: skip

YES = {"action": "store_true"}
BOOL = {"type": boolean, "metavar": "BOOL"}


def flags_that_matter(args: argparse.Namespace) -> dict:
    """Those that the results of a run depend on, as plain values."""
    return {key: value for key, value in vars(args).items() if key not in FREE}


def portion(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    if not 0 <= float(text) <= 1:
        raise ValueError(text)
    return float(text)


def not_negative_number(text: str) -> float:
    """An argparse type: a finite number from 0."""
    if not 0 <= float(text) < float("inf"):
        raise ValueError(text)
    return float(text)


def add_imagenet_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags of `train_imagenet.py`, in groups."""
    flag, file = parser.add_argument, {"metavar": "FILE"}
    folder = "folder with train/ and val/, or with --lmdb that of the LMDB files"
    flag("data", metavar="DATA_DIR", help=folder)
    flag("--lmdb", **YES, help="read train_lmdb/train.lmdb and so on (utils/folder2lmdb.py)")
    readers = "processes that read images (default 4)"
    flag("-j", "--workers", type=not_negative, default=4, help=readers)
    flag("--strict-data", **YES, help="stop at an image that cannot be read")

    flag = parser.add_argument_group("network").add_argument
    flag("--model", default="get_model", help="get_model (SGNAS), or any name with --model-config")
    config = "config of the space and of the generator"
    flag("--config_path", "--config-path", metavar="CFG", help=config)
    million = {"type": positive_number, "metavar": "M"}
    flag("--target_flops", "--target-flops", **million, help="target of the generator")
    flag("--architecture", **file, help="architecture.json, or a list that tools.generate wrote")
    flag("--model-config", **file, help="a published net.config")
    flag("--initial-checkpoint", **file, help="weights to start with")
    flag("--reset-classifier", **YES, help="a new classifier, for --num-classes")
    flag("--num-classes", type=positive, help="default: those of the network")
    flag("--img-size", type=positive, help="default: that of the architecture")
    flag("--se", **BOOL, help="squeeze-excite in every block (default false)")
    flag("--activation", choices=("relu6", "hswish"), help="default relu6")
    flag("--bn-momentum", type=portion, help="of batch norms (default 0.1)")
    flag("--sync-bn", **YES, help="batch norms over all GPUs")
    flag("--drop", type=portion, default=0.0, help="dropout before the classifier")
    flag("--drop-path", type=portion, default=0.0, help="stochastic depth")
    teacher = "to distil from: a supernet checkpoint, or a network of timm"
    flag("--teacher", metavar="NAME", help=teacher)
    weights = "weights of a network of timm, instead of the published ones"
    flag("--teacher-checkpoint", **file, help=weights)
    ratio = {"type": positive_number, "default": 1.0, "help": "weight of the teacher (default 1)"}
    flag("--kd-ratio", "--kd_ratio", **ratio)

    flag = parser.add_argument_group("optimisation (timm)").add_argument
    flag("-b", "--batch-size", type=positive, default=32, help="of each process (default 32)")
    flag("--accumulate", type=positive, default=1, metavar="N", help="N batches to a step")
    flag("--validation-batch-size", type=positive)
    flag("--epochs", type=positive, default=200)
    flag("--opt", default="sgd", help="any optimiser of timm (default sgd)")
    flag("--opt-eps", type=positive_number)
    flag("--momentum", type=portion, default=0.9)
    flag("--weight-decay", type=not_negative_number, default=1e-4)
    flag("--lr", type=learning_rate, default=0.01)
    flag("--sched", default="step", help="any schedule of timm (default step)")
    flag("--warmup-lr", type=not_negative_number, default=1e-4)
    flag("--min-lr", type=not_negative_number, default=1e-5)
    flag("--decay-epochs", type=positive_number, default=30, help="may be a fraction")
    flag("--decay-rate", "--dr", type=positive_number, default=0.1)
    flag("--warmup-epochs", type=not_negative, default=3)
    flag("--cooldown-epochs", type=not_negative, default=10)
    flag("--clip-grad", type=positive_number, metavar="NORM")
    flag("--model-ema", **YES, help="averaged weights")
    flag("--model-ema-decay", type=portion, default=0.99995)
    flag("--model-ema-warmup", **YES, help="average faster in the first steps")
    flag("--amp", **YES, help="mixed precision")
    flag("--amp-dtype", default="bfloat16", choices=("bfloat16", "float16"))
    flag("--channels-last", **BOOL, default=True, help="memory format (default true)")
    flag("--compile", **YES, help="compile the network")
    flag("--cuda", **BOOL, default=True, help="use an accelerator when there is one")
    flag("--seed", type=not_negative, default=42)
    flag("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # what old launchers say

    flag = parser.add_argument_group("augmentation (timm)").add_argument
    area = {"nargs": 2, "metavar": "SHARE", "help": "area of random crops"}
    flag("--scale", type=positive_number, default=[0.08, 1.0], **area)
    flag("--hflip", type=portion, default=0.5)
    flag("--color-jitter", type=not_negative_number, default=0.4)
    flag("--aa", metavar="POLICY", help="AutoAugment or RandAugment, as rand-m9-mstd0.5")
    flag("--reprob", type=portion, default=0.0, help="random erasing")
    flag("--remode", default="const", choices=("const", "rand", "pixel"))
    flag("--recount", type=positive, default=1)
    flag("--train-interpolation", default="random", choices=("random", "bilinear", "bicubic"))
    flag("--mixup", type=not_negative_number, default=0.0, metavar="ALPHA")
    flag("--cutmix", type=not_negative_number, default=0.0, metavar="ALPHA")
    flag("--smoothing", type=portion, default=0.1, help="of labels (default 0.1)")

    flag = parser.add_argument_group("the run").add_argument
    flag("--output", default="./logs/imagenet", metavar="DIR", help="where run folders go")
    flag("--experiment", metavar="NAME", help="name of the run folder; default: what is trained")
    resume = "resume; start again; start with another run's state"
    flag("--resume", default="auto", metavar="auto|none|PATH", help=resume)
    add_checkpoint_minutes(parser)
    flag("--log-interval", type=positive, default=50, help="steps between two lines")
    flag("--dry-run", **YES, help="three steps, and what the run would take")
