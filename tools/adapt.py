"""A trained network for your own images: a new classifier, batch norms re-estimated, and a
fine-tuning of all.

    python3 -m tools.adapt --checkpoint logs/NET/checkpoints/last.pth --data IMAGE_FOLDER --title mine

IMAGE_FOLDER has train/ and val/ (or test/) with a folder of images for each class; or just such
folders, of which about a fifth of the images, by their names, are then test images. The checkpoint
is one that describes its network, as train_cifar.py and train_imagenet.py write them. Says first
what it will take (--dry-run: only that), and at last what it reached on the test images, by which
nothing is chosen. The same command goes on where it stopped.
"""

import argparse
import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from model.forecast import saved_bytes, seconds
from model.spaces.network_spec import NetworkSpec
from torch import Tensor, nn
from torch.nn import functional as F

from model.ranking.supernet_accuracy import NORMS_IMAGES
from model.trained import Trained, open_own
from model.training.from_scratch import check_compiler, network_options, train_from_scratch
from utils import checkpoint
from utils.command import (
    Parser,
    add_checkpoint_minutes,
    add_config_options,
    command,
    not_negative,
    positive,
)
from utils.config import Config, as_overrides, load_config
from utils.data import Dataset, class_names, load_dataset
from utils.engine import DeviceContext, reset_norms
from utils.errors import UserError
from utils.loader import Normalisation, loader
from utils.run_folder import RunFolder
from utils.runtime import pick_device, stream
from utils.table import format_table

RECIPE = Path(__file__).parent.parent / "config_file" / "adapt_config.yml"
STEPS, EPOCHS = 1500, (10, 100)  # about so many steps by default, in no fewer and no more epochs


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    trained = open_own(args.checkpoint)
    dataset = load_dataset(
        "imagefolder", args.data, args.img_size or trained.image_size, None, strict=args.strict_data
    )
    config = recipe(args, trained, dataset)
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    check_compiler(config, context)
    run = RunFolder.open(
        "tools.adapt", config, args.title or Path(args.data).resolve().name, args.resume
    )
    run.minutes = args.checkpoint_minutes
    spec = trained.spec.with_classes(config.classes)
    network = with_new_classifier(spec, trained, config).to(context.device)
    print(forecast(network, dataset, config, context), flush=True)
    if args.dry_run:
        return
    if not (run.continues and run.checkpoint("last").exists()):
        reset_norms(network, norm_batches(dataset, config), context)
    provenance = {"source": f"tools.adapt {args.checkpoint}", "target": None, "unit": config.unit}
    provenance["classes"] = class_names(args.data)
    result = train_from_scratch(spec, network, dataset, config, run, context, provenance)
    report(result, dataset, run)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    option = parser.add_argument
    option("--checkpoint", required=True, type=Path, help="of a trained network")
    option(
        "--data",
        required=True,
        metavar="IMAGE_FOLDER",
        help="train/ and val/, or a folder for each class",
    )
    option("--title", help="name of the run folder under log_dir (default: that of IMAGE_FOLDER)")
    option(
        "--img-size",
        type=positive,
        metavar="PIXELS",
        help="of the images (default: as the network was trained)",
    )
    option(
        "--epochs",
        type=positive,
        help=f"default: about {STEPS} steps, in {EPOCHS[0]} to {EPOCHS[1]} epochs",
    )
    option("--batch-size", type=positive, help="default 64, less for few images")
    option("--seed", type=not_negative, default=0)
    option("--resume", default="auto", choices=("auto", "none"), help="go on, or begin anew")
    option("--strict-data", action="store_true", help="stop at an image that cannot be read")
    option("--dry-run", action="store_true", help="only say what it would take")
    add_checkpoint_minutes(parser)
    add_config_options(parser)
    return parser.parse_args(argv)


