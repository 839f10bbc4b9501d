"""Intervals that state the level they attain: of a median, of a ratio of costs, of a share.

A cost is above 0.  A miss would have cost more than was spent, and is never left out.  In a median its cost is
``math.inf``; in a ratio it is the least that it would have been.
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


def paired_ratio(
    ours: Sequence[float], theirs: Sequence[float], level: float = 0.95, *, resolution: float = 0.0
) -> Interval:
    """The ratio ours/theirs of finite costs that are paired by position; below 1, ours is cheaper.

    It is the geometric mean, with the interval of a paired t on the logarithms::

        exp(m +- max(t s / sqrt(n), r)),    m, s: mean and standard deviation (n - 1) of log(ours/theirs)
        r = resolution/2 mean(1/ours + 1/theirs)

    A cost is known only to its ``resolution``, in its own unit, so no interval is narrower than r, however equal the
    ratios are.  The p-value is that of the t at which the interval would end at 1.  A single pair has the interval
    (0, inf), the level 0 and the p-value 1.

    A miss enters as the least that it would have cost, one gradient evaluation past the budget, and no less than what
    it is compared with.  So a ratio to a miss is the nearest to 1 that it can be, and two misses are equal.  Counted as
    unbounded instead, one miss of the slower of two would weaken the evidence for what it shows.  The bound makes the
    interval hold for the ratio of the bounded costs, which is the nearer one to 1.

    Costs of a few whole epochs have ties.  The t interval holds all the same (``benchmarks/calibration.py``).
    Raises ValueError if there is no pair, a cost has no partner, or one is not above 0 and finite.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} costs of ours and {len(theirs)} of theirs: must be pairs")
    a, b = _costs("ours", ours), _costs("theirs", theirs)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("ours or theirs has an infinite cost: must be finite, a miss too")
    logs, n = np.log(a) - np.log(b), len(a)
    mean = float(np.mean(logs))
    if n == 1:
        return Interval(math.exp(mean), 0.0, math.inf, 0.0, "paired t on logarithms", 1.0)
    quantile = float(special.stdtrit(n - 1, (1 + level) / 2))
    least = resolution / 2 * float(np.mean(1 / a + 1 / b))
    error = max(float(np.std(logs, ddof=1)) / math.sqrt(n), least / quantile, np.finfo(float).eps)
    p_value = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
    reach = error * quantile
    low, high = math.exp(mean - reach), math.exp(mean + reach)
    return Interval(math.exp(mean), low, high, level, "paired t on logarithms", p_value)


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
