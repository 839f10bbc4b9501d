"""Intervals hold at the level they state: exactly where all cases can be counted, else over seeded simulations."""

from __future__ import annotations

import itertools
import math
from math import inf

import numpy as np
import pytest
from scipy import stats

from benchmarks.calibration import WAYS, coverage, in_whole_epochs
from tuner.report.intervals import Interval, holm, median_interval, paired_ratio, search_ratio, share_interval

NUM = 2000
DROPPED = "median of 12, misses left out"
TAKEN = [name for name in WAYS if "not taken" not in name]
NOT_TAKEN = [f"{name} (not taken)" for name in ("ratio of 6 pairs, bootstrap", "the same of 16, bootstrap", DROPPED)]


def ends(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.estimate, interval.high


def deviation(share: float) -> float:
    """Three and a half standard deviations of a share found in NUM simulations."""
    return 3.5 * math.sqrt(share * (1 - share) / NUM)


@pytest.mark.parametrize("name", TAKEN)
def test_an_interval_covers_as_often_as_it_says_and_its_estimate_is_in_the_middle(name: str) -> None:
    found = coverage(WAYS[name], NUM, np.random.default_rng(1))
    assert found["coverage"] > found["level"] - deviation(found["level"])
    # Pairs of which both are missed could be anything, and are counted so.
    if not ("pairs" in name and "missed" in name):
        assert found["coverage"] < found["level"] + deviation(found["level"])
    assert abs(found["below"] - 0.5) < deviation(0.5)


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_the_shorter_ways_do_not(name: str) -> None:
    """So the test above can tell."""
    found = coverage(WAYS[name], NUM, np.random.default_rng(1))
    assert found["coverage"] < found["level"] - deviation(found["level"])


def test_leaving_misses_out_biases_the_median() -> None:
    assert coverage(WAYS[f"{DROPPED} (not taken)"], NUM, np.random.default_rng(1))["below"] > 0.9


@pytest.mark.parametrize("num_pairs", [3, 6, 12])
def test_paired_ratios_hold_in_whole_epochs_too(num_pairs: int) -> None:
    found = in_whole_epochs(num_pairs, 1.0, 500, np.random.default_rng(0))
    assert found["mean"] > 0.95 and found["called"] < 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 500)
    assert in_whole_epochs(num_pairs, 0.8, 500, np.random.default_rng(0))["least"] > 0.89


@pytest.mark.parametrize(
    ("num", "k", "level"),
    [(1, 1, 0.0), (2, 1, 0.5), (3, 1, 0.75), (6, 1, 31 / 32), (9, 2, 1 - 20 / 512), (12, 3, 0.9614)],
)
def test_order_statistics_by_hand(num: int, k: int, level: float) -> None:
    found = median_interval(range(num, 0, -1))
    assert ends(found) == (k, (num + 1) / 2, num + 1 - k)
    assert found.level == pytest.approx(level, abs=1e-4) and found.decided == (num >= 6)


def test_the_narrowest_interval_that_attains_the_level_asked() -> None:
    values = range(1, 7)
    assert [median_interval(values, level).low for level in (0.3, 0.35, 0.75, 0.79, 0.99)] == [3, 2, 2, 1, 1]


def test_a_miss_is_beyond_every_number() -> None:
    assert ends(median_interval([3, inf, 1, 2, inf, 4])) == (1, 3.5, inf)
    assert ends(median_interval([3, inf, 1, 2, inf, inf])) == (1, inf, inf)
    assert ends(median_interval([inf, inf])) == (inf, inf, inf)


def test_t_is_that_of_scipy() -> None:
    ours, theirs = [64.0, 80, 48, 96, 64, 112], [96.0, 80, 80, 112, 96, 144]
    found = paired_ratio(ours, theirs)
    expected = stats.ttest_rel(np.log(ours), np.log(theirs))
    reach = expected.confidence_interval()
    assert ends(found) == pytest.approx(
        (math.exp(reach.low), stats.gmean(ours) / stats.gmean(theirs), math.exp(reach.high))
    )
    assert found.p_value == pytest.approx(expected.pvalue) and found.level == 0.95


def test_equal_ratios_say_no_more_than_their_signs() -> None:
    """t would be sure of a zero variance."""
    found = paired_ratio([1, 2, 3], [2, 4, 6])
    assert (ends(found), found.level, found.p_value, found.decided) == ((0.5, 0.5, 0.5), 0.75, 0.25, False)
    assert paired_ratio([0.1, 0.2, 0.3], [1, 2, 3]).method == "signs", "equal but for rounding"
    found = paired_ratio([3] * 6, [2] * 6)
    assert ends(found) == (1.5, 1.5, 1.5)
    assert (found.level, found.p_value) == pytest.approx((31 / 32, 1 / 32))
    same = paired_ratio([3] * 6, [3] * 6)
    assert (ends(same), same.p_value) == ((1, 1, 1), 1)


