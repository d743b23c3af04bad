"""The pictures of a report, with their captions and what they show in words."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from model.spaces.contracts import Design
from tools.reporting import figures
from tools.reporting.run_results import Found, RunResults, group_by
from utils.statistics import CONFIDENCE, kendall

MOST_DRAWN = 24
# how the names of methods begin whose networks were trained on their own
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
    "mean_miss": "mean miss as a share of the target",
    "prior_kept": "share of choices taken from the prior",
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
    """The first and last values of curves, in words."""
    parts = []
    for name, curve in lines.items():
        parts.append(f"{name}: from {curve[min(curve)]:.4g} to {curve[max(curve)]:.4g}")
    return "; ".join(parts)


def grouped(
    found: Iterable[Found], key: Callable[[Found], str], point: Callable[[Found], tuple]
) -> figures.Series:
    """The points `[n, 2]` of those that have one, by their key."""
    groups = group_by((one for one in found if None not in point(one)), key)
    return {name: np.array([*map(point, own)], dtype=np.float64) for name, own in groups.items()}


def measured(found: Iterable[Found], on: str) -> list[Found]:
    """Those whose cost and accuracy are known; `on` is validation or test."""
    return [one for one in found if None not in (one.cost, getattr(one, on))]


def miss_pictures(run: RunResults, draw: Drawing) -> Iterable[Picture]:
    """Costs against targets of what a generator answered."""
    answers = [one for one in run.found if one.method == "generated" and one.validation is None]
    answers = [one for one in answers if one.target]
    series = grouped(answers, lambda one: one.file, lambda one: (one.target, one.cost))
    if not series:
        return
    points, unit, band = np.concatenate(list(series.values())), answers[0].axis, figures.TOLERANCE
    met, miss = figures.within(points).sum(), np.abs(points[:, 1] / points[:, 0] - 1).mean()
    text = f"{met} of {len(points)} costs are within {band:g} % of their targets; "
    text += f"the mean miss is {100 * miss:.2f} %"
    label = f"Cost against target, {unit}, and the miss in percent. {text}"
    caption = f"{run.name}: {text}. The line is cost = target, the band +- {band:g} %."
    yield Picture(draw(figures.misses(series, unit), label), caption)


def accuracy_pictures(found: list[Found], on: str, draw: Drawing) -> list[Picture]:
    """A picture for each data set and kind of cost; `on` is validation or test, never both."""
    found = measured(found, on)
    # if there is only one data set, results that do not record theirs are of it, too
    several = len({one.data for one in found} - {""}) > 1
    groups = group_by(found, lambda one: (one.axis, several and one.data))
    return [accuracy_picture(own, on, several, draw) for own in groups.values()]


def accuracy_picture(found: list[Found], on: str, several: bool, draw: Drawing) -> Picture:
    """Top-1 against cost; the title names the data set where there are `several`."""
    axis, best = found[0].axis, max(getattr(one, on) for one in found)
    series = grouped(found, method_names(found), lambda one: (one.cost, getattr(one, on)))
    counts = "; ".join(f"{name}: {len(points)}" for name, points in series.items())
    what = f"Top-1 against {axis}"
    if several:
        what += f", on {found[0].data or 'a data set not recorded'}"
    picture = draw(figures.fronts(series, axis), f"{what}. {counts}. The best has {best:.2f} %")
    caption = f"{what}. A line is the Pareto front of its method. Points: {counts}."
    if on == "validation" and len({one.run for one in found}) > 1:
        caption += " Runs may differ in their held-out images and supernets."
    return Picture(picture, caption)


def method_names(found: list[Found]) -> Callable[[Found], str]:
    """Names of methods, with the run where several have it, except for trained networks."""
    pairs = {(one.method, one.run) for one in found if not one.method.startswith(TRAINED)}
    several = {method for method, count in Counter(m for m, _ in pairs).items() if count > 1}
    return lambda one: f"{one.method} ({one.run})" if one.method in several else one.method


def agreement_pictures(run: RunResults, draw: Drawing) -> Iterable[Picture]:
    """Supernet accuracy against test accuracy, where both are known."""
    both = grouped(run.found, lambda one: one.method, lambda one: (one.validation, one.test))
    if both:
        text = f"{sum(map(len, both.values()))} answers. {correlations(run.found)}"
        label = f"Test accuracy after training against accuracy with the supernet's weights. {text}"
        yield Picture(draw(figures.agreement(both), label), f"{run.name}: {text}")


def correlations(found: list[Found]) -> str:
    """Kendall tau of tools.rank's random architectures in words; empty where there is none."""
    ranked = [one for one in found if one.method == "tools.rank: random" and one.target is None]
    parts = []
    for what, key in (("the supernet", "validation"), ("cost alone", "cost")):
        pairs = [(getattr(one, key), one.test) for one in ranked]
        known = np.array([pair for pair in pairs if None not in pair])
        if len(known) > 2 and np.ptp(known, axis=0).all():
            tau, low, high = kendall(*known.T)
            parts.append(f"{what} {tau:.3f}")
            if low == low:
                parts[-1] += f" ({100 * CONFIDENCE:g} % interval {low:.3f} to {high:.3f})"
    title = f"Kendall tau with the test accuracy of {len(ranked)} random architectures"
    return f"{title}: {', '.join(parts)}." if parts else ""


