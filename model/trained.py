"""Which network a command line names; and a trained network with its data and weights.

A config and a target, an architecture.json, a list of architectures, a `net.config` of NSGANetV2 or
a checkpoint of ours: all of them name a network, and all stages and tools ask here which.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import nn

from model.sgnas.answer_ranking import answer_ranking
from model.sgnas.answers import read_generated
from model.sgnas.runs import find_generator
from model.spaces.contracts import NetworkSpec
from model.spaces.elastic.net_config import NetConfigSpec
from model.spaces.registry import (
    KINDS,
    Problem,
    described,
    describes_network,
    kind_of,
    load_spec,
    open_problem,
    spec_of,
    spec_of_record,
)
from utils import checkpoint
from utils.command import Parser, boolean, positive, positive_number
from utils.config import Config, load_config
from utils.data import SETS, SMALL, load_test_images, load_training_images
from utils.errors import UserError
from utils.home import expand_home
from utils.image_sets import IMAGE_SETS, known_set
from utils.images import EncodedImages, Images
from utils.json_file import as_type, read_json
from utils.loader import Loader, Normalisation, Resized, loader
from utils.ranges import Classes, Positive, Ranged, Share

# -- which network -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Named:
    """A network, the target that it answers when there is one, and where it comes from."""

    spec: NetworkSpec
    target: float | None
    source: str


def named_network(config: Config, target: float | None, file: Path | None) -> Named:
    """The network of a config: of `file`, or of its generator for `target`.

    `file` is an architecture.json, or a list of which the target nearest to `target` counts.
    UserError when the config, the target and the file do not fit together.
    """
    fixed = kind_of(config).spec_of_config(config)
    if fixed is not None:
        return Named(fixed, None, config.network_config)
    problem = open_problem(config)
    if file is not None:
        found = (
            _of_list(problem, target, file) if _is_list(file) else _of_file(problem, target, file)
        )
    elif problem.kind.has_generator:
        ready = find_generator(config, problem)
        targets = torch.tensor([target], dtype=torch.float64)
        ready.check(targets)
        rank = answer_ranking(config, problem, ready.run)
        [answer] = ready.answer(targets, rank, config.answer_tolerance)
        found = Named(spec_of(problem.space, answer.architecture), target, ready.source)
    else:
        raise UserError(
            f"--architecture: a space of kind {problem.kind.name} has no generator; "
            "it must name an architecture.json"
        )
    if found.spec.classes != config.classes:
        raise UserError(
            f"{file}: it is for {found.spec.classes} classes, the config for {config.classes}"
        )
    return found


def _of_file(problem: Problem, target: float | None, file: Path) -> Named:
    stored, record = load_spec(file)
    try:
        spec = problem.kind.adopt(problem.space, stored)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    return Named(spec, target or target_of(record), str(file))


def _of_list(problem: Problem, target: float | None, file: Path) -> Named:
    found, unit = read_generated(file, problem.kind.name), problem.unit
    if target is None and len(found) != 1:
        raise UserError(f"{file}: it holds {len(found)} architectures; a target must choose one")
    nearest = found[0]
    if target is not None:
        if nearest.unit != unit:
            raise UserError(
                f"{file}: its targets are in {nearest.unit}; those of the config are in {unit}"
            )
        nearest = min(found, key=lambda one: abs(one.target - target))
        if abs(nearest.target / target - 1) > 0.01:
            raise UserError(
                f"{file}: its target nearest to {target:g} {unit} is {nearest.target:g} {unit}"
            )
    spec = spec_of(problem.space, nearest.architecture)
    problem.kind.architecture(problem.space, spec.to_json())  # UserError where it is of another
    return Named(spec, nearest.target, str(file))


def _is_list(file: Path) -> bool:
    try:
        return file.read_text(encoding="utf-8").lstrip().startswith("[")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as an architecture ({error})") from None


@dataclass(frozen=True)
class _Provenance(Ranged):
    """What is read of where an architecture comes from."""

    target: Positive | None = None


def target_of(record: dict) -> float | None:
    """The target that the record of an architecture.json answers, when there is one."""
    return as_type(record.get("provenance") or {}, _Provenance, "provenance", "a record").target


def spec_of_file(file: str | Path, image_size: int | None = None) -> NetworkSpec:
    """The network of an architecture.json, or of a `net.config`, which says no format."""
    if _is_list(Path(file)):
        raise UserError(
            f"{file}: a list of architectures does not say their space; give an architecture.json"
        )
    if "format" not in read_json(file, dict, "an architecture"):
        return NetConfigSpec.load(file, image_size)
    return load_spec(file)[0]


def check_options(spec: NetworkSpec, given: dict) -> dict:
    """Those of the flags `given` that are not None; UserError for one that the kind has not."""
    for name, value in given.items():
        if value is not None and name not in spec.options:
            raise UserError(f"--{name}: networks of this kind have it as their architecture says")
    return {name: value for name, value in given.items() if value is not None}


# -- a trained network ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """A network that can be built, its options, its data and its weights.

    `file` is the checkpoint, `payload` what it holds.
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
    def class_names(self) -> list[str] | None:
        """In the order of its answers; None where its checkpoint does not say."""
        return self.data.get("class_names")

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
        """Labelled by the names of the network's classes, where they are known."""
        return self._read(load_test_images, strict, part=self.data.get("part"))

    def training_images(self, strict: bool = False) -> Images:
        """As `test_images`."""
        return self._read(load_training_images, strict)

    def _read(self, read: Callable[..., Images], strict: bool, **options) -> Images:
        source = (self.data["dataset"], self.data["dataset_dir"], self.read_size, self.classes)
        options |= {"names": self.class_names, "in_memory": self.data.get("in_memory", SMALL)}
        return self._seen(read(*source, strict=strict, **options))

    def _seen(self, images: Images) -> Images:
        known = isinstance(images, EncodedImages) and "view" in self.data
        return replace(images, view=self.data["view"]) if known else images

    def batches(self, images: Images, batch_size: int, workers: int = 0) -> Loader | Resized:
        """`images` as the network sees them when it is evaluated."""
        batches = loader(images, batch_size, self.normalisation, workers=workers)
        size = self.data.get("network_size")
        return Resized(batches, size, "bicubic") if size else batches


