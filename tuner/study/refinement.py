"""Which settings of a variant are chosen: the best mean over a few seeds, not the luckiest training.

The best of many trainings with one seed each is mostly the luckiest.  So the best two are trained again with four
further seeds, the same for all of them, and the default point is always among them.  Only these seeds count: the first
training was selected for its luck.  In simulations of twelve kinds, the chosen settings are worse than the default
point by more than a tenth in at most 3.5% of cases; the luckiest of eight trainings is in up to 74%
(``benchmarks/calibration.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search_spaces import Variant
from tuner.core.search_spec import NUM_FINALISTS, NUM_REPEATS, SearchSpec
from tuner.study.objectives import choice_value, evaluate, rank
from tuner.study.trial_record import TrialRecord


@dataclass(frozen=True, slots=True)
class Candidate:
    """Settings that finished a training, and the trainings that repeat them."""

    trial: TrialRecord
    repeats: tuple[TrialRecord, ...]
    """Repeats that ended without failing."""
    num_ended: int
    """Repeats that ended, failed ones included."""
    value: float
    """Mean value of the repeats, or of the trial while there are none; the smallest is the best."""
    first: tuple[float, ...]
    """Key of the trial alone."""


def candidates(spec: SearchSpec, trials: Sequence[TrialRecord]) -> list[Candidate]:
    """The settings of these trials of one variant that finished a training of their own, by that training."""
    repeats: dict[int, list[TrialRecord]] = {}
    for record in trials:
        if record.repeats is not None and record.ended:
            repeats.setdefault(record.repeats, []).append(record)
    found = []
    for record in trials:
        # A finished trial whose log is missing has no known objective.
        if record.repeats is None and record.status == "finished" and record.history:
            ended = repeats.get(record.number, [])
            again = tuple(one for one in ended if one.observed and one.history)
            values = [choice_value(spec, one.status, one.history) for one in again or (record,)]
            first = rank(spec.objective, evaluate(spec.objective, record.history, spec.training.targets))
            found.append(Candidate(record, again, len(ended), math.fsum(values) / len(values), first))
    # The earliest of equals: a search that was resumed does not list its trials in their order.
    return sorted(found, key=lambda candidate: (candidate.first, candidate.trial.number))


def given_points(variant: Variant, num: int) -> dict[str, Mapping[str, Any]]:
    """Name -> point: the default point, and those enqueued points that fit into half of ``num`` trials."""
    default = variant.default_settings()
    points: dict[str, Mapping[str, Any]] = {"default": variant.default}
    points |= {name: point for name, point in variant.enqueued.items() if name != "default" and point != default}
    return dict(list(points.items())[: max(1, num // 2)])


def finalists(found: Sequence[Candidate]) -> list[Candidate]:
    """Those that are trained again: the best by their first training, and the default point."""
    chosen = list(found[:NUM_FINALISTS])
    return chosen + [c for c in found[NUM_FINALISTS:] if c.trial.place.get("point") == "default"]


def most_repeats(num_raced: int, num_settings: int) -> int:
    """Most trainings with further seeds, of a variant with so many trials in the race and settings tried after it.

    Trials of the race are candidates too.  The default point may be one more than the best few.
    """
    return NUM_REPEATS * min(num_raced + num_settings, NUM_FINALISTS + 1) if num_settings else 0


def best_candidate(found: Sequence[Candidate]) -> Candidate | None:
    """The best mean of those whose repeats have ended; before there is one, the best by its first training."""
    repeated = [candidate for candidate in found if candidate.num_ended >= NUM_REPEATS and candidate.repeats]
    return min(repeated, key=lambda candidate: candidate.value) if repeated else next(iter(found), None)
