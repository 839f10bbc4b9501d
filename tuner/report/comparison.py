"""Time to target of each variant, and which differences are real.

There are two kinds of statements.  One about *a variant* needs the rounds of the race: it includes the luck of the
settings and of the seeds.  One about *these settings* needs the confirmed runs alone, with equal seeds as pairs.

A miss and a divergence cost inf in a median.  In a ratio they cost the least that they would have
(:mod:`tuner.report.costs`).  A training that failed or has not ended is no observation.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from tuner import race
from tuner.core.errors import unknown
from tuner.core.metrics import error_area
from tuner.report.costs import UNITS, Unit, bounded_costs, cost, one_evaluation, unit_of
from tuner.report.intervals import Interval, holm, median_interval, paired_ratio
from tuner.study.results import Search
from tuner.study.trial_record import Point, TrialRecord

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
    """A variant against a baseline: by the rounds of the race, and by the chosen settings of both.

    The rounds are of the objective, where "faster" means a better one.  The settings are compared in one unit to one
    target; below a ratio of 1, the variant is cheaper.  p-values and verdicts on settings are adjusted for all
    comparisons that were made together.
    """

    variant: str
    baseline: str
    target: float
    unit: Unit
    won: int
    """Rounds that the variant won against the baseline."""
    lost: int
    """Rounds that the baseline won."""
    share: tuple[float, float]
    """95% interval of the share of such rounds that the variant wins; it holds after any number of rounds."""
    evidence: float
    """Evidence that the variant is faster, or that it is slower, whichever is larger."""
    threshold: float
    """Evidence at which the difference is called."""
    verdict: Verdict
    """Verdict on the variants: decided where ``evidence`` is at least ``threshold``."""
    at_least: float
    """The largest factor, at least 1, by which the faster of the two is shown to be faster."""
    settings: Interval | None
    """Ratio of the chosen settings' costs by pairs of seeds; None if no run of a pair reached the target."""
    settings_p_value: float | None
    """p-value for these settings, Holm-adjusted."""
    num_settings: int
    """Comparisons of settings that it is adjusted for: those of variants that were to be confirmed."""
    settings_verdict: Verdict
    """Verdict on these settings: decided if settings_p_value <= .05, and ``settings`` is at 95% on one side of 1."""


def times(search: Search, point: Point = "best") -> list[Time]:
    """Time to each target in each unit, by variant; none for a variant without a confirmed run that ended."""
    rows = []
    for variant in search.variants:
        records = _observed(search.confirmed(variant.name, point)).values()
        for target in search.spec.training.targets if records else ():
            for unit in UNITS:
                costs = [cost(search, record, target, unit) for record in records]
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
    unit: Unit | None = None,
    target: float | None = None,
    baseline: str | None = None,
) -> list[Comparison]:
    """Compares every other variant with the baseline.

    With the search's own baseline, the evidence must be at least 2 (K - 1)/alpha, and any of these verdicts on variants
    is false with probability alpha at most.  With another one, chosen afterwards, it must be at least K (K - 1)/alpha,
    which holds for all pairs.

    The only variant that is left is the fastest, with the error rate of the race.  So its own comparisons need no more
    evidence than puts a variant out, whatever the baseline is.
    ``unit`` is that of ``--cost``, and ``target`` the highest target, unless given.
    Raises :class:`InvalidInput` if the search has no such variant.
    """
    against = baseline or search.baseline
    others = [variant.name for variant in search.variants if variant.name != against]
    return _compare(search, [(name, against) for name in others], unit, target, any_pair=against != search.baseline)


def compare_pairs(
    search: Search,
    pairs: Sequence[tuple[str, str]],
    unit: Unit | None = None,
    target: float | None = None,
) -> list[Comparison]:
    """Compares pairs of variants; the evidence must be at least K (K - 1)/alpha, which holds for all pairs at once.

    The comparisons of the only variant that is left need no more than puts a variant out, as in :func:`compare`.
    Raises :class:`InvalidInput` if the search has no such variant.
    """
    return _compare(search, pairs, unit, target, any_pair=True)


def tuned_against_default(search: Search, unit: Unit | None = None) -> dict[str, Interval | None]:
    """Variant -> cost of its best settings over cost of its default point, to the highest target, by pairs of seeds."""
    target, unit = search.spec.training.targets[-1], unit or unit_of(search)
    return {
        name: _paired(search, search.confirmed(name), search.confirmed(name, "default"), target, unit)
        for name in (variant.name for variant in search.variants)
    }


