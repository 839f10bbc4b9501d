"""What a search optimizes: a number for each curve, finished or still running.

The value of a running trial is the one that it would have if it ended now.  So Optuna can compare stopped trials in the
study's own direction.  All definitions are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tuner.core.metrics import EpochMetrics, best_accuracy, error_area, time_to_target
from tuner.core.search_spec import Objective, SearchSpec

Direction: TypeAlias = Literal["minimize", "maximize"]
Curve: TypeAlias = Sequence[EpochMetrics]


def gradient_evaluations_to_target(history: Curve, targets: Sequence[float]) -> float:
    """Gradient evaluations to the highest target.

    A curve that misses the target has ``budget (1 + target - best accuracy)``.  This is above every hit, and the
    smaller, the nearer the curve came.
    """
    reached = time_to_target(history, targets[-1])
    if reached:
        return reached.gradient_evaluations
    return history[-1].budget * (1.0 + targets[-1] - best_accuracy(history))


def final_accuracy(history: Curve, targets: Sequence[float]) -> float:
    """Validation accuracy of the last epoch."""
    return history[-1].validation_accuracy


@dataclass(frozen=True, slots=True)
class Goal:
    """A direction, a value of a curve, and the worst value of a curve, which a divergence has."""

    direction: Direction
    value: Callable[[Curve, Sequence[float]], float]
    worst: Callable[[Curve], float]


TIME_TO_TARGET = Goal("minimize", gradient_evaluations_to_target, lambda history: 2.0 * history[-1].budget)
ACCURACY = Goal("maximize", final_accuracy, lambda history: 0.0)
AUC = Goal("minimize", lambda history, targets: error_area(history), lambda history: 1.0)

OBJECTIVES: dict[Objective, tuple[Goal, ...]] = {
    "time-to-target": (TIME_TO_TARGET,),
    "accuracy": (ACCURACY,),
    "auc": (AUC,),
    "pareto": (TIME_TO_TARGET, ACCURACY),
}


def evaluate(objective: Objective, history: Curve, targets: Sequence[float]) -> tuple[float, ...]:
    """The objective's values, all finite; a training that diverged has the worst ones."""
    return tuple(
        goal.worst(history) if history[-1].diverged else goal.value(history, targets) for goal in OBJECTIVES[objective]
    )


def rank(objective: Objective, values: Sequence[float]) -> tuple[float, ...]:
    """A key that sorts the best first; the second goal only decides between equals in the first."""
    return tuple(
        value if goal.direction == "minimize" else -value
        for goal, value in zip(OBJECTIVES[objective], values, strict=True)
    )


def race_time(objective: Objective, status: str, history: Curve, targets: Sequence[float]) -> float:
    """What a training counts with in a round of the race; the smallest wins.

    For time to target, its gradient evaluations to the highest target, inf for a miss; for the other objectives, its
    value, or minus its value where the largest is the best.  There, a training that did not finish has inf.
    """
    if not history or status == "failed":
        return math.inf
    if objective == "time-to-target":
        # One that would have diverged later has ended at the target, unless early stopping is off.
        reached = time_to_target(history, targets[-1])
        return reached.gradient_evaluations if reached else math.inf
    return rank(objective, evaluate(objective, history, targets))[0] if status == "finished" else math.inf


def choice_value(spec: SearchSpec, status: str, history: Curve) -> float:
    """What settings are chosen by; the smallest mean over seeds is the best.

    For time to target, the logarithm of the gradient evaluations to the highest target, of one past the budget for a
    miss; else as in a race, with the objective's worst for a divergence.
    """
    if spec.objective in ("time-to-target", "pareto"):
        time = race_time("time-to-target", status, history, spec.training.targets)
        return math.log(min(time, history[-1].budget + 1))
    return rank(spec.objective, evaluate(spec.objective, history, spec.training.targets))[0]
