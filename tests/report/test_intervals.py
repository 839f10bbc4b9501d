"""Intervals hold at the level they state: exactly where all cases can be counted, else over seeded simulations."""

from __future__ import annotations

import math
from math import inf

import numpy as np
import pytest
from scipy import stats

from benchmarks.calibration import WAYS, coverage, in_whole_epochs
from tuner.report.intervals import Interval, holm, median_interval, paired_ratio, share_interval

NUM = 2000
DROPPED = "median of 12, misses left out"
TAKEN = [name for name in WAYS if "not taken" not in name]
NOT_TAKEN = [f"{name} (not taken)" for name in ("ratio of 6 pairs, bootstrap", DROPPED)]


def ends(interval: Interval) -> tuple[float, float, float]:
    return interval.low, interval.estimate, interval.high


def deviation(share: float) -> float:
    """Three and a half standard deviations of a share found in NUM simulations."""
    return 3.5 * math.sqrt(share * (1 - share) / NUM)


@pytest.mark.parametrize("name", TAKEN)
def test_an_interval_covers_as_often_as_it_says_and_its_estimate_is_in_the_middle(name: str) -> None:
    found = coverage(WAYS[name], NUM, np.random.default_rng(1))
    assert found["coverage"] > found["level"] - deviation(found["level"])
    # Where many miss, and count alike, a normal law of the logarithms is only nearly true.
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


def test_equal_ratios_are_known_no_better_than_the_costs_are() -> None:
    """A t interval alone would be sure of a zero variance."""
    ours, theirs = [32.0, 48, 64], [64.0, 96, 128]
    found = paired_ratio(ours, theirs, resolution=1)
    # Half a gradient evaluation in each cost, relative to it, on a logarithmic scale.
    reach = np.mean([0.5 / a + 0.5 / b for a, b in zip(ours, theirs, strict=True)])
    assert ends(found) == pytest.approx((0.5 * math.exp(-reach), 0.5, 0.5 * math.exp(reach)))
    assert found.decided and found.p_value is not None and found.p_value < 0.05
    one_more = paired_ratio([*ours[:2], 64.001], theirs, resolution=1)
    assert ends(one_more) == pytest.approx(ends(found), rel=1e-4), "nearly equal ones are known as well"
    assert one_more.p_value == pytest.approx(found.p_value, rel=1e-2)
    same = paired_ratio([30.0] * 6, [30.0] * 6, resolution=1)
    assert ends(same) == pytest.approx((math.exp(-1 / 30), 1, math.exp(1 / 30))) and same.p_value == 1


def test_a_difference_within_the_resolution_is_none() -> None:
    for more, called in ((0.5, False), (1.5, True)):
        found = paired_ratio([30.0 + more] * 6, [30.0] * 6, resolution=1)
        assert (found.p_value is not None and found.p_value <= 0.05) == called == (not found.low <= 1 <= found.high)


def test_where_costs_spread_their_resolution_is_no_matter() -> None:
    ours, theirs = [64.0, 80, 48, 96, 64, 112], [96.0, 80, 80, 112, 96, 144]
    assert paired_ratio(ours, theirs, resolution=1) == paired_ratio(ours, theirs)


def test_a_single_pair_says_nothing() -> None:
    found = paired_ratio([10], [40])
    assert ends(found) == pytest.approx((0, 0.25, inf)) and (found.level, found.p_value, found.decided) == (0, 1, False)


def test_a_miss_takes_no_evidence_away() -> None:
    """Six pairs of 64 against 128 of 160: one miss of the slower, as 161, leaves what is shown."""
    ours, theirs = [60.0, 64, 68, 62, 66, 64], [120.0, 130, 128, 135, 125, 131]
    before, after = paired_ratio(ours, theirs), paired_ratio(ours, [*theirs[:5], 161])
    assert before.high < 1 and after.high < 1 and after.estimate < before.estimate
    assert after.p_value is not None and after.p_value < 0.01


def some_costs(seed: int) -> tuple[list[float], list[float]]:
    """Pairs of costs with ties, from 1 to 8 of them."""
    generator = np.random.default_rng(seed)
    size, factor = generator.integers(1, 9), generator.choice([1, 3])
    ours, theirs = generator.choice([10.0, 20, 30, 40, 161], size=(2, size))
    return (factor * ours).tolist(), theirs.tolist()


def test_exchanging_the_sides_inverts_and_p_value_and_interval_agree() -> None:
    num_called = 0
    for seed in range(300):
        ours, theirs = some_costs(seed)
        one, other = (paired_ratio(*pair, resolution=1) for pair in ((ours, theirs), (theirs, ours)))
        inverse = [0.0 if value == inf else inf if value == 0 else 1 / value for value in reversed(ends(other))]
        assert list(ends(one)) == pytest.approx(inverse)
        assert one.low <= one.estimate <= one.high
        assert one.p_value is not None and (one.level, one.p_value) == pytest.approx((other.level, other.p_value))
        called = one.p_value <= 0.05
        if one.decided:
            assert called == (one.low > 1 or one.high < 1)
        num_called += called
    assert num_called > 10


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
            paired_ratio([1.0], [bad])
    with pytest.raises(ValueError, match="infinite cost: must be finite, a miss too"):
        paired_ratio([1.0, inf], [1.0, 1.0])
    with pytest.raises(ValueError, match="2 costs of ours and 1 of theirs: must be pairs"):
        paired_ratio([1, 2], [1])
    with pytest.raises(ValueError, match=r"count = 4: must be in 0\.\.3"):
        share_interval(4, 3)
