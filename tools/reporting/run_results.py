"""What run folders hold: settings, curves, and architectures with what was measured of them.

Whatever is broken or not there yet is left out, and `RunResults.remarks` names it: a run may have
been killed half-way, or resume while it is read.
"""

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import yaml

from model.nsganetv2.archive import ITERATION, read_archive
from model.sgnas.answers import read_generated
from model.spaces.contracts import Design, SpaceKind
from model.spaces.paths import Architecture
from model.spaces.registry import KINDS, kind_named, load_spec, parse_architecture
from tools.reporting.rank_tables import RankedTraining
from utils.errors import UserError, one_line
from utils.json_file import parse_json, read_json
from utils.yaml_file import parse_yaml

T, Key = TypeVar("T"), TypeVar("Key")
MACS, LATENCY = "multiply-adds, M", "latency, ms"
COST_AXES = {"flops": MACS, "params": "parameters, M"}  # of msunas.py; its others are latencies


@dataclass(frozen=True)
class Found:
    """An architecture, or a random path, and what a run measured of it.

    `validation` is top-1 in % on images that did not train the supernet, with its weights or with
    those that the method fine-tuned; `test` is that of a trained network on the test images.
    """

    method: str
    run: str
    file: str
    cost: float | None  # in the unit of `axis`
    axis: str = MACS
    target: float | None = None  # in the unit of `axis`
    params_m: float | None = None
    validation: float | None = None
    test: float | None = None
    design: Design | None = None
    data: str = ""  # the data set, when it is known

    @property
    def miss(self) -> float | None:
        """In % of the target."""
        known = self.target and self.cost is not None
        return 100 * (self.cost / self.target - 1) if known else None


Curve = dict[int, float]  # a number by epoch, or by iteration


@dataclass
class RunResults:
    """All that one folder holds."""

    folder: Path
    name: str
    stage: str = ""
    settings: dict[str, str] = field(default_factory=dict)  # file name -> text
    config: dict = field(default_factory=dict)  # of config.yml or search.json
    facts: dict[str, str] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)  # stage -> quantity -> curve
    iterations: dict[str, Curve] = field(default_factory=dict)  # of msunas.py: hv, rmse, rho, tau
    remarks: list[str] = field(default_factory=list)

    @property
    def cost_axis(self) -> str:
        """Of targets and costs of search.py."""
        return LATENCY if self.config.get("cost") == "latency" else MACS

    @property
    def kind(self) -> SpaceKind:
        """Of the space that was searched."""
        return kind_named(str(self.config.get("supernet", "unified")))

    @property
    def data(self) -> str:
        """The data set of the accuracies; empty where the config of the run has none."""
        name = str(self.config.get("dataset") or "")
        return f"{name} {self.config.get('dataset_dir')}" if name == "imagefolder" else name

    def add(
        self, method: str, file: str, axis: str, design: Design | None = None, **numbers
    ) -> None:
        """A `Found`; what should be a finite number, and is not, is left out."""
        known = {key: number(value) for key, value in numbers.items()}
        given = {"axis": axis, "design": design, "data": self.data}
        self.found.append(Found(method, self.name, file, **known, **given))

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.folder / name).is_file()

    def read(self, name: str, reader: Callable[["RunResults", Path], T]) -> T | None:
        """What `reader(self, file)` returns, if the file is there; None with a remark if it fails.

        What it added before it failed stays.
        """
        file = self.folder / name
        try:
            return reader(self, file) if self.has(name) else None
        except _BROKEN as error:
            where = f"{file}: "
            reason = one_line(error, 160 + len(where)).removeprefix(where)
            self.remarks.append(f"{name}: left out ({reason})")

    def expect(self, *names: str) -> None:
        """Remark which of these files are missing."""
        if missing := [name for name in names if not self.has(name)]:
            self.remarks.append(f"not there, or not yet: {', '.join(missing)}")


# what reading a broken file may raise
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
_BROKEN += (yaml.YAMLError, RecursionError)
STAGES = "search.py, train_cifar.py, train_imagenet.py, msunas.py or tools.rank"


