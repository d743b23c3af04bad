"""A trained network and its data: what a checkpoint says of them, or a command line for weights
that say nothing.

A checkpoint of `train_cifar.py` or `train_imagenet.py` knows its architecture, options and data
set. For other weights a config and a target (or a file, or a `net.config` of NSGANetV2) say which
architecture they belong to.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from torch import nn

from model.sgnas.answers import choose
from model.spaces import network_spec as network_specs
from model.spaces.network_spec import NetworkSpec
from model.spaces.registry import build_space
from utils import checkpoint
from utils.command import Parser, boolean, positive, positive_number
from utils.config import load_config
from utils.data import SETS, SMALL, load_test_images, load_training_images
from utils.errors import UserError
from utils.image_sets import IMAGE_SETS, known_set
from utils.images import EncodedImages, Images
from utils.loader import Loader, Normalisation, Resized, loader

T = TypeVar("T")


@dataclass(frozen=True)
class Trained:
    """A network to be, its options, its data and its weights; `file` is the checkpoint, `payload`
    what it holds.
    """

    file: Path
    payload: dict
    spec: NetworkSpec
    options: dict
    data: dict

    @cached_property
    def network(self) -> nn.Module:
        """With its weights, in evaluation mode; UserError when they are not those of the
        architecture.
        """
        network = self.spec.network(self.options)
        checkpoint.load_into(network, checkpoint.weights(self.payload, self.file), self.file)
        return network.eval()

    @property
    def read_size(self) -> int:
        """The side in pixels at which images are read."""
        return self.data.get("image_size", self.spec.image_size)

    @property
    def image_size(self) -> int:
        """The side in pixels at which the network sees them."""
        return self.data.get("network_size") or self.read_size

    @property
    def classes(self) -> int:
        return self.data.get("classes", self.spec.classes)

    @property
    def chosen_by(self) -> str | None:
        """On which images the checkpoint looks better than it is, when it was chosen by some."""
        return self.payload.get("chosen_by")

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(tuple(self.data["mean"]), tuple(self.data["std"]))

    @property
    def view(self) -> str | None:
        """How images are brought to size (`utils.images.VIEWS`); None for small ones, of which all
        is seen.
        """
        known = known_set(self.data["dataset"]) if self.data["dataset"] in SETS else None
        if self.read_size <= self.data.get("in_memory", SMALL) or (
            known is not None and known.side is not None
        ):
            return None
        return self.data.get("view", known.view if known is not None else "bicubic")

    def test_images(self, strict: bool = False) -> Images:
        source = (
            self.data["dataset"],
            self.data["dataset_dir"],
            self.read_size,
            self.classes,
            self.data.get("part"),
        )
        return self._seen(
            load_test_images(*source, strict=strict, in_memory=self.data.get("in_memory", SMALL))
        )

    def training_images(self, strict: bool = False) -> Images:
        source = (self.data["dataset"], self.data["dataset_dir"], self.read_size, self.classes)
        return self._seen(
            load_training_images(
                *source, strict=strict, in_memory=self.data.get("in_memory", SMALL)
            )
        )

    def _seen(self, images: Images) -> Images:
        known = isinstance(images, EncodedImages) and "view" in self.data
        return replace(images, view=self.data["view"]) if known else images

    def batches(self, images: Images, batch_size: int, workers: int = 0) -> Loader | Resized:
        """`images` as the network sees them when it is evaluated."""
        batches = loader(images, batch_size, self.normalisation, workers=workers)
        size = self.data.get("network_size")
        return Resized(batches, size, "bicubic") if size else batches


# -- command lines ---------------------------------------------------------------------------------


def add_network_options(parser: Parser) -> None:
    """Which network, and on which data; `check_network_options` reads the rest out of what was
    given.
    """
    parser.add_argument(
        "data",
        nargs="?",
        help="folder of the data set; default: what the checkpoint or config says",
    )
    parser.add_argument(
        "--data", dest="data_dir", metavar="DIR", help="the same, as NSGANetV2 spells it"
    )
    parser.add_argument("--checkpoint", "--pretrained", required=True, type=Path)
    parser.add_argument(
        "--config_path",
        "--cfg",
        metavar="CFG",
        help="config file of weights that know no architecture",
    )
    parser.add_argument(
        "--target_flops",
        type=positive_number,
        help="target whose architecture the config's generator gives",
    )
    parser.add_argument(
        "--architecture",
        type=Path,
        metavar="FILE",
        help="architecture.json, or a list, instead of a target",
    )
    parser.add_argument(
        "-m", "--model", metavar="NET.CONFIG", help="the published description of a network"
    )
    parser.add_argument(
        "--dataset", choices=tuple(IMAGE_SETS), help="with --model: the data set's name"
    )
    parser.add_argument(
        "--img-size",
        type=positive,
        help="with --model: pixels at which the network sees the images",
    )
    parser.add_argument("--se", type=boolean, metavar="BOOL", help="squeeze-excite in every block")
    parser.add_argument("--activation", help="relu6 or hswish")
    parser.add_argument(
        "--lmdb", action="store_true", help="the folder holds LMDB files (utils/folder2lmdb.py)"
    )
    parser.add_argument(
        "--strict-data", action="store_true", help="stop at an image that cannot be read"
    )


def check_network_options(parser: Parser, args: argparse.Namespace) -> None:
    """Complete what `add_network_options` read."""
    args.data = args.data or args.data_dir
    for name in ("dataset", "img_size"):
        if getattr(args, name) is not None and args.model is None:
            parser.error(f"--{name.replace('_', '-')} goes with --model")


def open_trained(args: argparse.Namespace) -> Trained:
    """What a command line with `add_network_options` names: as the checkpoint says, unless the line
    says otherwise.
    """
    payload = checkpoint.load(args.checkpoint)
    if args.model:
        spec, options, data = _published(args, payload)
    elif payload.get("kind") in network_specs.KINDS:
        own = _own(args.checkpoint, payload)
        spec, options, data = own.spec, own.options, own.data
    else:
        spec, options, data = _by_config(args)
    for name in ("se", "activation"):
        if getattr(args, name) is not None:
            if name not in spec.names:
                raise UserError(
                    f"--{name}: networks of this kind have it as their architecture says"
                )
            options[name] = getattr(args, name)
    if args.data:
        data["dataset_dir"] = args.data
    if args.data and not args.lmdb and data["dataset"] == "imagenet_lmdb" and not args.config_path:
        data["dataset"] = "imagenet"
    if args.lmdb:
        data["dataset"] = "imagenet_lmdb"
    # the published line, on any config
    elif args.data and args.config_path and (Path(args.data) / "val").is_dir():
        data |= {"dataset": "imagefolder", "part": "val"}
    return Trained(args.checkpoint, payload, spec, options, data)


def open_own(file: Path) -> Trained:
    """What a checkpoint of ours says by itself; UserError when it describes no network."""
    return _own(file, checkpoint.load(file))


def _own(file: Path, payload: dict) -> Trained:
    spec, options = own_network(file, payload)
    return Trained(file, payload, spec, options, _own_data(file, payload, spec))


# -- without data ----------------------------------------------------------------------------------


def load_network(
    architecture: str | Path | None, file: str | Path | None, kinds: tuple[str, ...], options: dict
) -> nn.Module:
    """The network of an architecture.json or net.config, or else of the checkpoint `file`; in
    evaluation mode.

    With the weights in `file`, or without one at random; its `options` are what the checkpoint
    says, unless they are given. UserError when the network is of none of `kinds`, or anything does
    not fit.
    """
    if architecture is None and file is None:
        raise UserError("architecture or checkpoint must be given")
    payload = checkpoint.load(file) if file is not None else {}
    described, own = None, {}
    if payload.get("kind") in network_specs.KINDS:
        described, own = own_network(Path(file), payload)
    elif architecture is None:
        raise UserError(f"{file}: it does not say its architecture; give one, too")
    spec = _read_spec(Path(architecture)) if architecture is not None else described
    if spec.kind not in kinds:
        raise UserError(
            f"{architecture or file}: a network of kind {spec.kind}; here it must be {' or '.join(kinds)}"
        )
    unknown = sorted(options.keys() - set(spec.names))
    if unknown:
        allowed = ", ".join(spec.names) or "none"
        raise UserError(f"option {unknown[0]}: networks of kind {spec.kind} have {allowed}")
    if file is None:
        return spec.network(options).eval()
    weights = checkpoint.weights(payload, file)
    classifier = weights.get(network_specs.CLASSIFIER[0])
    if isinstance(spec, network_specs.NetConfigSpec) and classifier is not None:
        spec = spec.with_classes(len(classifier))
    network = spec.network({**{name: own[name] for name in own if name in spec.names}, **options})
    checkpoint.load_into(network, weights, file)
    return network.eval()


def _read_spec(file: Path) -> NetworkSpec:
    """That of an architecture.json, or of a `net.config`, which says no format."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as an architecture ({error})") from None
    if isinstance(record, list):
        raise UserError(
            f"{file}: a list of architectures does not say their space; give an architecture.json"
        )
    if isinstance(record, dict) and "format" not in record:
        return network_specs.NetConfigSpec.load(file)
    return network_specs.load_spec(file)[0]


