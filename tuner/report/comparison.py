"""Time to target of each variant, and which differences are real.

There are two kinds of statements.  One about *these settings* needs the confirmed runs alone, with equal seeds as
pairs.  One about *a variant* includes the luck of its search and needs the random arms as well.  A miss and a
divergence cost inf, and so does a trial of an arm that was stopped.  A training that failed or has not ended is no
observation.

The trials of a random arm are not quite independent: they cover the space evenly, and rungs stop some in favour of
others.  In simulations with both effects, two names of one variant are called different in 0 of 400 searches.  A
variant of twice the speed is found in 91% of searches of 32 trials and in 8% of searches of 8
(``benchmarks/calibration.py``).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from tuner.core.errors import unknown
from tuner.core.metrics import error_area, time_to_target
from tuner.report.intervals import Interval, holm, median_interval, paired_ratio, search_ratio
from tuner.study.results import Point, Search, TrialRecord

Unit: TypeAlias = Literal["epochs", "gradient_evaluations", "seconds"]
UNITS: tuple[Unit, ...] = get_args(Unit)
Verdict: TypeAlias = Literal["faster", "slower", "undecided"]
ERROR = 0.05
"""Largest adjusted p-value at which a difference is called."""


@dataclass(frozen=True, slots=True)
class Time:
    """The cost of one of a variant's points to a target."""

    variant: str
    point: Point
    target: float
    unit: Unit
    interval: Interval
    """Median over the confirmed runs that ended without failing; inf where it is censored."""
    reached: int
    """Runs that reached the target, in 0..num_seeds."""
    num_seeds: int
    """Runs that ended without failing."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against a baseline, to one target in one unit.  Below a ratio of 1, the variant is cheaper.

    Intervals are of one comparison, at 95% where possible.  p-values and verdicts are adjusted for all comparisons that
    were made together.
    """

    variant: str
    baseline: str
    target: float
    unit: Unit
    settings: Interval | None
    """Ratio of the best settings' costs by pairs of seeds; None if no run of a pair reached the target."""
    search: Interval | None
    """Ratio of the random arms' costs, with the luck of both searches; None if no trial reached the target."""
    whole: Interval | None
    """Hull of ``settings`` and ``search`` around the estimate of ``settings``: the ratio of the variants."""
    p_value: float | None
    """p-value for the variants: the larger one of ``settings`` and ``search``, Holm-adjusted."""
    verdict: Verdict
    """Verdict on the variants: decided if p_value <= .05, and both intervals hold at 95% on the same side of 1."""
    settings_p_value: float | None
    """p-value for these settings, Holm-adjusted."""
    settings_verdict: Verdict
    """Verdict on these settings: decided if settings_p_value <= .05, and ``settings`` is at 95% on one side of 1."""


def times(search: Search, point: Point = "best") -> list[Time]:
    """Time to each target in each unit, by variant; none for a variant without a confirmed run that ended."""
    rows = []
    for variant in search.variants:
        records = _observed(search.confirmed(variant.name, point)).values()
        for target in search.spec.training.targets if records else ():
            for unit in UNITS:
                costs = [cost(record, target, unit) for record in records]
                reached = sum(map(math.isfinite, costs))
                rows.append(Time(variant.name, point, target, unit, median_interval(costs), reached, len(costs)))
    return rows


