"""Train one architecture from scratch on a data set of small images.

    python3 train_cifar.py --cfg config_file/cifar_config.yml --flops 100 --title NAME
    python3 train_cifar.py --data DIR --dataset cifar10 --model-config net.config \\
        --initial-checkpoint net.inherited --img-size 224 --drop 0.2 --drop-path 0.2 \\
        --cutout --autoaugment

The architecture comes from the trained generator, or from a file; in the second line, with the
recipe of NSGANetV2 (config_file/nsganetv2_config.yml), from post_search.py. All training images are
used, and the accuracies reported are those of the last weights, and of their moving average when
there is one, on the test images: nothing reported is chosen by them. Source: SGNAS, section 4.1.
"""

import argparse
import time
from pathlib import Path

from model.sgnas.runs import newest_config
from model.spaces.registry import completed, load_spec
from model.trained import Named, check_options, named_network, target_of
from model.training.from_scratch import ScratchRecipe, check_compiler, train_from_scratch
from utils import distributed
from utils.capacity import check_one_image
from utils.command import (
    Parser,
    add_checkpoint_minutes,
    add_config_options,
    boolean,
    command,
    not_negative,
    positive,
    positive_number,
)
from utils.config import Config, as_overrides, load_config
from utils.data import load_dataset
from utils.data_record import DataRecord
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.image_sets import USUAL_SIZE, known_set
from utils.run_folder import RunFolder
from utils.runtime import pick_device
from utils.table import format_table

# Keys of the config that have a command-line option of their own.
CONFIG_KEYS = (
    *("se", "activation", "dropout", "drop_path", "cutout", "autoaugment", "mixup", "ema"),
    *(
        "clip_grad",
        "inherit",
        "compile",
        "strict_data",
        "seed",
        "batch_size",
        "epochs",
        "num_workers",
        "print_freq",
    ),
    *("optim_state.lr", "optim_state.momentum", "optim_state.weight_decay"),
    *("dataset", "dataset_dir", "network_config"),
)
NSGANETV2 = Path(__file__).parent / "config_file" / "nsganetv2_config.yml"


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    config = completed(open_config(args))
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    title = args.title or default_title(args, config.unit)
    run = RunFolder.open("train_cifar", config, title, args.resume)
    run.minutes = args.checkpoint_minutes
    named = stored(run, args, config) or named_network(config, args.flops, args.architecture)
    check_options(named.spec, {"se": args.se, "activation": args.activation})
    print(f"architecture from {named.source}")
    check_compiler(config.compile, context)
    recipe = config.part(ScratchRecipe)
    resumed = run.continues and run.checkpoint("last").exists()  # it has its own weights then
    network = recipe.network(named.spec, inherit=not resumed)
    size = recipe.read_size(named.spec)
    if config.batch_size == distributed.size():
        check_one_image(network, config.network_size or size, f"batch_size: {config.batch_size}")
    source = (config.dataset, config.dataset_dir, size, config.classes)
    dataset = load_dataset(*source, strict=config.strict_data)
    run.check_data(DataRecord.of(config.dataset, config.dataset_dir, dataset))
    started = time.monotonic()
    provenance = {"source": named.source, "target": named.target, "unit": config.unit}
    run.begin(config, context.device)
    result = train_from_scratch(named.spec, network, dataset, recipe, run, context, provenance)
    report(result, config.unit, time.monotonic() - started, run)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    option = parser.add_argument
    option("--cfg", help="config file (YAML); default: that of the newest search under ./logs")
    target = "target cost: M multiply-adds, or ms where the config's cost is latency"
    option("--flops", type=positive_number, help=target)
    file = "architecture.json, or a list that tools.generate wrote"
    option("--architecture", type=Path, metavar="FILE", help=file)
    option("--title", help="name of the run folder under log_dir")
    option("--resume", default="auto", choices=("auto", "none"), help="resume, or start again")
    add_checkpoint_minutes(parser)
    add_training_options(parser)
    add_config_options(parser)
    args = parser.parse_args(argv)
    described, chosen = args.network_config is not None, (args.flops, args.architecture)
    if not described and chosen == (None, None):
        parser.error("one of --flops, --architecture and --model-config is needed")
    if described and chosen != (None, None):
        parser.error("--model-config goes without --flops and --architecture")
    if not described and args.img_size is not None:
        parser.error("--img-size goes with --model-config")
    if args.cutout is not None and args.cutout_length is not None:
        args.cutout = args.cutout_length
    if args.evaluate:
        raise UserError("--evaluate: validate.py --model NET.CONFIG --pretrained WEIGHTS does that")
    return args


def open_config(args: argparse.Namespace) -> Config:
    """The config of the command line; with --model-config that of the published recipe."""
    given = {key: vars(args)[key] for key in CONFIG_KEYS if vars(args)[key] is not None}
    flags = as_overrides(given)
    if args.network_config is not None:
        published = as_overrides(published_keys(args))
        return load_config(args.cfg or NSGANETV2, [*published, *args.set, *flags])
    if args.cfg:
        return load_config(args.cfg, args.set + flags)
    return newest_config(Path("./logs"), args.set + flags)


