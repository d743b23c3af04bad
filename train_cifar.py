"""Train one architecture from scratch on a data set of small images.

    python3 train_cifar.py --cfg config_file/cifar_config.yml --flops 100 --title NAME

The architecture comes from the trained generator, or from a file. All training images are used, and the accuracies
reported are those of the last weights, and of their moving average when there is one, on the test images: nothing
reported is chosen by them. Source: SGNAS, section 4.1.
"""

import argparse
import json
import shutil
import time
from pathlib import Path

from model.build import build_space, load_supernet
from model.generation import Chosen, choose, choose_from_file, newest_config
from model.lookup_table import LookUpTable
from model.scratch_training import ScratchTraining
from model.space import Architecture, UnifiedSpace, load_architecture, save_architecture
from model.subnet import SubNet, count_macs, count_parameters
from model.supernet import UnifiedSupernet
from utils.command import Parser, add_config_options, boolean, command, positive_number
from utils.config import Config, load_config
from utils.data import Augmentation, Dataset, Normalisation, load_dataset, loader
from utils.engine import Placement, Score
from utils.errors import UserError
from utils.run_folder import RunFolder
from utils.runtime import Progress, pick_device, stream
from utils.table import format_table

# Keys of the config that have a command-line option of their own.
CONFIG_KEYS = (
    *("se", "activation", "dropout", "drop_path", "cutout", "autoaugment", "mixup", "ema"),
    *("clip_grad", "inherit", "compile", "strict_data"),
)


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    flags = {key: getattr(args, key) for key in CONFIG_KEYS}
    overrides = args.set + [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flags.items() if value is not None
    ]
    config = load_config(args.cfg, overrides) if args.cfg else newest_config(Path("./logs"), overrides)
    space, place = build_space(config), Placement(pick_device(config.cuda), config.channels_last, config.amp)
    run = RunFolder.open("train_cifar", config, args.title or default_title(args), args.resume)
    chosen = stored_choice(run, args) or choose(config, space, args.flops, args.architecture)
    print(f"architecture from {chosen.source}")
    if config.compile and place.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("compile: on a CPU it needs a C++ compiler, and none is there")
    continued = run.continues and run.checkpoint("last").exists()  # then what it inherited is in its own weights
    network = build_network(space, chosen.architecture, config, inherit=not continued)
    dataset = load_dataset(
        config.dataset, config.dataset_dir, config.input_size, config.classes, strict=config.strict_data
    )

    run.begin(config, place.device)
    costs = {
        "macs_m": float(LookUpTable(space)(space.encode(chosen.architecture))),
        "macs_m_counted": count_macs(network, space.image_size),
        "params_m": count_parameters(network),
    }
    if not run.file("architecture.json").exists():
        provenance = {"source": chosen.source, "target": chosen.target}
        save_architecture(run.file("architecture.json"), space, chosen.architecture, costs, provenance)
    described = {
        "kind": "subnet",
        "space": space.to_dict(),
        "architecture": [list(row) for row in chosen.architecture.choices],
        "options": network_options(config),
        "data": {
            "dataset": config.dataset,
            "dataset_dir": config.dataset_dir,
            "mean": list(config.mean),
            "std": list(config.std),
        },
    }
    began = time.monotonic()
    scores = train(network.to(place.device), dataset, config, run, place, described)
    result = {
        "target": chosen.target,
        **costs,
        **scores["last"].to_dict(),
        "ema": scores["ema"].to_dict() if "ema" in scores else None,
        "epochs": config.epochs,
        "checkpoint": str(run.checkpoint("last")),
    }
    run.write_text("result.json", json.dumps(result, indent=1) + "\n")
    report(result, time.monotonic() - began, run)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--cfg", help="config file (YAML); default: that of the newest search under ./logs")
    parser.add_argument("--flops", type=positive_number, help="target cost in M multiply-adds")
    parser.add_argument(
        "--architecture", type=Path, metavar="FILE", help="architecture.json, or a list that tools.generate wrote"
    )
    parser.add_argument("--title", help="name of the run folder under log_dir")
    parser.add_argument("--resume", default="auto", choices=("auto", "none"), help="go on, or begin anew")
    add_training_options(parser)
    add_config_options(parser)
    args = parser.parse_args(argv)
    if args.flops is None and args.architecture is None:
        parser.error("one of --flops and --architecture is needed")
    return args


