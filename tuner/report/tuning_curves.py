"""Tuning curves: the best objective as a function of the number of random trials, with bands (:mod:`.bands`).

The outcome of a trial that finished is its objective.  A trial that was stopped or diverged has the objective's worst
value as its outcome, because the search could not choose it.  So the best of n outcomes is the objective of the trial
that a search chooses after n trials.  A stopped trial counts for no more than it would have if it had continued.
Failed trials have no outcome.

The curve describes random search with these rungs and assumes that all trials are alike.  The first trials of a search
meet few others at the rungs, and more of them finish than later ones.  For them the curve is too pessimistic and its
band too narrow.  The curve therefore begins where the simulated coverage is at least the level.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.report.bands import NUM_SEARCHES, Policy, curves, level_of, simulated_coverage
from tuner.report.intervals import Interval
from tuner.study.objectives import OBJECTIVES, evaluate, rank
from tuner.study.results import Search, TrialRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningCurve:
    """A variant's best objective as a function of the number of random trials."""

    variant: str
    objective: str
    trials: NDArray[np.float64]
    """Numbers of random trials with an outcome, up to all R; from 1, or from the first for which the band holds."""
    median: NDArray[np.float64]
    """Median of the best objective: gradient evaluations (above the budget: a miss), accuracy in [0, 1], or area."""
    low: NDArray[np.float64]
    """Lower end of the simultaneous band; the smallest possible objective where the band has no bound."""
    high: NDArray[np.float64]
    """Upper end of the simultaneous band; the largest possible objective where the band has no bound."""
    level: float
    """Nominal level of the band: 0.95, or 0.8 for fewer than eight trials."""
    coverage: Interval
    """Share of simulated searches of this kind whose band held their policy's own curve at all of ``trials``."""
    approximate: bool
    """Whether ``coverage`` is below ``level`` wherever the curve begins."""
    model_trace: tuple[tuple[int, float], ...]
    """For each trial of the model arm: number of trials of all arms so far, and their best.  No band covers it."""

    @property
    def note(self) -> str:
        """How often bands of this kind hold, in one or two sentences; the first begins in lower case."""
        first, share = int(self.trials[0]), self.coverage
        text = (
            f"the {'approximate ' if self.approximate else ''}{self.level:.0%} band held in {share.estimate:.1%} "
            f"[{share.low:.1%}, {share.high:.1%}] of {NUM_SEARCHES:,} simulated searches of this kind."
        )
        return (
            text
            if first == 1
            else f"{text} It begins at {first} trials, because the first trials meet too few others at the rungs."
        )


def tuning_curve(search: Search, variant: str) -> TuningCurve | None:
    """The tuning curve of a variant's ended random trials; None for fewer than two trials or for two objectives."""
    objective, targets = search.spec.objective, search.spec.training.targets
    ended = [r for r in search.trials_of(variant) if r.ended and r.status != "failed" and r.history]
    draws = [record for record in ended if record.arm == "random"]
    if len(OBJECTIVES[objective]) > 1 or len(draws) < 2:
        return None
    goal = OBJECTIVES[objective][0]
    worst = goal.worst(draws[0].history)
    outcomes = [evaluate(objective, r.history, targets)[0] if r.status == "finished" else worst for r in draws]
    space = next(known for known in search.variants if known.name == variant)
    coverage = simulated_coverage(
        Policy(
            num_trials=len(draws),
            num_evaluations=max(len(record.history) for record in ended),
            objective=objective,
            rungs=search.spec.early_stopping,
            sobol=not space.when,
            dimension=max(1, len(space.searched)),
            diverging=sum(record.status == "diverged" for record in draws) / len(draws),
        )
    )
    before = (coverage.holds_from or 1) - 1
    low, median, high = curves(np.array(outcomes), worst, goal.direction == "minimize")[:, before:]
    return TuningCurve(
        variant=variant,
        objective=objective,
        trials=np.arange(before + 1.0, len(draws) + 1),
        median=median,
        low=low,
        high=high,
        level=level_of(len(draws)),
        coverage=coverage.share,
        approximate=coverage.holds_from is None,
        model_trace=_model_trace(search, ended),
    )


def _model_trace(search: Search, ended: list[TrialRecord]) -> tuple[tuple[int, float], ...]:
    objective, best, trace = search.spec.objective, None, []
    for record in ended:
        if record.status == "finished":
            value = evaluate(objective, record.history, search.spec.training.targets)
            best = value if best is None else min(best, value, key=lambda known: rank(objective, known))
        if record.arm == "model" and best is not None:
            trace.append((record.number + 1, best[0]))
    return tuple(trace)
