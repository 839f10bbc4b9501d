"""Pictures of dots and bars: times to target, learning rates against the objective, importance of settings.

A function returns None if there is nothing to draw.  A picture's title is its caption.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from matplotlib.axes import Axes
from optuna.distributions import FloatDistribution

from tuner.core.metrics import target_label
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.report.comparison import ranking, times
from tuner.report.costs import WORDS, cost, unit_of
from tuner.report.document import Picture
from tuner.report.figures import (
    CROWD,
    GREY,
    HEAVY,
    PALE,
    SMALL,
    budget,
    goal,
    goal_note,
    label,
    legend,
    numbers,
    objective_axis,
    observed,
    panels,
    sample,
    styles,
    value,
)
from tuner.report.findings import importances
from tuner.report.intervals import Interval
from tuner.study.results import Search

ENDINGS = {"finished": ("o", False), "stopped": ("o", True), "diverged": ("x", False)}
"""How a trial ended -> its mark, and whether the mark is hollow."""
EDGE = 0.96
"""Height at which diverged trials are drawn, as a share of the axes' height."""
MISSED = 1.08
"""Position at which a miss is drawn, as a share of the budget."""
MOST, MOST_IN_CROWD = 5, 3
"""Most settings per variant whose importance is drawn: in few panels, and in more than ``CROWD``."""


def times_to_target(search: Search) -> Picture | None:
    """Cost to each target: each variant's median and interval over its confirmed runs, and each run."""
    unit = unit_of(search)
    rows = {(row.variant, row.target): row for row in times(search) if row.unit == unit}
    names = [name for name in ranking(search) if (name, search.spec.training.targets[0]) in rows]
    if not names:
        return None
    looks = styles(variant.name for variant in search.variants)
    runs = {name: observed(search.confirmed(name)) for name in names}
    end = budget(search) * max(map(search.cost_of_evaluation, names))
    titles = [f"to {target_label(target)}%" for target in search.spec.training.targets]
    figure, places = panels(titles, height=0.27 * len(names) + 0.45)
    for axes, target in zip(places, search.spec.training.targets, strict=True):
        axes.axvspan(end, 2 * end, color=PALE, alpha=0.45, linewidth=0)
        for y, name in enumerate(names):
            costs = [cost(search, record, target, unit) for record in runs[name]]
            _seeds(axes, y, costs, MISSED * end, looks[name][0])
            _interval(axes, y, rows[name, target].interval, MISSED * end, looks[name][0])
        axes.set_xlim(0, 1.16 * end)
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="y", visible=False)
        numbers(axes.xaxis, "count", most=4)
    places[0].set_ylim(len(names) - 0.45, -0.55)
    label(figure, WORDS[unit])
    undecided = any(not row.interval.decided for row in rows.values())
    entries = [sample("median, interval", dashes="-", marker="o")]
    if undecided:
        entries.append(sample("below 95%", dashes=":", marker="o", hollow=True))
    legend(figure, [*entries, sample("missed", marker=">"), sample("one seed", "#A8A8A8", marker=".")])
    of_all = ", whose seconds depend on the variant" if unit == "seconds" else ""
    levels = sorted({f"{100 * row.interval.level:.0f}%" for row in rows.values()})
    title = (
        f"{WORDS[unit].capitalize()} to a target. Large marks are medians over the confirmed runs of the best "
        f"settings, with intervals by order statistics ({' or '.join(levels)}). Small marks are single seeds. An arrow "
        f"area means that the target was missed within the budget{of_all}, or that the interval has no end there."
    )
    if undecided:
        title += " Hollow marks with dotted lines are intervals that attain less than 95%."
    return Picture("times_to_target", title, figure)


def _seeds(axes: Axes, y: int, costs: Sequence[float], missed: float, colour: str) -> None:
    counts, step = Counter(costs), min(0.16, 0.8 / len(costs))
    # Equal costs would hide each other, so they are spread around the row.
    dots = [(x, y + step * (i - (n - 1) / 2)) for x, n in counts.items() for i in range(n)]
    for marker, drawn in (
        ("o", [dot for dot in dots if dot[0] < math.inf]),
        (">", [(missed, at) for x, at in dots if x == math.inf]),
    ):
        if drawn:
            axes.plot(
                *zip(*drawn, strict=True), color=colour, alpha=0.4, linestyle="none", marker=marker, markersize=3.4,
                markeredgewidth=0,
            )  # fmt: skip


