"""The race's statistics against integrals, enumeration and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import integrate, special

from tuner.race import (
    eliminated,
    evidence,
    interval,
    log_evidence,
    pair_threshold,
    round_result,
    threshold,
    wins_needed,
)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (0, 1), (5, 3), (3, 5), (20, 4)])
def test_evidence_is_the_mixture_of_likelihood_ratios(won: int, lost: int) -> None:
    def weighed(p: float) -> float:
        return 2.0 ** (won + lost) * p**won * (1 - p) ** lost * 2 / (math.pi * math.sqrt(p * (1 - p)))

    assert evidence(won, lost) == pytest.approx(integrate.quad(weighed, 0.5, 1)[0], rel=1e-6)


def test_evidence_is_a_martingale_for_a_fair_coin_and_a_supermartingale_for_a_worse_one() -> None:
    for won, lost in itertools.product(range(8), repeat=2):
        after = evidence(won + 1, lost), evidence(won, lost + 1)
        assert sum(after) / 2 == pytest.approx(evidence(won, lost))
        assert 0.4 * after[0] + 0.6 * after[1] < evidence(won, lost)


def test_evidence_of_thousands_of_rounds_neither_overflows_nor_fails() -> None:
    assert evidence(5000, 10) == math.inf and log_evidence(5000, 10) > 3000
    assert evidence(10, 5000) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("num_variants", "straight", "after_a_loss"), [(2, 6, 10), (4, 8, 12), (8, 9, 13)])
def test_wins_that_put_a_variant_out(num_variants: int, straight: int, after_a_loss: int) -> None:
    for lost, needed in ((0, straight), (1, after_a_loss)):
        assert evidence(needed - 1, lost) < threshold(num_variants) <= evidence(needed, lost)
        assert wins_needed(num_variants, lost=lost) == needed


def test_equal_variants_are_called_different_in_few_of_many_long_races() -> None:
    tosses = np.random.default_rng(0).random((4000, 200)) < 0.5
    won = tosses.cumsum(axis=1)
    lost = np.arange(1, 201) - won
    table = np.array([[evidence(w, n - w) if w <= n else 0 for w in range(201)] for n in range(201)])
    largest = table[won + lost, won].max(axis=1)
    for alpha in (0.2, 0.05):
        assert np.mean(largest >= 1 / alpha) <= alpha


def test_the_interval_covers_at_all_looks_at_once() -> None:
    generator = np.random.default_rng(1)
    for theta in (0.5, 0.8):
        missed = 0
        for _ in range(400):
            won = (generator.random(100) < theta).cumsum().tolist()
            missed += any(not low <= theta <= high for n, w in enumerate(won, 1) for low, high in [interval(w, n - w)])
        assert missed <= 0.05 * 400


def test_the_interval_ends_where_the_mixture_reaches_the_likelihood() -> None:
    assert interval(0, 0) == (0.0, 1.0)
    for won, lost in [(3, 4), (40, 2), (1000, 1000)]:
        mixture = special.betaln(won + 0.5, lost + 0.5) - math.log(math.pi)
        for end in interval(won, lost, 0.9):
            assert won * math.log(end) + lost * math.log1p(-end) == pytest.approx(mixture + math.log(0.1))
    assert interval(6, 0)[1] == 1.0 and interval(0, 6)[0] == 0.0
    assert interval(6, 0)[0] == pytest.approx(1 - interval(0, 6)[1])


def test_a_round_is_ordered_only_as_far_as_it_was_watched() -> None:
    assert round_result(60, 70, 75) == 1 and round_result(70, 60, 75) == -1
    assert round_result(60, math.inf, 75) == 1 and round_result(math.inf, 60, 75) == -1
    assert round_result(60, 60, 75) == 0 and round_result(math.inf, math.inf, math.inf) == 0
    assert round_result(80, 90, 75) == 0 and round_result(80, 70, 75) == -1
    # The better accuracy, as a negative number.
    assert round_result(-0.95, -0.9, math.inf) == 1


def test_a_handicap_multiplies_ours() -> None:
    assert round_result(60, 70, 75, handicap=1.1) == 1
    assert round_result(60, 70, 75, handicap=1.2) == -1
    # The loser was watched up to 75: that it needs 1.3 times as long is not known.
    assert round_result(60, math.inf, 75, handicap=1.2) == 1 and round_result(60, math.inf, 75, handicap=1.3) == 0


def wins(*results: tuple[str, str, int, int]) -> dict[tuple[str, str], int]:
    return {pair: number for i, j, w, n in results for pair, number in (((i, j), w), ((j, i), n - w))}


def test_who_is_out() -> None:
    assert eliminated({}) == frozenset()
    assert eliminated(wins(("a", "b", 5, 5))) == frozenset()
    assert eliminated(wins(("a", "b", 6, 6))) == {"b"}
    table = wins(("a", "b", 6, 6), ("a", "c", 8, 8), ("b", "c", 3, 8))
    assert eliminated(table) == {"c"}
    assert eliminated(table, planned=2) == {"b", "c"}
    assert eliminated(table, alpha=0) == frozenset()
    assert eliminated(table, alpha=0.2) == {"b", "c"}


def test_a_circle_puts_nobody_out() -> None:
    assert eliminated(wins(("a", "b", 9, 9), ("b", "c", 9, 9), ("c", "a", 9, 9))) == frozenset()


def test_an_added_variant_has_an_error_rate_of_its_own() -> None:
    # Two at .05 began; the first added has .025 over its two rivals, the second .0125 over three.
    assert pair_threshold("a", "b", 2, 0.05, ["c", "d"]) == pytest.approx(20)
    assert pair_threshold("c", "a", 2, 0.05, ["c", "d"]) == pytest.approx(2 / 0.025)
    assert pair_threshold("c", "d", 2, 0.05, ["c", "d"]) == pytest.approx(3 / 0.0125)
    assert eliminated(wins(("a", "b", 6, 6), ("a", "c", 7, 7)), added=["c"]) == {"b"}
    assert eliminated(wins(("a", "b", 6, 6), ("a", "c", 8, 8)), added=["c"]) == {"b", "c"}


@pytest.mark.parametrize(
    "call",
    [
        lambda: evidence(-1, 0),
        lambda: interval(0, -1),
        lambda: interval(1, 1, level=1.0),
        lambda: round_result(1, 2, 3, handicap=0.5),
        lambda: round_result(math.nan, 2, 3),
        lambda: threshold(0),
        lambda: threshold(2, alpha=1.0),
        lambda: threshold(2, alpha=-0.1),
    ],
)
def test_what_has_no_meaning_is_refused(call: object) -> None:
    with pytest.raises(ValueError, match="must be"):
        call()  # type: ignore[operator]