# -- what describes a network ----------------------------------------------------------------------


def own_network(file: Path, payload: dict) -> tuple[NetworkSpec, dict]:
    """The network that a checkpoint of ours describes, and its options; UserError where something
    is missing.
    """

    def read() -> tuple[NetworkSpec, dict]:
        spec = network_specs.described(payload)
        return spec, {name: payload["options"][name] for name in spec.names if name != "drop_path"}

    return _of_checkpoint(file, read)


def _own_data(file: Path, payload: dict, spec: NetworkSpec) -> dict:
    def read() -> dict:
        data = payload["data"]
        return {
            **{name: str(data[name]) for name in ("dataset", "dataset_dir")},
            **{name: tuple(map(float, data[name])) for name in ("mean", "std")},
            "image_size": int(data.get("image_size", spec.image_size)),
            "classes": int(data.get("classes", spec.classes)),
            "in_memory": int(data.get("in_memory", SMALL)),
            "network_size": int(data.get("network_size") or 0),
        }

    return _of_checkpoint(file, read)


def _of_checkpoint(file: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except UserError as error:
        raise UserError(f"{file}: it does not describe its network ({error})") from None
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{file}: it does not describe its network ({type(error).__name__}: {error})"
        ) from None


def _published(args: argparse.Namespace, payload: dict) -> tuple[NetworkSpec, dict, dict]:
    """A `net.config` with weights of its own, on a data set by name, as NSGANetV2's command line
    says it.
    """
    if args.dataset is None or args.data is None:
        raise UserError("--model: --dataset and --data must say what its network is validated on")
    known, weights = known_set(args.dataset), checkpoint.weights(payload, args.checkpoint)
    spec = network_specs.NetConfigSpec.load(args.model, args.img_size)
    size, network_size = known.sizes(spec.image_size)
    classifier = weights.get(network_specs.CLASSIFIER[0])
    spec = spec.with_classes(len(classifier)) if classifier is not None else spec
    data = {"dataset": args.dataset, "dataset_dir": args.data, "mean": known.mean, "std": known.std}
    data |= {"image_size": size, "network_size": network_size, "in_memory": 0, "view": known.view}
    return spec, {}, data


def _by_config(args: argparse.Namespace) -> tuple[NetworkSpec, dict, dict]:
    if not args.config_path:
        raise UserError(
            f"{args.checkpoint}: it does not say its architecture; give --config_path with --target_flops "
            "or --architecture"
        )
    if args.target_flops is None and args.architecture is None:
        raise UserError(
            "--target_flops or --architecture must say which architecture these weights belong to"
        )
    config = load_config(args.config_path)
    space = build_space(config)
    architecture = choose(config, space, args.target_flops, args.architecture).architecture
    data = {
        "dataset": config.dataset,
        "dataset_dir": config.dataset_dir,
        "mean": config.mean,
        "std": config.std,
    }
    options = {"se": config.se, "activation": config.activation, "dropout": config.dropout}
    return network_specs.spec_of(space, architecture), options, data
