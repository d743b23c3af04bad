"""YAML -> `Config`, a frozen record of checked values. An unknown or wrong key is a UserError that
names it.

The published YAMLs load unchanged. A `Config` is read by the stage scripts and their trainings
(`model/sgnas/warm_up.py`, `model/sgnas/generator_training.py`, `model/training/from_scratch.py`), by the run folder,
and where files become objects (`model/spaces/registry.py`, `model/sgnas/answers.py`); what lies below takes
named values.
"""

import contextlib
import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import yaml

from utils.errors import UserError


@dataclass(frozen=True)
class OptimState:
    """An optimiser: "sgd" uses momentum, "adam" beta (its first; the second is 0.999)."""

    optimizer: str = "sgd"
    lr: float = 0.064
    momentum: float = 0.9
    weight_decay: float = 4e-4
    beta: float = 0.5


@dataclass(frozen=True)
class LayerRow:
    """A row of `l_cfgs`: [max expansion, output channels, kernels, stride, number of choices,
    squeeze-excite].

    The last two may be left out; a row overrides the global `expansion`, `split_blocks` and
    `kernels_nums`.
    """

    expansion: int
    out_channels: int
    kernels: tuple[int, ...]
    skip: bool
    stride: int
    se: bool = False


@dataclass(frozen=True)
class ElasticKeys:
    """The key `elastic`: a once-for-all space, see `model.spaces.elastic.space.ElasticSpace`; a list entry
    for each stage.
    """

    stages: tuple[int, ...]  # output channels
    strides: tuple[int, ...]
    activations: tuple[str, ...]
    se: tuple[bool, ...]
    head: tuple[int, ...]
    resolutions: tuple[int, ...]
    stem_channels: int = 16
    stem_stride: int = 2
    kernels: tuple[int, ...] = (3, 5, 7)
    expansions: tuple[int, ...] = (3, 4, 6)
    depths: tuple[int, ...] = (2, 3, 4)
    width: float = 1.0


@dataclass(frozen=True)
class CellKeys:
    """The network of NAS-Bench-201 whose costs and accuracies are searched, and how much of it the
    supernet has.
    """

    channels: int = 16  # of the first stage
    cells: int = 5  # in each stage of that network
    supernet_cells: int = 1  # and of the supernet
    image_size: int = 32  # that network's; `input_size` is the supernet's


