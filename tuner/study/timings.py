"""Seconds per gradient evaluation of a variant: what short trainings of its default point take, alone on their device.

A timing is a whole training in few epochs, so that every schedule runs its whole course.  Its figure is

    (s_last - s_1) / (g_last - g_1),    s_k, g_k: seconds of training and gradient evaluations after evaluation k

The first evaluation is left out, because the first steps of a process take longer.  Source: ours.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tuner.core.metrics import EpochMetrics

NUM_TIMINGS, NUM_SPARE = 3, 2
"""Timings of each variant whose median counts, and further ones in place of those that give no figure."""
LEAST_COUNTED = 100
"""Least gradient evaluations of a timing after its first epoch: a rule may do work in one step of many (ours)."""


def timing_epochs(steps_per_epoch: int) -> int:
    """Epochs of a timing, at least 2; ``steps_per_epoch`` is at least 1."""
    return 1 + math.ceil(LEAST_COUNTED / steps_per_epoch)


def timed(history: Sequence[EpochMetrics]) -> float | None:
    """Seconds per gradient evaluation of one training.

    A training with a single evaluation, as backward phases may have, counts whole.  An epoch that diverged does not
    count.  None if nothing is left.
    """
    steady = [metrics for metrics in history if not metrics.diverged]
    if not steady:
        return None
    first, last = steady[0], steady[-1]
    if len(history) == 1:
        return last.seconds / last.gradient_evaluations
    counted = last.gradient_evaluations - first.gradient_evaluations
    return (last.seconds - first.seconds) / counted if counted else None


def measured_seconds(histories: Sequence[Sequence[EpochMetrics]]) -> float | None:
    """The median figure of timings; None if none of them gives one."""
    figures = [figure for history in histories if (figure := timed(history)) is not None]
    return statistics.median(figures) if figures else None


def usual_seconds(histories: Sequence[Sequence[EpochMetrics]]) -> float | None:
    """The median over trainings of all their seconds per gradient evaluation; None without a training."""
    spent = [history[-1] for history in histories if history]
    return statistics.median(last.seconds / last.gradient_evaluations for last in spent) if spent else None
