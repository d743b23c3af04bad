"""A picture of an archive and its front."""

from pathlib import Path

from numpy.typing import NDArray

from model.nsganetv2.pareto import front_by_cost
from utils.checkpoint import write_atomically


def save_front(path: Path, errors: NDArray, costs: NDArray, new: int, cost_name: str) -> None:
    """PNG of an archive: top-1 against cost, the last `new` points marked, the front as a line."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    old, top1, front = len(errors) - new, 100 - errors, front_by_cost(errors, costs)
    axes.scatter(costs[:old], top1[:old], s=10, color="0.7", label="archive")
    axes.scatter(costs[old:], top1[old:], s=16, color="tab:orange", label="new")
    axes.step(costs[front], top1[front], where="post", color="tab:blue", label="front")
    units = {"flops": "multiply-adds, M", "params": "parameters, M"}
    axes.set(xlabel=units.get(cost_name, f"{cost_name} latency, ms"), ylabel="top-1, %")
    axes.legend(loc="lower right")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
