"""What run folders say: settings, curves, and architectures with what was measured of them.

Whatever is broken or not there yet is left out, and `RunResults.remarks` says so: a run may have
been killed half-way, or go on while it is read.
"""

import csv
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml
from model.spaces.network_spec import NetConfigSpec, NetworkSpec, load_spec

from model.nsganetv2.archive import read_archive
from model.sgnas.answers import read_generated
from model.spaces.elastic.space import ElasticArchitecture
from model.spaces.nasbench201.space import CellSpace, from_string, to_string
from model.spaces.unified.space import Architecture, Choices
from utils.errors import UserError

MACS, LATENCY = "multiply-adds, M", "latency, ms"
COST_AXES = {"flops": MACS, "params": "parameters, M"}  # of msunas.py; its others are latencies


@dataclass(frozen=True)
class Design:
    """What can be drawn of an architecture; one of `choices`, `stages` and `cell` says it.

    `choices` are those of SGNAS; `stages` hold (kernel, expansion ratio) of each block; `cell` is
    the string of NAS-Bench-201.
    """

    choices: Choices = ()
    stages: tuple[tuple[tuple[int, int], ...], ...] = ()
    resolution: int | None = None  # pixels
    cell: str = ""

    @property
    def has_blocks(self) -> bool:
        """Whether there is a picture to draw, of kernels."""
        sizes = [
            *(kernel for row in self.choices for kernel in row),
            *(n for row in self.stages for pair in row for n in pair),
        ]
        return bool(sizes) and all(
            size is None or (isinstance(size, int) and 0 < size < 100) for size in sizes
        )

    @classmethod
    def of(cls, architecture: Architecture | ElasticArchitecture) -> "Design":
        if isinstance(architecture, ElasticArchitecture):
            ends = np.cumsum(architecture.d)
            pairs = tuple(zip(architecture.ks, architecture.e, strict=True))
            stages = (
                pairs[end - depth : end] for end, depth in zip(ends, architecture.d, strict=True)
            )
            return cls(stages=tuple(stages), resolution=architecture.r)
        try:
            CellSpace().check(architecture)
            return cls(cell=to_string(architecture))
        except UserError:
            return cls(choices=architecture.choices)

    @classmethod
    def of_record(cls, record: dict) -> "Design":
        """From what an archive of msunas.py stores, in any of its spaces."""
        if "cell" in record:
            return cls.of(from_string(record["cell"]))
        if "choices" in record:
            return cls.of(Architecture.of(record["choices"]))
        return cls.of(
            ElasticArchitecture(
                *(tuple(map(int, record[key])) for key in ("ks", "e", "d")), int(record["r"])
            )
        )

    @classmethod
    def of_spec(cls, spec: NetworkSpec) -> "Design":
        if isinstance(spec, NetConfigSpec):
            layers = [block["mobile_inverted_conv"] for block in spec.config["blocks"]]
            # the first is fixed
            pairs = tuple((layer["kernel_size"], layer["expand_ratio"]) for layer in layers[1:])
            return cls(stages=(pairs,), resolution=spec.image_size)
        return cls.of(spec.architecture)


@dataclass(frozen=True)
class Found:
    """An architecture, or a random path, and what a run says of it.

    `validation` is top-1 in % on images that did not train the supernet, with its weights or, where
    the method says so, with fine-tuned ones; `test` that of a network trained on its own, on the
    test images.
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
        return (
            100 * (self.cost / self.target - 1) if self.target and self.cost is not None else None
        )


Curve = dict[int, float]  # a number by epoch, or by iteration


@dataclass
class RunResults:
    """All that one folder says."""

    folder: Path
    name: str
    stage: str = ""
    settings: dict[str, str] = field(default_factory=dict)  # file name -> text
    # of config.yml or search.json, as it can be read
    config: dict = field(default_factory=dict)
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
    def data(self) -> str:
        """What images the accuracies are of; empty where the config of the run does not say it."""
        name = str(self.config.get("dataset") or "")
        return f"{name} {self.config.get('dataset_dir')}" if name == "imagefolder" else name

    def add(self, method: str, file: str, cost: float | None, **more) -> None:
        """A `Found`; what ought to be a finite number, but is none, is left out."""
        given = {
            key: value if key in ("axis", "design") else number(value)
            for key, value in more.items()
        }
        self.found.append(Found(method, self.name, file, number(cost), data=self.data, **given))

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """The file of a name; what goes wrong inside becomes a remark, and what was added inside
        stays.
        """
        try:
            yield self.folder / name
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            yaml.YAMLError,
        ) as error:
            reason = " ".join(str(error).split()).removeprefix(f"{self.folder / name}: ")
            self.remarks.append(
                f"{name}: left out ({reason if len(reason) < 160 else reason[:156] + ' ...'})"
            )

    def there(self, *names: str) -> list[str]:
        """Those of the files that are there."""
        return [name for name in names if (self.folder / name).is_file()]


def read_run(folder: Path, name: str) -> RunResults:
    """What a folder says; UserError when no stage wrote it."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    run = RunResults(folder, name)
    if run.there("search.json") or _iterations(folder):
        _read_evolution(run)
    elif run.there("results.jsonl", "supernet.json"):
        _read_ranking(run)
    elif len(run.there("config.yml", "environment.json", "metrics.jsonl")) > 1:
        _read_stage(run)
    else:
        raise UserError(
            f"{folder}: no folder of search.py, train_cifar.py, train_imagenet.py, msunas.py or tools.rank"
        )
    return run


