"""Networks as timm's own: a module that registers one with timm, and a file of its weights.

The module needs torch and timm alone. It defines what timm would choose otherwise: width and gate
of squeeze-excite, a stride of the stem other than 2, and widths that are no multiples of 8.
"""

import ast
import keyword
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from math import isfinite
from pathlib import Path
from string import Template
from types import ModuleType

import timm
from safetensors.torch import save
from timm.models import is_model, model_entrypoint
from torch import Tensor, nn

from tools.formats.timm_network import TimmNetwork, described
from utils.errors import UserError, one_line

_HEAD = Template('''"""A network that one-shot architecture search found, on the classes of timm.

    import timm, $name
    network = timm.create_model($quoted, pretrained=True)

It needs torch and timm; its weights lie beside this file, in $weights.
"""

from functools import partial
from pathlib import Path

${layers}from timm.models import _efficientnet_blocks as timm_blocks
from timm.models import _efficientnet_builder as timm_builder
from timm.models import build_model_with_cfg, register_model
from timm.models.$base import $base_class
from torch import nn

STAGES = [
$stages]
OPTIONS = {
$options}
LEVELS = $levels  # of features

default_cfgs = {
    $quoted: {
        "file": str(Path(__file__).with_name($weights)),
$config    }
}


def squeeze_excite(channels, act_layer=None, **kwargs):
    """With a ReLU inside, and a hard sigmoid as its gate."""
    inner = $squeezed
    gate = {"act_layer": nn.ReLU, "gate_layer": "hard_sigmoid"}
    return timm_blocks.SqueezeExcite(channels, rd_channels=inner, **gate, **kwargs)


class Network($base_class):
    def __init__(self, **kwargs):
        options = {**OPTIONS, **kwargs}
        norm_layer = partial(nn.BatchNorm2d, **timm_builder.resolve_bn_args(options))
        norm_layer = options.setdefault("norm_layer", norm_layer)
        options["act_layer"] = timm_builder.resolve_act_layer(options)
        stages = timm_builder.decode_arch_def(STAGES)
        super().__init__(stages, round_chs_fn=int, se_layer=squeeze_excite, **options)
''')

_STEM = Template("""        self.conv_stem.stride = ($stride, $stride)  # timm's is 2
        for info in self.feature_info:
            info["reduction"] = info["reduction"] * $stride // 2
""")

_WIDTHS = Template('''        for name, channels in $widths.items():
            set_width(self.get_submodule(name), channels, norm_layer)
        timm_builder.efficientnet_init_weights(self)


def set_width(block, channels, norm_layer):
    """Give a block middle channels that are no multiple of 8, to which timm rounds."""
    norm = get_norm_act_layer(norm_layer, type(block.bn1.act))
    like, parts = block.conv_pw.weight, list(block.conv_dw.modules())
    convs = [part for part in parts if isinstance(part, nn.Conv2d)]
    kernels = [conv.kernel_size[0] for conv in convs]
    kernels = kernels if len(kernels) > 1 else kernels[0]
    how = {"stride": convs[0].stride, "dilation": convs[0].dilation, "groups": channels}
    block.conv_pw = create_conv2d(block.conv_pw.in_channels, channels, 1)
    block.bn1, block.bn2 = (norm(channels, inplace=True) for _ in range(2))
    block.conv_dw = create_conv2d(channels, channels, kernels, **how)
    if isinstance(block.se, timm_blocks.SqueezeExcite):
        block.se = squeeze_excite(channels)
    block.conv_pwl = create_conv2d(channels, block.conv_pwl.out_channels, 1)
    block.to(like)
''')

_ENTRY = Template("""

@register_model
def $name(pretrained=False, **kwargs):
    features = {"out_indices": tuple(range(LEVELS)), "flatten_sequential": True}
    return build_model_with_cfg(Network, $quoted, pretrained, feature_cfg=features, **kwargs)
""")