@dataclass(frozen=True)
class Config:
    """All keys of a config file. Costs are in millions of multiply-adds (M). A path of None is not
    used.
    """

    title_flag: ClassVar[str] = "--title"
    length_keys: ClassVar[frozenset[str]] = frozenset({"warmup_epochs", "search_epochs", "epochs"})

    # data
    dataset: str
    classes: int
    input_size: int
    # or "elastic" or "nasbench201": then the key below is the search space, else l_cfgs;
    supernet: str = "unified"
    # or "none": a network that only its network_config describes
    elastic: ElasticKeys | None = None
    cell: CellKeys | None = None
    l_cfgs: tuple[LayerRow, ...] = ()  # search space
    # what targets are in: multiply-adds (M), or "latency" (ms), by the table below
    cost: str = "flops"
    latency_table: str | None = None  # a YAML file of tools.profile_latency
    # range of targets; this and whatever else is in M are in ms where cost is latency
    low_flops: float = 0.0
    high_flops: float = 0.0
    dataset_dir: str = "./data/"
    train_portion: float = 0.8
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    crop_padding: int = 4  # pixels of zero padding before the random crop of small images
    horizontal_flip: bool = True
    num_workers: int = 0
    strict_data: bool = False  # stop at an image that cannot be read, instead of skipping it
    # search space
    static_layers: tuple[int, ...] = ()
    min_expansion: int = 2
    expansion: int = 6
    split_blocks: int = 6
    kernels_nums: int = 4
    stem_stride: int | None = None  # None: 1 below input size 64, else 2
    stem_channels: int = 32
    first_channels: int = 16
    head_channels: int = 1280
    # supernet warm-up, and training from scratch
    warmup_epochs: int = 50
    epochs: int = 200  # of training from scratch, and the period of the cosine
    batch_size: int = 512
    paths_per_step: int = 4
    path_sampling: str = "fair"  # within a step; or "uniform", each path on its own
    # share of the initial weights that all sub-blocks have in common; 0: published
    alignment: float = 0.0
    lr_warmup_steps: int = 0  # steps of linear warm-up of the learning rate
    clip_grad: float = 0.0  # largest norm of the gradients of a step; 0: any
    # random paths whose accuracy is averaged after each epoch of the warm-up
    validation_paths: int = 8
    # training images that re-estimate BN before a path is validated; 0: none
    bn_recalibration_images: int = 2048
    label_smoothing: float = 0.1
    dropout: float = 0.2
    # this and the following: of the network trained from scratch; squeeze-excite in every block
    se: bool = False
    activation: str = "relu6"
    drop_path: float = 0.0  # rate of stochastic depth in the last block, less in those before
    # a supernet checkpoint whose weights it begins with; with network_config its own
    inherit: str | None = None
    network_config: str | None = None  # a published net.config
    # pixels to which it gets its images resized; None: input_size, not resized
    network_size: int | None = None
    cutout: int = 0  # side in pixels
    autoaugment: bool = False
    mixup: float = 0.0  # alpha of the Beta distribution; 0: none
    ema: float = 0.0  # decay of the averaged weights that are reported beside the last; 0: none
    compile: bool = False
    optim_state: OptimState = field(default_factory=OptimState)
    lr_scheduler: str = "cosine"
    step_size: int = 80  # epochs between two decays of the "step" scheduler
    decay_ratio: float = 0.1
    # generator training
    search_epochs: int = 50
    generator: str = "singan"
    hc_dim: int = 10
    g_optim_state: OptimState = field(
        default_factory=lambda: OptimState("adam", 0.001, 0.9, 0.0, 0.5)
    )
    pool_size: int = 1
    pool_chain: bool = False  # each prior begins as its neighbour
    # M between a prior and its mark; 0: 1 M, and 1 % where that is less
    pool_tolerance: float = 0.0
    # nearest priors from which a target is answered; the answer of least miss counts
    priors_per_target: int = 1
    targets_per_step: int = 1  # the first of them also goes through the supernet
    logit_decay: float = 0.0  # weight of the mean square of the generator's logits in its loss
    # paths of a generator step, sampled for its first target; 0: the mixture
    sampled_paths: int = 0
    # the hardware loss sees the discrete architecture, not the mixture
    straight_through: bool = False
    hardware_loss: str = "absolute"  # or "relative" to the target
    g_lr_scheduler: str = "constant"  # or "cosine" over search_epochs
    # decay of the averaged generator weights that are evaluated and kept; 0: none
    generator_ema: float = 0.0
    tau: float = 5.0
    tau_decay: float = 0.95  # per epoch
    alpha: float = 0.0003
    loss_penalty: float = 1.2
    noise_weight: float = 0.0  # never read, as in the published release
    target_step: float = 5.0  # M between two training targets
    target_jitter: float = 0.5  # M
    cost_tolerance: float = 0.1  # M; no hardware loss within
    cost_unit: float = 1.0  # M; the hardware loss is in squares of it
    eval_step: float = 10.0  # M between two evaluated targets
    # total over the evaluated targets, for the most accurate generator to be kept
    hardware_loss_limit: float = 0.4
    # run
    cuda: bool = True
    ngpu: int = 1
    amp: bool = False
    channels_last: bool = True
    seed: int = 0
    print_freq: int = 100  # steps between two lines of a log
    log_dir: str = "./logs/"
    write_dir: str | None = None  # TensorBoard events; None: in the run folder
    # files read
    model_pretrained: str | None = None
    generator_pretrained: str | None = None
    # files written, beside the run folder
    path_to_save_model: str | None = None
    path_to_save_generator: str | None = None
    path_to_best_avg_generator: str | None = None
    path_to_final_generator: str | None = None  # "path_to_fianl_generator" is accepted too
    path_to_save_scratch: str | None = None
    path_to_save_architecture: str | None = None
    path_to_save_evaluate_architecture: str | None = None
    path_to_prior_pool: str | None = None
    path_to_generator_eval: str | None = None
    path_to_generator_eval_avg: str | None = None
    path_to_supernet_eval: str | None = None

    @property
    def unit(self) -> str:
        """Of its targets."""
        return "ms" if self.cost == "latency" else "M"

    def to_dict(self) -> dict:
        """Plain values, as YAML and JSON hold them; `from_dict` reads them back."""
        values = dataclasses.asdict(self)
        values["l_cfgs"] = [
            [
                r.expansion,
                r.out_channels,
                [*r.kernels, *["skip"] * r.skip],
                r.stride,
                len(r.kernels) + r.skip,
                r.se,
            ]
            for r in self.l_cfgs
        ]
        return _plain(values)

    where = "config"

    def part(self, kind):
        return kind(**{f.name: getattr(self, f.name) for f in dataclasses.fields(kind)})

    def require(self, *keys):
        pass

    def check_targets(self):
        pass

    def check_layers(self):
        pass

    @property
    def space(self):
        part = self.elastic or self.cell
        return _plain({k: v for k, v in dataclasses.asdict(part).items()}) if part else None

    @classmethod
    def read(cls, file: Path) -> "Config":
        """From a file, as `load_config`."""
        return load_config(file)

    @classmethod
    def from_dict(cls, values: dict, where: str = "config") -> "Config":
        """Check and convert plain values; UserError naming `where`, the key, the value and what is
        allowed.
        """
        values = {_SPELLINGS.get(key, key): value for key, value in values.items()}
        for key in _SPACE_KEYS.get(str(values.get("supernet", "unified")), ()):
            if values.get(key) is None:
                raise UserError(f"{where}: {key}: this key is missing")
        config = _record(cls, values, where, "")
        _check_values(config, where)
        return config