# -- command lines -------------------------------------------------------------------------------


def add_network_options(parser: Parser) -> None:
    """Which network, and on which data; `check_network_options` completes what was given."""
    option = parser.add_argument
    option("data", nargs="?", help="folder of the data set; default: as checkpoint or config say")
    option("--data", dest="data_dir", metavar="DIR", help="the same, as NSGANetV2 spells it")
    option("--checkpoint", "--pretrained", required=True, type=Path)
    cfg = "config file of weights that know no architecture"
    option("--config_path", "--cfg", metavar="CFG", help=cfg)
    target = "target whose architecture the config's generator gives"
    option("--target_flops", type=positive_number, help=target)
    file = "architecture.json, or a list, instead of a target"
    option("--architecture", type=Path, metavar="FILE", help=file)
    option("-m", "--model", metavar="NET.CONFIG", help="the published description of a network")
    option("--dataset", choices=tuple(IMAGE_SETS), help="with --model: the data set's name")
    size = "with --model: pixels at which the network sees the images"
    option("--img-size", type=positive, help=size)
    option("--se", type=boolean, metavar="BOOL", help="squeeze-excite in every block")
    option("--activation", help="relu6 or hswish")
    lmdb = "the folder holds LMDB files (utils/folder2lmdb.py)"
    option("--lmdb", action="store_true", help=lmdb)
    option("--strict-data", action="store_true", help="stop at an image that cannot be read")


def check_network_options(parser: Parser, args: argparse.Namespace) -> None:
    """Complete what `add_network_options` read."""
    args.data = args.data or args.data_dir
    for name in ("dataset", "img_size"):
        if getattr(args, name) is not None and args.model is None:
            parser.error(f"--{name.replace('_', '-')} goes with --model")


def open_trained(args: argparse.Namespace) -> Trained:
    """The network of a command line: as its checkpoint says, unless the line says otherwise."""
    payload = checkpoint.load(args.checkpoint)
    if args.model:
        trained = _published(args, payload)
    elif describes_network(payload):
        trained = _own(args.checkpoint, payload)
    else:
        trained = _by_config(args, payload)
    options, data = trained.options, dict(trained.data)
    given = {"se": args.se, "activation": args.activation}
    options = options | check_options(trained.spec, given)
    if args.data and data["dataset"] == "digits" and not (args.lmdb or args.config_path):
        raise UserError(f"{args.data}: {args.checkpoint} is of digits, which are in no folder")
    if args.data:
        data["dataset_dir"] = args.data
    if args.data and not args.lmdb and data["dataset"] == "imagenet_lmdb" and not args.config_path:
        data["dataset"] = "imagenet"
    if args.lmdb:
        data["dataset"] = "imagenet_lmdb"
    elif args.data and args.config_path and (Path(args.data) / "val").is_dir():
        data |= {"dataset": "imagefolder", "part": "val"}  # the published line, on any config
    return replace(trained, options=options, data=data)


def open_own(file: Path) -> Trained:
    """What a checkpoint of ours says by itself; UserError when it describes no network."""
    return _own(file, checkpoint.load(file))


def _own(file: Path, payload: dict) -> Trained:
    spec, options = own_network(file, payload)
    return Trained(
        file, payload, spec, options, described(str(file), lambda: own_data(payload, spec))
    )


@dataclass(frozen=True)
class _Options(Ranged):
    """What a checkpoint says of its network, beside the architecture."""

    se: bool = False
    activation: Literal["relu6", "hswish"] = "relu6"
    dropout: Share = 0.0