def add_training_options(parser: Parser) -> None:
    """Options that override a key of the config; without them it stays as it is."""
    option = parser.add_argument_group("the config's keys of the same names").add_argument
    flag = {"action": "store_true", "default": None}
    option("--se", type=boolean, metavar="BOOL", help="squeeze-excite in every block")
    option("--activation", metavar="NAME", help="relu6 or hswish")
    option("--drop", dest="dropout", type=float, metavar="P", help="dropout before the classifier (key dropout)")
    option("--drop-path", type=float, metavar="P", help="stochastic depth: its rate in the last block")
    option("--cutout", type=int, nargs="?", const=16, metavar="SIDE", help="squares of the mean colour; side 16")
    option("--autoaugment", **flag, help="the policy for CIFAR-10, or above 64 pixels that for ImageNet")
    option("--mixup", type=float, nargs="?", const=0.2, metavar="ALPHA", help="mixed pairs of images; alpha 0.2")
    option("--ema", type=float, nargs="?", const=0.999, metavar="DECAY", help="averaged weights; decay 0.999")
    option("--clip-grad", type=float, metavar="NORM", help="largest norm of the gradients of a step")
    option("--inherit", metavar="SUPERNET", help="begin with the weights of this supernet checkpoint")
    option("--compile", **flag, help="compile the training step")
    option("--strict-data", **flag, help="stop at an image that cannot be read")


def default_title(args: argparse.Namespace) -> str:
    config = Path(args.cfg).stem if args.cfg else "scratch"
    return f"{config}_{args.flops:g}M" if args.flops is not None else f"{config}_{args.architecture.stem}"


def stored_choice(run: RunFolder, args: argparse.Namespace) -> Chosen | None:
    """The architecture that a continued run was begun with: a newer generator must not change it half-way."""
    file = run.file("architecture.json")
    if not (run.continues and file.exists()):
        return None
    space, architecture, record = load_architecture(file)
    target = record.get("provenance", {}).get("target")
    if args.architecture is not None:
        if choose_from_file(space, args.flops, args.architecture).architecture != architecture:
            raise UserError(f"--title {run.path.name}: this run trains another architecture; choose another title")
    elif target != args.flops:
        begun = f"for {target:g} M" if target is not None else "from a file"
        raise UserError(f"--title {run.path.name}: this run was begun {begun}, not for {args.flops:g} M")
    return Chosen(architecture, target, f"{file}, as this run was begun")


def network_options(config: Config) -> dict:
    """What makes the network of an architecture, beside the architecture."""
    return {key: getattr(config, key) for key in ("se", "activation", "dropout", "drop_path")}


def build_network(space: UnifiedSpace, architecture: Architecture, config: Config, inherit: bool = True) -> SubNet:
    """The network to train; where the config names a supernet to `inherit` from, with its weights."""
    rng = stream(config.seed, "scratch")
    if config.inherit is None or not inherit:
        return SubNet(space, architecture, **network_options(config), rng=rng)
    supernet = UnifiedSupernet(space)
    load_supernet(supernet, config.inherit)
    return supernet.extract(space.encode(architecture), exact=False, **network_options(config), rng=rng)


def train(
    network: SubNet, dataset: Dataset, config: Config, run: RunFolder, place: Placement, described: dict
) -> dict[str, Score]:
    """All epochs; returns the test scores of the final weights, "last" and maybe "ema"."""
    normalise = Normalisation(config.mean, config.std)
    augment = Augmentation(
        config.crop_padding, config.horizontal_flip, autoaugment=config.autoaugment, cutout=config.cutout
    )
    seed = stream(config.seed, "scratch batches").initial_seed()
    batches = loader(dataset.train, config.batch_size, normalise, augment, seed, config.num_workers)
    test = loader(dataset.test, config.batch_size, normalise, workers=config.num_workers)
    training = ScratchTraining(network, described, len(batches), config, place, run.checkpoint("last"))

    def one_epoch(epoch: int) -> None:
        title = f"epoch {epoch + 1}/{config.epochs}"
        with Progress(title, len(batches), config.print_freq, training.tally.steps) as progress:
            means = training.epoch(batches, epoch, progress)
        scores = training.score(test)
        shown = ", ".join(f"{name} {score.top1:.2f} %" for name, score in scores.items())
        print(f"{title} loss {means.loss:.4f}, test top-1: {shown}", flush=True)
        numbers = {"train_loss": means.loss, "train_top1": means.top1, "test_loss": scores["last"].loss}
        numbers |= {"top1": scores["last"].top1, "top5": scores["last"].top5}
        run.log("scratch", epoch + 1, **numbers, **({"ema_top1": scores["ema"].top1} if "ema" in scores else {}))
        training.keep_beside(run, epoch + 1, config.path_to_save_scratch)

    run.train("scratch", "last", training, config.epochs, one_epoch)
    return training.scores


def report(result: dict, seconds: float, run: RunFolder) -> None:
    target = f"{result['target']:g}" if result["target"] is not None else None
    costs = [f"{result[key]:.3f}" for key in ("macs_m", "macs_m_counted", "params_m")]
    columns = ["weights", "target M", "cost M", "counted M", "params M", "test top-1 %", "top-5 %"]
    scored = {"last": result, "ema": result["ema"]}
    rows = [
        [name, target, *costs, f"{score['top1']:.2f}", f"{score['top5']:.2f}"]
        for name, score in scored.items()
        if score
    ]
    print(format_table(columns, rows))
    print(f"{result['epochs']} epochs, {seconds:.0f} s in this sitting; checkpoints and result.json are in {run.path}")


if __name__ == "__main__":
    main()
