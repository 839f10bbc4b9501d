"""Simulated searches: twins have noise of their own, and chosen settings are judged by their truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.calibration import SAME, searches, shown, side_by_side, verdicts
from benchmarks.peers.before_the_race import beside_the_race
from benchmarks.simulated_search import Truth
from benchmarks.tuned_settings import LANDSCAPES, Chosen, of_luckiest, of_search, shares, true_ratio, truth_of
from search_spaces import SPACES
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec


def test_twins_try_the_same_settings_and_have_noise_of_their_own() -> None:
    (search,) = searches(1, 16, Truth())
    ours, theirs = (
        {(r.place["round"], r.place["slot"]): r for r in search.trials_of(name) if r.phase == "race"}
        for name in ("sgdm", "twin")
    )
    assert ours.keys() == theirs.keys() and len(ours) == 16
    assert all(ours[place].spec == theirs[place].spec for place in ours)
    assert all(ours[place].history != theirs[place].history for place in ours)
    (again,) = searches(1, 16, Truth())
    assert {name: record.history for name, record in again.records.items()} == {
        name: record.history for name, record in search.records.items()
    }


def test_a_twin_that_is_twice_as_fast_is_found() -> None:
    found = verdicts(6, 64, Truth(), 2.0)
    assert found["variant faster"] == 1 and found["variant slower"] == 0
    assert found["settings faster"] >= 5 / 6 and found["settings slower"] == 0


@pytest.mark.slow
def test_equal_twins_are_seldom_called_different() -> None:
    """Of 40 at 5%, 9 or more come once in a thousand times."""
    found = verdicts(40, 16, SAME, 1.0)
    assert (found["variant faster"] + found["variant slower"]) * 40 < 9
    assert (found["settings faster"] + found["settings slower"]) * 40 < 9


def test_true_ratios_by_hand() -> None:
    truth = truth_of("sgdm", 10.0, {"width": 0.5})
    default = with_settings(OptimizerSpec(), SPACES["sgdm"].default_settings())
    best = with_settings(default, {"lr.peak": truth.lr_best})
    assert truth.lr_best == pytest.approx(1.0)
    assert true_ratio(default, "sgdm", truth) == 1
    assert true_ratio(best, "sgdm", truth) == pytest.approx(2**-4)
    assert true_ratio(best, "sgdm", truth_of("sgdm", 1.0, {})) == pytest.approx(2)
    three = truth_of("sgdm", 1.0, LANDSCAPES["three settings"])
    off = with_settings(default, {"momentum.value": 0.82, "lr.warmup": 0.2})
    assert true_ratio(off, "sgdm", three) == pytest.approx(2**1.25) and true_ratio(off, "sgdm", truth) == 1
    ratios = [0.5, 1.0, 1.05, 1.2]
    found = shares([Chosen(ratio, 3.0) for ratio in ratios])
    assert (found["worse"], found["worse by a tenth"], found["cost"]) == (0.5, 0.25, 3.0)
    assert found["ratio"] == pytest.approx(np.prod(ratios) ** 0.25)


@pytest.mark.slow
def test_chosen_settings_are_rarely_much_worse_than_the_default_point_and_better_where_it_is_poor() -> None:
    """Where the default point is the best there is, the luckiest of eight trainings is much worse far more often."""
    three, narrow = LANDSCAPES["three settings"], LANDSCAPES["narrow"]
    searched = [one for seed in range(15) for one in of_search(seed, 1.0, narrow)]
    lucky = [one for seed in range(15) for land in (narrow, three) for one in of_luckiest(seed, 1.0, land)]
    assert len(searched) == 30 and all(one.ratio >= 1 for one in [*searched, *lucky])
    assert shares(searched)["worse by a tenth"] < 0.2 < shares(lucky)["worse by a tenth"]
    assert 4 < shares(searched)["cost"] < 14 and math.isnan(shares(lucky)["cost"])
    poor = [one for seed in range(5) for one in of_search(seed, 5.0, narrow)]
    assert shares(poor)["ratio, 95%"] < 0.5


def test_the_race_is_shown_beside_the_old_plan() -> None:
    for line in beside_the_race(10).values():
        assert line["its power"] >= 0.9 and line["decided at a quarter"] >= 0.9
        assert line["cost of the race, 90%"] < line["its cost"] / 4


def test_races_side_by_side_have_the_same_results_at_other_costs() -> None:
    for line in side_by_side(2).values():
        assert line["same result"] == 1 and line["cost, 64 workers"] != line["cost, 1 workers"]


def test_shares_are_shown_in_percent_and_costs_as_numbers() -> None:
    assert shown("fastest out", 0.0234) == "2.3%"
    assert shown("cost, 90%", 12.345) == "12.3" and shown("its cost", math.nan) == ""
