"""Pictures of a report, as SVG inside a page.

Text and axes take the text colour of the page, and all other colours can be read on white as well
as on near-black, so that a picture need not know which of them it lies on. Widths are those of a
phone, where text must not shrink.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from html import escape
from itertools import cycle
from typing import NamedTuple

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray

from model.nsganetv2.pareto import non_dominated

COLOURS = ("#2f7fd6", "#d0661a", "#259a63", "#b45cd6", "#d2486f", "#a07c18", "#1794a8", "#7f858e")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
INK = "#010203"  # stands for the text colour of the page
WIDTH, HEIGHT = 5.0, 3.1  # inches of 72 units
TOLERANCE = 0.5  # % of a target within which a cost counts as met
SPAN_OF_LOGARITHMS = 50  # from which ratio of largest to smallest on an axis is logarithmic

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 10.5,
    "lines.markersize": 6,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "axes.prop_cycle": cycler(color=COLOURS),
    **dict.fromkeys(("figure.facecolor", "savefig.facecolor", "axes.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "grid.color"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
}

Points = NDArray[np.float64]  # [n, 2]
Series = Mapping[str, Points]


_drawn = matplotlib.rc_context(STYLE)  # a decorator: draws in the style of the report


@_drawn
def svg(figure: Figure, name: str, label: str) -> str:
    """An `<svg>` element whose ids begin with `name`; `label` says in words what it shows."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # the browser's fonts may have what ours lack
        warnings.filterwarnings("ignore", message="Glyph")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue().decode()
    unwanted = r"<!--.*?-->|<style.*?</style>|<metadata.*?</metadata>"
    body = re.sub(unwanted, "", text[text.index("<svg") :], flags=re.S)
    body = re.sub(r'\b(id="|xlink:href="#|url\(#)', rf"\1{name}-", body)
    body = body.replace("xlink:href", "href").replace(INK, "currentColor")
    body = re.sub(r"font-family: [^;]*; |\s*(?=\n)", "", body)
    head, rest = body.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)[0]
    return f'<svg {view} role="img" aria-label="{escape(label)}">{rest.strip()}'


# -- numbers ---------------------------------------------------------------------------------------


@_drawn
def curves(lines: Mapping[str, Mapping[int, float]], quantity: str, step: str = "epoch") -> Figure:
    """A line for each name: numbers by epoch, or by another `step`."""
    figure, axes = _picture(lines)
    for (name, curve), marker in zip(lines.items(), cycle(MARKERS)):
        at = sorted(curve)
        often = None if len(at) > 25 else marker
        axes.plot(at, [curve[x] for x in at], label=name, marker=often, markersize=4, linewidth=1.6)
    values = [value for curve in lines.values() for value in curve.values()]
    if values and min(values) > 0 and max(values) > SPAN_OF_LOGARITHMS * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set(xlabel=step, ylabel=quantity)
    return figure if list(lines) == [quantity] else _with_legend(figure)


@_drawn
def fronts(series: Series, cost: str) -> Figure:
    """Points (cost, top-1 in %) of each method; the line front-0, front-1, ... is its front."""
    figure, axes = _picture(series)
    styles = zip(series.items(), cycle(COLOURS), cycle(MARKERS))
    for index, ((name, points), colour, marker) in enumerate(styles):
        axes.plot(*points.T, marker, color=colour, alpha=0.75, markeredgewidth=0, label=name)
        steps = {"color": colour, "drawstyle": "steps-post", "linewidth": 1.4}
        axes.plot(*points[front(points)].T, **steps, gid=f"front-{index}")
    axes.set(xlabel=cost, ylabel="top-1, %", ylim=(None, min(axes.get_ylim()[1], 100.8)))
    return _with_legend(figure)


def front(points: Points) -> NDArray[np.intp]:
    """Which of the points (cost, top-1) no other one beats in both, by ascending cost."""
    best = np.flatnonzero(non_dominated(points * [1, -1]))
    return best[np.argsort(points[best, 0], kind="stable")]


@_drawn
def misses(series: Series, unit: str) -> Figure:
    """Points (target, cost) of each file: costs above, misses with their `TOLERANCE` below."""
    figure = Figure(figsize=(WIDTH, 1.5 * HEIGHT + 0.22 * len(series)), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 2))
    targets = np.concatenate([points[:, 0] for points in series.values()])
    ends = np.array([targets.min(), targets.max()])
    above.plot(ends, ends, color=INK, alpha=0.5, linewidth=1)
    below.axhspan(-TOLERANCE, TOLERANCE, color=COLOURS[2], alpha=0.35, linewidth=0, gid="band")
    for (name, points), colour, marker in zip(series.items(), cycle(COLOURS), cycle(MARKERS)):
        style = {"color": colour, "markeredgewidth": 0}
        above.plot(*points.T, marker, **style, label=name)
        below.plot(points[:, 0], 100 * (points[:, 1] / points[:, 0] - 1), marker, **style)
    above.set(ylabel=f"cost, {unit}")
    below.set(xlabel=f"target, {unit}", ylabel="miss, %")
    low, high = below.get_ylim()
    below.set_ylim(min(low, -2 * TOLERANCE), max(high, 2 * TOLERANCE))
    return _with_legend(figure)


def within(points: Points) -> NDArray[np.bool_]:
    """Which of the points (target, cost) miss by at most `TOLERANCE`."""
    # costs are stored with six digits
    return np.abs(points[:, 1] / points[:, 0] - 1) <= TOLERANCE / 100 + 1e-6


