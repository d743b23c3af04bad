"""Adapt a trained network to your own images: new classifier, new norm statistics, fine-tuning.

    python3 -m tools.adapt --checkpoint CKPT --data IMAGE_FOLDER --title mine

IMAGE_FOLDER has train/ and val/ (or test/) with a folder of images for each class; or just such
folders, of which about a fifth of the images, by their names, are then test images. CKPT, as
logs/NET/checkpoints/last.pth, is one that describes its network, as train_cifar.py and
train_imagenet.py write them. Prints first what it will take (--dry-run: only that), and at the end
the results on the test images, by which nothing is chosen. The same command resumes a stopped run.
"""

import argparse
import copy
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

# as a command, this file is found in its folder, and the rest one folder up
if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.ranking.bn_recalibration import reset_norms
from model.ranking.candidates import NORMS_IMAGES
from model.spaces.contracts import NetworkSpec
from model.trained import Trained, open_own
from model.training.from_scratch import ScratchRecipe, check_compiler, train_from_scratch
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
from utils.data import Dataset, load_dataset
from utils.data_record import DataRecord
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.forecast import forecast_steps, random_batch, seconds
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
    size = args.img_size or trained.image_size
    dataset = load_dataset("imagefolder", args.data, size, None, strict=args.strict_data)
    config = recipe(args, trained, dataset)
    context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
    check_compiler(config.compile, context)
    title = args.title or Path(args.data).resolve().name
    record = DataRecord.of("imagefolder", args.data, dataset)
    run = RunFolder.open("tools.adapt", config, title, args.resume, record)
    run.minutes = args.checkpoint_minutes
    spec = trained.spec.with_classes(config.classes)
    network = with_new_classifier(spec, trained, config).to(context.device)
    print(forecast(network, dataset, config, context), flush=True)
    if args.dry_run:
        return
    if not (run.continues and run.checkpoint("last").exists()):
        reset_norms(network, norm_batches(dataset, config), context)
    provenance = {"source": f"tools.adapt {args.checkpoint}", "target": None, "unit": config.unit}
    provenance["classes"] = list(dataset.names)
    scratch = config.part(ScratchRecipe)
    run.begin(config, context.device)
    result = train_from_scratch(spec, network, dataset, scratch, run, context, provenance)
    report(result, dataset, run)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    option = parser.add_argument
    option("--checkpoint", required=True, type=Path, help="of a trained network")
    folders = "train/ and val/, or a folder for each class"
    option("--data", required=True, metavar="IMAGE_FOLDER", help=folders)
    option("--title", help="name of the run folder under log_dir (default: that of IMAGE_FOLDER)")
    sizes = "of the images (default: as the network was trained)"
    option("--img-size", type=positive, metavar="PIXELS", help=sizes)
    epochs = f"default: about {STEPS} steps, in {EPOCHS[0]} to {EPOCHS[1]} epochs"
    option("--epochs", type=positive, help=epochs)
    option("--batch-size", type=positive, help="default 64, less for few images")
    option("--seed", type=not_negative, default=0)
    option("--resume", default="auto", choices=("auto", "none"), help="resume, or start again")
    option("--strict-data", action="store_true", help="stop at an image that cannot be read")
    option("--dry-run", action="store_true", help="only say what it would take")
    add_checkpoint_minutes(parser)
    add_config_options(parser)
    return parser.parse_args(argv)


def recipe(args: argparse.Namespace, trained: Trained, dataset: Dataset) -> Config:
    """The keys of config_file/adapt_config.yml for this network and these images, before --set."""
    size, count = args.img_size or trained.image_size, len(dataset.train.labels)
    batch_size = args.batch_size or min(64, max(2, count // 4))
    names, (least, most) = dataset.names, EPOCHS
    if len(names) < 2:
        raise UserError(f"--data {args.data}: it has one class; at least 2 are needed")
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
    """Build the network with the weights of a checkpoint, except its classifier."""
    network = config.part(ScratchRecipe).network(spec)
    weights = checkpoint.weights(trained.payload, trained.file)
    new = {key: v for key, v in network.state_dict().items() if key.startswith("classifier.")}
    checkpoint.load_into(network, weights | new, trained.file)
    return network


def norm_batches(dataset: Dataset, config: Config) -> Iterator[tuple[Tensor, Tensor]]:
    """Training images as evaluation sees them, for the statistics of batch norms."""
    drawn = torch.randperm(len(dataset.train.labels), generator=stream(config.seed, "recalibrate"))
    images, normal = dataset.train.subset(drawn[:NORMS_IMAGES]), (config.mean, config.std)
    return loader(images, config.batch_size, Normalisation(*normal)).epoch()


# -- before and after ------------------------------------------------------------------------------


def forecast(network: nn.Module, dataset: Dataset, config: Config, context: DeviceContext) -> str:
    """Time and memory of the whole training, by steps on random images.

    The reading of large images comes on top.
    """
    copied, count, size = copy.deepcopy(network).train(), config.batch_size, config.network_size
    images, labels = random_batch(count, size, context, stream(0, "forecast"))

    def loss() -> Tensor:
        with context.autocast():
            return F.cross_entropy(copied(images), labels)

    needs = forecast_steps([lambda: loss().backward()], loss, copied, context)
    copied.eval()
    with torch.no_grad():
        scoring = seconds(partial(copied, images), context)
    trained, tested = (len(part.labels) for part in (dataset.train, dataset.test))
    steps, batches = max(1, trained // count), -(-tested // count)
    minutes = config.epochs * (steps * needs.seconds + batches * scoring) / 60
    return (
        f"{trained} training and {tested} test images of {config.classes} classes at {size} "
        f"pixels; {config.epochs} epochs of {steps} steps: about {minutes:.1f} min, without "
        f"reading images, and {needs.peak_bytes / 2**20:.0f} MiB plus the program and the images"
    )


def report(result: dict, dataset: Dataset, run: RunFolder) -> None:
    """Print the results, compared with those of a constant answer."""
    usual = torch.bincount(dataset.train.labels).argmax()
    constant = 100 * float((dataset.test.labels == usual).float().mean())
    answers = {"adapted network": result["top1"], "always the most frequent class": constant}
    rows = [[answer, f"{top1:.2f}"] for answer, top1 in answers.items()]
    print(format_table(["answer", "test top-1 %"], rows))
    print(f"{result['epochs']} epochs; {result['checkpoint']} (for validate.py and tools.export);")
    print(f"classes are in {run.file('architecture.json')}")


if __name__ == "__main__":
    main()
