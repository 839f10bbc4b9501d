"""Tuning curves against brute force, their bands against opda and against truth, and searches of every kind."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks.simulated_search import Truth, simulate
from tests.report.racing import MISS, raced, trained
from tuner.core.metrics import EpochMetrics, time_to_target
from tuner.core.search_spec import SearchSpec
from tuner.report import bands
from tuner.report.bands import curves, level_of, levels
from tuner.report.tuning_curves import TuningCurve, tuning_curve
from tuner.study.results import Search

Epoch = Callable[..., EpochMetrics]
OPDA_WARNS_OF_TIES = pytest.mark.filterwarnings("ignore:Duplicates detected:RuntimeWarning")


def curve_of(times: Sequence[float], epoch: Epoch, rival: Sequence[float] | None = None, **changes: Any) -> TuningCurve:
    """The curve of sgdm after these times of rounds, beside a rival that is never ahead unless its own are given."""
    search = raced({"sgdm": times, "adamw": rival or [99.0] * len(times)}, alpha=0.0, **changes)
    # The budget, of a hundred gradient evaluations, is that of a training.
    search = trained(search, epoch, {"sgdm": [0.5]})
    found = tuning_curve(search, "sgdm")
    assert found is not None
    return found


@pytest.mark.parametrize("minimize", [True, False])
def test_the_median_is_that_of_the_best_of_n_draws_by_enumeration(minimize: bool) -> None:
    outcomes = [0.3, 0.7, 0.1, 0.7, 0.4]
    _, median, _ = curves(np.array(outcomes), 1.0 if minimize else 0.0, minimize)
    for n in range(1, 6):
        best = [(min if minimize else max)(drawn) for drawn in itertools.product(outcomes, repeat=n)]
        assert median[n - 1] == np.quantile(best, 0.5, method="inverted_cdf")


@pytest.mark.parametrize("num_draws", [2, 7, 8, 64])
def test_the_band_of_the_distribution_covers_continuous_draws_at_its_level(num_draws: int) -> None:
    lows, highs = levels(num_draws)
    draws = np.sort(np.random.default_rng(1).random((40_000, num_draws)), axis=1)
    covered = np.mean(((lows <= draws) & (draws <= highs)).all(axis=1))
    assert covered == pytest.approx(level_of(num_draws), abs=0.012)


@OPDA_WARNS_OF_TIES
@pytest.mark.parametrize("outcomes", [[0.5, 0.2, 0.9, 0.3], [0.5, 1.0, 1.0, 0.5, 1.0, 0.4, 0.5, 1.0, 1.0]])
@pytest.mark.parametrize("minimize", [True, False])
def test_the_curves_are_opdas_own_on_the_outcomes_themselves(outcomes: list[float], minimize: bool) -> None:
    from opda.nonparametric import EmpiricalDistribution

    n = len(outcomes)
    of_distribution = EmpiricalDistribution.confidence_bands(
        outcomes, level_of(n), 0.0, 1.0, generator=np.random.default_rng(3), method="ld_equal_tailed", n_jobs=1
    )
    theirs = [band.quantile_tuning_curve(np.arange(1, n + 1), minimize=minimize) for band in of_distribution[::-1]]
    np.testing.assert_array_equal(curves(np.array(outcomes), 1.0 if minimize else 0.0, minimize), theirs)


def test_maximizing_is_the_mirror_image_of_minimizing() -> None:
    outcomes = np.random.default_rng(0).random((3, 9))
    mirrored = 1 - curves(1 - outcomes, 1.0, True)[::-1]
    np.testing.assert_allclose(curves(outcomes, 0.0, False), mirrored)


def test_a_95_percent_band_bounds_the_good_side_from_eight_draws_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert level_of(7) == 0.8 and level_of(8) == 0.95
    monkeypatch.setattr(bands, "level_of", lambda num_draws: 0.95)
    for num_draws in (6, 7, 8, 9):
        # The best after one trial is F's own median: bounded where F is known to be below a half before all draws.
        assert (levels.__wrapped__(num_draws)[1][0] < 0.5) == (num_draws >= 8)


def test_outcomes_are_the_best_of_each_round_and_misses_the_worst(epoch: Epoch) -> None:
    found = curve_of([40.0, MISS, 60.0, 50.0], epoch, rival=[99.0, MISS, 99.0, 99.0])
    assert list(found.rounds) == [1, 2, 3, 4] and found.level == 0.8
    # Twice the budget is the worst; nobody reached the target in the second round, so it was watched to its end.
    expected = curves(np.array([40.0, 200.0, 60.0, 50.0]), 200.0, True)
    np.testing.assert_allclose([found.low, found.median, found.high], expected)


def test_an_unknown_outcome_is_anything_from_the_rounds_end_on(epoch: Epoch) -> None:
    """The second round was watched to 1.25 times the rival's 40."""
    found = curve_of([40.0, MISS, 60.0, 50.0], epoch, rival=[99.0, 40.0, 99.0, 99.0])
    low, best, _ = curves(np.array([40.0, 50.0, 60.0, 50.0]), 200.0, True)
    _, worst, high = curves(np.array([40.0, 200.0, 60.0, 50.0]), 200.0, True)
    np.testing.assert_allclose([found.low, found.high], [low, high])
    assert best[0] == worst[0] == 50 and list(found.median) == list(best) == list(worst), "whatever it was"


