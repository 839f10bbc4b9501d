"""Intervals that state the level they attain: of a median, of a ratio of costs, of a share.

A cost is above 0.  A miss would have cost more than was spent; its cost is ``math.inf``.  It is never left out and
never averaged as a number.  A miss over a hit is inf, and a hit over a miss is 0.  A miss over a miss is unknown: it is
0 for the low end of an interval, inf for the high end, and 1 for the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its closed interval."""

    estimate: float
    low: float
    high: float
    level: float
    """Attained confidence, in [0, 1]; it differs from the requested level if the data allow no other."""
    method: str = ""
    """Name of the method, such as ``order statistics``."""
    p_value: float | None = None
    """Two-sided p-value of "no difference", in [0, 1]; None for an interval that is not of a ratio."""

    @property
    def decided(self) -> bool:
        """Whether the interval attains a level of at least 95%."""
        return self.level >= 0.95 - 1e-9


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The median of costs; inf if it is censored.

        [x_(k), x_(n+1-k)],   level attained 1 - 2 P(B <= k - 1),   B ~ Binomial(n, 1/2)

    with the largest k that attains the requested level, else k = 1: 96.9% for six values, 75% for three, 0 for one.  It
    holds for any distribution.  Source: David and Nagaraja, Order Statistics (2003), section 7.1.
    Raises ValueError if there is no value, or one is not above 0.
    """
    costs = np.sort(_costs("values", values))
    k, attained = _order(len(costs), level)
    return Interval(float(np.median(costs)), float(costs[k - 1]), float(costs[-k]), attained, "order statistics")


def paired_ratio(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> Interval:
    """The ratio ours/theirs of costs that are paired by position; below 1, ours is cheaper.

    If nothing is missed and the ratios are not all equal, it is the geometric mean, by a paired t on the logarithms.
    Else it is the median ratio by order statistics, as in :func:`median_interval`.  Its p-value is that of the sign
    test, in which ties and unknown ratios count against a difference.  Its estimate is the geometric mean of the two
    middle ratios (1 for 0 and inf), so that exchanging ours and theirs inverts everything.

    Costs of a few whole epochs have ties.  The t interval holds all the same: over 20 distributions on 3 to 10 epochs
    it covers 97% on average and at least 90%.  Without a difference, p <= .05 in at most 5.5% of cases (simulated,
    ``benchmarks/calibration.py``).
    Raises ValueError if there is no pair, a cost has no partner, or one is not above 0.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} costs of ours and {len(theirs)} of theirs: must be pairs")
    with np.errstate(invalid="ignore", divide="ignore"):  # if one or both are misses
        ratios = _costs("ours", ours) / _costs("theirs", theirs)
        logs = np.log(ratios)
    n = len(ratios)
    if np.isfinite(logs).all() and np.ptp(logs) > 1e-9:  # smaller differences are rounding
        mean, error = float(np.mean(logs)), float(np.std(logs, ddof=1)) / math.sqrt(n)
        reach = error * float(special.stdtrit(n - 1, (1 + level) / 2))
        p_value = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
        low, high = math.exp(mean - reach), math.exp(mean + reach)
        return Interval(math.exp(mean), low, high, level, "paired t on logarithms", p_value)
    k, attained = _order(n, level)
    lows, middles, highs = (np.sort(np.where(np.isnan(ratios), unknown, ratios)) for unknown in (0.0, 1.0, math.inf))
    pair = float(middles[(n - 1) // 2]), float(middles[n // 2])
    estimate = 1.0 if pair == (0.0, math.inf) else math.sqrt(pair[0] * pair[1])
    num_against = n - max(int(np.sum(ratios > 1)), int(np.sum(ratios < 1)))
    p_value = min(1.0, 2 * float(special.bdtr(num_against, n, 0.5)))
    return Interval(estimate, float(lows[k - 1]), float(highs[-k]), attained, "signs", p_value)


def search_ratio(ours: Sequence[float], theirs: Sequence[float], level: float = 0.95) -> Interval:
    """The ratio ours/theirs of two searches' costs from their independent random trials, with the luck of both.

        [A_(1) / B_(k),  A_(k') / B_(1)],   A = ours, B = theirs, sorted,   estimate A_(1) / B_(1)
        level 1 - q(k; B) - q(k'; A),   q(k; B) = prod_{i<k} (|B| - i) / (|A| + |B| - i)

    If A/c is distributed as B, the k cheapest of all trials are B's own with probability q(k; B), and only then is c
    below A_(1) / B_(k).  This is the precedence test (Nelson, Technometrics 5 (1963) 491-499), inverted for a scale.
    k and k' are the smallest with q <= (1 - level) / 2, else the largest possible: 97.1% for four trials each, 90% for
    three.  The p-value is 2 q(m), where m is the number of trials of one arm before the first of the other, without
    ties.

    Resampling the arms and selecting the cheapest trial again does not work.  At a nominal 95% it covers 86 or 87%,
    however many trials there are, because the bootstrap of a minimum is inconsistent (Bickel and Freedman, Annals of
    Statistics 9 (1981) 1196-1217, section 6; simulated as for :func:`paired_ratio`).

    Raises ValueError if an arm is empty, or a cost is not above 0.
    """
    a, b = np.sort(_costs("ours", ours)), np.sort(_costs("theirs", theirs))
    above, below = _precedence(len(b), len(a)), _precedence(len(a), len(b))
    k, k_ours = (_first(probabilities, (1 - level) / 2) for probabilities in (above, below))
    m = max(int(np.sum(b < a[0])), int(np.sum(a < b[0])))
    p_value = min(1.0, 2 * (above if b[0] < a[0] else below)[m])
    return Interval(
        _ratio(a[0], b[0], 1.0),
        _ratio(a[0], b[k - 1], 0.0),
        _ratio(a[k_ours - 1], b[0], math.inf),
        1 - above[k] - below[k_ours],
        "precedence",
        p_value,
    )


def share_interval(count: int, total: int, level: float = 0.95) -> Interval:
    """The share count/total (0 if total is 0) by Clopper and Pearson (Biometrika 26 (1934) 404-413).

    It covers with at least the level.  Raises ValueError if count is not in 0..total.
    """
    if not 0 <= count <= total:
        raise ValueError(f"count = {count}: must be in 0..{total}")
    tail = (1 - level) / 2
    low = float(special.betaincinv(count, total - count + 1, tail)) if count else 0.0
    high = float(special.betaincinv(count + 1, total - count, 1 - tail)) if count < total else 1.0
    return Interval(count / max(total, 1), low, high, level, "exact binomial")


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given.  Among those <= alpha, any is false with probability alpha at most.

    adjusted_(i) = max_{j <= i} min(1, (n - j + 1) p_(j))     (Holm, Scandinavian Journal of Statistics 6 (1979) 65-70)
    """
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def _costs(name: str, values: Sequence[float]) -> NDArray[np.float64]:
    costs = np.asarray(values, dtype=np.float64)
    if not costs.size or not (costs > 0).all():
        raise ValueError(f"{name} = {list(values)}: must be at least one cost, all above 0")
    return costs


def _order(n: int, level: float) -> tuple[int, float]:
    # The largest k whose interval attains the level, else 1; and the attained level.
    levels = [1 - 2 * float(special.bdtr(k - 1, n, 0.5)) for k in range(1, n // 2 + 1)] or [0.0]
    k = max((k for k, attained in enumerate(levels, start=1) if attained >= level), default=1)
    return k, levels[k - 1]


def _precedence(n: int, num_others: int) -> list[float]:
    # For m = 0..n: the probability that the m smallest of all values belong to the arm of n.
    probabilities = [1.0]
    for i in range(n):
        probabilities.append(probabilities[-1] * (n - i) / (n + num_others - i))
    return probabilities


def _first(probabilities: Sequence[float], tail: float) -> int:
    return next((k for k, q in enumerate(probabilities) if q <= tail), len(probabilities) - 1)


def _ratio(ours: float, theirs: float, unknown: float) -> float:
    return unknown if ours == theirs == math.inf else float(ours / theirs)
