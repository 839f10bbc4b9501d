"""Tuning curves against brute force, their bands against opda and against truth, and searches of every kind."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from benchmarks.simulated_search import Truth, simulate
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import Objective, SearchSpec
from tuner.report import bands
from tuner.report.bands import SIMULATED, TARGET, Policy, curves, level_of, levels, simulated_coverage, stopped
from tuner.report.tuning_curves import tuning_curve
from tuner.study.objectives import OBJECTIVES, evaluate
from tuner.study.results import Search
from tuner.study.successive_halving import SuccessiveHalving

Epoch = Callable[..., EpochMetrics]
OPDA_WARNS_OF_TIES = pytest.mark.filterwarnings("ignore:Duplicates detected:RuntimeWarning")


def policy(**changes: Any) -> Policy:
    values: dict[str, Any] = {
        "num_trials": 16, "num_evaluations": 10, "objective": "time-to-target",
        "rungs": False, "sobol": False, "dimension": 5, "diverging": 0.125,
    }  # fmt: skip
    return Policy(**{**values, **changes})


def searched(curves: Sequence[Sequence[float]], epoch: Epoch, arms: str = "random", **changes: Any) -> Search:
    """A search of one variant whose trials had these accuracies; a last one below 0 is a divergence, none a failure.

    Ten epochs are the budget; a shorter curve was stopped.
    """
    spec = SearchSpec.from_flags(
        **{"name": "s", "variants": ("sgdm",), "trials": len(curves), "targets": (0.5, 0.9), **changes}
    )
    search = simulate(spec, {"sgdm": Truth()})
    for record, curve, arm in zip(search.trials_of("sgdm"), curves, itertools.cycle(arms.split()), strict=False):
        record.arm = arm
        record.history = [epoch(k, max(a, 0.0), diverged=a < 0) for k, a in enumerate(curve, start=1)]
        full = "finished" if len(curve) == 10 else "stopped"
        record.status = "failed" if not curve else "diverged" if curve[-1] < 0 else full
    return search


def reaches(k: int) -> list[float]:
    """A curve that reaches the target at evaluation k, after ten k gradient evaluations."""
    return [0.2] * (k - 1) + [0.95] * (11 - k)


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


@pytest.mark.parametrize("num_evaluations", [1, 2, 3, 9, 10, 27])
def test_stopping_many_searches_at_once_is_what_rungs_do(num_evaluations: int) -> None:
    generator = np.random.default_rng(num_evaluations)
    accuracies = np.round(generator.random((20, 12, num_evaluations)), 1)  # ties too
    diverged = generator.random((20, 12)) < 0.2
    found = stopped(accuracies, diverged, 0.95)
    for search in range(20):
        rungs = SuccessiveHalving()
        for trial in np.flatnonzero(~diverged[search]):
            curve = accuracies[search, trial].tolist()
            should_continue = True
            for k in range(1, num_evaluations + 1):
                should_continue = should_continue and (
                    rungs.should_continue(str(trial), k / num_evaluations, curve[k - 1]) or max(curve[:k]) >= 0.95
                )
            assert found[search, trial] == (not should_continue)
    assert not found[diverged].any()
    assert found.any() == (num_evaluations > 1)


@pytest.mark.parametrize("objective", SIMULATED)
def test_simulated_objectives_are_the_searchs(objective: Objective, epoch: Epoch) -> None:
    value, worst = SIMULATED[objective]
    accuracies = np.random.default_rng(0).random((2, 3, 10))
    accuracies[1] = np.minimum(accuracies[1], 0.9)
    budget = 100.0 if objective == "time-to-target" else 1.0
    for search, trial in np.ndindex(2, 3):
        history = [epoch(k, a) for k, a in enumerate(accuracies[search, trial].tolist(), start=1)]
        expected = evaluate(objective, history, (0.5, TARGET))[0]
        assert budget * value(accuracies)[search, trial] == pytest.approx(expected)
        assert budget * worst == OBJECTIVES[objective][0].worst(history)


@pytest.mark.parametrize(("objective", "sobol"), [*((o, False) for o in SIMULATED), ("time-to-target", True)])
def test_without_rungs_the_band_holds_from_the_first_trial_on(objective: Objective, sobol: bool) -> None:
    for num_trials in (4, 16):
        coverage = simulated_coverage(policy(num_trials=num_trials, objective=objective, sobol=sobol))
        assert coverage.holds_from == 1
        assert coverage.share.estimate >= level_of(num_trials)


def test_simulated_searches_diverge_and_are_stopped_as_asked() -> None:
    for rungs in (False, True):
        outcomes = np.concatenate(list(bands._outcomes(policy(num_trials=64, diverging=0.25, rungs=rungs))))
        assert outcomes.shape == (bands.NUM_SEARCHES, 64)
        lost = float(np.mean(outcomes == 2.0))
        # Of those that do not diverge, the first come goes on, then a third, at each of two rungs.
        assert 0.75 < lost < 0.95 if rungs else lost == pytest.approx(0.25, abs=0.01)


def test_with_rungs_the_first_of_many_trials_do_better_than_the_curve() -> None:
    assert simulated_coverage(policy(num_trials=4, rungs=True)).holds_from == 1
    many = simulated_coverage(policy(num_trials=64, rungs=True))
    assert many.holds_from is not None and 2 <= many.holds_from <= 9
    assert many.share.estimate >= 0.95


def test_a_band_that_is_too_narrow_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = policy(sobol=False, num_trials=12)
    assert simulated_coverage(narrow).share.estimate > 0.95
    middle = np.arange(1, 13) / 13
    bands._ranks.cache_clear()
    simulated_coverage.cache_clear()
    monkeypatch.setattr(bands, "levels", lambda n: (middle - 1e-3, middle + 1e-3))
    try:
        found = simulated_coverage(narrow)
        curve = tuning_curve(simulate(SearchSpec(name="s", variants=("sgdm",), trials=24), {"sgdm": Truth()}), "sgdm")
    finally:
        bands._ranks.cache_clear()
        simulated_coverage.cache_clear()
    assert found.share.high < 0.5 and found.holds_from is None
    assert curve is not None and curve.approximate and "the approximate 95% band held in" in curve.note


def test_whole_searches_are_covered() -> None:
    """Searches of another response surface, by other code: their own curve lies in their bands."""
    found, firsts = [], []
    for seed in range(100):
        spec = SearchSpec(name="s", variants=("sgdm",), trials=23, objective="auc", seed=seed, confirm_seeds=0)
        search = simulate(spec, {"sgdm": Truth(width=0.6)})
        best, running = 1.0, []
        for record in search.trials_of("sgdm")[:12]:
            if record.status == "finished":
                best = min(best, evaluate("auc", record.history, spec.training.targets)[0])
            running.append(best)
        firsts.append(running)
        found.append(tuning_curve(search, "sgdm"))
    truth = np.quantile(firsts, 0.5, axis=0, method="inverted_cdf")
    assert truth[0] > 1.5 * truth[-1], "the curve must fall, or nothing is tested"
    covered = [
        bool(np.all((curve.low <= truth[-len(curve.low) :]) & (truth[-len(curve.low) :] <= curve.high)))
        for curve in found
        if curve is not None
    ]
    assert len(covered) == 100 and sum(covered) >= 93


def test_outcomes_of_stopped_and_diverged_trials_are_the_worst(epoch: Epoch) -> None:
    trials = [reaches(4), [0.85, 0.89], [0.2, -1], [0.88] * 10, reaches(6)]
    for objective, outcomes, minimize in (
        ("time-to-target", [40.0, 200.0, 200.0, 102.0, 60.0], True),
        ("accuracy", [0.95, 0.0, 0.0, 0.88, 0.95], False),
    ):
        found = tuning_curve(searched(trials, epoch, objective=objective, early_stopping=False), "sgdm")
        assert found is not None and list(found.trials) == [1, 2, 3, 4, 5]
        expected = curves(np.array(outcomes), 200.0 if minimize else 0.0, minimize)
        np.testing.assert_allclose([found.low, found.median, found.high], expected)


def test_failed_unfinished_and_other_arms_trials_are_no_outcomes(epoch: Epoch) -> None:
    trials = [reaches(5), [], reaches(5), reaches(2), reaches(2), reaches(2), reaches(2)]
    search = searched(trials, epoch)
    search.trials_of("sgdm")[3].arm, search.trials_of("sgdm")[4].arm = "model", "default"
    search.trials_of("sgdm")[5].status, search.trials_of("sgdm")[6].status = "running", "failed"
    found = tuning_curve(search, "sgdm")
    assert found is not None
    assert list(found.median) == [50, 50] and found.level == 0.8


def test_the_models_trace_is_the_best_so_far_of_all_arms(epoch: Epoch) -> None:
    trials = [reaches(7), reaches(8), [], reaches(9), [0.2, -1], reaches(3), [0.3]]
    found = tuning_curve(searched(trials, epoch, "random random model default model model model"), "sgdm")
    assert found is not None
    assert found.model_trace == ((5, 70), (6, 30), (7, 30))
    larger = [[0.5] * 10, [0.6] * 10, [0.4] * 10, [0.89], [0.7] * 10]
    found = tuning_curve(searched(larger, epoch, "random random model model model", objective="accuracy"), "sgdm")
    assert found is not None and found.model_trace == ((3, 0.6), (4, 0.6), (5, 0.7)), "a stopped trial is no best"
    none = tuning_curve(searched([[0.2, -1]] * 3, epoch, "random random model"), "sgdm")
    assert none is not None and none.model_trace == ()


def test_all_diverged_and_all_equal(epoch: Epoch) -> None:
    found = tuning_curve(searched([[0.2, -1]] * 9, epoch), "sgdm")
    assert found is not None and set(found.median) == set(found.high) == {200.0} and found.level == 0.95
    found = tuning_curve(searched([reaches(4)] * 9, epoch), "sgdm")
    assert found is not None and set(found.median) == {40.0}
    assert (found.low <= 40).all() and (found.high >= 40).all()


def test_too_few_trials_or_two_objectives_have_no_curve(epoch: Epoch) -> None:
    assert tuning_curve(searched([reaches(4)], epoch), "sgdm") is None
    assert tuning_curve(searched([reaches(4), []], epoch), "sgdm") is None
    assert tuning_curve(searched([reaches(4)] * 3, epoch, objective="pareto"), "sgdm") is None


def test_the_same_search_gives_the_same_curve_and_says_how_sure_it_is(epoch: Epoch) -> None:
    search = searched([reaches(4), reaches(7), [0.2, -1], reaches(5)] * 10, epoch)
    found = tuning_curve(search, "sgdm")
    for cached in (levels, bands._ranks, simulated_coverage):
        cached.cache_clear()
    again = tuning_curve(search, "sgdm")
    assert found is not None and again is not None
    np.testing.assert_array_equal([found.low, found.median, found.high], [again.low, again.median, again.high])
    assert found.coverage == again.coverage and found.note == again.note
    assert found.trials[0] > 1 and f"begins at {found.trials[0]:.0f} trials" in found.note
    assert "the 95% band held in" in found.note and "1,000 simulated" in found.note


def test_nothing_warns_for_any_number_of_trials() -> None:
    """Sobol sequences dislike numbers that are no powers of two, opda ties."""
    with warnings.catch_warnings(action="error"):
        for num_trials in (2, 3, 5, 17):
            simulated_coverage(policy(num_trials=num_trials, rungs=True, sobol=True, dimension=1, num_evaluations=1))
