"""A config: the keys of a YAML file, checked, as the frozen record `Config`.

All that is known of a key stands in one place, its line in `Config`: type, bounds, default and
meaning. `tools/config_page.py` makes `docs/configuration.md` from it. What depends on the kind of
`supernet` is checked by that kind. A part of the work takes a small record of the keys that it
reads (`Config.part`), not the config.
"""

import contextlib
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NoReturn, TypeVar

from utils.errors import UserError, one_line
from utils.home import expand_home
from utils.plain_values import TooMuch, check_plain
from utils.ranges import (
    MOST_ENTRIES,
    Channels,
    Classes,
    Count,
    Expansion,
    KernelSize,
    Natural,
    NotNegative,
    Pixels,
    Positive,
    Share,
    Stride,
    within,
)
from utils.yaml_file import parse_yaml, read_yaml

T = TypeVar("T")

PathText = typing.NewType("PathText", str)  # a file or folder; `~` is the home folder
LEAST_RATE = 1e-12  # of learning: with less, float32 weights stay where they are
Rate = Annotated[float, f"at least {LEAST_RATE:g}"]
NEEDED = dataclasses.MISSING  # the default of a key that has none
MOST_TARGETS = 10_000  # from low_flops to high_flops


def key(default, meaning: str, section: str = ""):
    """A key as a dataclass field.

    Args:
        default: or NEEDED.
        meaning: one line of Markdown, for the docs page.
        section: the heading of the page's section that begins with this key.
    """
    return field(default=default, metadata={"meaning": meaning, "section": section})


@dataclass(frozen=True)
class OptimState:
    """An optimiser."""

    optimizer: Literal["sgd", "adam"] = key("sgd", "its algorithm")
    lr: Rate = key(0.064, "learning rate")
    momentum: Share = key(0.9, "of sgd")
    weight_decay: NotNegative = key(4e-4, "decay of the weights")
    beta: Share = key(0.5, "the first beta of adam; the second is 0.999")


@dataclass(frozen=True)
class LayerRow:
    """A row of `l_cfgs`: a layer of the unified space."""

    expansion: int
    out_channels: int
    kernels: tuple[int, ...]
    skip: bool
    stride: int
    se: bool = False

    @classmethod
    def read(cls, row, where: str, name: str) -> "LayerRow":
        """From a list, whose last two entries may be left out; UserError when it is no layer."""
        if not isinstance(row, (list, tuple)) or not 4 <= len(row) <= 6:
            columns = "max expansion, output channels, kernels, stride, kernels_nums, se"
            raise UserError(f"{where}: {name}: {row!r} is not [{columns}]")
        expansion, out_channels, stride = (
            _convert(allowed, row[i], where, f"{name}[{i}]")
            for i, allowed in ((0, Expansion), (1, Channels), (3, Stride))
        )
        choices, place = row[2], f"{where}: {name}[2]: {row[2]!r}"
        if not isinstance(choices, (list, tuple)) or len(set(map(str, choices))) < len(choices):
            raise UserError(f"{place} is not a list of different kernel sizes, maybe with skip")
        kernels = tuple(
            _convert(KernelSize, c, where, f"{name}[2]") for c in choices if c != "skip"
        )
        if not kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
            raise UserError(f"{place}: kernel sizes must be odd and positive")
        if "skip" in choices[:-1]:
            raise UserError(f"{place}: skip must stand last")
        if len(row) > 4 and _convert(int, row[4], where, f"{name}[4]") != len(choices):
            counted = f"kernels_nums is {row[4]}, but the row has {len(choices)} choices"
            raise UserError(f"{where}: {name}[4]: {counted}")
        se = _convert(bool, row[5], where, f"{name}[5]") if len(row) > 5 else False
        return cls(expansion, out_channels, kernels, "skip" in choices, stride, se)

    def to_list(self) -> list:
        """The row, as `read` takes it."""
        choices = [*self.kernels, *["skip"] * self.skip]
        return [self.expansion, self.out_channels, choices, self.stride, len(choices), self.se]


# Published keys that nothing here reads: they are accepted and checked, and have no effect.
UNREAD = frozenset(
    {"expansion", "split_blocks", "kernels_nums", "generator", "noise_weight", "ngpu"}
)

