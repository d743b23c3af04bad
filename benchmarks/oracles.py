"""What a search is measured on: something that says the error and the cost of an architecture.

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

import numpy as np
from model.spaces.genome import Genome, open_genome
from numpy.typing import NDArray

import msunas
from model.nsganetv2.nsga2_search import NADIR, Objective
from model.spaces.elastic.kind import ElasticGenome
from model.spaces.elastic.space import ElasticSpace, Genes
from utils import checkpoint
from utils.config import load_config
from utils.engine import DeviceContext
from utils.errors import UserError
from utils.runtime import pick_device

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
            raise UserError(
                f"--oracle {path}: it lacks {', '.join(missing)}; see benchmarks/nsga_oracle.py"
            )
        try:
            error, cost = map(float, self.module.REF)
        except (TypeError, ValueError):
            raise UserError(
                f"--oracle {path}: REF is {self.module.REF!r}; it must be two numbers"
            ) from None
        self.name, self.reference = path.stem, (error, cost)
        choices = {
            key: tuple(getattr(self.module, name))
            for key, name in CHOICES.items()
            if hasattr(self.module, name)
        }
        self.genome = ElasticGenome(ElasticSpace(**choices))
        some = self.genome.sample(20, np.random.default_rng(0))
        closed_form = np.allclose(self.genome.costs(some)[0], self._costs(some))
        self.objective = Objective("flops", self.genome, None if closed_form else self._costs)

    def evaluate(self, row: tuple[int, ...]) -> tuple[float, float]:
        return self.module.evaluate(self.module.decode(list(row)))

    def _costs(self, genes: Genes) -> NDArray:
        """As the module counts them, one architecture after another."""
        return np.array(
            [self.module.complexity(self.module.decode(row))[0] / 1e6 for row in genes.tolist()]
        )


class SupernetOracle:
    """Held-out images and inherited weights.

    Whatever is evaluated is kept in the file `known`, and looked up there: a benchmark that was
    stopped begins again, and searches the same without waiting for what is known. An architecture
    that cannot be evaluated ends it.
    """

    def __init__(
        self, cfg: str, supernet_path: str, data: str | None, images: int | None, known: Path
    ):
        options = ["--cfg", cfg, "--supernet_path", supernet_path, "--n_epochs", "0"]
        options += ["--data", data] if data else []
        options += ["--vld_size", str(images)] if images else []
        args, config = msunas.parse_arguments(options), load_config(cfg)
        self.name, self.genome = (
            Path(cfg).stem,
            open_genome(config, None, supernet_path, fine_tuned=False),
        )
        context = DeviceContext(pick_device(config.cuda), config.channels_last, config.amp)
        self.objective = Objective("flops", self.genome)
        self.evaluation = msunas.open_evaluation(args, config, self.genome, context)
        of_images = hashlib.sha256(
            repr((self.evaluation.images.validated, data)).encode()
        ).hexdigest()
        identity = {
            "supernet": checkpoint.digest(supernet_path),
            "config": checkpoint.digest(cfg),
            "images": of_images,
        }
        self.known = _Known(known, identity)
        smallest, largest = map(tuple, self.genome.canonical(self.genome.extremes()).tolist())
        self.reference = NADIR * self.evaluate(smallest)[0], NADIR * self.evaluate(largest)[1]

    def evaluate(self, row: tuple[int, ...]) -> tuple[float, float]:
        if row not in self.known.errors:
            network, resolution = self.genome.network(np.array(row))
            score = self.evaluation.score(network, resolution)
            if not math.isfinite(score.loss):
                raise UserError(f"architecture {list(row)}: its loss is {score.loss}")
            self.known.add(row, 100 - score.top1)
        return self.known.errors[row], float(self.objective(np.array([row]))[0])


class _Known:
    """Errors by genes, a line of JSON each, behind a line that says of what; a last line that is
    cut off is dropped.
    """

    def __init__(self, path: Path, identity: dict):
        self.path, self.errors = path, {}
        if not path.exists():
            checkpoint.write_text(path, json.dumps(identity) + "\n")
        try:
            text = path.read_text(encoding="utf-8")
            whole = text[: text.rindex("\n") + 1]
            first, *rows = (json.loads(line) for line in whole.splitlines())
            self.errors = {tuple(genes): float(error) for genes, error in rows}
        except (ValueError, TypeError) as error:
            raise UserError(
                f"--known {path}: not a file that this benchmark wrote ({error})"
            ) from None
        if first != identity:
            raise UserError(
                f"--known {path}: it is of another supernet, config or other images; choose another file"
            )
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
        raise UserError(
            f"--oracle {path}: cannot be loaded ({type(error).__name__}: {error})"
        ) from None
    return module
