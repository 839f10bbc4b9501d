"""Pictures of lines: convergence, tuning curves, the winners' schedules, performance profiles.

A function returns None if there is nothing to draw.  A picture's title is its caption.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.collections import LineCollection
from numpy.typing import NDArray

from tuner.core.metrics import target_label
from tuner.report.document import Picture
from tuner.report.figures import (
    CROWD,
    GREY,
    HEAVY,
    PALE,
    goal,
    goal_note,
    label,
    legend,
    mark,
    numbers,
    objective_axis,
    observed,
    panels,
    sample,
    styles,
)
from tuner.report.profiles import performance_profiles
from tuner.report.tuning_curves import tuning_curve
from tuner.report.verdict import random_settings
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

Numbers = NDArray[np.float64]
MANY = 30
"""Trials per variant above which each variant has a panel of its own and its trials are drawn fainter."""


def convergence(search: Search) -> Picture | None:
    """Validation score against gradient evaluations.

    Each variant has the median over its confirmed runs, with a band from the smallest to the largest value.  A search
    without confirmed runs has the chosen trial of each variant, and all trials as thin lines.  A training that diverged
    has score 0 from there on.
    """
    everything = [variant.name for variant in search.variants]
    runs = {name: observed(search.confirmed(name)) for name in everything}
    confirmed = any(runs.values())
    if not confirmed:
        runs = {name: [record for record in search.trials_of(name) if record.history] for name in everything}
    names = [name for name in everything if runs[name]]
    if not names:
        return None
    most = max(len(runs[name]) for name in names)
    looks, crowded = styles(everything), len(names) > CROWD or (not confirmed and most > MANY)
    middles = {}
    for name in names:
        best = search.best(name)
        middles[name] = _band(runs[name])[:2] if confirmed else _curve(best) if best else None
    heavy = sum(len(record.history) for name in names for record in runs[name]) > HEAVY
    figure, places = panels(names if crowded else [""])
    for i, name in enumerate(names):
        axes, (colour, dashes) = places[i if crowded else 0], looks[name]
        if crowded:
            others = [np.column_stack(other)[:: -max(1, len(other[0]) // 10)] for other in middles.values() if other]
            axes.add_collection(LineCollection(others, colors=PALE, linewidths=0.7))
        if confirmed:
            x, _, low, high = _band(runs[name])
            axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
        else:
            thin = [np.column_stack(_curve(record)) for record in runs[name]]
            axes.add_collection(
                LineCollection(thin, colors=colour, linewidths=0.7, alpha=0.35 * min(1, MANY / most), rasterized=heavy)
            )
            ends = [line[-1] for line, record in zip(thin, runs[name], strict=True) if record.status == "diverged"]
            axes.plot([x for x, _ in ends], [y for _, y in ends], "x", color=colour, markersize=4.5)
        if middle := middles[name]:
            every = max(1, len(middle[0]) // 8)
            axes.plot(
                *middle, color=colour, linestyle=dashes, linewidth=1.8, marker=mark(colour, dashes), markersize=5.5,
                markevery=(i % every, every), markeredgecolor="white", markeredgewidth=0.5, label=name,
            )  # fmt: skip
    for axes in places:
        for target in search.spec.training.targets:
            axes.axhline(target, color=GREY, linewidth=0.9, linestyle=":")
        axes.autoscale_view()
        axes.set_xlim(left=0)
        numbers(axes.xaxis, "count")
        numbers(axes.yaxis, "percent")
    label(figure, "gradient evaluations", f"validation {search.score}")
    if not crowded:
        legend(figure, [sample(name, *looks[name], mark(*looks[name])) for name in names])
    return Picture("convergence", _convergence_title(search, runs, confirmed, crowded), figure)


def _convergence_title(search: Search, runs: Mapping[str, list[TrialRecord]], confirmed: bool, crowded: bool) -> str:
    targets = ", ".join(f"{target_label(target)}%" for target in search.spec.training.targets)
    parts = [f"Validation {search.score} against gradient evaluations."]
    if confirmed:
        sizes = sorted({len(records) for records in runs.values() if records})
        n = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        parts.append(f"Lines are medians over confirmed runs of the best settings (n = {n} fresh seeds per variant).")
        parts.append("Bands reach from the smallest to the largest value.")
        if missing := [name for name, records in runs.items() if not records]:
            parts.append(f"Variants without confirmed runs are not drawn: {', '.join(missing)}.")
    else:
        finished = any(record.status == "finished" for records in runs.values() for record in records)
        drawn = "Thick lines are the trials whose settings are chosen, thin lines all trials"
        best = drawn if finished else "Thin lines are all trials, of which none finished"
        parts.append(f"No run is confirmed. {best}.")
    if any(record.status == "diverged" for records in runs.values() for record in records):
        parts.append(f"{'A run' if confirmed else 'A trial (cross)'} that diverged counts as 0% from there on.")
    if crowded:
        parts.append("Grey lines are the other variants.")
    return " ".join([*parts, f"Dotted lines are the targets, {targets}."])


def tuning_curves(search: Search) -> Picture | None:
    """The best objective by the number of rounds, with its band, of the variants whose median is known somewhere."""
    made = [curve for variant in search.variants if (curve := tuning_curve(search, variant.name))]
    found = [curve for curve in made if np.isfinite(curve.median).any()]
    if not found:
        return None
    looks = styles(variant.name for variant in search.variants)
    figure, places = panels([curve.variant for curve in found])
    for axes, curve in zip(places, found, strict=True):
        colour, _ = looks[curve.variant]
        axes.fill_between(curve.rounds, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)
        # With dots, as a line may have a single point.
        axes.plot(curve.rounds, curve.median, color=colour, linewidth=1.8, marker=".")
        axes.set_xscale("log")
        numbers(axes.xaxis, "log")
        objective_axis(search, axes, curve.variant)
    # A band without a bound would take the whole height.
    shown = np.concatenate([curve.median for curve in found])
    low, high = float(np.nanmin(shown)), float(np.nanmax(shown))
    margin = 0.15 * (high - low) or 0.1 * high or 0.1
    places[0].set_ylim(max(low - margin, 0.0), high + margin)
    label(figure, "number of rounds", goal(search))
    levels = " or ".join(sorted({f"{curve.level:.0%}" for curve in found}))
    legend(figure, [sample("median", dashes="-"), sample(f"{levels} band", PALE, marker="s")])
    title = (
        f"The best objective ({goal(search)}) by the number of rounds, of {random_settings(search)} each. Lines are "
        f"the median, in its simultaneous {levels} band (opda). A band that leaves the picture has no bound there."
    )
    if any(np.isnan(curve.median).any() for curve in made):
        title += " There is no line where the median is not known, because rounds ended before the variant's time."
    if absent := [curve.variant for curve in made if not np.isfinite(curve.median).any()]:
        title += f" It is known nowhere for {', '.join(absent)}."
    return Picture("tuning_curves", title + goal_note(search), figure)


def schedules(search: Search) -> Picture | None:
    """Learning rate, 1 - momentum and p of the winners, epoch by epoch, on one logarithmic axis.

    On that axis the critical schedule, 1 - momentum = 2 zeta sqrt(lr), has half the slope of its learning rate.
    """
    winners = {variant.name: _winner(search, variant.name) for variant in search.variants}
    found = {name: record for name, record in winners.items() if record}
    if not found:
        return None
    looks, lines = styles(winners), {name: _settings(record) for name, record in found.items()}
    drawn = np.concatenate([y for name in lines for y in lines[name].values()])
    # Two decades are enough for a learning rate that falls to 0.
    bottom = max(np.nanmin(drawn), min(record.spec.optimizer.lr.peak for record in found.values()) / 100)
    endless = {name for name, record in found.items() if math.inf in (metrics.p for metrics in record.history)}
    figure, places = panels([name + (" (p = ∞)" if name in endless else "") for name in found])
    places[0].set(yscale="log", ylim=(bottom / 1.6, 1.6 * np.nanmax(drawn)))
    for axes, (name, record) in zip(places, found.items(), strict=True):
        colour, epochs = looks[name][0], [metrics.epoch for metrics in record.history]
        for dashes, y in lines[name].items():
            every = max(1, len(y) // 8)
            axes.plot(epochs, y, color=colour, linestyle=dashes, linewidth=1.8, marker=".", markevery=every)
        numbers(axes.xaxis, "count")
        numbers(axes.yaxis, "log")
    label(figure, "epoch")
    steepest = any(":" in those for those in lines.values())
    entries = [sample("learning rate", dashes="-"), sample("1 − momentum", dashes="--")]
    legend(figure, [*entries, *([sample("p", dashes=":")] if steepest else [])])
    title = (
        "Schedules of the best settings: learning rate, 1 - momentum (for adamw and lion 1 - beta_1)"
        f"{' and, for l_p descent, p' if steepest else ''}, on one logarithmic axis. The values were logged at each "
        "evaluation."
    )
    return Picture("schedules", title, figure)


def profile(searches: Sequence[Search]) -> Picture | None:
    """Performance profile: the share of workloads on which a variant is within a factor of the fastest.

    None for a single search, too.
    """
    found = performance_profiles(searches)
    if len(searches) < 2 or not found:
        return None
    looks, crowded = styles(line.variant for line in found), len(found) > CROWD
    figure, places = panels([line.variant for line in found] if crowded else [""])
    stairs = [np.column_stack([np.repeat(p.factors, 2)[1:], np.repeat(p.shares, 2)[:-1]]) for p in found]
    for i, line in enumerate(found):
        axes, (colour, dashes) = places[i if crowded else 0], looks[line.variant]
        if crowded:
            axes.add_collection(LineCollection(stairs, colors=PALE, linewidths=0.7))
        rises = [0, *(np.flatnonzero(np.diff(line.shares)) + 1).tolist()]
        axes.plot(
            line.factors, line.shares, color=colour, linestyle=dashes, linewidth=1.8, drawstyle="steps-post",
            marker=mark(colour, dashes), markersize=5.5, markevery=rises,
        )  # fmt: skip
    for axes in places:
        axes.set_xscale("log")
        axes.set_ylim(-0.04, 1.06)
        numbers(axes.xaxis, "log")
        numbers(axes.yaxis, "percent")
    label(figure, "cost over that of the fastest variant", "share of workloads")
    if not crowded:
        legend(figure, [sample(line.variant, *looks[line.variant], mark(*looks[line.variant])) for line in found])
    title = (
        "Performance profile: share of the workloads on which a variant reached the target within this factor of the "
        f"gradient evaluations of the fastest one ({found[0].num_workloads} workloads)."
    )
    return Picture("profile", title, figure)


def _winner(search: Search, variant: str) -> TrialRecord | None:
    whole = (record for record in search.confirmed(variant).values() if record.status == "finished")
    return next(whole, None) or search.best(variant)


def _settings(record: TrialRecord) -> dict[str, Numbers]:
    """Dashes -> a setting at each evaluation, NaN if a logarithmic axis cannot show it."""
    rows = {"-": [m.lr for m in record.history], "--": [1 - m.momentum for m in record.history]}
    if record.spec.optimizer.rule == "lpsgd":
        rows[":"] = [m.p for m in record.history]
    return {dashes: np.array([y if 0 < y < math.inf else math.nan for y in row]) for dashes, row in rows.items()}


def _curve(record: TrialRecord) -> tuple[Numbers, Numbers]:
    spent = [float(metrics.gradient_evaluations) for metrics in record.history]
    return np.array(spent), np.array([0.0 if m.diverged else m.validation_accuracy for m in record.history])


def _band(runs: Sequence[TrialRecord]) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Gradient evaluations, median, smallest and largest score of runs with the same settings."""
    curves = [_curve(record) for record in runs]
    x = max((spent for spent, _ in curves), key=len)
    # A run that diverged ends at 0; np.interp holds that value for the rest.
    y = np.array([np.interp(x, *curve) for curve in curves])
    return x, np.median(y, axis=0), y.min(axis=0), y.max(axis=0)
