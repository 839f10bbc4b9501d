"""How fast and how steadily a training converged, from its epochs.  All definitions are ours."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tuner.core.damping import DAMPING_CODES, damping_class
from tuner.core.trial_spec import TrialSpec

ACCURACY, R_SQUARED = "accuracy", "R^2"
"""Names of the scores of classification and of regression.  The fields below and MLflow call every score accuracy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimeToTarget:
    """When a training crosses a target.  All but ``epoch`` are interpolated between two evaluations."""

    epoch: int
    """Number of the first evaluated epoch at the target or above."""
    epochs: float
    gradient_evaluations: float
    steps: float
    seconds: float
    """Seconds of training, without evaluation and compilation."""


def time_to_target(history: Sequence[EpochMetrics], target: float) -> TimeToTarget | None:
    """When the validation accuracy first crosses ``target``; None if no epoch reaches it.

    With epoch k the first at the target or above, t is in gradient evaluations, replays included::

        t = g_{k-1} + (g_k - g_{k-1}) (target - a_{k-1}) / (a_k - a_{k-1}),   g_0 = 0,   a_0 = chance

    Epochs, steps and seconds are interpolated alike.  The accuracy between two evaluations is unknown; on a straight
    line between them, t has half the rounding error of an epoch's own count and ties seldom.  An epoch in which the
    training diverged does not count.  Source: ours.
    """
    for k, metrics in enumerate(history):
        if metrics.validation_accuracy >= target and not metrics.diverged:
            before = history[k - 1] if k else None
            start = before.validation_accuracy if before else metrics.chance
            rise = metrics.validation_accuracy - start
            # A target that guessing reaches counts the whole first leg.
            share = (target - start) / rise if rise > 0 and target > start else 1.0
            crossed = {
                name: (1 - share) * (getattr(before, name) if before else 0) + share * getattr(metrics, name)
                for name in ("gradient_evaluations", "steps", "seconds")
            }
            epochs = (1 - share) * (before.epoch if before else 0) + share * metrics.epoch
            return TimeToTarget(epoch=metrics.epoch, epochs=epochs, **crossed)
    return None


def best_accuracy(history: Sequence[EpochMetrics]) -> float:
    """Largest validation accuracy of the epochs that did not diverge; 0 if there are none."""
    return max((metrics.validation_accuracy for metrics in history if not metrics.diverged), default=0.0)


def error_area(history: Sequence[EpochMetrics]) -> float:
    """Area under the validation-error curve over the budget, in [0, 1]; smaller is better.

        area = sum_k (g_k - g_{k-1}) (1 - accuracy_k) / budget,   g_k: gradient evaluations after epoch k,  g_0 = 0

    Each epoch's error counts for the gradient evaluations spent in it.  A curve that is still running, or was stopped,
    has not spent its budget; its last error counts for the rest.  From a divergence on, the error is 1.
    """
    area, spent, error = 0.0, 0, 1.0
    for metrics in history:
        error = 1.0 if metrics.diverged else 1.0 - metrics.validation_accuracy
        area += (metrics.gradient_evaluations - spent) * error
        spent = metrics.gradient_evaluations
    budget = history[-1].budget if history else 1
    return (area + (budget - spent) * error) / budget


def is_finished(spec: TrialSpec, history: Sequence[EpochMetrics]) -> bool:
    """Whether a training that has reported these epochs has nothing left to do."""
    if not history:
        return False
    last = history[-1]
    reached = spec.stop_at_target and last.validation_accuracy >= spec.targets[-1]
    return last.diverged or reached or last.epoch >= spec.epochs or last.gradient_evaluations >= last.budget


def tail_std(history: Sequence[EpochMetrics]) -> float:
    """Standard deviation (n - 1) of the validation accuracy over the last fifth of the epochs, at least two of them.

    0 for a single epoch.
    """
    tail = [metrics.validation_accuracy for metrics in history[-max(2, math.ceil(len(history) / 5)) :]]
    return statistics.stdev(tail) if len(tail) > 1 else 0.0


def max_loss_jump(history: Sequence[EpochMetrics]) -> float:
    """Largest rise of the training loss from one epoch to the next; 0 if it never rises, inf if it diverged."""
    losses = [metrics.train_loss for metrics in history]
    rises = [after - before for before, after in itertools.pairwise(losses) if math.isfinite(before)]
    first = [math.inf] if losses and math.isinf(losses[0]) else []
    return max([0.0, *rises, *first])


def target_label(target: float) -> str:
    """A target as it is written in metric names: .9 -> ``90``, .925 -> ``92.5``."""
    return f"{100 * target:.6g}"