def test_pairs_with_misses_by_hand() -> None:
    found = paired_ratio([1, 1, 1, 1, 1, 1], [2, 3, 4, 5, inf, inf])
    assert ends(found) == pytest.approx((0, math.sqrt(1 / 4 * 1 / 5), 0.5))
    assert found.method == "signs" and found.p_value == pytest.approx(1 / 32)
    # One unknown pair, or one tie, of six: seven of 64 sign patterns on each side.
    for pair in (inf, inf), (2, 2):
        found = paired_ratio([1, 1, 1, 1, 1, pair[0]], [2, 3, 4, 5, inf, pair[1]])
        assert found.p_value == pytest.approx(14 / 64) and found.high >= 1
    assert ends(paired_ratio([inf] * 3, [inf] * 3)) == (0, 1, inf)
    assert ends(paired_ratio([1, inf], [inf, 1])) == (0, 1, inf)


def some_costs(seed: int) -> tuple[list[float], list[float]]:
    """Costs with ties and misses, in arms of any size from 1."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 9, size=2)
    drawn = (
        generator.choice([1.0, 2, 3, 4, inf], size=size) * [1, generator.choice([1, 3])][i]
        for i, size in enumerate(sizes)
    )
    ours, theirs = (values.tolist() for values in drawn)
    return ours, theirs


@pytest.mark.parametrize("ratio", [paired_ratio, search_ratio])
def test_exchanging_the_sides_inverts_and_p_value_and_interval_agree(ratio: type) -> None:
    num_called = 0
    for seed in range(300):
        ours, theirs = some_costs(seed)
        if ratio is paired_ratio:
            ours, theirs = ours[: len(theirs)], theirs[: len(ours)]
        one, other = ratio(ours, theirs), ratio(theirs, ours)
        inverse = [0.0 if value == inf else inf if value == 0 else 1 / value for value in reversed(ends(other))]
        assert list(ends(one)) == pytest.approx(inverse)
        assert one.low <= one.estimate <= one.high
        assert (one.level, one.p_value) == pytest.approx((other.level, other.p_value))
        called = one.p_value <= 0.05
        if one.decided:
            assert called == (one.low > 1 or one.high < 1)
        num_called += called
    assert num_called > 10


@pytest.mark.parametrize(("num_ours", "num_theirs"), [(4, 4), (3, 6), (5, 4), (2, 8)])
def test_precedence_over_all_orders(num_ours: int, num_theirs: int) -> None:
    """Of all ways to deal the ranks to two arms, each as likely, those that exclude 1 are what the level leaves."""
    ranks = range(1, num_ours + num_theirs + 1)
    made = [
        search_ratio(ours, [rank for rank in ranks if rank not in ours])
        for ours in itertools.combinations(ranks, num_ours)
    ]
    excluded = np.mean([not found.low <= 1 <= found.high for found in made])
    assert excluded == pytest.approx(1 - made[0].level)
    for found in made:
        assert found.p_value is not None
        at_most = np.mean([other.p_value <= found.p_value + 1e-12 for other in made])  # type: ignore[operator]
        assert at_most <= found.p_value + 1e-12


def test_precedence_by_hand() -> None:
    found = search_ratio([4, 8, 12, 16], [5, 6, 7, 40])
    assert ends(found) == (4 / 40, 4 / 5, 16 / 5)
    assert found.level == pytest.approx(1 - 2 / 70) and found.p_value == 1
    found = search_ratio([1, 2, 3, 4], [5, inf, inf, inf])
    assert ends(found) == (0, 1 / 5, 4 / 5) and found.p_value == pytest.approx(2 / 70)
    assert not search_ratio([1, 2, 3], [7, 8, 9]).decided
    sixteen = search_ratio(range(1, 17), range(101, 117))
    assert ends(sixteen) == (1 / 105, 1 / 101, 5 / 101)
    assert ends(search_ratio([inf, inf], [inf])) == (0, 1, inf)
    assert search_ratio([1, 5], [1, 9]).p_value == 1, "first trials that tie precede nothing"


def test_share_is_that_of_scipy() -> None:
    for count, total in [(0, 8), (3, 8), (8, 8), (1, 1)]:
        expected = stats.binomtest(count, total).proportion_ci()
        assert ends(share_interval(count, total)) == pytest.approx((expected.low, count / total, expected.high))
    assert ends(share_interval(0, 0)) == (0, 0, 1)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2] and holm([]) == []


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"values = \[\]: must be at least one cost"):
        median_interval([])
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="all above 0"):
            search_ratio([1.0], [bad])
    with pytest.raises(ValueError, match="2 costs of ours and 1 of theirs: must be pairs"):
        paired_ratio([1, 2], [1])
    with pytest.raises(ValueError, match=r"count = 4: must be in 0\.\.3"):
        share_interval(4, 3)
