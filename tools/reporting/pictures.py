"""The pictures of a report, and what they say in words."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from tools.reporting import figures
from tools.reporting.run_results import Design, Found, RunResults
from tools.reporting.statistics import CONFIDENCE, kendall

MOST_DRAWN = 24
# how methods are called whose networks were trained on their own
TRAINED = ("trained from scratch", "fine-tuned")


# -- pictures of numbers ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    svg: Markup
    caption: str


class Drawing:
    """Figures as elements of one page, where no two ids may be the same."""

    def __init__(self):
        self.count = 0

    def __call__(self, figure: Figure, label: str) -> Markup:
        self.count += 1
        return Markup(figures.svg(figure, f"f{self.count}", label))


KNOWN = {
    "random_path_top1": "random paths, validation top-1",
    "middle_top1": "middle target, validation top-1",
    "train_top1": "training top-1",
    "ema_top1": "test top-1, averaged weights",
    "ema_top5": "test top-5, averaged weights",
    "eval_top1": "test top-1",
    "eval_top5": "test top-5",
    "top5": "test top-5",
    "train_loss": "training loss",
    "eval_loss": "test loss",
    "ema_loss": "test loss, averaged weights",
    "mean_miss": "mean miss, share of the target",
    "prior_kept": "choices that are a prior's, share",
    "kendall_tau": "Kendall tau, target and cost",
    "lr": "learning rate",
    "rho": "Spearman rho",
    "tau": "Kendall tau",
}


def known(key: str, stage: str = "") -> str:
    """A metric in words."""
    if key == "top1":
        return "training top-1" if stage == "warm-up" else "test top-1"
    if key == "tau" and stage == "generator":
        return "temperature"
    return KNOWN.get(key, key.replace("_", " "))


def quantity(key: str) -> str:
    """Which picture a metric goes into."""
    if key.endswith(("top1", "top5")):
        return "accuracy, %"
    return "loss" if key.endswith("loss") and key != "hardware_loss" else ""


def curve_pictures(run: RunResults, draw: Drawing) -> Iterable[Picture]:
    """Losses together, accuracies together, and each other metric by itself; for each stage."""
    for stage, metrics in run.curves.items():
        together: dict[str, dict] = {}
        for key, curve in metrics.items():
            together.setdefault(quantity(key) or known(key, stage), {})[known(key, stage)] = curve
        for what, lines in together.items():
            label = f"{what} by epoch. {ends(lines)}"
            yield Picture(draw(figures.curves(lines, what), label), f"{run.name}, {stage}: {what}")


def ends(lines: dict[str, dict[int, float]]) -> str:
    """How curves begin and end, in words."""
    said = (
        f"{name}: from {curve[min(curve)]:.4g} to {curve[max(curve)]:.4g}"
        for name, curve in lines.items()
    )
    return "; ".join(said)


def grouped(
    found: Iterable[Found], key: Callable[[Found], str], point: Callable[[Found], tuple]
) -> figures.Series:
    """The points `[n, 2]` of those that have one, by their key."""
    groups: dict[str, list] = {}
    for one in found:
        if None not in point(one):
            groups.setdefault(key(one), []).append(point(one))
    return {name: np.array(points, dtype=np.float64) for name, points in groups.items()}


def miss_pictures(run: RunResults, draw: Drawing) -> Iterable[Picture]:
    asked = [
        one
        for one in run.found
        if one.method == "generated" and one.validation is None and one.target
    ]
    series = grouped(asked, lambda one: one.file, lambda one: (one.target, one.cost))
    if not series:
        return
    points = np.concatenate(list(series.values()))
    met, mean = (
        int(figures.within(points).sum()),
        100 * np.abs(points[:, 1] / points[:, 0] - 1).mean(),
    )
    says = f"{met} of {len(points)} costs are within {figures.TOLERANCE:g} % of their targets, the mean miss is"
    unit = asked[0].axis
    label = f"Cost against target, {unit}, and the miss in percent. {says} {mean:.2f} %"
    caption = f"{run.name}: {says} {mean:.2f} %. The line is cost = target, the band +- {figures.TOLERANCE:g} %."
    yield Picture(draw(figures.misses(series, unit), label), caption)


def accuracy_pictures(found: list[Found], kind: str, draw: Drawing) -> list[Picture]:
    """One for each data set and kind of cost. The `kind` of accuracy is never mixed with the other
    one.
    """
    measured = [one for one in found if getattr(one, kind) is not None and one.cost is not None]
    # else those that do not say it are of the same one
    several = len({one.data for one in measured} - {""}) > 1
    groups: dict[tuple[str, str], list[Found]] = {}
    for one in measured:
        groups.setdefault((one.axis, one.data if several else ""), []).append(one)
    return [accuracy_picture(own, kind, several, draw) for own in groups.values()]


def accuracy_picture(found: list[Found], kind: str, several: bool, draw: Drawing) -> Picture:
    axis, best = found[0].axis, max(getattr(one, kind) for one in found)
    series = grouped(found, method_names(found), lambda one: (one.cost, getattr(one, kind)))
    counts = "; ".join(f"{name}: {len(points)}" for name, points in series.items())
    what = f"Top-1 against {axis}" + (
        f", on {found[0].data or 'a data set not recorded'}" if several else ""
    )
    picture = draw(figures.fronts(series, axis), f"{what}. {counts}. The best has {best:.2f} %")
    own_images = kind == "validation" and len({one.run for one in found}) > 1
    remark = " Runs may have held-out images, and supernets, of their own." if own_images else ""
    return Picture(picture, f"{what}. A line is the front of its method. Points: {counts}.{remark}")


def method_names(found: list[Found]) -> Callable[[Found], str]:
    """Methods, each of several runs by itself; but networks trained on their own are points of one
    method.
    """
    runs: dict[str, set[str]] = {}
    for one in found:
        if not one.method.startswith(TRAINED):
            runs.setdefault(one.method, set()).add(one.run)
    return lambda one: (
        f"{one.method} ({one.run})" if len(runs.get(one.method, ())) > 1 else one.method
    )


def agreement_pictures(run: RunResults, draw: Drawing) -> Iterable[Picture]:
    """What the supernet says against the truth, where both are known."""
    both = grouped(run.found, lambda one: one.method, lambda one: (one.validation, one.test))
    if not both:
        return
    says = f"{sum(map(len, both.values()))} answers. {correlations(run.found)}"
    label = f"Test accuracy after training against accuracy with the supernet's weights. {says}"
    yield Picture(draw(figures.agreement(both), label), f"{run.name}: {says}")


def correlations(found: list[Found]) -> str:
    """Kendall tau of tools.rank's random architectures, in words; empty where there are too few, or
    all the same.
    """
    ranked = [one for one in found if one.method == "tools.rank: random" and one.target is None]
    said = []
    for what, key in (("the supernet", "validation"), ("cost alone", "cost")):
        pairs = grouped(ranked, lambda one: "", lambda one: (getattr(one, key), one.test)).get(
            "", np.empty((0, 2))
        )
        if len(pairs) > 2 and np.ptp(pairs, axis=0).all():
            tau, low, high = kendall(*pairs.T)
            known = (
                f" ({100 * CONFIDENCE:g} % interval {low:.3f} to {high:.3f})" if low == low else ""
            )
            said.append(f"{what} {tau:.3f}{known}")
    return (
        f"Kendall tau with the test accuracy of {len(ranked)} random ones: {', '.join(said)}."
        if said
        else ""
    )


def iteration_pictures(run: RunResults, draw: Drawing) -> Iterable[Picture]:
    shown = {
        "hypervolume, share of the box": ("hv",),
        "RMSE of the surrogate, points": ("rmse",),
        "rank correlation of the surrogate": ("rho", "tau"),
    }
    for what, keys in shown.items():
        lines = {KNOWN.get(key, what): run.iterations[key] for key in keys if key in run.iterations}
        if lines:
            label = f"{what} by iteration. {ends(lines)}"
            caption = f"{run.name}: {what}" + (
                "" if "hv" in keys else ", on candidates before they were evaluated"
            )
            yield Picture(draw(figures.curves(lines, what, "iteration"), label), caption)


# -- architectures ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """An architecture as a picture, or as the string of its cell; `width` is in sub-blocks."""

    number: int
    design: Design
    svg: Markup | None
    width: float
    says: list[str]

    @property
    def kernels(self) -> set[int]:
        """Those that have a colour in the picture."""
        of_blocks = {kernel for stage in self.design.stages for kernel, _ in stage}
        return of_blocks | {
            kernel for row in self.design.choices for kernel in row if kernel and self.svg
        }


def gallery(found: list[Found], draw: Drawing) -> tuple[list[Card], int]:
    """Pictures of at most `MOST_DRAWN` architectures, and how many different ones there are.

    First those that were generated or trained, or are on a front; evenly by cost, when there are
    more.
    """
    different: dict[Design, list[Found]] = {}
    for one in found:
        if one.design is not None and (one.design.has_blocks or one.design.cell):
            different.setdefault(one.design, []).append(one)
    wanted = best_of(found)
    chosen = [design for design, own in different.items() if wanted.intersection(own)] or list(
        different
    )
    chosen.sort(key=lambda design: (different[design][0].axis, different[design][0].cost or 0.0))
    if len(chosen) > MOST_DRAWN:
        chosen = [
            chosen[index]
            for index in np.linspace(0, len(chosen) - 1, MOST_DRAWN).round().astype(int)
        ]
    cards = [
        card(index + 1, design, different[design], draw) for index, design in enumerate(chosen)
    ]
    return cards, len(different)


def best_of(found: list[Found]) -> set[Found]:
    """Those that were generated or trained, and the front of every method."""
    wanted = {one for one in found if one.method.startswith(("generated", *TRAINED))}
    for kind in ("validation", "test"):
        groups: dict[tuple, list[Found]] = {}
        for one in found:
            if one.cost is not None and getattr(one, kind) is not None:
                groups.setdefault((one.method, one.run, one.axis), []).append(one)
        for own in groups.values():
            points = np.array([(one.cost, getattr(one, kind)) for one in own])
            wanted |= {own[index] for index in figures.front(points)}
    return wanted


def card(number: int, design: Design, own: list[Found], draw: Drawing) -> Card:
    first, says = own[0], []
    says.append(
        f"{first.cost:.3f} {first.axis.split(', ')[-1]}"
        if first.cost is not None
        else "cost unknown"
    )
    for method in dict.fromkeys(one.method for one in own):
        targets = dict.fromkeys(
            f"{one.target:g}" for one in own if one.method == method and one.target
        )
        says.append(f"{method} for {', '.join(targets)}" if targets else method)
    says += [
        f"validation top-1 {one.validation:.2f} %" for one in own if one.validation is not None
    ]
    says += [f"test top-1 {one.test:.2f} %" for one in own if one.test is not None]
    says += [f"{design.resolution} x {design.resolution} pixels"] if design.resolution else []
    picture, width = None, 0.0
    if design.has_blocks:
        figure = picture_of(design)
        picture, width = (
            draw(figure, f"Architecture {number}. {spoken(design)}"),
            figure.get_figwidth() / figures.CELL,
        )
    return Card(number, design, picture, width, list(dict.fromkeys(says)))


def picture_of(design: Design, alone: bool = False) -> Figure:
    return (
        figures.sub_blocks(design.choices, alone)
        if design.choices
        else figures.blocks(design.stages, alone)
    )


def spoken(design: Design) -> str:
    """The kernels of an architecture in words."""
    if design.stages:
        stages = [
            ", ".join(f"{kernel} x{ratio}" for kernel, ratio in stage) for stage in design.stages
        ]
        return "Kernel and expansion of each block: " + "; ".join(stages)
    layers = [
        " ".join(str(kernel) for kernel in row if kernel) or "nothing" for row in design.choices
    ]
    return "Kernels of each layer: " + "; ".join(layers)