# Older spellings of keys; one that is null counts as not given.
_SPELLINGS = {
    "path_to_fianl_generator": "path_to_final_generator",
    "elastic": "space",
    "cell": "space",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """All keys of a config file, in the order of the docs page.

    Costs are in millions of multiply-adds (M), in ms where `cost` is latency. A path of None is
    not used.
    """

    title_flag: ClassVar[str] = "--title"
    length_keys: ClassVar[frozenset[str]] = frozenset({"warmup_epochs", "search_epochs", "epochs"})

    where: str = field(default="config", compare=False, repr=False)  # its file; not a key

    dataset: str = key(NEEDED, "a name of [data_sets.md](data_sets.md)", "The data")
    dataset_dir: PathText = key("./data/", "its folder")
    classes: Classes = key(NEEDED, "number of classes")
    input_size: Pixels = key(NEEDED, "side of an image in pixels")
    train_portion: Annotated[float, "above 0 and at most 1"] = key(
        0.8, "share that trains the supernet (1: 0.8), unless [images are held out](data_sets.md)"
    )
    mean: tuple[float, float, float] = key((0.5, 0.5, 0.5), "normalisation, per channel")
    std: tuple[Positive, Positive, Positive] = key((0.5, 0.5, 0.5), "the same")
    crop_padding: Annotated[int, "at least 0 and at most 8,192"] = key(
        4, "pixels of zero padding before the random crop of small images"
    )
    horizontal_flip: bool = key(True, "whether small images are flipped")
    num_workers: Natural = key(0, "processes that read images of more than 64 pixels")
    strict_data: bool = key(False, "stop at an image that cannot be read, instead of skipping it")

    supernet: str = key("unified", "kind of space, or `none`: see below", "The search space")
    space: dict | None = key(None, "keys that describe the space, see below")
    l_cfgs: tuple[LayerRow, ...] = key(
        (),
        "the layers of a unified space: `[max expansion, output channels, kernels, stride, "
        "number of choices, squeeze-excite]` each; the last two may be left out",
    )
    static_layers: tuple[int, ...] = key((), "layers that may not vanish")
    min_expansion: Count = key(2, "least active sub-blocks of a layer in sampled paths")
    stem_stride: Literal[1, 2] | None = key(None, "of the stem; none: 1 below 64 pixels, else 2")
    stem_channels: Channels = key(32, "of the stem")
    first_channels: Channels = key(16, "of the first block")
    head_channels: Channels = key(1280, "of the head")
    expansion: Count = key(6, "the rows of `l_cfgs` have it")
    split_blocks: Count = key(6, "the same")
    kernels_nums: Count = key(4, "the same")

    cost: Literal["flops", "latency"] = key(
        "flops",
        "what targets are in: M, or milliseconds by `latency_table` (unified space; `se` and "
        "`activation` are the networks')",
        "Costs and targets",
    )
    latency_table: PathText | None = key(None, "a YAML file of `tools.profile_latency`")
    low_flops: float = key(0.0, "least target, M; a space with a generator needs a range")
    high_flops: float = key(0.0, "greatest target, M")

    warmup_epochs: Natural = key(
        50, "its length; 0 with `model_pretrained` skips it", "Supernet warm-up"
    )
    epochs: Count = key(
        200,
        "of training from scratch, and the period of the `lr_scheduler` of both; that of a longer "
        "warm-up is `warmup_epochs`",
    )
    batch_size: Annotated[int, "at least 2"] = key(  # batch norm needs two images
        512, "images of a step, in all processes together"
    )
    paths_per_step: Count = key(4, "single paths whose gradients add up in a step")
    path_sampling: Literal["fair", "uniform"] = key(
        "fair", "a step's paths cover all choices, or each is drawn on its own"
    )
    alignment: Annotated[float, "at least 0 and at most 1"] = key(
        0.0,
        "share of the initial weights that all sub-blocks of a layer have in common; above 0, "
        "larger kernels start as the smallest one, padded (0: published)",
    )
    validation_paths: Count = key(8, "random paths whose accuracy is averaged after each epoch")
    bn_recalibration_images: Natural = key(
        2048, "images that re-estimate a path's batch norms to validate it (0: none, as published)"
    )
    optim_state: OptimState = key(OptimState(), "the optimiser")
    lr_scheduler: Literal["cosine", "linear", "step"] = key(
        "cosine", "per step to 0, or every `step_size` epochs"
    )
    lr_by_complexity: bool = key(
        False,
        "the learning rate of a warm-up step falls earlier for smaller networks than for larger",
    )
    step_used_only: bool = key(
        False,
        "a warm-up step moves only the weights that its paths use; without, momentum and weight "
        "decay move the others, too (false: published)",
    )
    step_size: Count = key(80, "epochs between two decays")
    decay_ratio: Positive = key(0.1, "the factor of a decay")
    lr_warmup_steps: Natural = key(0, "steps of linear warm-up of the learning rate")
    clip_grad: NotNegative = key(0.0, "largest norm of the gradients of a step (0: any)")
    label_smoothing: Share = key(0.1, "of the cross-entropy")

    dropout: Share = key(0.2, "before the classifier", "Training from scratch")
    se: bool = key(
        False, "squeeze-excite in every block, not counted by targets (SGNAS-A: 371.15 of 373.18 M)"
    )
    activation: Literal["relu6", "hswish"] = key("relu6", "of the network")
    drop_path: Share = key(0.0, "rate of stochastic depth in the last block, less in those before")
    cutout: Natural = key(0, "side of the squares in pixels")
    autoaugment: bool = key(False, "the policy for CIFAR-10; for images on disk that for ImageNet")
    mixup: NotNegative = key(0.0, "alpha of the Beta distribution (0: none)")
    ema: Share = key(0.0, "decay of the averaged weights, reported next to the last ones (0: none)")
    inherit: PathText | None = key(
        None, "a supernet checkpoint to start with; with `network_config` the network's own"
    )
    network_config: PathText | None = key(None, "a published `net.config` to train")
    network_size: Pixels | None = key(
        None, "pixels to which its small images are resized; none: `input_size`, not resized"
    )
    compile: bool = key(False, "compiles the training step")

    search_epochs: Natural = key(50, "its length", "Generator training")
    generator: Literal["singan"] = key("singan", "the published network")
    hc_dim: Annotated[int, "at least 1 and at most 4,096"] = key(10, "maps that carry the target")
    g_optim_state: OptimState = key(OptimState("adam", 0.001, 0.9, 0.0, 0.5), "the optimiser")
    g_lr_scheduler: Literal["constant", "cosine"] = key("constant", "cosine: over `search_epochs`")
    generator_ema: Share = key(0.0, "decay of the averaged weights evaluated and kept (0: none)")
    pool_size: Annotated[int, "at least 1 and at most 100,000"] = key(1, "priors")
    pool_chain: bool = key(False, "whether each prior starts as its neighbour")
    pool_tolerance: NotNegative = key(
        0.0, "M between a prior and the cost it is made for; 0: 1 M, and 1 % where that is less"
    )
    priors_per_target: Count = key(
        1, "nearest priors that answer a target, at most all; the answer of the nearest cost counts"
    )
    answer_ranking: Literal["none", "training-free", "supernet", "combined"] = key(
        "none",
        "of the priors' answers that meet a target, the one [ranked](ranking.md) best by these "
        "signals answers it, in place of that of the nearest cost (none: published)",
    )
    answer_tolerance: Positive = key(
        0.005, "share of a target that the cost of a ranked answer may be away from it"
    )
    targets_per_step: Count = key(1, "targets in a step; the first also goes through the supernet")
    tau: Positive = key(
        5.0, "Gumbel-softmax temperature; not used with `sampled_paths` and `straight_through`"
    )
    tau_decay: Positive = key(0.95, "its factor per epoch")
    straight_through: bool = key(
        False, "the hardware loss sees the discrete architecture instead of the mixture"
    )
    sampled_paths: Natural = key(
        0,
        "how many paths (not 1), sampled from the answer to the first target, go through the "
        "supernet: their losses say which choices become likelier (REINFORCE, in standard "
        "deviations); 0: the mixture does, as published",
    )
    logit_decay: NotNegative = key(
        0.0,
        "weight of the mean square of the logits in the loss: without, straight-through costs may "
        "push them so far that nothing more is learned",
    )
    hardware_loss: Literal["absolute", "relative"] = key(
        "absolute", "of the miss, in M or as a share of the target"
    )
    alpha: NotNegative = key(0.0003, "hardware loss `alpha ((cost - target) / cost_unit)^2`")
    loss_penalty: Positive = key(1.2, "its factor above the target")
    cost_unit: Positive = key(1.0, "M")
    cost_tolerance: NotNegative = key(0.1, "M around the target without hardware loss")
    target_step: Positive = key(5.0, "M between two training targets")
    target_jitter: NotNegative = key(0.5, "their noise, M")
    eval_step: Positive = key(10.0, "M between two evaluated targets")
    hardware_loss_limit: Positive = key(
        0.4, "total hardware loss under which the most accurate generator is kept"
    )
    noise_weight: NotNegative = key(0.0, "as published")

    cuda: bool = key(
        True, "an accelerator where there is one: CUDA, else Apple's MPS", "The machine and the run"
    )
    ngpu: Count = key(1, "processes are those of `torchrun`")
    amp: bool = key(False, "bfloat16 autocast")
    channels_last: bool = key(True, "the memory format")
    seed: Natural = key(0, "of everything that is drawn")
    print_freq: Count = key(100, "steps between two lines of a log")
    log_dir: PathText = key("./logs/", "where run folders are")
    write_dir: PathText | None = key(None, "TensorBoard events; none: in the run folder")

    model_pretrained: PathText | None = key(
        None, "a trained supernet, ours or a published one, for `warmup_epochs: 0`", "Files read"
    )
    generator_pretrained: PathText | None = key(None, "a trained generator")
    path_to_prior_pool: PathText | None = key(None, "a prior pool; written where there is none")

    path_to_save_model: PathText | None = key(None, "the best supernet", "Files written")
    path_to_save_scratch: PathText | None = key(None, "`best.pth` of training from scratch")
    path_to_best_avg_generator: PathText | None = key(
        None, "the generator of least total hardware loss"
    )
    path_to_save_generator: PathText | None = key(
        None, "the most accurate under `hardware_loss_limit`"
    )
    path_to_final_generator: PathText | None = key(
        None, "the last one; `path_to_fianl_generator`, as published, is read too"
    )
    path_to_supernet_eval: PathText | None = key(None, "CSV: random paths")
    path_to_generator_eval: PathText | None = key(None, "CSV: the targets of the last epoch")
    path_to_generator_eval_avg: PathText | None = key(None, "CSV: those of the best generator")
    path_to_save_architecture: PathText | None = key(None, "CSV: generated architectures")
    path_to_save_evaluate_architecture: PathText | None = key(
        None, "CSV: the most accurate validated"
    )

    @property
    def unit(self) -> str:
        """Of its targets."""
        return "ms" if self.cost == "latency" else "M"

    def part(self, record: type[T]) -> T:
        """The frozen dataclass `record`, each field filled from the key of the same name.

        A part of the work states by it which keys it reads. All fields must be keys.
        """
        names = {part.name for part in fields(record)}
        assert names <= keys_of(Config).keys(), f"{record}: no keys: {names - set(keys_of(Config))}"
        return record(**{name: getattr(self, name) for name in names})

    def refuse(self, name: str, allowed: str) -> NoReturn:
        """UserError: the value of a key is not what is allowed."""
        value = getattr(self, name)
        raise UserError(f"{self.where}: {name}: {value!r} is not allowed; it must be {allowed}")

    def require(self, *names: str) -> None:
        """UserError when one of these keys is None, empty or 0."""
        for name in names:
            if not getattr(self, name):
                raise UserError(f"{self.where}: {name}: this key is missing")

    def check_targets(self) -> None:
        """UserError when the targets of a generator are no range, or their steps leave it."""
        self.require("low_flops", "high_flops")
        if not 0 < self.low_flops < self.high_flops:
            self.refuse("low_flops", f"above 0 and below high_flops ({self.high_flops:g})")
        span = self.high_flops - self.low_flops
        for name in ("target_step", "target_jitter", "eval_step"):
            if getattr(self, name) > span:
                self.refuse(name, f"at most high_flops - low_flops ({span:g})")

    def check_steps(self) -> None:
        """UserError when steps are too small for the range of targets."""
        span = self.high_flops - self.low_flops
        for name in ("target_step", "eval_step"):
            if (least := span / MOST_TARGETS) > getattr(self, name):
                self.refuse(name, f"at least {least:g}, for at most {MOST_TARGETS} targets")

    def check_layers(self) -> None:
        """UserError when there are no layers, or layers that are not there are static."""
        if not self.l_cfgs:
            self.refuse("l_cfgs", "a list with a row for each layer")
        if self.min_expansion > (most := max(row.expansion for row in self.l_cfgs)):
            self.refuse("min_expansion", f"at most the largest expansion of l_cfgs ({most})")
        if any(not 0 <= layer < len(self.l_cfgs) for layer in self.static_layers):
            self.refuse("static_layers", f"numbers of layers, 0 to {len(self.l_cfgs) - 1}")

    def to_dict(self) -> dict:
        """Plain values, as YAML and JSON hold them; `from_dict` reads them back."""
        values = {name: getattr(self, name) for name in keys_of(Config)}
        return _plain({**values, "l_cfgs": [row.to_list() for row in self.l_cfgs]})

    @classmethod
    def read(cls, file: Path) -> "Config":
        """From a file, as `load_config`."""
        return load_config(file)

    @classmethod
    def from_dict(cls, values: dict, where: str = "config") -> "Config":
        """From plain values; UserError naming `where`, the key, the value and what is allowed."""
        config = replace(as_record(cls, _renamed(values, where), where, ""), where=where)
        if config.sampled_paths == 1:  # each is compared with the others
            config.refuse("sampled_paths", "0, or at least 2")
        if config.bn_recalibration_images == 1:  # one image has no variance
            config.refuse("bn_recalibration_images", "0, or at least 2")
        if config.cost == "latency" and config.latency_table is None:
            wanted = "a file that tools.profile_latency wrote, as cost is latency"
            config.refuse("latency_table", wanted)
        return config


def keys_of(kind: type) -> dict[str, dataclasses.Field]:
    """The fields of a dataclass that are keys, by name."""
    return {part.name: part for part in fields(kind) if part.compare}


# -- files and command lines -----------------------------------------------------------------------


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file; `overrides` are `key=value`, with dots for keys inside a key.

    The value of a key of text is the text as it is; that of others is YAML.
    """
    path = Path(expand_home(str(path)))
    values = _read(path, _resolved(path).parent)
    if not isinstance(values, dict):
        raise UserError(f"{path}: it holds no keys")
    values = _renamed(values, str(path))
    for override in overrides:
        _override(values, override)
    try:
        check_plain(values)
    except TooMuch as error:
        raise UserError(f"--set: {error}") from None
    return Config.from_dict(values, str(path))


def as_overrides(values: dict) -> list[str]:
    """Plain values as `load_config` takes them."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values.values()]
    return [f"{name}={text}" for name, text in zip(values, texts, strict=True)]


def _read(path: Path, root: Path, around: tuple[Path, ...] = ()):
    """A YAML file with `!include FILE`, relative to the including file and inside `root`."""
    around = (*around, _resolved(path))

    def include(name: str):
        target = _resolved(path.parent / name)
        if not target.is_relative_to(root):
            outside = f"it lies outside the config's folder {root}"
            raise UserError(f"{path}: !include {name}: {outside}")
        if target in around:
            raise UserError(
                f"{path}: !include {name}: a file cannot include itself, nor in a circle"
            )
        return _read(target, root, around)

    return read_yaml(path, include=include)


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle; a NUL
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None


def _renamed(values: dict, where: str) -> dict:
    """The values under the names of today; UserError when two spellings of a key have one."""
    found, spelled = {}, {}
    for name, value in values.items():
        new = _SPELLINGS.get(name, name)
        if value is None and (new != name or new in found):
            continue
        if found.get(new) is not None:
            raise UserError(f"{where}: {name}: this key is given twice, as {spelled[new]}, too")
        found[new], spelled[new] = value, name
    return found


def _override(values: dict, override: str) -> None:
    """Set the value of `key=value` or `key.inner=value`."""
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"--set {override}: it must be key=value")
    first, *inner = name.split(".")
    *parents, last = [_SPELLINGS.get(first, first), *inner]
    kind = Config
    for parent in parents:
        kind = types_of(kind).get(parent)
        if not isinstance(values.get(parent) or {}, dict):
            raise UserError(f"--set {name}: {parent} has no keys of its own")
        values[parent] = dict(values.get(parent) or {})  # an alias may share it
        values = values[parent]
    kind, optional = _optional(types_of(kind).get(last))
    if _base(kind) is not str:
        values[last] = parse_yaml(text, f"--set {name}")
    else:
        values[last] = None if optional and text.lower() in ("", "null", "none", "~") else text


