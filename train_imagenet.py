"""Train one architecture on ImageNet, or on any folder of large images, in one or more processes.

    torchrun --nproc_per_node=4 train_imagenet.py DATA_DIR --model get_model --target_flops 320 \\
        --config_path config_file/imagenet_config.yml --se True --activation hswish ...  (SGNAS)
    torchrun --nproc_per_node=8 train_imagenet.py DATA_DIR --model nsganetv2_s \\
        --model-config net.config --initial-checkpoint net.inherited --teacher SUPERNET ...
                                                                                     (NSGANetV2)

DATA_DIR has train/ and val/, or with --lmdb what utils/folder2lmdb.py made of them. Optimisers,
schedules, averaged weights, augmentation and mixup are those of timm. The batch size is that of
each process. The same command resumes where it stopped.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from model.spaces.contracts import NetworkSpec
from model.spaces.elastic.net_config import NetConfigSpec
from model.spaces.registry import costs_of, load_spec, record_of, save_spec
from model.trained import Named, check_options, named_network, target_of
from model.training.from_scratch import ScratchTraining
from model.training.imagenet import MEAN, STD, build_training, loaders
from model.training.imagenet_flags import add_imagenet_flags, flags_that_matter
from utils import checkpoint, distributed
from utils.capacity import check_one_image
from utils.command import Parser, command
from utils.config import load_config
from utils.data import Dataset, load_dataset
from utils.data_record import DataRecord
from utils.engine import DeviceContext, Score
from utils.errors import UserError
from utils.forecast import peak_bytes
from utils.json_file import parse_json
from utils.loader import FileLoader
from utils.recipe import EpochMeter
from utils.run_folder import RunFolder
from utils.runtime import Progress, pick_device, stream
from utils.table import format_table
from utils.timing import seconds_of

DRY_STEPS = 3


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__)
    add_imagenet_flags(parser)
    args = parser.parse_args(argv)
    precision = (args.amp, getattr(torch, args.amp_dtype))
    context = DeviceContext(pick_device(args.cuda), args.channels_last, *precision)
    flags = Flags.of(args)
    title = args.experiment or default_name(args)
    run = RunFolder.open("train_imagenet", flags, title, args.resume)
    run.minutes = args.checkpoint_minutes
    network_named = stored(run) or named(args)
    spec = network_named.spec
    size = args.img_size or spec.image_size
    started = run.checkpoint("last").exists()
    network = build_network(spec, args, context, from_checkpoint=not started)
    if args.batch_size == 1 and not args.sync_bn:
        check_one_image(network, size, "-b 1")
    source = (data_set(args), args.data, size, None)
    dataset = load_dataset(*source, strict=args.strict_data, in_memory=0)
    classes = len(dataset.names)
    if classes > spec.classes or (classes < spec.classes and args.num_classes is None):
        raise UserError(
            f"{args.data}: it has {classes} classes, the network {spec.classes}; see --num-classes"
        )
    batches, test = loaders(dataset, size, args)
    costs = costs_of(spec, network, size)
    described = describe(spec, args, size, dataset)
    training, epochs = build_training(network, spec.classes, batches, described, args, context, run)
    if args.dry_run:
        return dry_run(training, batches, epochs, costs, args)
    run.check_data(DataRecord.of(data_set(args), args.data, dataset))
    run.begin(flags, context.device)
    print(f"architecture from {network_named.source}")
    provenance = {"source": network_named.source, "target": args.target_flops}
    run.write_once("architecture.json", lambda file: save_spec(file, spec, costs, provenance))
    scores = train(training, batches, test, epochs, args, run)
    report(scores, costs, epochs, run)


@dataclass(frozen=True)
class Flags:
    """What a run was started with, as its results depend on it."""

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


def data_set(args: argparse.Namespace) -> str:
    """The data set, as `utils/data.py` names it."""
    return "imagenet_lmdb" if args.lmdb else "imagenet"


def describe(spec: NetworkSpec, args: argparse.Namespace, size: int, dataset: Dataset) -> dict:
    """What a checkpoint says of its network and its data, so that `validate.py` needs no more."""
    data = {"dataset": data_set(args), "dataset_dir": args.data}
    data |= {"mean": list(MEAN), "std": list(STD), "in_memory": 0}
    data |= {"image_size": size, "classes": len(dataset.names), "class_names": list(dataset.names)}
    return {**record_of(spec), "options": options_of(spec, args), "data": data}


def default_name(args: argparse.Namespace) -> str:
    """What is trained."""
    parts = [args.model]
    parts += [f"{args.target_flops:g}M"] if args.target_flops else []
    parts += [Path(args.architecture).stem] if args.architecture else []
    parts += [Path(args.model_config).resolve().parent.name] if args.model_config else []
    return "-".join([*parts, *([str(args.img_size)] if args.img_size else [])])


# -- what is trained -----------------------------------------------------------------------------


def stored(run: RunFolder) -> Named | None:
    """The network that a resumed run started with, or whose state a new one starts with."""
    folder = run.path if run.continues else run.origin
    if folder is None or not (folder / "architecture.json").exists():
        return None
    spec, record = load_spec(folder / "architecture.json")
    return Named(spec, target_of(record), f"{folder}, as it was started")


def named(args: argparse.Namespace) -> Named:
    """The network of a file, of a `net.config`, or that a generator gives for a target."""
    if args.model_config:
        spec = NetConfigSpec.load(args.model_config, args.img_size)
        spec = spec.with_classes(args.num_classes) if args.reset_classifier else spec
        return Named(spec, None, args.model_config)
    if args.model != "get_model":
        raise UserError(
            f"--model {args.model}: --model-config must name its net.config; "
            "or use --model get_model"
        )
    file = Path(args.architecture) if args.architecture else None
    if not args.config_path:
        if file is None:
            raise UserError(
                "--architecture, or --config_path with --target_flops, must say what to train"
            )
        return Named(load_spec(file)[0], None, str(file))
    if args.target_flops is None and file is None:
        raise UserError("--target_flops or --architecture must say what to train")
    classes = [f"classes={args.num_classes}"] if args.num_classes else []
    return named_network(load_config(args.config_path, classes), args.target_flops, file)


def options_of(spec: NetworkSpec, args: argparse.Namespace) -> dict:
    """The options of a network, besides its architecture."""
    check_options(spec, {"se": args.se, "activation": args.activation})
    flags = {"se": bool(args.se), "activation": args.activation or "relu6"}
    flags |= {"dropout": args.drop, "drop_path": args.drop_path}
    return {name: flags[name] for name in spec.options}


def build_network(
    spec: NetworkSpec, args: argparse.Namespace, context: DeviceContext, from_checkpoint: bool
) -> nn.Module:
    """With the weights of --initial-checkpoint, unless those of a resumed run will replace them."""
    rng, options = stream(args.seed, "imagenet"), options_of(spec, args)
    classes = spec.classes
    if args.num_classes not in (None, classes):
        change = "; --reset-classifier changes that" if args.model_config else ""
        raise UserError(f"--num-classes {args.num_classes}: the network has {classes}{change}")
    network = spec.network(options, rng)
    if args.initial_checkpoint and from_checkpoint:
        file = args.initial_checkpoint
        weights = checkpoint.weights(checkpoint.load(file), file)
        if args.reset_classifier:
            own = network.state_dict()
            weights |= {key: own[key] for key in own if key.startswith("classifier.")}
        checkpoint.load_into(network, weights, file)
    if args.bn_momentum is not None:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = args.bn_momentum
    if args.sync_bn:
        if context.device.type != "cuda":
            raise UserError("--sync-bn: it needs GPUs")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return context.put(network)


# -- training, and what came of it -----------------------------------------------------------------


def train(
    training: ScratchTraining,
    batches: FileLoader,
    test: FileLoader,
    epochs: int,
    args: argparse.Namespace,
    run: RunFolder,
) -> dict[str, Score]:
    """All epochs; returns the test scores of the final weights, "last" and maybe "ema"."""

    def log(epoch: int, means: EpochMeter, scores: dict[str, Score]) -> None:
        [lr, *_] = (group["lr"] for group in training.recipe.optimizer.param_groups)
        numbers = {"train_loss": means.loss, "train_top1": means.top1, "lr": lr}
        for name, score in scores.items():
            start = "eval" if name == "last" else name
            numbers |= {f"{start}_{key}": getattr(score, key) for key in ("loss", "top1", "top5")}
        run.log("imagenet", epoch, **numbers)
        write_summary(run)

    return training.train(batches, test, epochs, run, "imagenet", args.log_interval, log)


def write_summary(run: RunFolder) -> None:
    """summary.csv: a row for each epoch."""
    if distributed.rank() == 0:
        file = run.file("metrics.jsonl")
        lines = file.read_text().splitlines()
        rows = [parse_json(line, dict[str, Any], str(file), "a record", nan=True) for line in lines]
        columns = [key for key in rows[0] if key != "stage"]
        run.write_csv(
            "summary.csv",
            tuple(columns),
            [tuple(row.get(key, "") for key in columns) for row in rows],
        )


def report(scores: dict[str, Score], costs: dict, epochs: int, run: RunFolder) -> None:
    result = {**costs, **{name: score.to_dict() for name, score in scores.items()}}
    result |= {"epochs": epochs}
    run.write_text("result.json", json.dumps(result, indent=1) + "\n")
    numbers = [f"{costs[key]:.3f}" for key in ("macs_m", "macs_m_counted", "params_m")]
    rows = [
        [name, *numbers, f"{score.top1:.2f}", f"{score.top5:.2f}", str(run.checkpoint(name))]
        for name, score in scores.items()
    ]
    columns = ["weights", "cost M", "counted M", "params M", "test top-1 %", "top-5 %"]
    print(format_table([*columns, "checkpoint"], rows))
    print(f"{epochs} epochs; summary.csv and result.json are in {run.path}")


class _First:
    """The first batches of a loader."""

    def __init__(self, batches: FileLoader, count: int):
        self.batches, self.count = batches, min(count, len(batches))

    def __len__(self) -> int:
        return self.count

    def epoch(self, epoch: int = 0, *rest) -> Iterator[tuple[Tensor, Tensor]]:
        yield from islice(self.batches.epoch(epoch), self.count)


def dry_run(
    training: ScratchTraining,
    batches: FileLoader,
    epochs: int,
    costs: dict,
    args: argparse.Namespace,
) -> None:
    """Three steps, and what the whole run would take."""
    few, device = _First(batches, DRY_STEPS), training.recipe.context.device
    with Progress("dry run", len(few)) as progress:
        seconds = seconds_of(partial(training.epoch, few, 0, progress), device) / len(few)
    hours = seconds * len(batches) * epochs / 3600
    print(f"parameters        {costs['params_m']:.3f} M")
    print(f"multiply-adds     {costs['macs_m_counted']:.3f} M")
    peak = peak_bytes(device) / 2**30
    print(f"peak memory       {peak:.2f} GiB of this process, on {device}")
    parts = f"{distributed.size()} processes, {args.accumulate} parts of {args.batch_size}"
    print(f"images of a step  {batches.batch_size}: {parts}")
    print(f"time of a step    {seconds:.2f} s, the start of the readers included")
    length = f"{epochs} epochs of {len(batches)} steps, validation not counted"
    print(f"projected time    {hours:.1f} h for {length}")


if __name__ == "__main__":
    main()
