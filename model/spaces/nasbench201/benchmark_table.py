"""What the cells of NAS-Bench-201 are really worth: the published accuracies, for looking answers
up.

The table is other people's (NATS-Bench, Dong et al., TPAMI 2021); docs/nasbench201.md says how to
make the file. Nothing may be trained or tuned on it.
"""

import csv
from pathlib import Path

import torch
from torch import Tensor

from model.costs.lookup_table import LookUpTable
from model.spaces.nasbench201.space import EDGES, CellSpace, from_string, positions
from utils.errors import UserError

COLUMNS = ("architecture", "cifar10_test_accuracy")


class CellTable:
    """`accuracies` and `costs`, `[15625]` in the order of `CellSpace.all`: CIFAR-10 test top-1 in %
    after 200 epochs of training, mean over seeds, and multiply-adds in M to three decimals.
    """

    def __init__(self, accuracies: Tensor):
        self.space = CellSpace()
        self.accuracies = accuracies
        costs = LookUpTable(self.space)(self.space.all())
        self.costs = costs.double().round(decimals=3)  # as they are printed: equal costs are equal

    @classmethod
    def load(cls, path: str | Path) -> "CellTable":
        """From a CSV file with the columns `architecture` and `cifar10_test_accuracy`; UserError
        when it is none.
        """
        places, found = positions(), torch.full((5 ** len(EDGES),), float("nan"))
        try:
            with Path(path).open(newline="", encoding="utf-8") as file:
                for number, row in enumerate(csv.DictReader(file), start=2):
                    try:
                        cell, accuracy = (row[column] for column in COLUMNS)
                        if cell not in places:
                            from_string(cell)  # raises the error that names it
                        position = places[cell]
                        if not found[position].isnan():
                            raise ValueError(f"{cell} stands there twice")
                        if not 0 <= float(accuracy) <= 100:
                            raise ValueError(f"{accuracy} is no percentage")
                        found[position] = float(accuracy)
                    except (KeyError, ValueError, TypeError, AttributeError) as error:
                        raise UserError(
                            f"{path}: line {number}: {error}; expected {', '.join(COLUMNS)}"
                        ) from None
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: cannot be read as a table of accuracies ({error})") from None
        missing = int(found.isnan().sum())
        if missing:
            raise UserError(f"{path}: {missing} of {len(found)} architectures have no accuracy")
        return cls(found)

    def accuracy(self, paths: Tensor) -> Tensor:
        """True accuracies in % of one-hot `paths [..., L, E, K]`: `[...]`."""
        return self.accuracies[_position(paths)]

    def cost(self, paths: Tensor) -> Tensor:
        """Multiply-adds in M of one-hot `paths [..., L, E, K]`: `[...]`."""
        return self.costs[_position(paths)]

    def within(self, cost: float) -> Tensor:
        """bool `[15625]`: the architectures that cost at most so much."""
        return self.costs <= cost

    def optimum(self, cost: float) -> float:
        """The best accuracy in % of all architectures that cost at most `cost` M; NaN when there is
        none.
        """
        allowed = self.accuracies[self.within(cost)]
        return float(allowed.max()) if len(allowed) else float("nan")


def _position(paths: Tensor) -> Tensor:
    """Where one-hot `paths [..., L, E, K]` stand in `CellSpace.all`, `[...]`."""
    digits = paths.argmax(dim=-1)[..., 0]
    return (digits * 5 ** torch.arange(len(EDGES) - 1, -1, -1)).sum(dim=-1)