# What describes the search space of each kind of supernet.
_SPACE_KEYS = {
    "unified": ("l_cfgs", "low_flops", "high_flops"),
    "elastic": ("elastic",),
    "none": ("network_config",),
    "nasbench201": ("cell", "low_flops", "high_flops"),
}
_SPELLINGS = {"path_to_fianl_generator": "path_to_final_generator"}


def _plain(value):
    """Lists for tuples, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file; `overrides` are `key=value`, with dots for keys inside `optim_state` and
    `g_optim_state`.
    """
    path = Path(path)
    values = _read_yaml(path, path.resolve().parent)
    if not isinstance(values, dict):
        raise UserError(f"{path}: it holds no keys")
    for override in overrides:
        _override(values, override)
    return Config.from_dict(values, str(path))


def as_overrides(values: dict) -> list[str]:
    """Plain values as `load_config` takes them."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def _read_yaml(path: Path, root: Path):
    """Safe YAML with `!include FILE`, relative to the including file and inside `root`."""

    class Loader(yaml.SafeLoader):
        pass

    def include(loader: yaml.SafeLoader, node: yaml.Node):
        target = (path.parent / str(loader.construct_scalar(node))).resolve()
        if not target.is_relative_to(root):
            raise UserError(
                f"{path}: !include {node.value}: it lies outside the config's folder {root}"
            )
        if target == path.resolve():
            raise UserError(f"{path}: !include {node.value}: a file cannot include itself")
        return _read_yaml(target, root)

    Loader.add_constructor("!include", include)
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.load(text, Loader=Loader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: no valid YAML ({' '.join(str(error).split())})") from None
    except RecursionError:
        raise UserError(f"{path}: !include runs in a circle") from None


def _override(values: dict, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: it must be key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {key}: {text!r} is no valid YAML value") from None
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {key}: {parent} has no keys of its own")
    values[last] = value


# -- checking --------------------------------------------------------------------------------------


def _record(kind: type, values: dict, where: str, prefix: str):
    """`values` as the dataclass `kind`."""
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = (
                f"; did you mean {near[0]}?"
                if near
                else f"; allowed are {', '.join(sorted(hints))}"
            )
            raise UserError(f"{where}: {prefix}{key}: unknown key{hint}")
    for part in dataclasses.fields(kind):
        defaults = (part.default, part.default_factory)
        if defaults == (dataclasses.MISSING, dataclasses.MISSING) and part.name not in values:
            raise UserError(f"{where}: {prefix}{part.name}: this key is missing")
        if dataclasses.is_dataclass(hints[part.name]) and isinstance(values.get(part.name), dict):
            # What the file does not say of an optimiser is that optimiser's default, not another
            # one's.
            values = {
                **values,
                part.name: {**dataclasses.asdict(part.default_factory()), **values[part.name]},
            }
    return kind(
        **{key: _convert(hints[key], value, where, prefix + key) for key, value in values.items()}
    )


def _convert(hint, value, where: str, key: str):
    """`value` as the annotated type, or a UserError that names both."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(arguments[0], value, where, key)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where}: {key}: {value!r} is no list")
        return tuple(
            _convert(arguments[0], part, where, f"{key}[{i}]") for i, part in enumerate(value)
        )
    if hint is LayerRow:
        return _layer_row(value, where, key)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise UserError(f"{where}: {key}: {value!r} holds no keys")
        return _record(hint, value, where, key + ".")
    if isinstance(value, str) and hint in (int, float):  # YAML 1.1 reads 1e-3 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and number and abs(value) < float("inf"):
        return float(value)
    if hint is int and number and value == value // 1:
        return int(value)
    if hint in (bool, str) and isinstance(value, hint):
        return value
    names = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}
    raise UserError(f"{where}: {key}: {value!r} is not {names[hint]}")


