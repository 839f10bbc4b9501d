"""What a training costs to a target, in gradient evaluations, in epochs and in seconds.

Seconds are gradient evaluations times the variant's seconds for one.  With ``--cost seconds`` these are its timings';
otherwise they are the median over its trainings, which were measured beside other work of the search.

A miss and a divergence cost inf.  In a ratio they cost the least that they would have, see :func:`bounded_costs`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from tuner.core.metrics import time_to_target
from tuner.study.results import Search
from tuner.study.timings import timed, usual_seconds
from tuner.study.trial_record import TrialRecord

Unit: TypeAlias = Literal["epochs", "gradient_evaluations", "seconds"]
UNITS: tuple[Unit, ...] = get_args(Unit)
WORDS: dict[Unit, str] = {
    "epochs": "epochs",
    "gradient_evaluations": "gradient evaluations",
    "seconds": "seconds of training",
}
"""Unit -> its name in a sentence."""


def unit_of(search: Search) -> Unit:
    """The unit of the search's ``--cost``, in which its variants are compared."""
    return "seconds" if search.spec.cost == "seconds" else "gradient_evaluations"


def seconds_per_evaluation(search: Search, variant: str) -> float | None:
    """Seconds of one gradient evaluation of a variant; None if nothing of it was trained."""
    if (measured := search.seconds.get(variant)) is not None:
        return measured
    return usual_seconds([r.history for r in search.trainings() if r.variant == variant])


def timing_figures(search: Search, variant: str) -> list[float]:
    """Seconds per gradient evaluation by each timing of a variant that gave a figure."""
    ended = [record.history for record in search.timings() if record.variant == variant and record.observed]
    return [figure for history in ended if (figure := timed(history)) is not None]


def cost(search: Search, record: TrialRecord, target: float, unit: Unit) -> float:
    """Cost of a training to a target, above 0 and interpolated between evaluations; inf for a miss or a divergence."""
    reached = None if record.status == "diverged" else time_to_target(record.history, target)
    if reached is None:
        return math.inf
    if unit == "seconds":
        return reached.gradient_evaluations * one_evaluation(search, record, unit)
    return float(getattr(reached, unit))


def one_evaluation(search: Search, record: TrialRecord, unit: Unit) -> float:
    """What one gradient evaluation of a training costs in a unit, above 0."""
    if unit == "seconds":
        return seconds_per_evaluation(search, record.variant) or math.nan
    last = record.history[-1]
    return last.epoch / last.gradient_evaluations if unit == "epochs" else 1.0


def bounded_costs(search: Search, records: Sequence[TrialRecord], target: float, unit: Unit) -> list[float]:
    """As :func:`cost`, for trainings that are compared with each other; all are finite.

    All misses among them cost the same: one gradient evaluation past the budget, the largest of theirs, and no less
    than any of the others cost.  So a miss is never cheaper than a time, and two misses are equal, whatever the budgets
    are in seconds.
    """
    known = [cost(search, record, target, unit) for record in records]
    past = [
        one_evaluation(search, record, unit) * (record.history[-1].budget + 1)
        for record, found in zip(records, known, strict=True)
        if math.isinf(found)
    ]
    later = max([*past, *filter(math.isfinite, known)])
    return [later if math.isinf(found) else found for found in known]
