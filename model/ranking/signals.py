"""What is known of a network before it is trained: sizes, training-free terms, a supernet's score.

A row of genes describes the architecture; any kind of space has genes.
"""

import math
from dataclasses import dataclass

import numpy as np

from model.ranking.score_file import Values
from model.ranking.supernet_accuracy import SupernetAccuracy
from model.ranking.training_free import TrainingFree
from model.spaces.contracts import CostTable, Genes, Genome
from utils.distributed import divided, results
from utils.engine import Score
from utils.errors import UserError

SIZES = ("cost", "params_m", "blocks")
SUPERNET = ("supernet", "supernet_loss")  # top-1 in % and cross entropy, on held-out images
DRAWN, DRAWS = 4096, 64  # random architectures at once, and how often, to find enough


@dataclass(frozen=True)
class Signals:
    """Measures the signals of architectures, in this order: from those that cost nothing on.

    Args:
        table: `cost` is by it.
        training_free: None: without these terms.
        accuracy: by a supernet; None: without.
    """

    genome: Genome
    table: CostTable
    training_free: TrainingFree | None = None
    accuracy: SupernetAccuracy | None = None

    @property
    def names(self) -> tuple[str, ...]:
        terms = self.training_free.terms if self.training_free else ()
        return (*SIZES, *terms, *(SUPERNET if self.accuracy else ()))

    def of(self, row: Genes) -> Values:
        """The signals of one architecture."""
        spec = self.genome.spec(row)
        found = {
            "cost": round(float(self.genome.cost_by(self.table, row[None])[0]), 6),
            "params_m": round(float(self.genome.costs(row[None])[1][0]), 6),
            "blocks": spec.blocks,
        }
        if self.training_free:
            found |= self.training_free.score(spec)
        if self.accuracy:
            found |= supernet_signals(self.accuracy.score(self.genome.choice(row)))
        return found

    def of_all(self, genes: Genes) -> list[Values]:
        """Those of `genes [N, G]`, divided among all processes, which call it together."""
        return results(divided(len(genes), lambda index: self.of(genes[index])))


def supernet_signals(score: Score) -> Values:
    """What the score of a network in a supernet says."""
    return dict(zip(SUPERNET, (score.top1, score.loss), strict=True))


def different_architectures(
    genome: Genome,
    table: CostTable,
    count: int,
    rng: np.random.Generator,
    between: tuple[float, float] = (0.0, math.inf),
) -> dict[str, Genes]:
    """`count` different random architectures: genes `[G]` by the names of their networks.

    Their costs lie between the two numbers. The first ones are the same whatever `count` is.
    UserError when fewer are found.
    """
    found: dict[str, Genes] = {}
    for _ in range(DRAWS):
        genes = genome.canonical(genome.sample(DRAWN, rng))
        costs = genome.cost_by(table, genes)
        for row in genes[(costs >= between[0]) & (costs <= between[1])]:
            if len(found) == count:
                return found
            found.setdefault(genome.spec(row).name, row)
    if len(found) == count:
        return found
    which = f"of {between[0]:g} to {between[1]:g} {table.unit}"
    raise UserError(
        f"--count {count}: only {len(found)} different architectures {which} were found"
    )