ITERATIONS = {  # title -> quantities
    "hypervolume, share of the box": ("hv",),
    "RMSE of the surrogate, points": ("rmse",),
    "rank correlation of the surrogate": ("rho", "tau"),
}


def iteration_pictures(run: RunResults, draw: Drawing) -> Iterable[Picture]:
    """The progress of an evolutionary search."""
    for what, keys in ITERATIONS.items():
        lines = {KNOWN.get(key, what): run.iterations[key] for key in keys if key in run.iterations}
        if lines:
            label = f"{what} by iteration. {ends(lines)}"
            when = "" if "hv" in keys else ", on candidates before they were evaluated"
            picture = draw(figures.curves(lines, what, "iteration"), label)
            yield Picture(picture, f"{run.name}: {what}{when}")


# -- architectures ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """An architecture as a picture, or as the string of its cell; `width` is in sub-blocks."""

    number: int
    design: Design
    svg: Markup | None
    width: float
    facts: list[str]

    @property
    def kernels(self) -> set[int]:
        """Those that have a colour in the picture."""
        found = {kernel for stage in self.design.stages for kernel, _ in stage}
        if self.svg:
            found |= {kernel for layer in self.design.choices for kernel in layer if kernel}
        return found


def gallery(found: list[Found], draw: Drawing) -> tuple[list[Card], int]:
    """Pictures of at most `MOST_DRAWN` architectures, and how many different ones there are.

    First those that were generated or trained, or are on a front; evenly by cost, if more.
    """
    shown = [one for one in found if one.design and (one.design.has_blocks or one.design.cell)]
    different = group_by(shown, lambda one: one.design)
    wanted = best_of(found)
    chosen = [design for design, own in different.items() if wanted.intersection(own)]
    chosen = chosen or list(different)
    chosen.sort(key=lambda design: (different[design][0].axis, different[design][0].cost or 0.0))
    if len(chosen) > MOST_DRAWN:
        evenly = np.linspace(0, len(chosen) - 1, MOST_DRAWN).round().astype(int)
        chosen = [chosen[index] for index in evenly]
    pairs = enumerate(chosen, start=1)
    return [card(number, design, different[design], draw) for number, design in pairs], len(
        different
    )


def best_of(found: list[Found]) -> set[Found]:
    """Those that were generated or trained, and the front of every method."""
    wanted = {one for one in found if one.method.startswith(("generated", *TRAINED))}
    for on in ("validation", "test"):
        groups = group_by(measured(found, on), lambda one: (one.method, one.run, one.axis))
        for own in groups.values():
            points = np.array([(one.cost, getattr(one, on)) for one in own])
            wanted |= {own[index] for index in figures.front(points)}
    return wanted


def card(number: int, design: Design, own: list[Found], draw: Drawing) -> Card:
    """The card of a design, with what is known of it from all `own` places."""
    cost, unit = own[0].cost, own[0].axis.split(", ")[-1]
    facts = [f"{cost:.3f} {unit}" if cost is not None else "cost unknown"]
    for method in dict.fromkeys(one.method for one in own):
        targets = [f"{one.target:g}" for one in own if one.method == method and one.target]
        targets = ", ".join(dict.fromkeys(targets))
        facts.append(f"{method} for {targets}" if targets else method)
    for on in ("validation", "test"):
        known = [getattr(one, on) for one in own if getattr(one, on) is not None]
        facts += [f"{on} top-1 {top1:.2f} %" for top1 in known]
    if design.resolution:
        facts.append(f"{design.resolution} x {design.resolution} pixels")
    picture, width = None, 0.0
    if design.has_blocks:
        figure = picture_of(design)
        picture = draw(figure, f"Architecture {number}. {spoken(design)}")
        width = figure.get_figwidth() / figures.CELL
    return Card(number, design, picture, width, list(dict.fromkeys(facts)))


def picture_of(design: Design, alone: bool = False) -> Figure:
    """The picture of a design that has blocks."""
    if design.choices:
        return figures.sub_blocks(design.choices, alone)
    return figures.blocks(design.stages, alone)


def spoken(design: Design) -> str:
    """The kernels of an architecture in words."""
    if design.stages:
        stages = [", ".join(f"{kernel} x{ratio}" for kernel, ratio in row) for row in design.stages]
        return "Kernel and expansion of each block: " + "; ".join(stages)
    layers = [" ".join(str(kernel) for kernel in row if kernel) for row in design.choices]
    return "Kernels of each layer: " + "; ".join(layer or "nothing" for layer in layers)
