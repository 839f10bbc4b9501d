"""The style of the pictures: a variant's colour, line and mark, and the axes that all pictures share.

Pictures are narrow and their text is large, so that they can be read in print and on a phone, where six inches are 360
pixels.  Thousands of points would make an SVG too large, so they become an image within it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator, PercentFormatter

from search_spaces import SPACES
from tuner.core.metrics import target_label
from tuner.study.objectives import evaluate
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

WIDTH = 6.0
"""Width of a picture in inches."""
TEXT, SMALL = 11, 10
"""Font sizes in points, of labels and of numbers: 9 and 8 pixels on a phone."""
GREY, PALE = "#595959", "#C8C8C8"
CROWD = 6
"""Most variants that share axes; with more, each variant has a panel of its own."""
HEAVY = 3000
"""Most points that are drawn one by one; more become an image."""

Kind: TypeAlias = Literal["count", "percent", "plain", "log"]
"""Format of the numbers along an axis: 20k, 90%, 0.5, and 0.01 on a logarithmic axis."""

SUBDIVISIONS = {2.2: (1.0,), 1.4: (1.0, 3.0), 0.8: (1.0, 2.0, 5.0), -math.inf: (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)}
"""Decades of a logarithmic axis -> multiples of the powers of ten that have numbers on an axis with more decades."""

COLOURS = ("#0072B2", "#000000", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#E69F00")
"""The colours of Okabe and Ito, which colour-blind readers can tell apart; without their yellow, too pale on white."""
Dashes: TypeAlias = str | tuple[int, tuple[int, ...]]
"""A line style of matplotlib."""
DASHES: tuple[Dashes, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (9, 3)))
"""Line styles, which tell apart variants of the same colour."""
MARKS = ("o", "s", "X", "^", "D", "P", "v")
"""Marks, which tell apart variants of the same line style where colours are lost in grey print."""


def styles(names: Iterable[str]) -> dict[str, tuple[str, Dashes]]:
    """Variant -> its colour and dashes, equal in every picture of every search; no two of 42 variants are alike.

    A style follows from the variant's place in ``SPACES``.  A user's own variants get the remaining styles in order.
    """
    looks = [(colour, dashes) for dashes in DASHES for colour in COLOURS]
    names = list(names)
    places = {name: place for place, name in enumerate(dict.fromkeys([*SPACES, *names]))}
    return {name: looks[places[name] % len(looks)] for name in names}


def mark(colour: str, dashes: Dashes) -> str:
    """The mark that belongs to a style; variants of the same colour have different marks."""
    return MARKS[(COLOURS.index(colour) + 2 * DASHES.index(dashes)) % len(MARKS)]


def panels(
    titles: Sequence[str], *, height: float = 0.0, sharex: bool = True, sharey: bool = True
) -> tuple[Figure, list[Axes]]:
    """One panel per title, two per row.  ``height`` of a row is in inches; 0 chooses it by the number of rows."""
    num_columns = min(len(titles), 2)
    num_rows = math.ceil(len(titles) / num_columns)
    height = height or (1.1 if num_rows > 4 else 1.9 if num_rows > 1 else 2.5 if num_columns > 1 else 2.9)
    figure = Figure(figsize=(WIDTH, num_rows * height + 0.4), dpi=150, layout="constrained")
    grid = figure.subplots(num_rows, num_columns, sharex=sharex, sharey=sharey, squeeze=False)
    drawn, rest = list(grid.flat)[: len(titles)], list(grid.flat)[len(titles) :]
    for axes, title in zip(drawn, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=SMALL, fontweight="bold", pad=3)
        axes.tick_params(labelsize=SMALL, left=False, bottom=False)
        axes.grid(color=PALE, alpha=0.5, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
    for axes in rest:
        axes.set_visible(False)
        drawn[-num_columns].tick_params(labelbottom=True)
    return figure, drawn


def label(figure: Figure, x: str, y: str = "") -> None:
    """Names the axes that all panels share."""
    figure.supxlabel(x, fontsize=TEXT)
    if y:
        figure.supylabel(y, fontsize=TEXT)


def legend(figure: Figure, entries: Sequence[Line2D]) -> None:
    """A legend above the panels, in one line where it fits."""
    widths = [44 + 0.62 * SMALL * len(str(entry.get_label())) for entry in entries]
    fitting = len(entries) if sum(widths) < 72 * WIDTH else int(72 * WIDTH // max(widths))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(entries) / fitting))
    figure.legend(
        handles=list(entries), loc="outside upper left", ncols=fitting, fontsize=SMALL, frameon=False,
        handlelength=2.4, handletextpad=0.6, columnspacing=1.2, borderpad=0.2,
    )  # fmt: skip


def sample(text: str, colour: str = GREY, dashes: Dashes = "", marker: str = "", hollow: bool = False) -> Line2D:
    """An entry of a legend: a line, a mark, or both."""
    look: dict[str, Any] = {"linestyle": dashes or "none", "marker": marker or "none", "markersize": 5.5}
    return Line2D(
        [], [], color=colour, linewidth=1.8, markerfacecolor="white" if hollow else colour, label=text, **look
    )


def numbers(axis: Axis, kind: Kind, most: int = 5) -> None:
    """Sets few and short numbers along an axis."""
    if kind == "log":
        low, high = sorted(axis.get_view_interval())
        decades = math.log10(high / low)
        subs = next(subs for least, subs in SUBDIVISIONS.items() if decades > least)
        axis.set_major_locator(LogLocator(subs=subs, numticks=most))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
        return
    axis.set_major_locator(MaxNLocator(most, integer=kind == "count", steps=[1, 2, 2.5, 5, 10]))
    if kind == "count":
        axis.set_major_formatter(EngFormatter(sep=""))
    elif kind == "percent":
        axis.set_major_formatter(PercentFormatter(1))


def goal(search: Search) -> str:
    """The objective as the label of an axis, with times in the unit of ``--cost``; the first if there are several."""
    unit = "seconds of training" if search.spec.cost == "seconds" else "gradient evaluations"
    return {
        "accuracy": f"final validation {search.score}",
        "auc": "area under the error curve",
    }.get(search.spec.objective, f"{unit} to {target_label(search.spec.training.targets[-1])}%")


def value(search: Search, record: TrialRecord) -> float:
    """A trial's objective, times in the unit of ``--cost``; the first if there are several."""
    found = evaluate(search.spec.objective, record.history, search.spec.training.targets)[0]
    return found * search.cost_of_evaluation(record.variant)


def observed(runs: Mapping[int, TrialRecord]) -> list[TrialRecord]:
    """The confirmed runs that ended without failing and have an epoch."""
    return [record for record in runs.values() if record.observed and record.history]


def budget(search: Search) -> int:
    """Gradient evaluations of a whole training; at least one training of the search must have an epoch."""
    return next(record.history[-1].budget for record in search.trainings() if record.history)


def objective_axis(search: Search, axes: Axes, variant: str) -> None:
    """Sets the numbers of the y axis for the objective, and a dotted line above which the variant missed the target."""
    kind: dict[str, Kind] = {"accuracy": "percent", "auc": "plain"}
    numbers(axes.yaxis, kind.get(search.spec.objective, "count"))
    if search.spec.objective not in kind:
        axes.axhline(budget(search) * search.cost_of_evaluation(variant), color=GREY, linewidth=0.9, linestyle=":")


def goal_note(search: Search) -> str:
    """The caption's sentences about the dotted line of :func:`objective_axis`; empty if the objective has none."""
    missed = " The dotted line is the budget; above it, the target was missed."
    return "" if search.spec.objective in ("accuracy", "auc") else missed
