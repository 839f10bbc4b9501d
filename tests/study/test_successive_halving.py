"""Successive halving: who is let through, and that telling twice changes nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tuner.study.successive_halving import SuccessiveHalving


def test_rungs_stand_at_a_ninth_and_a_third() -> None:
    assert SuccessiveHalving().shares == pytest.approx([1 / 9, 1 / 3])


def test_before_a_rung_and_at_the_end_nobody_is_judged() -> None:
    rungs = SuccessiveHalving()
    assert rungs.should_continue("good", 0.12, 0.9)
    assert rungs.should_continue("bad", 0.1, 0.1)
    assert not rungs.should_continue("bad", 0.12, 0.1)
    assert rungs.should_continue("short", 1.0, 0.1)


def test_first_come_goes_on_and_the_best_third_after_it() -> None:
    rungs = SuccessiveHalving()
    assert rungs.should_continue("a", 0.2, 0.5)
    assert not rungs.should_continue("b", 0.2, 0.4)
    assert not rungs.should_continue("c", 0.2, 0.49)
    assert rungs.should_continue("d", 0.2, 0.49), "a fourth trial makes room for two"
    assert rungs.should_continue("e", 0.2, 0.5), "a tie with the last one kept is kept"


def test_told_twice_is_judged_once() -> None:
    rungs = SuccessiveHalving()
    assert rungs.should_continue("a", 0.2, 0.5)
    assert rungs.should_continue("b", 0.2, 0.9)
    assert rungs.should_continue("a", 0.2, 0.5)
    assert len(rungs._accuracies[0]) == 2


def test_many_trials_in_random_order_leave_about_a_third() -> None:
    rungs = SuccessiveHalving()
    accuracies = np.random.default_rng(0).random(3000)
    kept = sum(rungs.should_continue(f"t{i}", 0.2, float(accuracy)) for i, accuracy in enumerate(accuracies))
    assert 0.31 < kept / 3000 < 0.36


def test_judgements_are_those_of_the_whole_list_and_take_logarithmically_many_comparisons() -> None:
    class Counted(float):
        num_comparisons = 0

        def __lt__(self, other: float) -> bool:
            Counted.num_comparisons += 1
            return float(self) < float(other)

    rungs, told = SuccessiveHalving(), []
    for number, accuracy in enumerate(np.random.default_rng(0).integers(0, 500, size=1000) / 500):
        told.append(float(accuracy))
        kept = sorted(told, reverse=True)[: math.ceil(len(told) / 3)]
        Counted.num_comparisons = 0
        assert rungs.should_continue(f"t{number}", 0.2, Counted(accuracy)) == (accuracy >= kept[-1])
        assert Counted.num_comparisons <= math.log2(len(told)) + 2


def test_a_trial_that_skips_a_rung_is_not_recorded_there() -> None:
    """Its accuracy is of a later time than that rung's."""
    rungs = SuccessiveHalving()
    assert rungs.should_continue("a", 0.5, 0.9)
    assert rungs.should_continue("b", 0.12, 0.5)
    assert not rungs.should_continue("c", 0.4, 0.5)


def test_an_end_is_recorded_nowhere() -> None:
    """A trial whose only evaluation is its last would end everybody who is judged in the middle."""
    rungs = SuccessiveHalving()
    assert rungs.should_continue("a", 1.0, 0.9)
    assert rungs.should_continue("b", 0.3, 0.5) and rungs.should_continue("b", 0.4, 0.5)


def test_a_trial_that_comes_to_a_rung_exactly_is_judged_there() -> None:
    rungs = SuccessiveHalving()
    assert rungs.should_continue("good", rungs.shares[0], 0.9)
    assert not rungs.should_continue("bad", rungs.shares[0], 0.1)
