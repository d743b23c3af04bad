"""The kinds of search space there are, and what opens a config, a checkpoint or a file.

A new kind is a folder in `model/spaces/` and a line in `KINDS`.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from model.costs.counting import count_macs, count_parameters
from model.spaces.contracts import CostTable, NetworkSpec, SearchSpace, SpaceKind
from model.spaces.elastic import kind as elastic
from model.spaces.elastic import net_config
from model.spaces.nasbench201 import kind as nasbench201
from model.spaces.nasbench_macro import kind as nasbench_macro
from model.spaces.unified import kind as unified
from utils import checkpoint
from utils.config import Config
from utils.errors import UserError, one_line
from utils.json_file import read_json, write_json
from utils.runtime import stream

T = TypeVar("T")

KINDS: dict[str, SpaceKind] = {
    "unified": unified.KIND,
    "elastic": elastic.KIND,
    "nasbench201": nasbench201.KIND,
    "nasbench_macro": nasbench_macro.KIND,
    "none": net_config.KIND,  # one network, described by its net.config
}


def kind_named(name: str, where: str = "supernet") -> SpaceKind:
    if name not in KINDS:
        raise UserError(f"{where}: {name!r} is not allowed; it must be {' or '.join(KINDS)}")
    return KINDS[name]


def kind_of(config: Config) -> SpaceKind:
    """The kind that a config names."""
    return kind_named(config.supernet, f"{config.where}: supernet")


def completed(config: Config) -> Config:
    """The config with the defaults of its space written out, as run folders keep it."""
    keys = kind_of(config).space_keys(config)
    return config if keys is None else replace(config, space=asdict(keys))


# -- what is searched ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A search space and what is paid for in it: built once, in `main`, and handed on."""

    space: SearchSpace
    table: CostTable

    @property
    def kind(self) -> SpaceKind:
        return KINDS[self.space.kind]

    @property
    def unit(self) -> str:
        """Of its costs: M or ms."""
        return self.table.unit

    def supernet(self, config: Config) -> nn.Module:
        """The supernet of a config, with initial weights."""
        return self.kind.supernet(self.space, config, stream(config.seed, "supernet"))

    def trained_supernet(self, config: Config, path: str) -> nn.Module:
        """With the weights of a checkpoint, ours or a published release's."""
        supernet = self.supernet(config)
        self.kind.load(supernet, path)
        return supernet.eval()


def open_problem(config: Config) -> Problem:
    """The space of a config and its costs; UserError when its targets are out of reach."""
    kind = kind_of(config)
    space = kind.space(config)
    table = kind.table(space, config)
    if kind.has_generator:
        config.check_targets()
        least, most = table.reach()
        for key in ("low_flops", "high_flops"):
            if not least <= getattr(config, key) <= most:
                reach = f"this space reaches {least:.2f} to {most:.2f} {table.unit}"
                raise UserError(f"{key}: {getattr(config, key):g} {table.unit}; {reach}")
        config.check_steps()
    return Problem(space, table)


# -- supernets by their checkpoints --------------------------------------------------------------


def supernet_record(supernet: nn.Module) -> dict:
    """What a checkpoint says of its supernet, beside the weights."""
    space = supernet.space
    return {"kind": "supernet", "space_kind": space.kind, "space": space.to_dict()}


def open_supernet(path: str) -> nn.Module:
    """The trained supernet of a checkpoint that says its space, or of a once-for-all release."""
    payload = checkpoint.load(path)
    name = payload.get("space_kind")
    if name is None:  # as written before, or by others
        space = payload.get("space")
        name = space.get("kind", "elastic") if isinstance(space, dict) else "elastic"
    return described(
        path, lambda: kind_named(name, "space").supernet_of_checkpoint(path, payload), "supernet"
    )


# -- networks by their records -------------------------------------------------------------------

FORMAT = "architecture/2"


def record_of(spec: NetworkSpec) -> dict:
    """The record of an architecture, in files and checkpoints alike."""
    return {
        "format": FORMAT,
        "kind": spec.kind,
        "space": spec.space.to_dict(),
        "architecture": spec.to_json(),
    }


def spec_of(space: SearchSpace, architecture) -> NetworkSpec:
    return KINDS[space.kind].spec(space, architecture)


def describes_network(payload: dict) -> bool:
    """Whether a checkpoint says its network, in a form of ours."""
    kind = payload.get("kind")
    return isinstance(kind, str) and kind in KINDS.keys() | _OLDER_KINDS.keys()


def spec_of_record(record: dict) -> NetworkSpec:
    """The network that a record describes, also one of an older form; UserError if it is none."""
    record = upgraded(record)
    kind = kind_named(record["kind"], "kind")
    space = kind.space_from_dict(record["space"])
    return kind.spec(space, kind.architecture(space, record["architecture"]))


def save_spec(path: Path, spec: NetworkSpec, costs: dict, provenance: dict) -> None:
    """Write `architecture.json`, what every stage hands to the next."""
    write_json(path, {**record_of(spec), "costs": costs, "provenance": provenance}, indent=1)


def load_spec(path: str | Path) -> tuple[NetworkSpec, dict]:
    """What `architecture.json` holds, and the whole record; UserError if it is none."""
    record = read_json(path, dict, "an architecture")
    return described(str(path), lambda: spec_of_record(record), "architecture"), record


def described(where: str, read: Callable[[], T], what: str = "network") -> T:
    """What `read` gives; whatever it lacks becomes a UserError that names `where`."""
    try:
        return read()
    except UserError as error:
        raise UserError(f"{where}: it does not describe its {what} ({error})") from None
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{where}: it does not describe its {what} ({reason})") from None


_OLDER_KINDS = {
    "subnet": "unified",
    "cell-network": "nasbench201",
    "elastic-subnet": "elastic",
    "mobilenetv3": "none",
}
_OLDER_FORMATS = {
    "architecture/1": lambda record: (record["space"]["kind"], record["choices"]),
    "elastic-architecture/1": lambda record: ("elastic", record["architecture"]),
}


def upgraded(record: dict) -> dict:
    """A record of an older form, of a file or a checkpoint, in today's."""
    name, kind = record.get("format"), record.get("kind")
    if name == FORMAT:
        return record
    if "config" in record:  # network-config/1, mobilenetv3
        size = {"image_size": record["image_size"]}
        return {"kind": "none", "space": size, "architecture": record["config"]}
    if name in _OLDER_FORMATS:
        kind, architecture = _OLDER_FORMATS[name](record)
    elif kind in _OLDER_KINDS:
        kind, architecture = _OLDER_KINDS[kind], record["architecture"]
    else:
        raise UserError(f"its format is {name!r}, not {FORMAT!r}")
    return {"kind": kind, "space": record["space"], "architecture": architecture}


def parse_architecture(record, kind: str | None = None) -> tuple[SpaceKind, Any]:
    """Kind and architecture of a JSON form; without `kind`, as in older files, the first kind that
    reads it.
    """
    if kind:
        named = kind_named(kind, "kind")
        return named, named.parse(record)
    for candidate in KINDS.values():
        with suppress(UserError):
            return candidate, candidate.parse(record)
    raise UserError(f"architecture: no kind of space reads {str(record)[:60]}")


def costs_of(spec: NetworkSpec, network: nn.Module, image_size: int) -> dict[str, float]:
    """Costs in M: by the table of its space, counted on `image_size` pixels, and parameters."""
    return {
        "macs_m": spec.macs_m,
        "macs_m_counted": count_macs(network, image_size),
        "params_m": count_parameters(network),
    }