def _interval(axes: Axes, y: int, interval: Interval, missed: float, colour: str) -> None:
    face, dashes = (colour, "-") if interval.decided else ("white", ":")
    low, middle, high = (min(end, missed) for end in (interval.low, interval.estimate, interval.high))
    axes.plot([low, high], [y, y], color=colour, linestyle=dashes, linewidth=1.8, solid_capstyle="butt")
    ends = [(middle, 6.5)] + ([(high, 5.0)] if high == missed > middle else [])
    for x, size in ends:
        axes.plot(
            x, y, marker=">" if x == missed else "o", color=colour, markerfacecolor=face, markersize=size,
        )  # fmt: skip


def learning_rates(search: Search) -> Picture | None:
    """Each trial's objective by its peak learning rate, marked by how it ended, with the default point and the best."""
    trials = {
        v.name: [r for r in search.trials_of(v.name) if r.status in ENDINGS and r.history] for v in search.variants
    }
    variants = [variant for variant in search.variants if trials[variant.name]]
    if not variants:
        return None
    looks, heavy = styles(trials), sum(map(len, trials.values())) > HEAVY
    figure, places = panels([variant.name for variant in variants], sharex=False)
    for axes, variant in zip(places, variants, strict=True):
        colour = looks[variant.name][0]
        axes.set_xscale("log")
        for status, (marker, hollow) in ENDINGS.items():
            chosen = [record for record in trials[variant.name] if record.status == status]
            at_edge = status == "diverged"
            axes.plot(
                [record.spec.optimizer.lr.peak for record in chosen],
                [EDGE if at_edge else value(search, record) for record in chosen],
                color=colour, linestyle="none", marker=marker, markersize=5, alpha=0.8, label=status,
                markerfacecolor="none" if hollow else colour, rasterized=heavy,
                transform=axes.get_xaxis_transform() if at_edge else axes.transData,
            )  # fmt: skip
        if best := search.best(variant.name):
            axes.plot(
                best.spec.optimizer.lr.peak, value(search, best), "o", color="black", fillstyle="none", markersize=9
            )
        axes.axvline(
            with_settings(OptimizerSpec(), variant.default_settings()).lr.peak,
            color=GREY,
            linewidth=1.2,
            linestyle="--",
        )
        searched = variant.searched.get("lr.peak")
        if isinstance(searched, FloatDistribution):
            axes.set_xlim(searched.low / 1.2, searched.high * 1.2)
        numbers(axes.xaxis, "log")
        objective_axis(search, axes, variant.name)
    bottom, top = places[0].get_ylim()
    places[0].set_ylim(bottom, top + 0.14 * (top - bottom))
    label(figure, "peak learning rate", goal(search))
    legend(
        figure,
        [
            *(sample(status, marker=marker, hollow=hollow) for status, (marker, hollow) in ENDINGS.items()),
            sample("best", "black", marker="o", hollow=True),
            sample("default point", dashes="--"),
        ],
    )
    title = (
        f"Each trial's objective ({goal(search)}) by its peak learning rate, over the searched range. Filled marks "
        "finished. Hollow marks were stopped early and show the value reached by then. Crosses at the top edge "
        "diverged. The circle is the best trial, and the dashed line is the default point."
    )
    return Picture("learning_rates", title + goal_note(search), figure)


def importance(search: Search) -> Picture | None:
    """The settings that mattered most for being among the best tenth of a variant's trials, with their shares."""
    found = importances(search)
    if not found:
        return None
    looks = styles(variant.name for variant in search.variants)
    most = MOST if len(found) <= CROWD else MOST_IN_CROWD
    largest = {name: sorted(shares.items(), key=lambda item: -item[1])[:most] for name, shares in found.items()}
    figure, places = panels(list(found), height=0.2 * max(map(len, largest.values())) + 0.4)
    for axes, (name, shares) in zip(places, largest.items(), strict=True):
        axes.barh(range(len(shares)), [share for _, share in shares], color=looks[name][0], alpha=0.3, height=0.8)
        for y, (setting, share) in enumerate(shares):
            axes.text(0.015, y, f"{setting}  {share:.0%}", fontsize=SMALL, va="center")
        axes.set_yticks([])
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1)
        numbers(axes.xaxis, "percent")
    places[0].set_ylim(max(map(len, largest.values())) - 0.5, -0.5)
    label(figure, "importance")
    title = (
        f"Importance of the settings for being among the best of a variant's trials by objective ({goal(search)}), as "
        f"shares (PED-ANOVA). At most the {most} largest of each variant are shown."
    )
    return Picture("importance", title, figure)