def _plain(value):
    """Dictionaries and lists for records and tuples, all the way down."""
    if is_dataclass(value):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


# -- checking --------------------------------------------------------------------------------------


def as_record(cls: type[T], values, where: str, prefix: str = "") -> T:
    """A mapping of plain values as the dataclass `cls`, whose fields are the keys.

    Args:
        where: the file that errors name.
        prefix: what stands before a key in errors, such as "space.".

    Raises:
        UserError: an unknown or missing key, a wrong type, a value out of bounds.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: {prefix.removesuffix('.')}: {values!r} holds no keys")
    known, hints = keys_of(cls), types_of(cls)
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(sorted(known))}"
            raise UserError(f"{where}: {prefix}{name}: unknown key; {hint}")
    found = {}
    for name, part in known.items():
        if name in values:
            value = values[name]
            if is_dataclass(part.default) and isinstance(value, dict):
                # what the file leaves out has the default of this key, not of its type
                value = {**_plain(part.default), **value}
            found[name] = _convert(hints[name], value, where, prefix + name)
        elif part.default is NEEDED and part.default_factory is NEEDED:
            raise UserError(f"{where}: {prefix}{name}: this key is missing")
    return cls(**found)


_TYPES = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    PathText: "a path",
    dict: "a mapping",
}


def in_words(hint) -> str:
    """What a key of this type may be, for the docs page."""
    hint, optional = _optional(hint)
    arguments = typing.get_args(hint)
    if optional:
        return f"{in_words(hint)}, or none"
    if typing.get_origin(hint) is Annotated:
        return f"{in_words(arguments[0])}, {hint.__metadata__[0]}"
    if typing.get_origin(hint) is Literal:
        return " or ".join(map(str, arguments))
    if typing.get_origin(hint) is tuple:
        count = "" if arguments[-1] is ... else f" of {len(arguments)}"
        return f"list{count}: {in_words(arguments[0])}"
    return {float: "number", LayerRow: "layer"}.get(hint) or _TYPES[hint].removeprefix("a ")


def types_of(cls: type | None) -> dict[str, type]:
    """The annotations of a dataclass, by name; none of any other type."""
    return typing.get_type_hints(cls, include_extras=True) if is_dataclass(cls) else {}


def _optional(hint) -> tuple[type, bool]:
    """A type without None, and whether None is allowed too."""
    optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return (typing.get_args(hint)[0] if optional else hint), optional


def _base(hint) -> type:
    """The type of the values of a Literal, Annotated or path type; any other type as it is."""
    if hint is PathText:
        return str
    if typing.get_origin(hint) is Literal:
        return type(typing.get_args(hint)[0])
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _convert(hint, value, where: str, name: str):
    """`value` as the annotated type, or a UserError that names both."""
    hint, optional = _optional(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if optional and value is None:
        return None
    if origin in (Annotated, Literal):
        value = _convert(_base(hint), value, where, name)
        allowed = in_words(hint) if origin is Literal else hint.__metadata__[0]
        if not (value in arguments if origin is Literal else within(value, allowed)):
            raise UserError(f"{where}: {name}: {value!r} is not allowed; it must be {allowed}")
        return value
    if origin is tuple:
        kind, *more = arguments
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: {name}: {value!r} is no list")
        if len(value) > MOST_ENTRIES:
            most = f"{len(value)} entries are too many; it may have {MOST_ENTRIES}"
            raise UserError(f"{where}: {name}: {most}")
        if more != [...] and len(value) != len(arguments):
            raise UserError(f"{where}: {name}: {value!r} is not a list of {len(arguments)} numbers")
        return tuple(_convert(kind, part, where, f"{name}[{i}]") for i, part in enumerate(value))
    if hint is LayerRow:
        return LayerRow.read(value, where, name)
    if hint is PathText and isinstance(value, str):
        try:
            return expand_home(value)
        except UserError as error:
            raise UserError(f"{where}: {name}: {error}") from None
    if is_dataclass(hint):
        return as_record(hint, value, where, name + ".")
    if isinstance(value, str) and hint in (int, float):  # YAML 1.1 reads 1e-3 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number and abs(value) < float("inf"):
        return float(value)
    if hint is int and number and value == value // 1:
        return int(value)
    if hint in (bool, str, dict) and isinstance(value, hint):
        return value
    raise UserError(f"{where}: {name}: {value!r} is not {_TYPES[hint]}")
