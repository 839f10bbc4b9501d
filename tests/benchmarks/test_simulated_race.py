"""Simulated races are what they say: their trainings, their costs, and how often they err."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from benchmarks.peers.before_the_race import decides, precedence_p, run_trials, trials_needed
from benchmarks.simulated_race import BUDGET, WORLDS, World, draw, figures, run_race, speeds_of
from tuner.study.rounds import Race

EXACT = World(typical=0.5, spread=0.0, missed=0.0, noise=0.0)
"""All trainings of a variant take as long."""


def test_trainings_have_the_spread_the_correlation_and_the_misses_of_their_world() -> None:
    world = dataclasses.replace(WORLDS["digits"], missed=0.0)
    logs = np.log2(draw(world, (2.0, 1.0), 40_000, np.random.default_rng(0)))
    assert logs[1].mean() == pytest.approx(math.log2(0.55 * BUDGET), abs=0.01)
    assert logs[1].mean() - logs[0].mean() == pytest.approx(1, abs=0.01)
    assert logs.std(axis=1) == pytest.approx(math.hypot(0.27, 0.35), abs=0.01)
    assert np.corrcoef(logs)[0, 1] == pytest.approx(0.55, abs=0.02)
    seeds_alone = dataclasses.replace(world, spread=0.0)
    difference = np.diff(np.log2(draw(seeds_alone, (1.0, 1.0), 40_000, np.random.default_rng(0))), axis=0)
    assert difference.std() == pytest.approx(0.255, abs=0.005)
    times = np.array(draw(WORLDS["digits"], (2.0, 1.0), 40_000, np.random.default_rng(0)))
    assert np.isinf(times).mean(axis=1) == pytest.approx(0.2, abs=0.01)
    assert np.isinf(times).all(axis=0).mean() > 2 * 0.2**2, "equal settings miss together"
    # Of the settings that never arrive, none would have been fast.
    assert np.median(times[1]) == pytest.approx(0.55 * BUDGET, rel=0.02)


def test_the_cost_of_a_race_by_hand() -> None:
    """The fast one needs 40 gradient evaluations and is looked at after 48; the slow one needs 80.

    After the fast one, the slow one may take 50, and is stopped after 64.
    """
    for seed in range(8):
        found = run_race(EXACT, (2.0, 1.0), seed, size=1)
        orders = [Race(("0", "1"), 1, 200).order(number, seed) for number in range(found.rounds)]
        spent = [48 + (64 if order[0][0] == "0" else 80) for order in orders]
        assert (found.left, found.rounds, found.decided) == (("0",), 7, True)
        assert found.cost == pytest.approx(sum(spent) / BUDGET / 2)


def test_who_is_a_miss_costs_its_budget_and_wins_nothing() -> None:
    slow = dataclasses.replace(EXACT, typical=1.01)
    found = run_race(slow, (1.0, 1.0), 0, size=2, plans=(5,))
    assert (found.left, found.rounds, found.called) == (("0", "1"), 5, False)
    assert found.cost == 5 * 2


@pytest.mark.parametrize("world", WORLDS)
def test_the_number_of_workers_changes_the_cost_alone(world: str) -> None:
    for seed in range(6):
        found = [run_race(WORLDS[world], speeds_of(4, 0.67), seed, workers=workers) for workers in (1, 2, 16, 64)]
        assert len({(one.left, one.rounds, one.false_sentence, one.called) for one in found}) == 1
        assert found[3].cost > 1.05 * found[0].cost, "caps come late, and rounds are in flight at the end"
        assert len({one.cost for one in found}) >= 3


def test_a_resumed_race_is_that_which_was_never_interrupted() -> None:
    for seed in range(30):
        once, often = (
            run_race(WORLDS["digits"], speeds_of(3, 0.8), seed, plans=plans) for plans in ((32,), (2, 9, 32))
        )
        assert (once.left, once.rounds, once.called) == (often.left, often.rounds, often.called)


@pytest.mark.slow
def test_equals_are_seldom_told_apart_and_the_fastest_is_seldom_out() -> None:
    """Of 120 at 5%, 16 or more come once in a thousand times."""

    def made(speeds: list[float], num: int, alpha: float = 0.05) -> dict[str, float]:
        seeds = range(num)
        return figures([run_race(WORLDS["kinder"], speeds, s, alpha=alpha, workers=3, plans=(4, 12)) for s in seeds])

    null, near = made([1.0] * 4, 120), made(speeds_of(2, 0.95), 120)
    assert max(null["fastest out"], null["called"], near["fastest out"]) * 120 < 16
    # Not because nothing is ever found, or counted.
    loose = [made(speeds, 40, alpha=0.9) for speeds in ([1.0] * 2, [1.0] * 4)]
    assert all(line["fastest out"] > 0.15 and line["called"] > 0.1 for line in loose)


@pytest.mark.slow
def test_false_sentences_are_counted_where_nobody_goes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(speeds: list[float], num: int) -> float:
        outcomes = [run_race(WORLDS["kinder"], speeds, seed, alpha=0, plans=(20,)) for seed in range(num)]
        assert all(len(one.left) == len(speeds) and one.rounds == 20 for one in outcomes)
        return float(np.mean([one.false_sentence for one in outcomes]))

    assert made([1.0] * 4, 60) < 10 / 60
    assert made(speeds_of(2, 0.5), 10) == 0, "a true sentence"
    assert made([0.5, 1.0], 10) == 0, "which it is whoever is the faster"
    monkeypatch.setattr("benchmarks.simulated_race.ERROR", 0.99)
    assert 0.1 < made([1.0] * 4, 40) < 1


def test_sentences_that_are_true_are_not_counted_as_false() -> None:
    found = [run_race(EXACT, speeds, 0) for speeds in ((2.0, 1.0), (1.0, 0.5, 0.4))]
    assert all(one.decided and one.called and not one.false_sentence for one in found)
    assert run_race(EXACT, (1.0, 2.0), 0).left == ("1",), "and the first one goes out where it is slower"
    line = figures([*found, run_race(EXACT, (1.0, 2.0), 0)])
    assert (line["decided"], line["fastest out"]) == pytest.approx((2 / 3, 1 / 3))


def test_rungs_by_hand() -> None:
    """The first trial is the best so far, a better one goes on, and a worse one is stopped after 2 of 10 epochs."""
    assert run_trials([50.0]) == ([4], 1.0)
    assert run_trials([170.0]) == ([math.inf], 1.0)
    assert run_trials([50.0, 40.0, 30.0]) == ([4, 2], 3.0)
    assert run_trials([30.0, 40.0, 50.0])[0] == [2, math.inf] and run_trials([30.0, 40.0, 50.0])[1] == pytest.approx(
        1.4
    ), "a stopped trial is a miss"
    # The fourth is among the best two of four at the first rung, but not the best of two at the second.
    assert run_trials([30.0, 60.0, 50.0, 40.0])[1] == pytest.approx(1 + 0.2 + 0.2 + 0.4)


def test_precedence_by_hand() -> None:
    inf = math.inf
    assert precedence_p([1, 2, 3, 4], [5, inf, inf, inf]) == pytest.approx(2 / 70)
    assert precedence_p([5, inf, inf, inf], [1, 2, 3, 4]) == pytest.approx(2 / 70)
    assert precedence_p([1, 5], [1, 9]) == 1, "first trials that tie precede nothing"
    assert precedence_p([1, 2, 9], [3, 4]) == pytest.approx(2 * 3 / 5 * 2 / 4)
    assert precedence_p([inf], [inf, inf]) == 1


def test_the_plan_before_the_race_costs_what_it_did_and_can_decide_only_with_many_trials() -> None:
    speeds = speeds_of(4, 0.5)
    few = [decides(WORLDS["digits"], speeds, 8, seed) for seed in range(200)]
    assert not any(decided for decided, _ in few)
    # Rungs were measured to leave .53 and .42 of the cost of 8 and of 32 trials.
    assert np.mean([cost for _, cost in few]) / 8 == pytest.approx(0.53, abs=0.02)
    assert np.mean([decides(WORLDS["digits"], speeds, 32, s)[1] for s in range(50)]) / 32 == pytest.approx(
        0.42, abs=0.02
    )
    trials, share, cost = trials_needed(WORLDS["digits"], speeds, power=0.5, num=40)
    assert trials is not None and 64 < trials < 160 and share >= 0.5 and cost == pytest.approx(0.36 * trials, rel=0.1)
    none, share, _ = trials_needed(WORLDS["digits"], (1.0, 1.0), power=0.5, num=40, most=32)
    assert none is None and share < 0.2


def test_the_race_needs_a_fraction_of_that() -> None:
    races = [run_race(WORLDS["digits"], speeds_of(4, 0.5), seed) for seed in range(60)]
    assert all(one.decided for one in races)
    enough = [decides(WORLDS["digits"], speeds_of(4, 0.5), 128, seed) for seed in range(60)]
    assert np.mean([decided for decided, _ in enough]) < 0.95
    assert figures(races)["cost, 90%"] < np.mean([cost for _, cost in enough]) / 3