def _layer_row(row, where: str, key: str) -> LayerRow:
    if not isinstance(row, (list, tuple)) or not 4 <= len(row) <= 6:
        raise UserError(
            f"{where}: {key}: {row!r} is not [max expansion, output channels, kernels, stride, kernels_nums, se]"
        )
    expansion, out_channels, stride = (
        _convert(int, row[i], where, f"{key}[{i}]") for i in (0, 1, 3)
    )
    choices = row[2]
    if not isinstance(choices, (list, tuple)) or len(set(map(str, choices))) < len(choices):
        raise UserError(
            f"{where}: {key}[2]: {choices!r} is not a list of different kernel sizes, maybe with skip"
        )
    kernels = tuple(_convert(int, c, where, f"{key}[2]") for c in choices if c != "skip")
    if not kernels or any(k < 1 or k % 2 == 0 for k in kernels):
        raise UserError(f"{where}: {key}[2]: {choices!r}: kernel sizes must be odd and positive")
    for name, value in (
        ("max expansion", expansion),
        ("output channels", out_channels),
        ("stride", stride),
    ):
        if value < 1:
            raise UserError(f"{where}: {key}: {name} {value} is below 1")
    if "skip" in choices[:-1]:
        raise UserError(f"{where}: {key}[2]: {choices!r}: skip must stand last")
    if len(row) > 4 and _convert(int, row[4], where, f"{key}[4]") != len(choices):
        raise UserError(
            f"{where}: {key}[4]: kernels_nums is {row[4]}, but the row has {len(choices)} choices"
        )
    se = _convert(bool, row[5], where, f"{key}[5]") if len(row) > 5 else False
    return LayerRow(expansion, out_channels, kernels, "skip" in choices, stride, se)


def _check_targets(config: Config, refuse: Callable[[str, str], None]) -> None:
    if not 0 < config.low_flops < config.high_flops:
        refuse("low_flops", f"above 0 and below high_flops ({config.high_flops:g})")
    for key in ("target_step", "target_jitter", "eval_step"):
        if getattr(config, key) > config.high_flops - config.low_flops:
            refuse(
                key, f"at most high_flops - low_flops ({config.high_flops - config.low_flops:g})"
            )