def ranking(search: Search) -> list[str]:
    """The names of the variants, the fastest first.

    Those that are left in the race come before those that are out, and among these the last one out comes first.  Then
    the order is by the median cost of the confirmed runs to the highest target, by the share of runs that reached it,
    by the mean area under the error curve, and by name.  Unconfirmed variants come last.
    """
    out = search.race.out

    def key(name: str) -> tuple[float, bool, float, float, float, str]:
        left = -out.get(name, math.inf)
        records = _observed(search.confirmed(name)).values()
        if not records:
            return (left, True, math.inf, 0.0, 0.0, name)
        costs = [cost(search, record, search.spec.training.targets[-1], unit_of(search)) for record in records]
        area = float(np.mean([error_area(record.history) for record in records]))
        return (left, False, float(np.median(costs)), -float(np.mean(np.isfinite(costs))), area, name)

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
    else:
        middle = "not reached" if interval.estimate == math.inf else _number(interval.estimate)
        ends = (
            f"≥{_number(interval.low)}"
            if interval.high == math.inf
            else f"{_number(interval.low)}, {_number(interval.high)}"
        )
        shown = f"{middle} [{ends}]" + (f" {unit.replace('_', ' ')}" if unit else "")
    return f"{shown} ({100 * interval.level:.0f}%)"


def _observed(records: Mapping[int, TrialRecord]) -> dict[int, TrialRecord]:
    return {k: record for k, record in records.items() if record.observed and record.history}


def _paired(
    search: Search,
    ours: Mapping[int, TrialRecord],
    theirs: Mapping[int, TrialRecord],
    target: float,
    unit: Unit,
) -> Interval | None:
    mine, others = _observed(ours), _observed(theirs)
    seeds = [k for k in mine if k in others]
    pairs = [(mine[k], others[k]) for k in seeds]
    if not any(math.isfinite(cost(search, run, target, unit)) for pair in pairs for run in pair):
        return None
    ours_costs, theirs_costs = zip(*(bounded_costs(search, pair, target, unit) for pair in pairs), strict=True)
    resolution = float(np.mean([one_evaluation(search, run, unit) for pair in pairs for run in pair]))
    return paired_ratio(ours_costs, theirs_costs, resolution=resolution)


def _compare(
    search: Search, pairs: Sequence[tuple[str, str]], unit: Unit | None, target: float | None, *, any_pair: bool
) -> list[Comparison]:
    unit = unit or unit_of(search)
    known = {variant.name for variant in search.variants}
    for name in {name for pair in pairs for name in pair}:
        if name not in known:
            raise unknown("variant", name, known)
    # Targets that are to be measured are not known at first; then there is no run of a pair either.
    goal = (search.spec.training.targets or (math.nan,))[-1] if target is None else target
    settings = [_paired(search, search.confirmed(i), search.confirmed(j), goal, unit) for i, j in pairs]
    adjusted = _adjusted({k: ratio for k, ratio in enumerate(settings) if _is_counted(search, *pairs[k], ratio)})
    made = []
    for k, ((i, j), ratio) in enumerate(zip(pairs, settings, strict=True)):
        p_value = None if ratio is None else adjusted[k]
        won, lost = (search.race.wins.get(pair, 0) for pair in ((i, j), (j, i)))
        threshold = search.race.sentence_threshold(i, j, any_pair=any_pair)
        if _is_decided_by_race(search, i, j):
            # Where one is left, that it is the fastest implies that it is faster than each other one.
            threshold = search.race.pair_threshold(i, j)
        evidence = race.evidence(max(won, lost), min(won, lost))
        decided = won != lost and evidence >= threshold
        faster, slower = (i, j) if won > lost else (j, i)
        made.append(
            Comparison(
                variant=i,
                baseline=j,
                target=goal,
                unit=unit,
                won=won,
                lost=lost,
                share=race.interval(won, lost),
                evidence=evidence,
                threshold=threshold,
                verdict=("faster" if won > lost else "slower") if decided else "undecided",
                at_least=search.race.at_least(faster, slower, threshold) if decided and search.race.timed else 1.0,
                settings=ratio,
                settings_p_value=p_value,
                num_settings=len(adjusted),
                settings_verdict=_verdict(p_value, ratio),
            )
        )
    return made


def _is_decided_by_race(search: Search, i: str, j: str) -> bool:
    left = search.race.left
    return len(left) == 1 and left[0] in (i, j) and not {i, j} & search.race.failed


def _is_counted(search: Search, i: str, j: str, ratio: Interval | None) -> bool:
    # A comparison whose runs all missed counts for the family.  One that is not made because a variant is out does not:
    # the race, which has other seeds, decided that.
    return ratio is not None or {i, j} <= set(search.refined)


def _adjusted(intervals: Mapping[int, Interval | None]) -> dict[int, float]:
    found = [1.0 if each is None or each.p_value is None else each.p_value for each in intervals.values()]
    return dict(zip(intervals, holm(found), strict=True))


def _verdict(p_value: float | None, interval: Interval | None) -> Verdict:
    if interval is None or p_value is None or p_value > ERROR or not interval.decided:
        return "undecided"
    return "faster" if interval.high < 1 else "slower" if interval.low > 1 else "undecided"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