def epoch_metrics(metrics: EpochMetrics) -> dict[str, float]:
    """The metrics of one epoch under their MLflow names, without those that the training does not have.

    ``damping/class`` is -1 for underdamped, 0 for critically damped, 1 for overdamped
    (:func:`tuner.core.damping.damping_class`).
    ``curvature/top_over_mean`` is also left out if the mean is not positive.
    """
    some: dict[str, float] = {}
    if metrics.loading_seconds:
        some["speed/loading_share"] = metrics.loading_seconds / metrics.seconds
    if metrics.curvature_top is not None:
        some["curvature/top"] = metrics.curvature_top
        some["curvature/seconds"] = metrics.curvature_seconds
        if metrics.curvature_mean is not None and metrics.curvature_mean > 0:
            some["curvature/top_over_mean"] = metrics.curvature_top / metrics.curvature_mean
    if metrics.critical_lr is not None and metrics.lr_over_critical is not None:
        some["curvature/critical_lr"] = metrics.critical_lr
        some["curvature/lr_over_critical"] = metrics.lr_over_critical
        some["curvature/seconds"] = metrics.curvature_seconds
    if metrics.damping_ratio is not None:
        some["damping/ratio"] = metrics.damping_ratio
        some["damping/class"] = float(DAMPING_CODES[damping_class(metrics.damping_ratio)])
    return some | {
        "train/loss": metrics.train_loss,
        "train/accuracy": metrics.train_accuracy,
        "validation/loss": metrics.validation_loss,
        "validation/accuracy": metrics.validation_accuracy,
        "schedule/lr": metrics.lr,
        "schedule/momentum": metrics.momentum,
        "schedule/p": metrics.p,
        "speed/gradient_evaluations": float(metrics.gradient_evaluations),
        "speed/seconds": metrics.seconds,
        "speed/images_per_second": metrics.images_per_second,
    }


def speed_metrics(history: Sequence[EpochMetrics], targets: Sequence[float]) -> dict[str, float]:
    """The final metrics of a training under their MLflow names; a missed target has no entry.

    The epochs to a target are those of the evaluation that reached it; the other times are interpolated.
    """
    summary = {
        "speed/auc": error_area(history),
        "speed/best_accuracy": best_accuracy(history),
        "stability/tail_std": tail_std(history),
        "stability/max_loss_jump": max_loss_jump(history),
    }
    for target in targets:
        reached = time_to_target(history, target)
        if reached:
            label = target_label(target)
            summary[f"speed/epochs_to_{label}"] = float(reached.epoch)
            summary[f"speed/gradient_evaluations_to_{label}"] = reached.gradient_evaluations
            summary[f"speed/seconds_to_{label}"] = reached.seconds
    return summary


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """The metrics of one evaluation; counts and seconds are totals since the start of the training.

    There is one evaluation per epoch, unless ``order.interval`` asks for fewer.
    """

    epoch: int
    """Number of whole epochs that ``steps`` make, at least 1."""
    gradient_evaluations: int
    """Batches sent forward and backward so far, replays included; the training ends when they reach the budget."""
    steps: int
    """Updates that led to the current weights, at most ``gradient_evaluations``."""
    budget: int
    """Planned gradient evaluations of the whole training."""
    train_loss: float
    """Mean training loss (for images, cross-entropy) over the batches since the previous evaluation, as augmented; inf
    if it diverged."""
    train_accuracy: float
    """The task's score, in [0, 1], over this epoch's training samples as augmented: for classification the share that
    was classified correctly, for regression R^2."""
    validation_loss: float
    """Mean loss over the validation split; inf if it is not finite."""
    validation_accuracy: float
    """The task's score on the validation split in evaluation mode, in [0, 1]: accuracy, R^2 or a user's own."""
    lr: float
    """Learning rate of the newest batch's step."""
    momentum: float
    """Momentum of the newest batch's step."""
    p: float
    """The l_p norm's p in the newest batch's step, at least 2."""
    seconds: float
    """Seconds of training so far, without evaluation and compilation."""
    evaluation_seconds: float
    """Seconds of evaluation so far."""
    compile_seconds: float
    """Seconds of compilation and warm-up so far."""
    loading_seconds: float
    """Part of ``seconds`` spent waiting for data."""
    images_per_second: float
    """Training images of this epoch, divided by its seconds."""
    diverged: bool
    """Whether the training ended here: a loss was not finite, or the training loss was above ``max_loss``."""
    finished_at: float
    """Wall clock at the end of the epoch, seconds since 1970."""
    chance: float = 0.0
    """Score of guessing, in [0, 1): 1 / number of classes for accuracy, 0 for other scores."""
    curvature_top: float | None = None
    """Largest eigenvalue of the loss's Hessian on a fixed batch, by the newest estimate; None if there is none."""
    curvature_mean: float | None = None
    """Mean eigenvalue of the loss's Hessian on that fixed batch, by the newest estimate; None if there is none."""
    curvature_seconds: float = 0.0
    """Seconds of curvature estimates so far; they count neither as training nor as evaluation."""
    critical_lr: float | None = None
    """Smallest ``lr.peak`` at which the training is predicted to diverge; None without a prediction."""
    lr_over_critical: float | None = None
    """``lr.peak`` divided by ``critical_lr``; None without a prediction."""
    damping_ratio: float | None = None
    """:func:`tuner.core.damping.damping_ratio` at ``curvature_top``; None without an estimate, for rules other than
    ``sgd``, and with Nesterov's step."""


@dataclass(frozen=True, slots=True)
class FinalScore:
    """The score of a training's final weights on the test split."""

    loss: float
    """Mean loss on the test split; for images, cross-entropy."""
    accuracy: float
    """The task's score on the test split, in [0, 1]: accuracy, R^2 or a user's own."""
    data: str
    """Digest of the data and its splits."""
