"""Files that list architectures, and what those reached that were trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.ranking.combined import FEWEST
from model.spaces.contracts import Genes, Genome
from utils.errors import UserError
from utils.json_file import as_type, parse_json, read_json


def listed(file: Path) -> list[tuple[Any, str]]:
    """The records of architectures in a file, each with where it stands."""
    if file.suffix == ".jsonl":
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: it cannot be read ({error})") from None
        places = [f"{file}: line {number}" for number in range(1, len(lines) + 1)]
        rows = [parse_json(line, dict, p, "JSON") for line, p in zip(lines, places, strict=True)]
    else:
        rows = read_json(file, list, "a list of architectures")
        places = [f"{file}: entry {number}" for number in range(1, len(rows) + 1)]
    if not rows:
        raise UserError(f"{file}: it lists no architecture")
    return list(zip(rows, places, strict=True))


def genes_of(record: Any, genome: Genome, where: str) -> Genes:
    """The architecture of a record, which is it or says it; UserError when it is of no such."""
    if isinstance(record, dict):
        kind = record.get("kind")
        if kind not in (None, genome.space.kind):
            raise UserError(f"{where}: it is of kind {kind!r}, not {genome.space.kind}")
        record = record.get("architecture", record.get("choices", record))
    try:
        return np.array(genome.from_json(record))
    except UserError as error:
        raise UserError(f"{where}: no architecture of this space ({error})") from None


@dataclass(frozen=True)
class _Training:
    """What is read of a line of tools.rank's results.jsonl."""

    test_top1: float


def read_trained(file: Path, genome: Genome) -> dict[str, tuple[Genes, float]]:
    """Genes and mean accuracy of the networks that were trained, by their names."""
    reached: dict[str, list[float]] = {}
    genes = {}
    for record, where in listed(file):
        row = genes_of(record, genome, where)
        name = genome.spec(row).name
        genes[name] = row
        top1 = as_type(record, _Training, where, "a result of tools.rank").test_top1
        reached.setdefault(name, []).append(top1)
    if len(reached) < FEWEST:
        raise UserError(f"{file}: {len(reached)} trained networks; a calibration needs {FEWEST}")
    return {name: (genes[name], float(np.mean(values))) for name, values in reached.items()}
