"""Pictures of results."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.nsganetv2.pareto import non_dominated
from utils.checkpoint import write_atomically


def save_front(path: Path, errors: NDArray, costs: NDArray, new: int, cost_name: str) -> None:
    """PNG of an archive: top-1 against cost, the last `new` points marked, the front as a line."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    old = len(errors) - new
    axes.scatter(costs[:old], 100 - errors[:old], s=10, color="0.7", label="archive")
    axes.scatter(costs[old:], 100 - errors[old:], s=16, color="tab:orange", label="new")
    front = np.flatnonzero(non_dominated(np.column_stack([errors, costs])))
    front = front[np.argsort(costs[front])]
    axes.step(costs[front], 100 - errors[front], where="post", color="tab:blue", label="front")
    units = {"flops": "multiply-adds, M", "params": "parameters, M"}
    axes.set(xlabel=units.get(cost_name, f"{cost_name} latency, ms"), ylabel="top-1, %")
    axes.legend(loc="lower right")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