# What timm calls the ways in which images come to size (`utils.images.VIEWS`).
SQUASH = {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"}
VIEWS = {
    None: SQUASH,  # all of a small image is seen
    "squash": SQUASH,
    "bicubic": {"interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"},
    "bilinear": {"interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center"},
}


def module_text(name: str, weights: str, network: TimmNetwork, config: dict) -> str:
    """The source of the module `name` with the file `weights` next to it; `config` is timm's."""
    layers = ["create_conv2d", "get_norm_act_layer"] * bool(network.odd_widths)
    layers += ["make_divisible"] * ("make_divisible" in network.squeezed)
    values = {  # texts of ours, and literals
        "layers": f"from timm.layers import {', '.join(layers)}\n" if layers else "",
        "name": name,
        "quoted": literal(name),
        "weights": literal(weights),
        "config": _lines([f"{key!r}: {literal(value)}" for key, value in config.items()], 8),
        "base": network.base,
        "base_class": network.base_class,
        "levels": literal(network.levels),
        "stages": _lines(map(literal, network.texts)),
        "options": _lines([f"{key!r}: {literal(value)}" for key, value in network.options.items()]),
        "squeezed": network.squeezed,
        "stride": literal(network.stem_stride),
        "widths": literal(network.odd_widths),
    }
    parts = [_HEAD, _STEM if network.stem_stride != 2 else None]
    parts += [_WIDTHS if network.odd_widths else None, _ENTRY]
    return "".join(part.substitute(values) for part in parts if part)


def literal(value) -> str:
    """A plain value as source text that is that value, whatever it holds.

    UserError for one of another type, whose text could be code.
    """
    plain = type(value) in (bool, int, str) or (type(value) is float and isfinite(value))
    if not plain and type(value) not in (list, tuple, dict):
        raise UserError(f"--format timm: {one_line(repr(value), 60)} is no number and no text")
    if isinstance(value, dict):
        pairs = (f"{literal(key)}: {literal(part)}" for key, part in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (list, tuple)):
        text = ", ".join(map(literal, value))
        return f"[{text}]" if isinstance(value, list) else f"({text}{',' * (len(value) == 1)})"
    return repr(value)


def _lines(entries: Iterable[str], indent: int = 4) -> str:
    """The entries of a list or dictionary in Python's syntax, a line for each."""
    return "".join(f"{' ' * indent}{entry},\n" for entry in entries)


def check_name(name: str, text: str) -> None:
    """UserError for a name that `text` cannot be imported by, or that means something else."""
    where = f"--out {name}.py"
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(f"{where}: Python cannot import this name; use letters, digits and _")
    used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    taken = used | {"timm", "torch"} | sys.stdlib_module_names
    if name in taken or (is_model(name) and not _is_exported(name)):
        raise UserError(
            f"{where}: this name means something else to Python or timm; choose another"
        )


def _is_exported(name: str) -> bool:
    """Whether a network is not timm's own, but of a module like these."""
    return not model_entrypoint(name).__module__.startswith("timm.")


# -- writing and running ---------------------------------------------------------------------------


def write(
    file: Path, network: nn.Module, image_size: int, data: dict, view: str | None
) -> list[Path]:
    """Write the module `file` and its weights; returns both.

    `data` has mean, std, classes, and class_names where they are known.
    """
    weights = file.with_suffix(".safetensors")
    config = {"input_size": (3, image_size, image_size), "num_classes": data["classes"]}
    config |= {**VIEWS[view], "mean": tuple(data["mean"]), "std": tuple(data["std"])}
    config |= {"first_conv": "conv_stem", "classifier": "classifier"}
    config |= {"label_names": tuple(data["class_names"])} if "class_names" in data else {}
    found = described(network)
    check_name(file.stem, module_text("_", weights.name, found, config))
    file.write_text(module_text(file.stem, weights.name, found, config), encoding="utf-8")
    with imported(file):
        other = timm.create_model(file.stem)
    state = mapped(network, other)
    weights.write_bytes(save({key: value.contiguous() for key, value in state.items()}))
    return [weights, file]


def mapped(network: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """The weights of `network` under the names of `other`, whose layers are the same in order.

    UserError where they are not.
    """
    ours, theirs = network.state_dict(), other.state_dict()
    names = list(zip_longest(ours, theirs))

    def kind(state: dict[str, Tensor], name: str | None) -> tuple | None:
        return name and (name.rpartition(".")[2], state[name].shape)

    for own, name in names:
        if kind(ours, own) != kind(theirs, name):
            raise UserError(f"--format timm: {own} of this network is not {name} of timm's")
    return {name: ours[own] for own, name in names}


@contextmanager
def imported(file: Path) -> Iterator[ModuleType]:
    """Import the module in `file` under a name of its own; within, timm knows the network.

    The source is read each time: of two files of one name, size and second, Python's cache would
    keep the first.
    """
    name = f"exported_to_timm_{file.stem}"
    sys.modules[name] = module = ModuleType(name)  # where timm looks for it
    module.__file__ = str(file)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an earlier export may have had the same name
            exec(compile(file.read_bytes(), file, "exec"), module.__dict__)
        yield module
    finally:
        del sys.modules[name]


def runner(file: Path) -> Callable[[Tensor], Tensor]:
    """`run(images [B, 3, S, S]) -> logits [B, classes]` by timm, with the weights by `file`."""
    with imported(file):
        return timm.create_model(file.stem, pretrained=True).eval()
