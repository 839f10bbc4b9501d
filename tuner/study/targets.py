"""Targets that mean something: what the baseline's default point reaches within the budget."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from tuner.core.metrics import EpochMetrics
from tuner.core.trial_spec import USUAL_TARGETS

NUM_PILOTS = 3
"""Trainings of the default point, each with a seed of its own, by which targets are set."""
SHARES = (1 / 3, 4 / 5)
"""Shares of the budget at which their accuracies are taken."""


def measured_targets(histories: Sequence[Sequence[EpochMetrics]]) -> tuple[float, ...]:
    """The median accuracy of trainings at each of :data:`SHARES` of the budget, rounded down to a whole percent.

    A training's accuracy at a share is the best that it has reached by then, on straight lines between evaluations.
    Equal targets become one.  They are at least 1% and at most 99%.  Without a training, they are the usual ones.
    Source: ours.
    """
    if not any(histories):
        return USUAL_TARGETS
    found = (statistics.median(_reached(history, share) for history in histories if history) for share in SHARES)
    # A sum of floats such as 0.57 may be just below its percent.
    percents = {min(max(math.floor(100 * accuracy + 1e-9), 1), 99) for accuracy in found}
    return tuple(percent / 100 for percent in sorted(percents))


def _reached(history: Sequence[EpochMetrics], share: float) -> float:
    spent = [0.0, *(float(metrics.gradient_evaluations) for metrics in history)]
    best, accuracies = history[0].chance, [history[0].chance]
    for metrics in history:
        best = max(best, 0.0 if metrics.diverged else metrics.validation_accuracy)
        accuracies.append(best)
    return float(np.interp(share * history[-1].budget, spent, accuracies))