def test_a_median_that_hangs_on_unknown_outcomes_is_not_known(epoch: Epoch) -> None:
    """Three of four rounds ended at 50, and the best of one round is one of those."""
    found = curve_of([40.0, MISS, MISS, MISS], epoch, rival=[99.0, 40.0, 40.0, 40.0])
    _, best, _ = curves(np.array([40.0, 50.0, 50.0, 50.0]), 200.0, True)
    assert list(best) == [50, 50, 40, 40]
    np.testing.assert_array_equal(found.median, [math.nan, math.nan, 40, 40])
    assert not np.isnan([found.low, found.high]).any()


def test_an_accuracy_is_maximized(epoch: Epoch) -> None:
    found = curve_of([-0.9, -0.5, -0.95, MISS], epoch, objective="accuracy")
    expected = curves(np.array([0.9, 0.5, 0.95, 0.0]), 0.0, False)
    np.testing.assert_allclose([found.low, found.median, found.high], expected)
    assert (np.diff(found.median) >= 0).all() and found.high.max() == 1


def test_all_missed_and_all_equal(epoch: Epoch) -> None:
    found = curve_of([MISS] * 9, epoch, rival=[MISS] * 9)
    assert set(found.median) == set(found.high) == {200.0} and found.level == 0.95
    found = curve_of([40.0] * 9, epoch)
    assert set(found.median) == {40.0}
    assert (found.low <= 40).all() and (found.high >= 40).all()


def test_too_few_rounds_and_none_have_no_curve(epoch: Epoch) -> None:
    for search in (raced({"sgdm": [40.0], "adamw": [50.0]}), raced({"sgdm": [], "adamw": []})):
        assert tuning_curve(search, "sgdm") is None
    assert tuning_curve(raced({"sgdm": [40.0] * 3, "adamw": [50.0] * 3}), "sgdm") is None, "no training has an epoch"


def test_a_variant_that_is_out_or_joined_later_has_the_rounds_that_it_was_in(epoch: Epoch) -> None:
    times = {"sgdm": [60.0] * 9, "adamw": [30.0] * 9, "lion": [30.0] * 9}
    search = trained(raced(times), epoch, {name: [0.5] for name in times})
    assert search.race.out == {"sgdm": 6} and len(search.race.rounds) == 9
    lengths = {name: len(curve.rounds) for name in times if (curve := tuning_curve(search, name))}
    assert lengths == {"sgdm": 7, "adamw": 9, "lion": 9}
    assert (level_of(7), level_of(9)) == (0.8, 0.95)


def outcomes(search: Search, name: str) -> list[float]:
    """The best time of each round by the trainings' own logs, which went on to the end."""
    found: dict[int, float] = {}
    for record in search.trials_of(name):
        reached = time_to_target(record.history, search.spec.training.targets[-1])
        time = reached.gradient_evaluations if reached else 2.0 * record.history[-1].budget
        found[record.place["round"]] = min(found.get(record.place["round"], math.inf), time)
    return list(found.values())


def test_whole_races_are_covered_though_their_rounds_end_early() -> None:
    """Because of a rival, many outcomes are not known.  The true curve is that of all races together."""
    spec = SearchSpec(
        name="s", variants=("sgdm", "adamw"), trials=18, round_size=2, alpha=0.0, confirm_seeds=0, refine_trials=0,
        early_stopping=False,
    )  # fmt: skip
    truths = {
        "sgdm": Truth(speed=0.8, noise=0.4, own=1.0),
        "adamw": Truth(speed=0.9, noise=0.4, own=1.0, lr_best=0.003),
    }
    found, made, unknown = list[TuningCurve](), list[float](), 0
    for seed in range(50):
        search = simulate(SearchSpec.from_flags(**{**spec.flags(), "seed": seed}), truths)
        unknown += sum(math.isinf(one.results["sgdm"]) for one in search.race.rounds)
        made += outcomes(search, "sgdm")
        if curve := tuning_curve(search, "sgdm"):
            found.append(curve)
    assert len(found) == 50 and len(made) == 450 and 0.2 < unknown / 450 < 0.8
    truth = np.array([np.quantile(made, 1 - 0.5 ** (1 / n), method="inverted_cdf") for n in range(1, 10)])
    assert truth[0] > 1.2 * truth[-1], "the curve must fall, or nothing is tested"
    covered = [bool(np.all((curve.low <= truth) & (truth <= curve.high))) for curve in found]
    # Of 50 at 95% fewer than 43 come once in five hundred times.
    assert sum(covered) >= 43


def test_nothing_warns_for_any_number_of_rounds(epoch: Epoch) -> None:
    """opda dislikes ties."""
    with warnings.catch_warnings(action="error"):
        for num in (2, 3, 5, 17):
            curve_of([40.0] * num, epoch)