def recipe(args: argparse.Namespace, trained: Trained, dataset: Dataset) -> Config:
    """The keys of config_file/adapt_config.yml, for this network and these images; --set has the
    last word.
    """
    size, count = args.img_size or trained.image_size, len(dataset.train.labels)
    batch_size = args.batch_size or min(64, max(2, count // 4))
    names = class_names(args.data)
    if len(names) < 2:
        raise UserError(f"--data {args.data}: it has one class; at least 2 are needed")
    least, most = EPOCHS
    values = {
        "dataset_dir": args.data,
        "classes": len(names),
        "input_size": size,
        "network_size": size,
        "mean": list(trained.data["mean"]),
        "std": list(trained.data["std"]),
        "crop_padding": size // 8,
        "batch_size": batch_size,
        "epochs": args.epochs or min(most, max(least, -(-STEPS * batch_size // count))),
        "seed": args.seed,
        "network_config": str(args.checkpoint),
    }
    values |= {key: value for key, value in trained.options.items() if key in ("se", "activation")}
    return load_config(RECIPE, [*as_overrides(values), *args.set])


def with_new_classifier(spec: NetworkSpec, trained: Trained, config: Config) -> nn.Module:
    """The network with the weights of a checkpoint, but for its classifier."""
    network = spec.network(network_options(spec, config), stream(config.seed, "scratch"))
    own = network.state_dict()
    fresh = {key: own[key] for key in own if key.startswith("classifier.")}
    checkpoint.load_into(
        network, checkpoint.weights(trained.payload, trained.file) | fresh, trained.file
    )
    return network


def norm_batches(dataset: Dataset, config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """Training images as evaluation sees them, for the statistics of batch norms."""
    drawn = torch.randperm(len(dataset.train.labels), generator=stream(config.seed, "recalibrate"))[
        :NORMS_IMAGES
    ]
    return loader(
        dataset.train.subset(drawn), config.batch_size, Normalisation(config.mean, config.std)
    ).epoch()


# -- before and after ------------------------------------------------------------------------------


def forecast(network: nn.Module, dataset: Dataset, config: Config, context: DeviceContext) -> str:
    """Time and memory of the whole training, by steps on random images; reading of large images
    comes on top.
    """
    copied, count = copy.deepcopy(network).train(), config.batch_size
    images = torch.randn(
        count, 3, config.network_size, config.network_size, generator=stream(0, "forecast")
    )
    images, labels = context.batch(images, torch.zeros(count, dtype=torch.long))

    def loss() -> Tensor:
        with context.autocast():
            return F.cross_entropy(copied(images), labels)

    activations, step = saved_bytes(loss, copied), seconds(lambda: loss().backward(), context)
    copied.eval()
    with torch.no_grad():
        scoring = seconds(partial(copied, images), context)
    # and gradients, and momentum
    weights = 3 * sum(p.numel() * p.element_size() for p in copied.parameters())
    trained, tested = (len(part.labels) for part in (dataset.train, dataset.test))
    steps, batches = max(1, trained // count), -(-tested // count)
    minutes = config.epochs * (steps * step + batches * scoring) / 60
    return (
        f"{trained} training and {tested} test images of {config.classes} classes at {config.network_size} pixels; "
        f"{config.epochs} epochs of {steps} steps: about {minutes:.1f} min, without reading images, and "
        f"{(weights + activations) / 2**20:.0f} MiB beside the program and the images"
    )


def report(result: dict, dataset: Dataset, run: RunFolder) -> None:
    """What was reached, beside what a constant answer reaches."""
    usual = torch.bincount(dataset.train.labels).argmax()
    constant = 100 * float((dataset.test.labels == usual).float().mean())
    rows = [
        ["adapted network", f"{result['top1']:.2f}"],
        ["always the most frequent class", f"{constant:.2f}"],
    ]
    print(format_table(["answer", "test top-1 %"], rows))
    print(
        f"{result['epochs']} epochs; {result['checkpoint']} (for validate.py and tools.export); classes are in"
    )
    print(run.file("architecture.json"))


if __name__ == "__main__":
    main()