# -- stages with a run folder ----------------------------------------------------------------------

# Which stage logs what, for runs that did not record it.
STAGES = {
    "warm-up": "search",
    "generator": "search",
    "scratch": "train_cifar",
    "imagenet": "train_imagenet",
}
EXPECTED = {  # what a finished run has
    "search": ("metrics.jsonl", "supernet_evaluate.csv", "architectures.json"),
    "train_cifar": ("metrics.jsonl", "architecture.json", "result.json"),
    "train_imagenet": ("metrics.jsonl", "architecture.json", "result.json"),
}


def _read_stage(run: RunResults) -> None:
    _read_settings(run, "config.yml")
    _read_environment(run)
    for name in run.there("metrics.jsonl"):
        with run.reading(name) as file:
            _add_curves(run, json_lines(run, file))
    run.stage = run.stage or next((STAGES[name] for name in run.curves if name in STAGES), "")
    _read_search(run)
    _read_trained(run)
    expected = [] if run.config.get("supernet") == "elastic" else EXPECTED.get(run.stage, ())
    missing = [name for name in expected if name not in run.there(*expected)]
    if missing:
        run.remarks.append(f"not there, or not yet: {', '.join(missing)}")


def _read_settings(run: RunResults, name: str, key: str | None = None) -> None:
    """The text of a YAML or JSON file, and what it says, under `key` when one is given."""
    with run.reading(name) as file:
        run.settings[name] = file.read_text(encoding="utf-8", errors="replace")
        record = yaml.safe_load(run.settings[name])
        run.config = dict(record[key] if key else record)


def _read_environment(run: RunResults, name: str = "environment.json") -> None:
    with run.reading(name) as file:
        record = json.loads(file.read_text())
        run.stage = run.stage or str(record.pop("stage", None) or "")
        run.facts |= {
            key: str(value) for key, value in record.items() if value is not None and key != "stage"
        }


def _add_curves(run: RunResults, rows: Iterator[dict]) -> None:
    """A later line counts for an epoch that has two: that of the run that was resumed."""
    for row in rows:
        quantities = run.curves.setdefault(str(row.pop("stage")), {})
        epoch = int(number(row.pop("epoch")) or 0)
        for key, value in row.items():
            if (value := number(value)) is not None:
                quantities.setdefault(key, {})[epoch] = value
    for stage, quantities in run.curves.items():
        done = max((max(curve) for curve in quantities.values()), default=0)
        run.facts[f"epochs of {stage}"] = str(done)


def _read_search(run: RunResults) -> None:
    for name in run.there("supernet_evaluate.csv"):
        with run.reading(name) as file:
            for row in csv_rows(file):
                top1 = float(row["top1"])
                run.add(
                    "random paths", name, float(row["flops"]), axis=run.cost_axis, validation=top1
                )
    for name in run.there("evaluate_architecture.csv"):
        with run.reading(name) as file:
            for row in csv_rows(file):
                numbers = {"target": float(row["true_flops"]), "validation": float(row["top1"])}
                design = Design.of(architecture_of_text(row["choices"]))
                run.add(
                    "generated",
                    name,
                    float(row["gen_flops"]),
                    axis=run.cost_axis,
                    design=design,
                    **numbers,
                )
    _read_generated(run)
    for name in run.there("true_accuracy.csv"):
        with run.reading(name) as file:
            for row in csv_rows(file):
                numbers = {"target": float(row["target M"]), "test": float(row["true top-1 %"])}
                run.add("generated, looked up", name, float(row["cost M"]), **numbers)


def _read_generated(run: RunResults) -> None:
    """`found.json` adds what `architectures.json` does not have."""
    known = set()
    for name in run.there("architectures.json", "found.json"):
        with run.reading(name) as file:
            for g in read_generated(file):
                if (g.target, g.architecture) not in known:
                    known.add((g.target, g.architecture))
                    numbers = {
                        "axis": MACS if g.unit == "M" else LATENCY,
                        "target": g.target,
                        "params_m": g.params_m,
                    }
                    run.add("generated", name, g.cost, design=Design.of(g.architecture), **numbers)


def architecture_of_text(text: str) -> Architecture:
    """From a cell of `evaluate_architecture.csv`: layers apart by spaces, sub-blocks by dashes, 0
    for skip.
    """
    return Architecture.of(
        [
            [None if choice == "0" else choice for choice in row.split("-")]
            for row in text.split(" ")
        ]
    )