def write_csv(search: Search, path: Path) -> None:
    """Writes the times of the best settings as CSV, with ``inf`` where a median or an end is censored."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "target", "unit", "median", "low", "high", "level", "reached", "num_seeds"])
        for time in times(search):
            interval = time.interval
            numbers = interval.estimate, interval.low, interval.high, interval.level
            writer.writerow([time.variant, time.target, time.unit, *numbers, time.reached, time.num_seeds])


def compare(
    search: Search,
    unit: Unit = "gradient_evaluations",
    target: float | None = None,
    baseline: str | None = None,
) -> list[Comparison]:
    """Compares every other variant with the baseline; p-values are adjusted over these comparisons.

    ``target`` is the highest target and ``baseline`` the search's own unless given.  Raises :class:`InvalidInput` if
    the search has no such variant.
    """
    against = baseline or search.baseline
    others = [variant.name for variant in search.variants if variant.name != against]
    return _compare(search, others, against, unit, target)


def compare_pair(
    search: Search,
    variant: str,
    baseline: str,
    unit: Unit = "gradient_evaluations",
    target: float | None = None,
) -> Comparison:
    """One comparison that was planned from the start, such as a claim against its control: without adjustment.

    Raises :class:`InvalidInput` if the search has no such variant.
    """
    return _compare(search, [variant], baseline, unit, target)[0]


def tuned_against_default(search: Search, unit: Unit = "gradient_evaluations") -> dict[str, Interval | None]:
    """Variant -> cost of its best settings over cost of its default point, to the highest target, by pairs of seeds."""
    target = search.spec.training.targets[-1]
    return {
        name: _paired(search.confirmed(name), search.confirmed(name, "default"), target, unit)
        for name in (variant.name for variant in search.variants)
    }


def ranking(search: Search) -> list[str]:
    """The names of the variants, the fastest first.

    They are ordered by the median gradient evaluations to the highest target, then by the share of runs that reached
    it, by the mean area under the error curve, and by name.  Unconfirmed variants come last.
    """

    def key(name: str) -> tuple[bool, float, float, float, str]:
        records = _observed(search.confirmed(name)).values()
        if not records:
            return (True, math.inf, 0.0, 0.0, name)
        costs = [cost(record, search.spec.training.targets[-1], "gradient_evaluations") for record in records]
        area = float(np.mean([error_area(record.history) for record in records]))
        return (False, float(np.median(costs)), -float(np.mean(np.isfinite(costs))), area, name)

    return sorted((variant.name for variant in search.variants), key=key)


def describe(interval: Interval, unit: str = "") -> str:
    """An interval in words, such as ``64 [48, 80] epochs (97%)``.

    It is ``64 [≥48] (97%)`` if the upper end is censored, ``not reached [≥160] (97%)`` if the median is censored, too,
    and ``not reached (97%)`` if the whole interval is.
    """
    if interval.low == math.inf:
        shown = "not reached"
    elif (interval.low, interval.high) == (0, math.inf):
        shown = "any"
    elif interval.high == 0:  # a ratio to a miss: how much cheaper is not known
        shown = "reached it alone"
    else:
        middle = "not reached" if interval.estimate == math.inf else _number(interval.estimate)
        ends = (
            f"≥{_number(interval.low)}"
            if interval.high == math.inf
            else f"{_number(interval.low)}, {_number(interval.high)}"
        )
        shown = f"{middle} [{ends}]" + (f" {unit.replace('_', ' ')}" if unit else "")
    return f"{shown} ({100 * interval.level:.0f}%)"


def cost(record: TrialRecord, target: float, unit: Unit) -> float:
    """Cost of a training to a target, above 0; inf if it missed the target, was stopped before it, or ever diverged."""
    reached = None if record.status == "diverged" else time_to_target(record.history, target)
    return float(getattr(reached, unit)) if reached else math.inf


def _observed(records: Mapping[int, TrialRecord]) -> dict[int, TrialRecord]:
    return {k: record for k, record in records.items() if record.observed}


def _paired(
    ours: Mapping[int, TrialRecord], theirs: Mapping[int, TrialRecord], target: float, unit: Unit
) -> Interval | None:
    mine, others = _observed(ours), _observed(theirs)
    seeds = [k for k in mine if k in others]
    ours_costs, theirs_costs = ([cost(runs[k], target, unit) for k in seeds] for runs in (mine, others))
    return paired_ratio(ours_costs, theirs_costs) if np.isfinite([*ours_costs, *theirs_costs]).any() else None


def _searched(search: Search, variant: str, baseline: str, target: float, unit: Unit) -> Interval | None:
    # Neither the model's trials nor the enqueued points are independent draws.
    arms = ({r.number: r for r in search.trials_of(name) if r.arm == "random"} for name in (variant, baseline))
    ours, theirs = ([cost(record, target, unit) for record in _observed(arm).values()] for arm in arms)
    return search_ratio(ours, theirs) if ours and theirs and np.isfinite([*ours, *theirs]).any() else None


def _compare(search: Search, variants: list[str], baseline: str, unit: Unit, target: float | None) -> list[Comparison]:
    known = {variant.name for variant in search.variants}
    for name in (baseline, *variants):
        if name not in known:
            raise unknown("variant", name, known)
    goal = search.spec.training.targets[-1] if target is None else target
    settings = [_paired(search.confirmed(name), search.confirmed(baseline), goal, unit) for name in variants]
    searches = [_searched(search, name, baseline, goal, unit) for name in variants]
    wholes = [_hull(a, b) if a and b else None for a, b in zip(settings, searches, strict=True)]
    adjusted, adjusted_settings = (_adjusted(intervals) for intervals in (wholes, settings))
    return [
        Comparison(
            variant=name,
            baseline=baseline,
            target=goal,
            unit=unit,
            settings=settings[i],
            search=searches[i],
            whole=wholes[i],
            p_value=adjusted[i],
            verdict=_verdict(adjusted[i], settings[i], searches[i]),
            settings_p_value=adjusted_settings[i],
            settings_verdict=_verdict(adjusted_settings[i], settings[i]),
        )
        for i, name in enumerate(variants)
    ]


def _hull(settings: Interval, search: Interval) -> Interval:
    assert settings.p_value is not None and search.p_value is not None
    return Interval(
        settings.estimate,
        min(settings.low, search.low),
        max(settings.high, search.high),
        min(settings.level, search.level),
        f"{settings.method}; {search.method}",
        max(settings.p_value, search.p_value),
    )


def _adjusted(intervals: list[Interval | None]) -> list[float | None]:
    # A comparison without data still counts for the family.
    found = [1.0 if interval is None or interval.p_value is None else interval.p_value for interval in intervals]
    return [None if interval is None else p for interval, p in zip(intervals, holm(found), strict=True)]


def _verdict(p_value: float | None, *intervals: Interval | None) -> Verdict:
    if p_value is None or p_value > ERROR or not all(interval and interval.decided for interval in intervals):
        return "undecided"
    if all(interval and interval.high < 1 for interval in intervals):
        return "faster"
    return "slower" if all(interval and interval.low > 1 for interval in intervals) else "undecided"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
