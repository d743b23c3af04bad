"""What a search is measured on: something that says the error and the cost of an architecture.

`ModuleOracle` reads a module with the functions of `benchmarks/nsga_oracle.py`, `SupernetOracle` evaluates on held-out
images as `msunas.py` does.
"""

import importlib.util
import json
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

import msunas
from model.elastic_space import ElasticSpace, Genes
from model.evolution import NADIR, Objective
from model.genome import ElasticGenome, Genome, open_genome
from utils.config import load_config
from utils.engine import Placement
from utils.errors import UserError
from utils.runtime import pick_device

FUNCTIONS = ("decode", "complexity", "evaluate", "REF")


class Oracle(Protocol):
    """`reference` is that of the hypervolume, (error, cost)."""

    name: str
    genome: Genome
    objective: Objective
    reference: tuple[float, float]

    def evaluate(self, row: tuple[int, ...]) -> tuple[float, float]:
        """Top-1 error in % and cost of one architecture, by its canonical genes."""


class ModuleOracle:
    """An invented error on the published once-for-all space; UserError when `path` is no such module."""

    def __init__(self, path: Path):
        try:
            spec = importlib.util.spec_from_file_location(path.stem, path)
            self.module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(self.module)
        except (OSError, SyntaxError, ImportError, AttributeError) as error:
            raise UserError(f"--oracle {path}: cannot be loaded as a Python module ({error})") from None
        missing = [name for name in FUNCTIONS if not hasattr(self.module, name)]
        if missing:
            raise UserError(f"--oracle {path}: it lacks {', '.join(missing)}; see benchmarks/nsga_oracle.py")
        self.name, self.reference = path.stem, tuple(self.module.REF)
        self.genome = ElasticGenome(ElasticSpace())
        some = self.genome.sample(20, np.random.default_rng(0))
        closed_form = np.allclose(self.genome.costs(some)[0], self._costs(some))
        self.objective = Objective("flops", self.genome, None if closed_form else self._costs)

    def evaluate(self, row: tuple[int, ...]) -> tuple[float, float]:
        return self.module.evaluate(self.module.decode(list(row)))

    def _costs(self, genes: Genes) -> NDArray:
        """As the module counts them, one architecture after another."""
        return np.array([self.module.complexity(self.module.decode(row))[0] / 1e6 for row in genes.tolist()])


class SupernetOracle:
    """Held-out images and inherited weights. Whatever is evaluated is kept in the file `known`, and looked up there."""

    def __init__(self, cfg: str, supernet_path: str, data: str | None, images: int | None, known: Path):
        options = ["--cfg", cfg, "--supernet_path", supernet_path, "--n_epochs", "0"]
        options += ["--data", data] if data else []
        options += ["--vld_size", str(images)] if images else []
        args, config = msunas.parse_arguments(options), load_config(cfg)
        self.name, self.genome = Path(cfg).stem, open_genome(config, None, supernet_path, fine_tuned=False)
        place = Placement(pick_device(config.cuda), config.channels_last, config.amp)
        self.objective = Objective("flops", self.genome)
        self.evaluation = msunas.open_evaluation(args, config, self.genome, place)
        # The supernet and the images count: a file of others must not be mistaken for this one's
        identity = {"supernet": msunas.digest(supernet_path), "images": len(self.evaluation.images.validated)}
        self.known = _Known(known, identity)
        smallest, largest = map(tuple, self.genome.canonical(self.genome.extremes()).tolist())
        self.reference = NADIR * self.evaluate(smallest)[0], NADIR * self.evaluate(largest)[1]

    def evaluate(self, row: tuple[int, ...]) -> tuple[float, float]:
        if row not in self.known.errors:
            network, resolution = self.genome.network(np.array(row))
            self.known.add(row, 100 - self.evaluation.score(network, resolution).top1)
        return self.known.errors[row], float(self.objective(np.array([row]))[0])


class _Known:
    """Errors by genes, one line of JSON each behind a line that says of what; a line that was cut off is dropped."""

    def __init__(self, path: Path, identity: dict):
        self.path, self.errors = path, {}
        lines = path.read_text().splitlines() if path.exists() else [json.dumps(identity)]
        if json.loads(lines[0]) != identity:
            raise UserError(f"--known {path}: it is about another supernet or other images; choose another file")
        for line in lines[1:]:
            try:
                genes, error = json.loads(line)
            except ValueError:
                break
            self.errors[tuple(genes)] = error
        entries = [json.dumps([genes, error]) for genes, error in self.errors.items()]
        path.write_text("".join(line + "\n" for line in [lines[0], *entries]))

    def add(self, row: tuple[int, ...], error: float) -> None:
        self.errors[row] = error
        with self.path.open("a") as file:
            file.write(json.dumps([row, error]) + "\n")