@_drawn
def agreement(series: Series) -> Figure:
    """Points (supernet accuracy, test accuracy after training) of each method, in %."""
    figure, axes = _picture(series)
    for (name, points), marker in zip(series.items(), cycle(MARKERS)):
        axes.plot(*points.T, marker, alpha=0.75, markeredgewidth=0, label=name)
    axes.set(xlabel="top-1 with the supernet's weights, %", ylabel="test top-1, %")
    return _with_legend(figure)


def _picture(series: Mapping):
    figure = Figure(figsize=(WIDTH, HEIGHT + 0.22 * len(series)), layout="constrained")
    return figure, figure.subplots()


def _with_legend(figure: Figure) -> Figure:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    labels = [textwrap.shorten(label, 52, placeholder=" ...") for label in labels]
    figure.legend(handles, labels, loc="outside lower left", borderpad=0, labelspacing=0.25)
    return figure


# -- architectures ---------------------------------------------------------------------------------

CELL = 0.2  # inches of a sub-block
GAP = 0.5  # between stages, in columns


def kernel_colour(kernel: int) -> str:
    return COLOURS[(kernel // 2 - 1) % len(COLOURS)]


class Bar(NamedTuple):
    """A sub-block or a block; one without a kernel is an empty place."""

    gid: str
    centre: float  # columns
    bottom: float
    height: float
    kernel: int | None


@_drawn
def sub_blocks(choices: Sequence[Sequence[int | None]], alone: bool = False) -> Figure:
    """A column for each layer, a cell for each sub-block from the bottom up; skips are empty.

    Larger kernels have wider bars, so that colours are not all that tells them apart. A picture
    that stands `alone` is larger and has axes and a legend.
    """
    bars, rows = [], max(map(len, choices))
    for layer, row in enumerate(choices):
        for block, kernel in enumerate(row):
            gid = f"{'skip' if kernel is None else f'k{kernel}'}-{layer}-{block}"
            bars.append(Bar(gid, layer + 0.5, block + 0.06, 0.88, kernel))
    figure = _bars(bars, len(choices), rows)
    return (
        _with_axes(figure, bars, "layer", "sub-block", np.arange(rows) + 0.5) if alone else figure
    )


@_drawn
def blocks(stages: Sequence[Sequence[tuple[int, int]]], alone: bool = False) -> Figure:
    """A column for each block, as high as its expansion ratio; stages lie apart.

    Pairs are (kernel, expansion ratio).
    """
    bars, left = [], 0.0
    for stage, pairs in enumerate(stages):
        for position, (kernel, expansion) in enumerate(pairs):
            gid = f"k{kernel}-{stage}-{position}"
            bars.append(Bar(gid, left + 0.5, 0.0, expansion, kernel))
            left += 1
        left += GAP
    rows = max([6, *(bar.height for bar in bars)])
    figure = _bars(bars, left - GAP, rows)
    return (
        _with_axes(figure, bars, "block", "expansion ratio", np.arange(rows) + 1)
        if alone
        else figure
    )


EMPTY = {"facecolor": "none", "edgecolor": INK, "linewidth": 0.6}


def _bars(bars: list[Bar], columns: float, rows: float) -> Figure:
    figure = Figure(figsize=(CELL * columns, CELL * rows))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, columns), ylim=(0, rows))
    axes.set_axis_off()
    for bar in sorted(bars, key=lambda bar: bar.kernel is not None):
        width, style = 0.8, {**EMPTY, "alpha": 0.22}
        if bar.kernel is not None:
            width = min(0.15 + 0.1 * bar.kernel, 0.95)
            style = {"facecolor": kernel_colour(bar.kernel), "linewidth": 0}
        corner = (bar.centre - width / 2, bar.bottom)
        axes.add_patch(Rectangle(corner, width, bar.height, clip_on=False, gid=bar.gid, **style))
    return figure


def _with_axes(
    figure: Figure, bars: list[Bar], x_label: str, y_label: str, heights: NDArray
) -> Figure:
    """What `_bars` drew, twice as large, with numbered axes and a legend above."""
    [axes] = figure.axes
    kernels = sorted({bar.kernel for bar in bars} - {None})
    styles = {f"{size}x{size}": {"facecolor": kernel_colour(size)} for size in kernels}
    if any(bar.kernel is None for bar in bars):
        styles["skip"] = {**EMPTY, "alpha": 0.5}
    handles = [Rectangle((0, 0), 1, 1, **style, label=name) for name, style in styles.items()]
    width, height = 2 * figure.get_size_inches()
    # inches; an entry of the legend needs 0.75
    whole = (max(width, 0.75 * len(handles)) + 0.7, height + 0.9)
    figure.set_size_inches(*whole)
    axes.set_position((0.6 / whole[0], 0.5 / whole[1], width / whole[0], height / whole[1]))
    centres = sorted({bar.centre for bar in bars})
    axes.set(xticks=centres, xticklabels=range(1, len(centres) + 1), xlabel=x_label)
    axes.set(yticks=heights, yticklabels=range(1, len(heights) + 1), ylabel=y_label)
    axes.set_axis_on()
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    spacing = {"handlelength": 1, "columnspacing": 1}
    figure.legend(handles=handles, loc="upper left", ncols=len(handles), **spacing)
    return figure
