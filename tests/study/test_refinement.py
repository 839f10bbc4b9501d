"""Which settings of a variant are trained again, and which are chosen: the best mean, not the luckiest training."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from search_spaces import SPACES, Variant
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import NUM_FINALISTS, NUM_REPEATS, SearchSpec
from tuner.core.trial_spec import OptimizerSpec
from tuner.study.objectives import choice_value
from tuner.study.refinement import best_candidate, candidates, finalists, given_points, most_repeats
from tuner.study.trial_record import TrialRecord, phase_of

Epoch = Callable[..., EpochMetrics]
Trial = Callable[..., TrialRecord]
SPEC = SearchSpec.from_flags(variants=("sgdm",), targets=(0.5,))


@pytest.fixture
def trial(epoch: Epoch) -> Trial:
    """Makes a trial that reached the target after so many gradient evaluations, of a budget of a hundred."""

    def make(number: int, reached: float, status: str = "finished", **place: Any) -> TrialRecord:
        place = place or {"round": number, "slot": 0}
        before = [epoch(1, 0.1, gradient_evaluations=10)]
        crossed = epoch(2, 0.5, gradient_evaluations=reached) if reached <= 100 else epoch(10, 0.4)
        spec = SPEC.trial_spec(OptimizerSpec(), number)
        return TrialRecord(
            f"sgdm-{number:02d}", "sgdm", number, spec, phase_of(place), status, [*before, crossed], place
        )

    return make


def repeated(trial: Trial, number: int, of: int, *times: float, **changes: Any) -> list[TrialRecord]:
    return [trial(number + k - 1, time, repeats=of, repeat=k, **changes) for k, time in enumerate(times, start=1)]


def test_the_best_mean_of_the_repeats_is_chosen_and_not_the_luckiest_training(trial: Trial) -> None:
    trials = [trial(0, 20), trial(1, 30), trial(2, 60)]
    lucky = repeated(trial, 3, 0, 90.0, 80.0, 22.0, 24.0)
    steady = repeated(trial, 7, 1, 35.0, 28.0, 50.0, 40.0)
    found = candidates(SPEC, [*trials, *lucky, *steady])
    assert [candidate.trial.number for candidate in found] == [0, 1, 2], "by their first trainings"
    assert [len(candidate.repeats) for candidate in found] == [4, 4, 0]
    # Means of logarithms, without the training that was selected for its luck.
    assert found[0].value == pytest.approx(math.log(90 * 80 * 22 * 24) / 4)
    assert found[2].value == pytest.approx(math.log(60))
    best = best_candidate(found)
    assert best is not None and best.trial.number == 1


def test_before_all_repeats_of_one_have_ended_the_best_is_that_of_first_trainings(trial: Trial) -> None:
    trials = [trial(0, 30), trial(1, 20)]
    few = repeated(trial, 2, 0, *[10.0] * (NUM_REPEATS - 1))
    for again in ([], few, [*few, *repeated(trial, 9, 0, 10.0, status="running")]):
        best = best_candidate(candidates(SPEC, [*trials, *again]))
        assert best is not None and best.trial.number == 1
    best = best_candidate(candidates(SPEC, [*trials, *repeated(trial, 2, 0, *[90.0] * NUM_REPEATS)]))
    assert best is not None and best.trial.number == 0, "the mean of the other is not known"
    assert best_candidate([]) is None


def test_a_repeat_that_misses_counts_as_one_evaluation_beyond_the_budget(trial: Trial) -> None:
    (missed,) = candidates(SPEC, [trial(0, 20), *repeated(trial, 1, 0, 30.0, math.inf)])
    assert missed.value == pytest.approx(math.log(30 * 101) / 2)


def test_a_repeat_that_failed_tells_nothing_and_nobody_waits_for_it(trial: Trial) -> None:
    trials = [trial(0, 20), trial(1, 30)]
    lucky = repeated(trial, 2, 0, 90.0, 90.0, 90.0, 90.0)
    steady = [*repeated(trial, 6, 1, 30.0, 35.0, 40.0), trial(9, 1, "failed", repeats=1, repeat=4)]
    found = candidates(SPEC, [*trials, *lucky, *steady])
    assert found[1].value == pytest.approx(math.log(30 * 35 * 40) / 3) and len(found[1].repeats) == 3
    best = best_candidate(found)
    assert best is not None and best.trial.number == 1
    none = repeated(trial, 6, 1, 1.0, 1.0, 1.0, 1.0, status="failed")
    best = best_candidate(candidates(SPEC, [*trials, *lucky, *none]))
    assert best is not None and best.trial.number == 0, "of the other no mean is known"


def test_only_settings_that_finished_a_training_of_their_own_are_candidates(trial: Trial) -> None:
    endings = ["stopped", "diverged", "failed", "running", "finished"]
    trials = [trial(number, 20 + number, status) for number, status in enumerate(endings)]
    lost = trial(5, 10)
    lost.history = []
    found = candidates(SPEC, [*trials, lost, *repeated(trial, 6, 3, 5.0, 5.0)])
    assert [candidate.trial.number for candidate in found] == [4], "neither repeats nor those without a log"


def test_the_earliest_of_equals_comes_first_in_whatever_order_they_are_listed(trial: Trial) -> None:
    trials = [trial(number, [40, 30][number % 2]) for number in range(8)]
    for seed in range(5):
        random.Random(seed).shuffle(trials)
        assert [candidate.trial.number for candidate in candidates(SPEC, trials)] == [1, 3, 5, 7, 0, 2, 4, 6]


def test_finalists_are_the_best_few_and_the_default_point(trial: Trial) -> None:
    trials = [trial(number, 20 + number) for number in range(6)]
    late, early = trial(6, 99, index=0, point="default"), trial(6, 10, index=0, point="default")
    other = trial(7, 98, index=1, point="part")
    few = list(range(NUM_FINALISTS))
    for default, expected in ((late, [*few, 6]), (early, [6, *few[:-1]])):
        chosen = finalists(candidates(SPEC, [*trials, default, other]))
        assert [candidate.trial.number for candidate in chosen] == expected
    assert [candidate.trial.number for candidate in finalists(candidates(SPEC, trials[:2]))] == [0, 1]


def test_finalists_stay_the_same_while_they_are_trained_again(trial: Trial) -> None:
    """They follow from first trainings: a program that resumes finds the same ones."""
    trials = [trial(number, 20 + number) for number in range(6)]
    before = [candidate.trial.number for candidate in finalists(candidates(SPEC, trials))]
    again = [record for k in before for record in repeated(trial, 10 + 4 * k, k, 99.0, math.inf, 99.0, 99.0)]
    for made in range(len(again) + 1):
        after = finalists(candidates(SPEC, [*trials, *again[:made]]))
        assert [candidate.trial.number for candidate in after] == before


@pytest.mark.parametrize(
    ("raced", "tried", "most"), [(64, 8, 3), (64, 0, 0), (0, 1, 1), (0, 2, 2), (0, 64, 3), (4, 1, 3), (1, 1, 2)]
)
def test_repeats_are_at_most_those_of_the_finalists(raced: int, tried: int, most: int) -> None:
    assert NUM_FINALISTS == 2 and most_repeats(raced, tried) == NUM_REPEATS * most


@pytest.mark.parametrize("objective", ["time-to-target", "accuracy", "auc", "pareto"])
def test_the_smaller_the_value_by_which_settings_are_chosen_the_better_the_curve(objective: str, epoch: Epoch) -> None:
    spec = SearchSpec.from_flags(objective=objective, targets=(0.5,))
    curves = {
        "good": [epoch(k, min(0.9, 0.3 * k)) for k in range(1, 11)],
        "poor": [epoch(k, min(0.6, 0.1 * k)) for k in range(1, 11)],
        "hopeless": [epoch(k, 0.1) for k in range(1, 11)],
    }
    values = [choice_value(spec, "finished", history) for history in curves.values()]
    assert values == sorted(values) and len(set(values)) == 3
    diverged = [epoch(1, 0.4, diverged=True)]
    assert choice_value(spec, "diverged", diverged) >= values[-1]


PARTS: Mapping[str, Mapping[str, Any]] = {
    name: {"rule": "sgd", "lr.peak": lr, "momentum.value": 0.5} for name, lr in [("a", 0.3), ("b", 0.2), ("c", 0.4)]
}


def test_given_points_are_the_default_and_those_that_fit_into_half(toy: Callable[..., Variant]) -> None:
    variant = toy(enqueued=PARTS)
    for num, names in [(1, ""), (2, ""), (3, ""), (4, "a"), (5, "a"), (6, "ab"), (8, "abc"), (99, "abc")]:
        points = given_points(variant, num)
        assert list(points) == ["default", *names], num
        assert points["default"] == variant.default
    assert list(given_points(toy(), 99)) == ["default"]


def test_a_point_that_is_the_default_is_tried_once(toy: Callable[..., Variant]) -> None:
    same = {"rule": "sgd", **toy().default}
    assert list(given_points(toy(enqueued={"same": same, **PARTS}), 99)) == ["default", "a", "b", "c"]
    for variant in SPACES.values():
        for name in variant.points:
            placed = variant.at(name)
            points = given_points(placed, 99)
            complete = [placed.default_settings(), *(point for name, point in points.items() if name != "default")]
            assert len({str(sorted(point.items(), key=str)) for point in complete}) == len(points)
