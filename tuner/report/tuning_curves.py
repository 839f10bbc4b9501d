"""Tuning curves: the best objective as a function of the number of rounds, with bands (:mod:`.bands`).

The outcome of a round is the best objective of the variant's random settings in it.  Rounds are independent and alike,
so the bands hold for any number of rounds that is fixed beforehand.

The outcome is not known where the round ended before the variant reached the target.  It may then be anything from the
time at which the round ended to the worst.  The band holds for all of that, and the median is known where it does not
depend on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.report.bands import curves, level_of
from tuner.study.objectives import OBJECTIVES
from tuner.study.results import Search


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningCurve:
    """A variant's best objective as a function of the number of rounds."""

    variant: str
    objective: str
    rounds: NDArray[np.float64]
    """Numbers of rounds, from 1 to all that the variant was in."""
    median: NDArray[np.float64]
    """Median of the best objective: time in the unit of ``--cost`` (above the budget: a miss), accuracy in [0, 1], or
    area.

    It is NaN where it is not known.
    """
    low: NDArray[np.float64]
    """Lower end of the simultaneous band; the smallest possible objective where the band has no bound."""
    high: NDArray[np.float64]
    """Upper end of the simultaneous band; the largest possible objective where the band has no bound."""
    level: float
    """Level of the band: 0.95, or 0.8 for fewer than eight rounds."""


def tuning_curve(search: Search, variant: str) -> TuningCurve | None:
    """The tuning curve of a variant over its counted rounds; None for fewer than two."""
    rounds = [one for one in search.race.rounds if variant in one.results]
    times = [one.results[variant] for one in rounds]
    trained = next((record for record in search.trials_of(variant) if record.history), None)
    if len(times) < 2 or trained is None:
        return None
    goal = OBJECTIVES[search.spec.objective][0]
    minimize = goal.direction == "minimize"
    worst = goal.worst(trained.history) * search.cost_of_evaluation(variant)
    # The race minimizes; an objective that is maximized has the opposite sign there.
    outcomes = [worst if math.isinf(time) else time if minimize else -time for time in times]
    # Only time to target is watched to an end, and there the smallest is the best.
    at_best = [
        min(outcome, one.end) if math.isinf(one.results[variant]) else outcome
        for outcome, one in zip(outcomes, rounds, strict=True)
    ]
    low, best, _ = curves(np.array(at_best), worst, minimize)
    _, median, high = curves(np.array(outcomes), worst, minimize)
    return TuningCurve(
        variant=variant,
        objective=search.spec.objective,
        rounds=np.arange(1.0, len(times) + 1),
        median=np.where(best == median, median, np.nan),
        low=low,
        high=high,
        level=level_of(len(times)),
    )
