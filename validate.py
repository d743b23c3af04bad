"""Accuracy and cost of a checkpoint on the test images.

    python3 validate.py --checkpoint logs/NAME/checkpoints/last.pth
    python3 validate.py IMAGENET_DIR --checkpoint WEIGHTS.pth --config_path config_file/imagenet_config.yml \\
        --target_flops 365 --se True --activation hswish
    python3 validate.py --dataset cifar10 --data DIR --model net.config --pretrained WEIGHTS --img-size 224

A checkpoint of `train_cifar.py` knows its architecture, options and data set. For other weights the config and the
target (or a file, or a `net.config` of NSGANetV2) say which architecture they belong to.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from model import blueprint as blueprints
from model.build import build_space
from model.generation import choose
from utils import checkpoint
from utils.command import Parser, boolean, command, not_negative, positive, positive_number
from utils.config import load_config
from utils.data import SMALL, load_test_images
from utils.engine import Placement, evaluate
from utils.errors import UserError
from utils.image_sets import IMAGE_SETS, known_set
from utils.images import EncodedImages
from utils.loader import Normalisation, Resized, loader
from utils.runtime import pick_device
from utils.table import format_table


@command
def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    payload = checkpoint.load(args.checkpoint)
    described = describe(args, payload)
    blueprint, data = described["blueprint"], described["data"]
    network = blueprint.network(described["options"])
    checkpoint.load_into(network, checkpoint.weights(payload, args.checkpoint), args.checkpoint)
    size = data.get("image_size", blueprint.image_size)
    classes = data.get("classes", blueprint.classes)
    source = (data["dataset"], data["dataset_dir"], size, classes, data.get("part"))
    images = load_test_images(*source, strict=args.strict_data, in_memory=data.get("in_memory", SMALL))
    if isinstance(images, EncodedImages) and "view" in data:
        images = replace(images, view=data["view"])
    place = Placement(pick_device(args.cuda))
    normalise = Normalisation(tuple(data["mean"]), tuple(data["std"]))
    batches = loader(images, args.batch_size, normalise, workers=args.workers)
    if data.get("network_size"):
        batches = Resized(batches, data["network_size"], "bicubic")
    score = evaluate(network.to(place.device).eval(), batches, place, together=True)
    result = {
        **score.to_dict(),
        **blueprints.costs_of(blueprint, network, data.get("network_size") or size),
        "checkpoint": str(args.checkpoint),
        "chosen_by": payload.get("chosen_by"),
    }
    if args.json:
        print(json.dumps(result))
        return
    numbers = ["top1", "top5", "loss", "macs_m", "macs_m_counted", "params_m"]
    columns = ["top-1 %", "top-5 %", "loss", "cost M", "counted M", "params M"]
    print(format_table(columns, [[f"{result[name]:.3f}" for name in numbers]]))
    print(f"{score.images} test images of {data['dataset']}; checkpoint {args.checkpoint}")
    if result["chosen_by"]:
        print(f"this checkpoint was chosen by {result['chosen_by']}: on them it looks better than it is")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("data", nargs="?", help="folder of the data set; default: what the checkpoint or config says")
    parser.add_argument("--data", dest="data_dir", metavar="DIR", help="the same, as NSGANetV2 spells it")
    parser.add_argument("--checkpoint", "--pretrained", required=True, type=Path)
    parser.add_argument(
        "--config_path", "--cfg", metavar="CFG", help="config file of weights that know no architecture"
    )
    parser.add_argument(
        "--target_flops", type=positive_number, help="target whose architecture the config's generator gives"
    )
    parser.add_argument(
        "--architecture", type=Path, metavar="FILE", help="architecture.json, or a list, instead of a target"
    )
    parser.add_argument("-m", "--model", metavar="NET.CONFIG", help="the published description of a network")
    parser.add_argument("--dataset", choices=tuple(IMAGE_SETS), help="with --model: the data set's name")
    parser.add_argument("--img-size", type=positive, help="with --model: pixels at which the network sees the images")
    parser.add_argument("--se", type=boolean, metavar="BOOL", help="squeeze-excite in every block")
    parser.add_argument("--activation", help="relu6 or hswish")
    parser.add_argument("-b", "--batch-size", type=positive, default=256)
    parser.add_argument("-j", "--workers", type=not_negative, default=0, help="processes that read images")
    parser.add_argument("--lmdb", action="store_true", help="the folder holds LMDB files (utils/folder2lmdb.py)")
    parser.add_argument(
        "--cuda", type=boolean, default=True, metavar="BOOL", help="use an accelerator when there is one"
    )
    parser.add_argument("--strict-data", action="store_true", help="stop at an image that cannot be read")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of a table")
    args = parser.parse_args(argv)
    args.data = args.data or args.data_dir
    for name in ("dataset", "img_size"):
        if getattr(args, name) is not None and args.model is None:
            parser.error(f"--{name.replace('_', '-')} goes with --model")
    return args


def describe(args: argparse.Namespace, payload: dict) -> dict:
    """Space, architecture, options and data of a checkpoint: its own, unless the command line says otherwise."""
    if args.model:
        described = describe_published(args, payload)
    elif payload.get("kind") in blueprints.KINDS:
        described = own_description(args.checkpoint, payload)
    else:
        described = describe_by_config(args)
    for name in ("se", "activation"):
        if getattr(args, name) is not None:
            if name not in described["blueprint"].names:
                raise UserError(f"--{name}: networks of this kind have it as their architecture says")
            described["options"][name] = getattr(args, name)
    if args.data:
        described["data"]["dataset_dir"] = args.data
    if args.data and not args.lmdb and described["data"]["dataset"] == "imagenet_lmdb" and not args.config_path:
        described["data"]["dataset"] = "imagenet"
    if args.lmdb:
        described["data"]["dataset"] = "imagenet_lmdb"
    elif args.data and args.config_path and (Path(args.data) / "val").is_dir():  # the published line, on any config
        described["data"] |= {"dataset": "imagefolder", "part": "val"}
    return described


def own_description(file: Path, payload: dict) -> dict:
    """What a checkpoint of ours says of itself; UserError where something is missing."""
    try:
        blueprint = blueprints.described(payload)
        return {
            "blueprint": blueprint,
            "options": {name: payload["options"][name] for name in blueprint.names if name != "drop_path"},
            "data": {
                **{name: str(payload["data"][name]) for name in ("dataset", "dataset_dir")},
                **{name: tuple(map(float, payload["data"][name])) for name in ("mean", "std")},
                "image_size": int(payload["data"].get("image_size", blueprint.image_size)),
                "classes": int(payload["data"].get("classes", blueprint.classes)),
                "in_memory": int(payload["data"].get("in_memory", SMALL)),
                "network_size": int(payload["data"].get("network_size") or 0),
            },
        }
    except UserError as error:
        raise UserError(f"{file}: it does not describe its network ({error})") from None
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{file}: it does not describe its network ({type(error).__name__}: {error})") from None


def describe_published(args: argparse.Namespace, payload: dict) -> dict:
    """A `net.config` with weights of its own, on a data set by name, as NSGANetV2's command line says it."""
    if args.dataset is None or args.data is None:
        raise UserError("--model: --dataset and --data must say what its network is validated on")
    known, weights = known_set(args.dataset), checkpoint.weights(payload, args.checkpoint)
    blueprint = blueprints.PlainBlueprint.load(args.model, args.img_size)
    size, network_size = known.sizes(blueprint.image_size)
    classifier = weights.get(blueprints.CLASSIFIER[0])
    blueprint = blueprint.with_classes(len(classifier)) if classifier is not None else blueprint
    data = {"dataset": args.dataset, "dataset_dir": args.data, "mean": known.mean, "std": known.std}
    data |= {"image_size": size, "network_size": network_size, "in_memory": 0, "view": known.view}
    return {"blueprint": blueprint, "options": {}, "data": data}


def describe_by_config(args: argparse.Namespace) -> dict:
    if not args.config_path:
        raise UserError(
            f"{args.checkpoint}: it does not say its architecture; give --config_path with --target_flops "
            "or --architecture"
        )
    if args.target_flops is None and args.architecture is None:
        raise UserError("--target_flops or --architecture must say which architecture these weights belong to")
    config = load_config(args.config_path)
    space = build_space(config)
    architecture = choose(config, space, args.target_flops, args.architecture).architecture
    data = {"dataset": config.dataset, "dataset_dir": config.dataset_dir, "mean": config.mean, "std": config.std}
    options = {"se": config.se, "activation": config.activation, "dropout": config.dropout}
    return {"blueprint": blueprints.blueprint_of(space, architecture), "options": options, "data": data}


if __name__ == "__main__":
    main()
