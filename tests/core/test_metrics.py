"""Definitions of the convergence metrics, on curves worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest

from tuner.core.metrics import (
    EpochMetrics,
    best_accuracy,
    epoch_metrics,
    error_area,
    max_loss_jump,
    speed_metrics,
    tail_std,
    target_label,
    time_to_target,
)

MakeEpoch = Callable[..., EpochMetrics]


def test_a_target_is_crossed_at_the_first_evaluation_that_reaches_it(epoch: MakeEpoch) -> None:
    history = [epoch(1, 0.5), epoch(2, 0.9, steps=12), epoch(3, 0.7), epoch(4, 0.95)]
    reached = time_to_target(history, 0.9)
    assert reached is not None
    assert (reached.epoch, reached.epochs, reached.gradient_evaluations) == (2, 2.0, 20.0)
    assert (reached.steps, reached.seconds) == (12, 1.0)
    assert time_to_target(history, 0.96) is None
    assert time_to_target([], 0.1) is None


def test_times_to_a_target_lie_on_straight_lines_between_evaluations(epoch: MakeEpoch) -> None:
    """Evaluations need not be an epoch apart, and replays make steps fewer than gradient evaluations."""
    history = [epoch(2, 0.5, steps=8), epoch(4, 0.9, gradient_evaluations=60, steps=16), epoch(5, 0.99)]
    for target, share in ((0.6, 0.25), (0.7, 0.5), (0.9, 1.0)):
        reached = time_to_target(history, target)
        assert reached is not None and reached.epoch == 4
        assert reached.gradient_evaluations == pytest.approx(20 + 40 * share)
        assert reached.steps == pytest.approx(8 + 8 * share)
        assert reached.epochs == pytest.approx(2 + 2 * share) and reached.seconds == pytest.approx(1 + share)


def test_before_the_first_evaluation_a_training_is_at_chance(epoch: MakeEpoch) -> None:
    for chance, share in ((0.0, 0.5), (0.1, 0.3 / 0.7)):
        reached = time_to_target([epoch(1, 0.8, chance=chance)], 0.4)
        assert reached is not None and reached.epoch == 1
        assert reached.gradient_evaluations == pytest.approx(10 * share) and reached.epochs == pytest.approx(share)
    for target in (0.1, 0.05):  # guessing reaches it, and what was trained is still paid for
        reached = time_to_target([epoch(1, 0.8, chance=0.1)], target)
        assert reached is not None and (reached.gradient_evaluations, reached.epochs) == (10, 1)


def test_the_higher_the_target_the_later_it_is_crossed_and_at_an_evaluation_as_that_says(epoch: MakeEpoch) -> None:
    history = [epoch(1, 0.3), epoch(2, 0.25), epoch(3, 0.25), epoch(4, 0.6), epoch(5, 0.6), epoch(6, 0.61)]
    times = []
    for percent in range(1, 62):
        reached = time_to_target(history, percent / 100)
        assert reached is not None
        assert 10 * (reached.epoch - 1) < reached.gradient_evaluations <= 10 * reached.epoch
        times.append(reached.gradient_evaluations)
    assert times == sorted(times) and len(set(times)) == 61


def test_a_diverged_epoch_reaches_no_target_and_is_no_best(epoch: MakeEpoch) -> None:
    history = [epoch(1, 0.5), epoch(2, 0.97, diverged=True)]
    assert time_to_target(history, 0.9) is None
    assert best_accuracy(history) == 0.5


def test_error_area_weighs_each_epoch_with_its_gradient_evaluations(epoch: MakeEpoch) -> None:
    history = [epoch(1, 0.5), epoch(2, 0.8, gradient_evaluations=40), epoch(3, 1.0, gradient_evaluations=100)]
    assert error_area(history) == pytest.approx((10 * 0.5 + 30 * 0.2 + 60 * 0.0) / 100)


def test_error_area_of_an_unfinished_curve_holds_its_last_error(epoch: MakeEpoch) -> None:
    assert error_area([epoch(1, 0.5)]) == pytest.approx(0.5)
    assert error_area([epoch(1, 0.5), epoch(2, 0.9)]) == pytest.approx((10 * 0.5 + 10 * 0.1 + 80 * 0.1) / 100)


def test_error_area_is_full_after_a_divergence(epoch: MakeEpoch) -> None:
    history = [epoch(1, 0.5), epoch(2, 0.9, diverged=True)]
    assert error_area(history) == pytest.approx((10 * 0.5 + 90 * 1.0) / 100)
    assert error_area([]) == 1.0


def test_tail_is_the_last_fifth(epoch: MakeEpoch) -> None:
    accuracies = [0.1, 0.9, 0.2, 0.8, 0.5, 0.5, 0.5, 0.5, 0.6, 0.8]
    history = [epoch(number + 1, accuracy) for number, accuracy in enumerate(accuracies)]
    assert tail_std(history) == pytest.approx(math.sqrt(2) * 0.1)
    assert tail_std(history[:1]) == 0.0


def test_max_loss_jump(epoch: MakeEpoch) -> None:
    losses = [2.0, 1.0, 1.75, 1.5, 1.75]
    history = [epoch(number + 1, 0.5, train_loss=loss) for number, loss in enumerate(losses)]
    assert max_loss_jump(history) == pytest.approx(0.75)
    assert max_loss_jump(history[:2]) == 0.0
    assert max_loss_jump([*history, epoch(6, 0.1, train_loss=math.inf, diverged=True)]) == math.inf
    assert max_loss_jump([epoch(1, 0.1, train_loss=math.inf, diverged=True)]) == math.inf


def test_names_of_the_final_metrics(epoch: MakeEpoch) -> None:
    metrics = speed_metrics([epoch(1, 0.5), epoch(2, 0.94)], (0.72, 0.83, 0.925, 0.95))
    assert metrics["speed/epochs_to_72"] == 2.0, "those of the evaluation that reached it"
    assert metrics["speed/gradient_evaluations_to_83"] == pytest.approx(17.5)
    assert metrics["speed/seconds_to_72"] == pytest.approx(0.75)
    assert "speed/epochs_to_92.5" in metrics
    assert not any(name.endswith("_95") for name in metrics)
    assert target_label(0.9) == "90" and target_label(0.925) == "92.5"


def test_names_of_an_epochs_metrics(epoch: MakeEpoch) -> None:
    """Each field differs from all others, so that none can stand under another's name."""
    bare = epoch(
        3, 0.5, train_loss=1.25, train_accuracy=0.25, validation_loss=1.75, gradient_evaluations=45, lr=0.125, p=4.0
    )
    expected = {
        "train/loss": 1.25,
        "train/accuracy": 0.25,
        "validation/loss": 1.75,
        "validation/accuracy": 0.5,
        "schedule/lr": 0.125,
        "schedule/momentum": 0.9,
        "schedule/p": 4.0,
        "speed/gradient_evaluations": 45.0,
        "speed/seconds": 1.5,
        "speed/images_per_second": 1000.0,
    }
    assert epoch_metrics(bare) == expected
    measured = dataclasses.replace(
        bare, loading_seconds=0.75, curvature_top=6.0, curvature_mean=1.5, curvature_seconds=2.5, damping_ratio=0.5
    )
    assert epoch_metrics(measured) == expected | {
        "speed/loading_share": 0.5,
        "curvature/top": 6.0,
        "curvature/seconds": 2.5,
        "curvature/top_over_mean": 4.0,
        "damping/ratio": 0.5,
        "damping/class": -1.0,
    }
    limited = dataclasses.replace(bare, curvature_seconds=1.5, critical_lr=0.5, lr_over_critical=0.2)
    assert epoch_metrics(limited) == expected | {
        "curvature/critical_lr": 0.5,
        "curvature/lr_over_critical": 0.2,
        "curvature/seconds": 1.5,
    }
    for mean in (0.0, -1.0, None):
        assert "curvature/top_over_mean" not in epoch_metrics(dataclasses.replace(measured, curvature_mean=mean))