def _check_layers(config: Config, refuse: Callable[[str, str], None]) -> None:
    if not config.l_cfgs:
        refuse("l_cfgs", "a list with a row for each layer")
    if any(not 0 <= layer < len(config.l_cfgs) for layer in config.static_layers):
        refuse("static_layers", f"numbers of layers, 0 to {len(config.l_cfgs) - 1}")


_AT_LEAST = {
    0: "warmup_epochs search_epochs lr_warmup_steps clip_grad bn_recalibration_images crop_padding cutout mixup "
    "num_workers noise_weight target_jitter cost_tolerance alpha seed "
    "pool_tolerance sampled_paths logit_decay",
    2: "batch_size",  # batch norm needs two images
    1: "classes input_size paths_per_step validation_paths epochs hc_dim pool_size priors_per_target targets_per_step "
    "stem_channels first_channels head_channels min_expansion expansion split_blocks kernels_nums step_size print_freq "
    "ngpu",
}
_POSITIVE = (
    "tau tau_decay loss_penalty hardware_loss_limit target_step cost_unit eval_step decay_ratio"
)
_ONE_OF = {
    "generator": ("singan",),
    "cost": ("flops", "latency"),
    "supernet": ("unified", "elastic", "nasbench201", "none"),
    "path_sampling": ("fair", "uniform"),
    "lr_scheduler": ("cosine", "step"),
    "activation": ("relu6", "hswish"),
    "hardware_loss": ("absolute", "relative"),
    "g_lr_scheduler": ("constant", "cosine"),
}


def _check_values(config: Config, where: str) -> None:
    """Everything about the values that needs no data and no space."""

    def refuse(key: str, allowed: str):
        raise UserError(
            f"{where}: {key}: {getattr(config, key)!r} is not allowed; it must be {allowed}"
        )

    if config.sampled_paths == 1:  # each is compared with the others
        refuse("sampled_paths", "0, or at least 2")
    for least, keys in _AT_LEAST.items():
        for key in keys.split():
            if getattr(config, key) < least:
                refuse(key, f"at least {least}")
    for key in _POSITIVE.split():
        if getattr(config, key) <= 0:
            refuse(key, "above 0")
    for key, names in _ONE_OF.items():
        if getattr(config, key) not in names:
            refuse(key, " or ".join(names))
    if not 0 < config.train_portion <= 1:
        refuse("train_portion", "above 0 and at most 1")
    for key in ("label_smoothing", "dropout", "drop_path", "ema", "generator_ema"):
        if not 0 <= getattr(config, key) < 1:
            refuse(key, "at least 0 and below 1")
    if not 0 <= config.alignment <= 1:
        refuse("alignment", "0 to 1")
    if config.cost == "latency" and config.latency_table is None:
        refuse("latency_table", "a file that tools.profile_latency wrote, as cost is latency")
    if config.network_size is not None and config.network_size < 1:
        refuse("network_size", "at least 1")
    if config.stem_stride not in (None, 1, 2):
        refuse("stem_stride", "1 or 2")
    if config.supernet in ("unified", "nasbench201"):
        _check_targets(config, refuse)
    if config.supernet == "unified":
        _check_layers(config, refuse)
    if config.supernet == "nasbench201" and min(dataclasses.astuple(config.cell)) < 1:
        refuse("cell", "numbers of at least 1")
    for key in ("mean", "std"):
        if len(getattr(config, key)) != 3:
            refuse(key, "three numbers")
    if min(config.std) <= 0:
        refuse("std", "three numbers above 0")
    for key in ("optim_state", "g_optim_state"):
        state = getattr(config, key)
        if state.optimizer not in ("sgd", "adam"):
            raise UserError(
                f"{where}: {key}.optimizer: {state.optimizer!r} is unknown; allowed are sgd, adam"
            )
        if (
            state.lr <= 0
            or state.weight_decay < 0
            or not 0 <= state.momentum < 1
            or not 0 <= state.beta < 1
        ):
            raise UserError(
                f"{where}: {key}: lr must be above 0, weight_decay at least 0, momentum and beta in [0, 1)"
            )


def as_record(cls, values, where, prefix):
    import msgspec
    return msgspec.convert(values, cls)