def read_run(folder: Path, name: str) -> RunResults:
    """What a folder holds; UserError when no stage wrote it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    run = RunResults(folder, name)
    if run.has("search.json") or _iterations(folder):
        _read_evolution(run)
    elif any(map(run.has, ("results.jsonl", "supernet.jsonl", "supernet.json"))):
        _read_ranking(run)
    elif sum(map(run.has, ("config.yml", "environment.json", "metrics.jsonl"))) > 1:
        _read_stage(run)
    else:
        raise UserError(f"{folder}: no folder of {STAGES}")
    return run


# -- stages with a run folder ----------------------------------------------------------------------

# Which stage logs what, for runs that did not record it.
LOGGED_BY = {"warm-up": "search", "generator": "search"}
LOGGED_BY |= {"scratch": "train_cifar", "imagenet": "train_imagenet"}
# What a finished run has.
EXPECTED = {"search": ("metrics.jsonl", "supernet_evaluate.csv", "architectures.json")}
EXPECTED["train_cifar"] = ("metrics.jsonl", "architecture.json", "result.json")
EXPECTED["train_imagenet"] = EXPECTED["train_cifar"]


def _read_stage(run: RunResults) -> None:
    run.expect("config.yml", "environment.json")
    run.read("config.yml", _read_settings)
    run.read("environment.json", _read_environment)
    for name, reader in READERS.items():
        run.read(name, reader)
    run.stage = run.stage or next((LOGGED_BY[name] for name in run.curves if name in LOGGED_BY), "")
    _read_trained(run)
    if run.stage != "search" or run.kind.has_generator:
        run.expect(*EXPECTED.get(run.stage, ()))


def _read_settings(run: RunResults, file: Path, key: str | None = None) -> None:
    """The text of a YAML or JSON file, and what it holds, under `key` when one is given."""
    name = str(file.relative_to(run.folder))
    run.settings[name] = file.read_text(encoding="utf-8", errors="replace")
    record = parse_yaml(run.settings[name], name)
    run.config = dict(record[key] if key else record)


def _read_environment(run: RunResults, file: Path) -> None:
    record = {key: str(value) for key, value in read_json(file).items() if value is not None}
    stage = record.pop("stage", "")
    run.stage = run.stage or stage
    run.facts |= record


def _read_curves(run: RunResults, file: Path) -> None:
    """Of two lines of an epoch the later one counts: that of the run that was resumed."""
    for row in json_lines(run, file):
        quantities = run.curves.setdefault(str(row.pop("stage")), {})
        epoch = int(number(row.pop("epoch")) or 0)
        for key, value in row.items():
            if (value := number(value)) is not None:
                quantities.setdefault(key, {})[epoch] = value
    for stage, quantities in run.curves.items():
        done = max((max(curve) for curve in quantities.values()), default=0)
        run.facts[f"epochs of {stage}"] = str(done)


def _read_csv(run: RunResults, file: Path, method: str, **columns: str) -> None:
    """`columns` are the titles of what is read; `choices` are an architecture."""
    for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        values = {key: float(row[column]) for key, column in columns.items()}
        if "choices" in row:
            values["design"] = run.kind.design(Architecture.of_text(row["choices"]))
        run.add(method, file.name, run.cost_axis, **values)


def _read_generated(run: RunResults, file: Path) -> None:
    """The second of two lists adds what the first one does not have."""
    known = {(one.target, one.design) for one in run.found if one.file == "architectures.json"}
    for g in read_generated(file):
        design, axis = run.kind.design(g.architecture), MACS if g.unit == "M" else LATENCY
        if (g.target, design) not in known:
            known.add((g.target, design))
            values = {"cost": g.cost, "target": g.target, "params_m": g.params_m}
            run.add("generated", file.name, axis, **values, design=design)


_random = partial(_read_csv, method="random paths", cost="flops", validation="top1")
_generated = partial(_read_csv, method="generated", cost="gen_flops", target="true_flops")
_looked_up = partial(_read_csv, method="generated, looked up", cost="cost M", target="target M")
READERS = {
    "metrics.jsonl": _read_curves,
    "supernet_evaluate.csv": _random,
    "evaluate_architecture.csv": partial(_generated, validation="top1"),
    "architectures.json": _read_generated,
    "found.json": _read_generated,
    "true_accuracy.csv": partial(_looked_up, test="true top-1 %"),
}


def _read_trained(run: RunResults) -> None:
    """A network and, when its training is over, what its last and its averaged weights reached."""
    design, costs = run.read("architecture.json", _read_architecture) or (None, {})
    result = run.read("result.json", _read_result) or {}
    if design is None and not result:
        return
    inherits = run.config.get("inherit") or run.config.get("initial_checkpoint")
    method = "fine-tuned from a supernet" if inherits else "trained from scratch"
    if run.stage == "tools.adapt":
        method = "fine-tuned from another data set"
    costs |= result
    values = {"cost": costs.get("macs_m"), "params_m": costs.get("params_m"), "design": design}
    values["target"] = result.get("target") if result.get("unit", "M") == "M" else None
    if not result:
        run.add(f"{method}, not finished", "architecture.json", MACS, **values)
        return
    run.add(method, "result.json", MACS, test=result["top1"], **values)
    if isinstance(ema := result.get("ema"), dict):
        method += ", averaged weights"
        run.add(method, "result.json", MACS, test=ema.get("top1"), **values)


def _read_architecture(run: RunResults, file: Path) -> tuple[Design, dict]:
    spec, record = load_spec(file)
    return KINDS[spec.kind].design_of(spec), dict(record.get("costs") or {})


def _read_result(run: RunResults, file: Path) -> dict:
    """The record of a training; `top1` is that of the last weights."""
    result = read_json(file)
    # train_imagenet.py has "last"
    return {**result, "top1": float(result.get("last", result)["top1"])}


# -- an evolutionary search ------------------------------------------------------------------------


def _iterations(folder: Path) -> list[tuple[int, str]]:
    """Number and name of each iter_k.stats file."""
    found = [re.fullmatch(ITERATION, file.name) for file in folder.glob("iter_*.stats")]
    return sorted((int(match[1]), match[0]) for match in found if match)


def _read_evolution(run: RunResults) -> None:
    run.stage, records = "msunas", {}
    run.read("search.json", partial(_read_settings, key="settings"))
    for iteration, name in _iterations(run.folder):
        run.read(name, partial(_read_iteration, iteration=iteration, records=records))
    for name in list(records)[-1:]:
        run.read(name, partial(_read_archive, record=records[name]))
    if not records:
        run.remarks.append("not there, or not yet: iter_0.stats")


def _read_iteration(run: RunResults, file: Path, iteration: int, records: dict) -> None:
    record = records[file.name] = read_archive(file)
    surrogate = record["surrogate"]
    quality = {key: surrogate[key] for key in ("rmse", "rho", "tau")}
    for key, value in {"hv": record["hv"], **quality}.items():
        if (value := number(value)) is not None:
            run.iterations.setdefault(key, {})[iteration] = value
    run.facts |= {"iterations": str(iteration), "surrogate": str(surrogate["model"])}


def _read_archive(run: RunResults, file: Path, record: dict) -> None:
    cost = str(record.get("sec_obj", "flops"))
    axis = COST_AXES.get(cost, f"{cost} latency, ms")
    method = "msunas.py, guided by test images" if run.config.get("test") else "msunas.py"
    if epochs := number(run.config.get("n_epochs")):
        method += f", fine-tuned for {epochs:g} epoch{'s' * (epochs != 1)}"
    for found, error, cost in record["archive"]:
        kind, architecture = parse_architecture(found, record.get("kind"))
        values = {"cost": float(cost), "validation": 100 - float(error)}
        run.add(method, file.name, axis, **values, design=kind.design(architecture))
    run.facts["architectures"] = str(len(record["archive"]))


# -- tools.rank ------------------------------------------------------------------------------------


def _read_ranking(run: RunResults) -> None:
    run.stage = "tools.rank"
    for network in sorted(run.folder.glob("*/config.yml"))[:1]:
        name = network.parent.name
        run.read(f"{name}/config.yml", _read_settings)
        run.read(f"{name}/environment.json", _read_environment)
    run.expect("results.jsonl")
    run.read("results.jsonl", _read_answers)


def _read_answers(run: RunResults, file: Path) -> None:
    """A row for each answer; its test accuracy is the mean over the seeds of its trainings."""
    trainings = json_lines(run, file, RankedTraining)
    answers = group_by(trainings, lambda row: (row.method, row.target, row.network))
    for (method, target, _), rows in answers.items():
        first, test = rows[0], sum(row.test_top1 for row in rows) / len(rows)
        values = {"cost": first.cost, "target": target, "params_m": first.params_m}
        values |= {"validation": first.supernet_top1, "test": test}
        kind, architecture = parse_architecture(first.architecture or first.choices, first.kind)
        values["design"] = kind.design(architecture)
        run.add(f"tools.rank: {method}", file.name, run.cost_axis, **values)
    run.facts["trainings"] = str(len(trainings))


# -- files -----------------------------------------------------------------------------------------


def json_lines(run: RunResults, file: Path, kind: type[T] = dict) -> list[T]:
    """The records of a file with one in each line; others, as a kill cuts them, become a remark."""
    rows, broken = [], 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(parse_json(line, kind, file.name, "a record", nan=True))
        except UserError:
            broken += 1
    if broken:
        run.remarks.append(f"{file.name}: {broken} broken line{'s' * (broken > 1)} left out")
    return rows


def number(value) -> float | None:
    """A finite number, or None; also for one that no axis can show."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e100 else None


def group_by(items: Iterable[T], key: Callable[[T], Key]) -> dict[Key, list[T]]:
    """Items by their key, in the order in which they come."""
    groups: dict[Key, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