def published_keys(args: argparse.Namespace) -> dict:
    """The keys that --model-config, --dataset and --img-size stand for.

    Small images are read as they are, and resized.
    """
    keys = {"supernet": "none", **({"network_size": args.img_size} if args.img_size else {})}
    if args.dataset is None:
        return keys
    known = known_set(args.dataset)
    keys["dataset_dir"] = f"./data/{args.dataset}/"
    about = known or known_set("imagenet")  # photographs, for all that is known
    keys["input_size"], keys["network_size"] = about.sizes(args.img_size or USUAL_SIZE)
    keys |= {"mean": about.mean, "std": about.std, "crop_padding": about.padding}
    return {**keys, "classes": known.classes} if known else keys


def add_training_options(parser: Parser) -> None:
    """Options that override a key of the config; without them it stays as it is."""
    option = parser.add_argument_group("the config's keys of the same names").add_argument
    flag, number = {"action": "store_true", "default": None}, {"type": float, "metavar": "P"}
    option("--se", type=boolean, metavar="BOOL", help="squeeze-excite in every block")
    option("--activation", metavar="NAME", help="relu6 or hswish")
    option("--drop", dest="dropout", **number, help="dropout before the classifier (key dropout)")
    option("--drop-path", **number, help="stochastic depth: its rate in the last block")
    side = {"type": int, "nargs": "?", "const": 16, "metavar": "SIDE"}
    option("--cutout", **side, help="squares of the mean colour; side 16")
    policy = "the policy for CIFAR-10; for images on disk that for ImageNet"
    option("--autoaugment", **flag, help=policy)
    alpha = {"type": float, "nargs": "?", "const": 0.2, "metavar": "ALPHA"}
    option("--mixup", **alpha, help="mixed pairs of images; alpha 0.2")
    decay = {"type": float, "nargs": "?", "const": 0.999, "metavar": "DECAY"}
    option("--ema", **decay, help="averaged weights; decay 0.999")
    norm = "largest norm of the gradients of a step"
    option("--clip-grad", "--grad_clip", type=float, metavar="NORM", help=norm)
    inherited = "start with these weights: of a supernet, or with --model-config of the network"
    option("--inherit", "--initial-checkpoint", metavar="FILE", help=inherited)
    option("--compile", **flag, help="compile the training step")
    option("--strict-data", **flag, help="stop at an image that cannot be read")
    option("--seed", type=not_negative)
    option("--batch-size", type=positive)
    option("--epochs", type=positive)
    option("--lr", dest="optim_state.lr", type=positive_number)
    option("--momentum", dest="optim_state.momentum", type=float)
    option("--weight_decay", dest="optim_state.weight_decay", type=float)
    option("--num_workers", type=not_negative)
    option("--report_freq", dest="print_freq", type=positive, metavar="STEPS")

    option = parser.add_argument_group("the published command line of NSGANetV2").add_argument
    option("--data", dest="dataset_dir", metavar="DIR", help="folder of the data set")
    names = "its name: cifar10, cifar100, cinic10, stl10, flowers102, dtd, pets, aircraft, ..."
    option("--dataset", help=names)
    file = "a net.config, as post_search.py writes it"
    option("--model-config", dest="network_config", metavar="FILE", help=file)
    size = "at which the network sees the images"
    option("--img-size", type=positive, metavar="PIXELS", help=size)
    option("--model", metavar="NAME", help="names the run folder")
    for name in ("--save", "--evaluate"):
        option(name, action="store_true", help=argparse.SUPPRESS)
    option("--cutout_length", type=positive, metavar="SIDE", help="with --cutout: its side")
    for name in ("--n_gpus", "--topk"):
        option(name, type=int, help=argparse.SUPPRESS)


def default_title(args: argparse.Namespace, unit: str) -> str:
    if args.network_config is not None:
        folder = Path(args.network_config).resolve().parent.name
        parts = [args.model, folder, args.dataset, args.img_size]
        return "-".join(str(part) for part in parts if part is not None)
    config = Path(args.cfg).stem if args.cfg else "scratch"
    if args.flops is None:
        return f"{config}_{args.architecture.stem}"
    return f"{config}_{args.flops:g}{unit}"


def stored(run: RunFolder, args: argparse.Namespace, config: Config) -> Named | None:
    """The network that a resumed run started with: a newer generator must not change it."""
    file = run.file("architecture.json")
    if not (run.continues and file.exists()):
        return None
    spec, record = load_spec(file)
    target, title = target_of(record), f"--title {run.path.name}"
    if args.network_config is not None or args.architecture is not None:
        named = named_network(config, args.flops, args.architecture).spec
        if named.architecture != spec.architecture:
            raise UserError(f"{title}: this run trains another architecture; choose another title")
    elif target != args.flops:
        started = f"for {target:g} {config.unit}" if target is not None else "from a file"
        asked = f"{args.flops:g} {config.unit}"
        raise UserError(f"{title}: this run was started {started}, not for {asked}")
    return Named(spec, target, f"{file}, as this run was started")


def report(result: dict, unit: str, seconds: float, run: RunFolder) -> None:
    target = f"{result['target']:g}" if result["target"] is not None else None
    costs = [f"{result[key]:.3f}" for key in ("macs_m", "macs_m_counted", "params_m")]
    columns = ["weights", f"target {unit}", "cost M", "counted M", "params M"]
    scored = {"last": result, "ema": result["ema"]}
    rows = [
        [name, target, *costs, f"{score['top1']:.2f}", f"{score['top5']:.2f}"]
        for name, score in scored.items()
        if score
    ]
    print(format_table([*columns, "test top-1 %", "top-5 %"], rows))
    print(
        f"{result['epochs']} epochs, {seconds:.0f} s in this session; "
        f"checkpoints and result.json are in {run.path}"
    )


if __name__ == "__main__":
    main()
