"""What a search is measured on: something that knows error and cost of an architecture.

`ModuleOracle` reads a module with the functions of `benchmarks/nsga_oracle.py`, `SupernetOracle`
evaluates on held-out images as `msunas.py` does.
"""

import hashlib
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

import msunas
from model.nsganetv2.nsga2_search import NADIR, Objective
from model.nsganetv2.supernets import open_search
from model.spaces.contracts import Genes, Genome
from model.spaces.elastic.kind import ElasticGenome
from model.spaces.elastic.space import ElasticSpace
from utils import checkpoint
from utils.errors import UserError

FUNCTIONS = ("decode", "complexity", "evaluate", "REF")
# the published ones, or its own
CHOICES = {"kernels": "KS", "expansions": "ER", "depths": "DP", "resolutions": "RES"}


class Oracle(Protocol):
    """`reference` is that of the hypervolume, (error, cost)."""

    name: str
    genome: Genome
    objective: Objective
    reference: tuple[float, float]

    def evaluate(self, row: tuple[int, ...]) -> tuple[float, float]:
        """Top-1 error in % and cost of one architecture, by its canonical genes."""


class ModuleOracle:
    """An invented error on a once-for-all space; UserError when `path` is no such module."""

    def __init__(self, path: Path):
        self.module = _loaded(path)
        missing = [name for name in FUNCTIONS if not hasattr(self.module, name)]
        if missing:
            reason = f"it lacks {', '.join(missing)}; see benchmarks/nsga_oracle.py"
            raise UserError(f"--oracle {path}: {reason}")
        try:
            error, cost = map(float, self.module.REF)
        except (TypeError, ValueError):
            reason = f"REF is {self.module.REF!r}; it must be two numbers"
            raise UserError(f"--oracle {path}: {reason}") from None
        self.name, self.reference = path.stem, (error, cost)
        own = {key: name for key, name in CHOICES.items() if hasattr(self.module, name)}
        choices = {key: tuple(getattr(self.module, name)) for key, name in own.items()}
        self.genome = ElasticGenome(ElasticSpace(**choices))
        some = self.genome.sample(20, np.random.default_rng(0))
        closed_form = np.allclose(self.genome.costs(some)[0], self._costs(some))
        self.objective = Objective("flops", self.genome, None if closed_form else self._costs)

    def evaluate(self, row: tuple[int, ...]) -> tuple[float, float]:
        return self.module.evaluate(self.module.decode(list(row)))

    def _costs(self, genes: Genes) -> NDArray:
        """As the module counts them, one architecture after another."""
        decoded = map(self.module.decode, genes.tolist())
        return np.array([self.module.complexity(found)[0] / 1e6 for found in decoded])


class SupernetOracle:
    """Held-out images and inherited weights.

    What is evaluated is kept in the file `known`, and looked up there: a benchmark that was stopped
    starts again, and searches the same without waiting for what is known. An architecture that
    cannot be evaluated ends it.
    """

    def __init__(
        self, cfg: str, supernet_path: str, data: str | None, images: int | None, known: Path
    ):
        options = ["--cfg", cfg, "--supernet_path", supernet_path, "--n_epochs", "0"]
        options += ["--data", data] if data else []
        options += ["--vld_size", str(images)] if images else []
        args = msunas.parse_arguments(options)
        searched = open_search(args)
        problem = searched.problem
        self.name, self.genome = Path(cfg).stem, problem.kind.genome(problem.space)
        self.objective = Objective("flops", self.genome)
        dataset = msunas.open_dataset(args, searched)
        self.accuracy = msunas.open_accuracy(args, searched, dataset)
        files = {"supernet": checkpoint.digest(supernet_path), "config": checkpoint.digest(cfg)}
        validated = repr((self.accuracy.images.validated, data)).encode()
        self.known = _Known(known, files | {"images": hashlib.sha256(validated).hexdigest()})
        smallest, largest = map(tuple, self.genome.canonical(self.genome.extremes()).tolist())
        self.reference = NADIR * self.evaluate(smallest)[0], NADIR * self.evaluate(largest)[1]

    def evaluate(self, row: tuple[int, ...]) -> tuple[float, float]:
        if row not in self.known.errors:
            genes = np.array(row)
            size = self.genome.spec(genes).image_size
            score = self.accuracy.score(self.genome.choice(genes), size)
            if not math.isfinite(score.loss):
                raise UserError(f"architecture {list(row)}: its loss is {score.loss}")
            self.known.add(row, 100 - score.top1)
        return self.known.errors[row], float(self.objective(np.array([row]))[0])


class _Known:
    """Errors by genes: a line of JSON that says of what, and then one for each architecture.

    A last line that is cut off is dropped.
    """

    def __init__(self, path: Path, identity: dict):
        self.path = path
        if not path.exists():
            checkpoint.write_text(path, json.dumps(identity) + "\n")
        try:
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rindex("\n") + 1]
            first, *rows = whole.splitlines()
            found = msgspec.json.decode(first)
            decoder = msgspec.json.Decoder(tuple[tuple[int, ...], float])
            self.errors = dict(map(decoder.decode, rows))
        except ValueError as error:
            reason = f"not a file that this benchmark wrote ({error})"
            raise UserError(f"--known {path}: {reason}") from None
        if found != identity:
            reason = "it is of another supernet, config or other images; choose another file"
            raise UserError(f"--known {path}: {reason}")
        if whole != text:
            checkpoint.write_text(path, whole)

    def add(self, row: tuple[int, ...], error: float) -> None:
        self.errors[row] = error
        with self.path.open("a") as file:
            file.write(json.dumps([row, error]) + "\n")


def _loaded(path: Path) -> ModuleType:
    """The module in a file; it is known to Python by its name, as dataclasses in it need."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise UserError(f"--oracle {path}: it must be a Python file")
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the file does wrong
        reason = f"cannot be loaded ({type(error).__name__}: {error})"
        raise UserError(f"--oracle {path}: {reason}") from None
    return module
