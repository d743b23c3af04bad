"""A picture of an archive and its front."""

from pathlib import Path

from numpy.typing import NDArray

from model.nsganetv2.pareto import front_by_cost
from utils.checkpoint import write_atomically


def save_front(
    path: Path,
    errors: NDArray,
    shown: NDArray,
    costs: NDArray,
    new: int,
    title: str,
    cost_name: str,
) -> None:
    """PNG of an archive, the last `new` points marked, the front as a line.

    Args:
        shown: what stands for `errors`, such as top-1; `title` is its name.
    """
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    old, front = len(errors) - new, front_by_cost(errors, costs)
    axes.scatter(costs[:old], shown[:old], s=10, color="0.7", label="archive")
    axes.scatter(costs[old:], shown[old:], s=16, color="tab:orange", label="new")
    axes.step(costs[front], shown[front], where="post", color="tab:blue", label="front")
    units = {"flops": "multiply-adds, M", "params": "parameters, M"}
    axes.set(xlabel=units.get(cost_name, f"{cost_name} latency, ms"), ylabel=title)
    axes.legend(loc="lower right")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