def _read_trained(run: RunResults) -> None:
    """A network and, when its training is over, what it reached: with the last weights, and with
    averaged ones.
    """
    design, costs, result, top1 = None, {}, {}, None
    for name in run.there("architecture.json"):
        with run.reading(name) as file:
            spec, record = load_spec(file)
            design, costs = Design.of_spec(spec), dict(record.get("costs") or {})
    for name in run.there("result.json"):
        with run.reading(name) as file:
            result = dict(json.loads(file.read_text()))
            top1 = float(result.get("last", result)["top1"])  # train_imagenet.py has "last"
    if design is None and not result:
        return
    costs = {**costs, **result}
    target = result.get("target") if result.get("unit", "M") == "M" else None
    inherits = run.config.get("inherit") or run.config.get("initial_checkpoint")
    method = "fine-tuned from a supernet" if inherits else "trained from scratch"
    if run.stage == "tools.adapt":
        method = "fine-tuned from another data set"
    given = {"params_m": costs.get("params_m"), "target": target, "design": design}
    file = "result.json" if result else "architecture.json"
    cost = costs.get("macs_m")
    run.add(
        method if top1 is not None else f"{method}, not finished", file, cost, test=top1, **given
    )
    if isinstance(result.get("ema"), dict):
        run.add(f"{method}, averaged weights", file, cost, test=result["ema"].get("top1"), **given)


# -- an evolutionary search ------------------------------------------------------------------------


def _iterations(folder: Path) -> list[tuple[int, str]]:
    """Number and name of each iter_k.stats file."""
    found = [re.fullmatch(r"iter_(\d+)\.stats", file.name) for file in folder.glob("iter_*.stats")]
    return sorted((int(match[1]), match[0]) for match in found if match)


def _read_evolution(run: RunResults) -> None:
    run.stage = "msunas"
    for name in run.there("search.json"):
        _read_settings(run, name, "settings")
    record, last = None, ""
    for iteration, name in _iterations(run.folder):
        with run.reading(name) as file:
            record, last = read_archive(file), name
            surrogate = record["surrogate"]
            for key, value in {
                "hv": record["hv"],
                **{key: surrogate[key] for key in ("rmse", "rho", "tau")},
            }.items():
                if (value := number(value)) is not None:
                    run.iterations.setdefault(key, {})[iteration] = value
            run.facts |= {"iterations": str(iteration), "surrogate": str(surrogate["model"])}
    if record is None:
        run.remarks.append("not there, or not yet: iter_0.stats")
        return
    with run.reading(last):
        cost = str(record.get("sec_obj", "flops"))
        axis = COST_AXES.get(cost, f"{cost} latency, ms")
        method = "msunas.py, guided by test images" if run.config.get("test") else "msunas.py"
        if epochs := number(run.config.get("n_epochs")):
            method += f", fine-tuned for {epochs:g} epoch{'s' * (epochs != 1)}"
        for found, error, cost in record["archive"]:
            run.add(
                method,
                last,
                float(cost),
                axis=axis,
                validation=100 - float(error),
                design=Design.of_record(found),
            )
        run.facts["architectures"] = str(len(record["archive"]))


# -- tools.rank ------------------------------------------------------------------------------------


def _read_ranking(run: RunResults) -> None:
    """A row for each answer; its test accuracy is the mean over the seeds of its trainings."""
    run.stage = "tools.rank"
    for network in sorted(run.folder.glob("*/config.yml"))[:1]:
        _read_settings(run, f"{network.parent.name}/config.yml")
        _read_environment(run, f"{network.parent.name}/environment.json")
    if not run.there("results.jsonl"):
        run.remarks.append("not there, or not yet: results.jsonl")
        return
    axis, answers = run.cost_axis, {}
    with run.reading("results.jsonl") as file:
        for row in json_lines(run, file):
            answers.setdefault((row["method"], row["target"], row["network"]), []).append(row)
        for (method, _, _), rows in answers.items():
            test = [float(row["test_top1"]) for row in rows]
            numbers = {key: rows[0][key] for key in ("target", "params_m")}
            numbers |= {"validation": rows[0]["supernet_top1"], "test": sum(test) / len(test)}
            design = Design.of(Architecture.of(rows[0]["choices"]))
            run.add(
                f"tools.rank: {method}",
                file.name,
                rows[0]["cost"],
                axis=axis,
                design=design,
                **numbers,
            )
        run.facts["trainings"] = str(sum(map(len, answers.values())))


# -- files -----------------------------------------------------------------------------------------


def json_lines(run: RunResults, file: Path) -> Iterator[dict]:
    """The records of a file with one in each line; others, as a kill cuts them, become a remark."""
    broken = 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield dict(json.loads(line))
        except (ValueError, TypeError):
            broken += 1
    if broken:
        run.remarks.append(f"{file.name}: {broken} broken line{'s' * (broken > 1)} left out")


def csv_rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))


def number(value) -> float | None:
    """A finite number, or None; also for one that no axis can show."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e100 else None
