"""What the networks of NAS-Bench-Macro are really worth: published accuracies, for looking up.

The table is other people's (Su et al., CVPR 2021); it may lack networks, which have no accuracy
then. Nothing is trained on it.
"""

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from model.costs.lookup_table import LookUpTable
from model.spaces.nasbench_macro.space import BlockSpace, from_digits
from utils.errors import UserError
from utils.json_file import as_type, read_json
from utils.ranges import within

PERCENT = "at least 0 and at most 100"


class BlockTable:
    """Published accuracies by canonical path: CIFAR-10 test top-1 in %, the mean of three runs.

    Args:
        known: by the numbers of choices of a canonical path.
    """

    def __init__(self, known: dict[tuple[int, ...], float]):
        self.space, self.known = BlockSpace(), known

    @classmethod
    def load(cls, path: str | Path) -> "BlockTable":
        """From the published JSON, {digits: {"mean_acc": ..., ...}}; UserError when it is none."""
        space, known = BlockSpace(), {}
        rows = read_json(Path(path), dict[str, dict], "the table of NAS-Bench-Macro")
        for digits, row in rows.items():
            try:
                architecture = from_digits(space, digits)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            accuracy = as_type(row.get("mean_acc"), float, f"{path}: {digits}", "mean_acc")
            if not within(accuracy, PERCENT):
                raise UserError(f"{path}: {digits}: mean_acc is {accuracy}, no percentage")
            index = space.encode(architecture).argmax(dim=-1).T
            known[tuple(space.canonical(index)[0].tolist())] = accuracy
        if not known:
            raise UserError(f"{path}: it holds no network")
        return cls(known)

    def accuracy(self, paths: Tensor) -> Tensor:
        """True accuracies in % of one-hot `paths [N, L, 1, K]`: `[N]`; NaN where it lacks one."""
        index = self.space.canonical(paths.argmax(dim=-1)[..., 0])
        found = [self.known.get(tuple(row), float("nan")) for row in index.tolist()]
        return torch.tensor(found, dtype=torch.float64)

    def cost(self, paths: Tensor) -> Tensor:
        """Multiply-adds in M of one-hot `paths [N, L, 1, K]`: `[N]`."""
        return LookUpTable(self.space)(paths).double().round(decimals=3)

    @cached_property
    def paths(self) -> Tensor:
        """The networks that it has, `[N, L, 1, K]`."""
        return self.space.of_index(torch.tensor(list(self.known))[..., None])

    @cached_property
    def costs(self) -> Tensor:
        """Theirs in M, `[N]`."""
        return self.cost(self.paths)

    @cached_property
    def accuracies(self) -> Tensor:
        """Theirs in %, `[N]`."""
        return self.accuracy(self.paths)

    def within(self, cost: float) -> Tensor:
        """bool `[N]`: the networks that cost at most so much."""
        return self.costs <= cost

    def optimum(self, cost: float) -> float:
        """The best accuracy in % of those that cost at most so much M; NaN when there is none."""
        allowed = self.accuracies[self.within(cost)]
        return float(allowed.max()) if len(allowed) else float("nan")
