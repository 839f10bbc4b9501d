"""Objectives: finite, ordered, in the study's direction, and the same while a trial runs as at its end."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import Objective
from tuner.study.objectives import OBJECTIVES, evaluate, gradient_evaluations_to_target, rank

Epoch = Callable[..., EpochMetrics]
TARGETS = (0.5, 0.8)
ALL: tuple[Objective, ...] = ("time-to-target", "accuracy", "auc", "pareto")


@pytest.fixture
def curves(epoch: Epoch) -> list[list[EpochMetrics]]:
    """A hundred curves of ten epochs, of many heights."""
    rng = np.random.default_rng(0)
    heights = rng.uniform(0.05, 1.0, 100)
    return [[epoch(k, float(h * rng.uniform(0.5, 1.0))) for k in range(1, 11)] for h in heights]


def test_a_hit_is_the_gradient_evaluations_of_the_first_epoch_at_the_highest_target(epoch: Epoch) -> None:
    history = [epoch(1, 0.6), epoch(2, 0.8), epoch(3, 0.2), epoch(4, 0.9)]
    assert gradient_evaluations_to_target(history, TARGETS) == 20
    assert gradient_evaluations_to_target(history, (0.5,)) == 10


def test_misses_lie_above_all_hits_and_are_ordered_by_how_near_they_came(
    curves: list[list[EpochMetrics]], epoch: Epoch
) -> None:
    hits = [c for c in curves if max(m.validation_accuracy for m in c) >= TARGETS[-1]]
    misses = [c for c in curves if c not in hits]
    assert len(hits) > 10 and len(misses) > 10
    latest_hit = [*(epoch(k, 0.1) for k in range(1, 10)), epoch(10, TARGETS[-1])]
    assert evaluate("time-to-target", latest_hit, TARGETS) == (100.0,)
    values = {id(c): evaluate("time-to-target", c, TARGETS)[0] for c in curves}
    assert max(values[id(c)] for c in hits) <= 100 < min(values[id(c)] for c in misses)
    by_accuracy = sorted(misses, key=lambda c: -max(m.validation_accuracy for m in c))
    assert [values[id(c)] for c in by_accuracy] == sorted(values[id(c)] for c in misses)


@pytest.mark.parametrize("objective", ALL)
def test_a_divergence_is_finite_and_at_least_as_bad_as_every_curve(
    curves: list[list[EpochMetrics]], epoch: Epoch, objective: Objective
) -> None:
    diverged = [epoch(1, 0.95), epoch(2, 0.99, diverged=True, train_loss=math.inf, validation_loss=math.nan)]
    worst = evaluate(objective, diverged, TARGETS)
    assert all(map(math.isfinite, worst))
    hopeless = [epoch(k, 0.0) for k in range(1, 11)]
    for curve in [*curves, hopeless]:
        for goal, bad, value in zip(OBJECTIVES[objective], worst, evaluate(objective, curve, TARGETS), strict=True):
            assert bad >= value if goal.direction == "minimize" else bad <= value


@pytest.mark.parametrize("objective", ALL)
def test_values_are_finite_after_every_epoch(curves: list[list[EpochMetrics]], objective: Objective) -> None:
    for curve in curves:
        for length in range(1, 11):
            values = evaluate(objective, curve[:length], TARGETS)
            assert len(values) == len(OBJECTIVES[objective])
            assert all(map(math.isfinite, values))


def test_a_running_curve_that_hit_has_its_final_value(curves: list[list[EpochMetrics]]) -> None:
    for curve in curves:
        final = evaluate("time-to-target", curve, TARGETS)[0]
        for length in range(1, 11):
            running = evaluate("time-to-target", curve[:length], TARGETS)[0]
            assert running >= final, "more epochs never make it worse"
            if running <= 100:
                assert running == final


def test_the_area_fills_what_is_left_with_the_last_error(epoch: Epoch) -> None:
    stopped = [epoch(1, 0.4), epoch(2, 0.8)]
    finished = [*stopped, *(epoch(k, 0.8) for k in range(3, 11))]
    assert evaluate("auc", stopped, TARGETS) == pytest.approx(evaluate("auc", finished, TARGETS))
    assert evaluate("auc", finished, TARGETS)[0] == pytest.approx((0.6 + 9 * 0.2) / 10)


def test_accuracy_is_that_of_the_last_epoch(epoch: Epoch) -> None:
    assert evaluate("accuracy", [epoch(1, 0.9), epoch(2, 0.3)], TARGETS) == (0.3,)


def test_pareto_is_time_to_target_and_accuracy() -> None:
    assert OBJECTIVES["pareto"] == OBJECTIVES["time-to-target"] + OBJECTIVES["accuracy"]
    assert [goal.direction for goal in OBJECTIVES["pareto"]] == ["minimize", "maximize"]


@pytest.mark.parametrize(
    ("objective", "best_first"),
    [
        ("time-to-target", [(10.0,), (20.0,), (120.0,)]),
        ("accuracy", [(0.9,), (0.5,), (0.0,)]),
        ("auc", [(0.1,), (0.2,), (1.0,)]),
        ("pareto", [(10.0, 0.5), (20.0, 0.9), (20.0, 0.8)]),
    ],
)
def test_rank_sorts_the_best_first(objective: Objective, best_first: list[tuple[float, ...]]) -> None:
    assert sorted(reversed(best_first), key=lambda values: rank(objective, values)) == best_first