def own_network(file: Path, payload: dict) -> tuple[NetworkSpec, dict]:
    """The network that a checkpoint of ours describes, and its options."""

    def read() -> tuple[NetworkSpec, dict]:
        spec = spec_of_record(payload)
        given = as_type(payload.get("options"), dict, "options", "a record of options")
        named = {name: given[name] for name in spec.options if name != "drop_path"}
        options = as_type(named, _Options, "options", "a record of options")
        return spec, {name: getattr(options, name) for name in named}

    return described(str(file), read)


_Size = Annotated[int, "at least 0 and at most 8,192"]  # pixels; 0: none given


@dataclass(frozen=True)
class _Data(Ranged):
    """What a checkpoint says of the data that its network was trained on."""

    dataset: str
    dataset_dir: str
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    image_size: _Size | None = None
    network_size: _Size | None = None
    classes: Classes | None = None
    in_memory: _Size = SMALL
    class_names: list[str] | None = None

    def __post_init__(self):
        super().__post_init__()
        names = self.class_names
        if names is not None and len(set(names)) < len(names):
            raise ValueError("class_names must differ from each other")


def own_data(payload: dict, spec: NetworkSpec) -> dict:
    """The data that a checkpoint of ours describes; sizes in pixels."""
    data = as_type(payload.get("data"), _Data, "data", "a record of a data set")
    classes, names = data.classes or spec.classes, data.class_names
    if names is not None and len(names) != classes:
        raise ValueError(f"class_names are {len(names)}, the network's classes {classes}")
    return {
        **asdict(data),
        "dataset_dir": expand_home(data.dataset_dir),
        "image_size": data.image_size or spec.image_size,
        "network_size": data.network_size or 0,
        "classes": classes,
    }


def _published(args: argparse.Namespace, payload: dict) -> Trained:
    """A `net.config` with its weights on a named data set, as NSGANetV2's command line says."""
    if args.dataset is None or args.data is None:
        raise UserError("--model: --dataset and --data must say what its network is validated on")
    known = known_set(args.dataset)
    spec = NetConfigSpec.load(args.model, args.img_size)
    size, network_size = known.sizes(spec.image_size)
    spec = spec.fitted_to(checkpoint.weights(payload, args.checkpoint))
    data = {"dataset": args.dataset, "dataset_dir": args.data, "mean": known.mean, "std": known.std}
    data |= {"image_size": size, "network_size": network_size, "in_memory": 0, "view": known.view}
    if describes_network(payload):  # one of ours, which knows the names of its classes
        own = described(str(args.checkpoint), lambda: own_data(payload, spec))
        data["class_names"] = own["class_names"]
    return Trained(args.checkpoint, payload, spec, {}, data)


def _by_config(args: argparse.Namespace, payload: dict) -> Trained:
    if not args.config_path:
        raise UserError(
            f"{args.checkpoint}: it does not say its architecture; give --config_path with "
            "--target_flops or --architecture"
        )
    if args.target_flops is None and args.architecture is None:
        raise UserError(
            "--target_flops or --architecture must say which architecture these weights belong to"
        )
    config = load_config(args.config_path)
    spec = named_network(config, args.target_flops, args.architecture).spec
    data = {name: getattr(config, name) for name in ("dataset", "dataset_dir", "mean", "std")}
    options = {name: getattr(config, name) for name in spec.options if name != "drop_path"}
    return Trained(args.checkpoint, payload, spec, options, data)


# -- without data --------------------------------------------------------------------------------


def load_network(
    architecture: str | Path | None, file: str | Path | None, paper: str, options: dict
) -> nn.Module:
    """The network of an architecture.json or net.config, or of the checkpoint `file`.

    In evaluation mode, with the weights in `file`, or without one with initial weights; with an
    attribute `class_names`, those of the checkpoint, None where it says none. Its `options` are
    what the checkpoint says, unless they are given. UserError when the network is of another
    `paper`, or anything does not fit.
    """
    if architecture is None and file is None:
        raise UserError("architecture or checkpoint must be given")
    architecture, file = (
        None if path is None else expand_home(str(path)) for path in (architecture, file)
    )
    payload = checkpoint.load(file) if file is not None else {}
    spec, own = None, {}
    if describes_network(payload):
        spec, own = own_network(Path(file), payload)
    elif architecture is None:
        raise UserError(f"{file}: it does not say its architecture; give one, too")
    spec = spec_of_file(architecture) if architecture is not None else spec
    if KINDS[spec.kind].paper != paper:
        raise UserError(f"{architecture or file}: a network of kind {spec.kind}, not of {paper}")
    unknown = sorted(options.keys() - set(spec.options))
    if unknown:
        allowed = ", ".join(spec.options) or "none"
        raise UserError(f"option {unknown[0]}: networks of kind {spec.kind} have {allowed}")
    if file is None:
        network = spec.network(options).eval()
        network.class_names = None
        return network
    weights = checkpoint.weights(payload, file)
    kept = {name: own[name] for name in own if name in spec.options}
    network = spec.fitted_to(weights).network({**kept, **options})
    checkpoint.load_into(network, weights, file)
    network.class_names = None
    if "data" in payload and architecture is None:
        network.class_names = described(str(file), lambda: own_data(payload, spec))["class_names"]
    return network.eval()
