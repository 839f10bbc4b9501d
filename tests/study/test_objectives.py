"""Objectives: finite, ordered, in the study's direction, and the same while a trial runs as at its end."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import Objective
from tuner.study.objectives import OBJECTIVES, evaluate, gradient_evaluations_to_target, race_time, rank

Epoch = Callable[..., EpochMetrics]
TARGETS = (0.5, 0.8)
ALL: tuple[Objective, ...] = ("time-to-target", "accuracy", "auc", "pareto")


@pytest.fixture
def curves(epoch: Epoch) -> list[list[EpochMetrics]]:
    """A hundred curves of ten epochs, of many heights."""
    rng = np.random.default_rng(0)
    heights = rng.uniform(0.05, 1.0, 100)
    return [[epoch(k, float(h * rng.uniform(0.5, 1.0))) for k in range(1, 11)] for h in heights]


def test_a_hit_is_the_gradient_evaluations_at_which_the_highest_target_is_crossed(epoch: Epoch) -> None:
    history = [epoch(1, 0.6, chance=0.1), epoch(2, 0.9), epoch(3, 0.2), epoch(4, 0.9)]
    assert gradient_evaluations_to_target(history, TARGETS) == pytest.approx(10 + 10 * 2 / 3)
    assert gradient_evaluations_to_target(history, (0.5,)) == pytest.approx(10 * 4 / 5)


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


@pytest.mark.parametrize("objective", ALL)
def test_the_smaller_the_time_in_a_race_the_better_the_curve(
    curves: list[list[EpochMetrics]], objective: Objective
) -> None:
    times = [race_time(objective, "finished", curve, TARGETS) for curve in curves]
    hits = [(curve, time) for curve, time in zip(curves, times, strict=True) if math.isfinite(time)]
    assert len(hits) > 10
    for curve, time in hits:
        assert time == rank(objective, evaluate(objective, curve, TARGETS))[0]
    missed = [curve for curve, time in zip(curves, times, strict=True) if math.isinf(time)]
    if objective != "time-to-target":
        assert not missed
    else:
        assert missed and all(max(m.validation_accuracy for m in curve) < TARGETS[-1] for curve in missed)


@pytest.mark.parametrize("objective", ALL)
@pytest.mark.parametrize("status", ["finished", "stopped", "diverged", "failed"])
def test_a_training_that_did_not_come_to_its_end_counts_as_a_miss_unless_it_had_reached_the_target(
    epoch: Epoch, objective: Objective, status: str
) -> None:
    short = [epoch(1, 0.3), epoch(2, 0.7, diverged=status == "diverged")]
    reached = [epoch(1, 0.3), epoch(2, 0.8), epoch(3, 0.7, diverged=status == "diverged")]
    assert race_time(objective, status, [], TARGETS) == math.inf
    timed = objective == "time-to-target"
    assert math.isinf(race_time(objective, status, short, TARGETS)) == (timed or status != "finished")
    known = status == "finished" or (timed and status != "failed")
    assert math.isfinite(race_time(objective, status, reached, TARGETS)) == known
