"""Confidence bands of tuning curves (opda).

    curve(n) = median of the best of n draws from F = F^-1(1 - 2^(-1/n)), smaller being better;  F^-1(2^(-1/n)), larger

The band is a band of F: intervals from the Beta distributions of the order statistics, widened until all hold at once
(Learned-Miller and DeStefano, IEEE Trans. Inf. Theory 54, 2008; Lourie, Cho and He, arXiv 2311.09480).  It is exact for
independent draws from one continuous F, and wider than needed where draws are tied.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

NUM_SAMPLES = 20_000
"""Samples for the width of a band: its level is then accurate to within 0.3%."""

Floats = NDArray[np.float64]


def level_of(num_draws: int) -> float:
    """A band's level: 0.95, or 0.8 below eight draws, where a 95% band has no bound on the good side of the curve."""
    return 0.95 if num_draws >= 8 else 0.8


@cache
def levels(num_draws: int) -> tuple[Floats, Floats]:
    """Simultaneous lower and upper ends of F at each order statistic: two increasing rows of R numbers in (0, 1)."""
    from opda.utils import beta_equal_tailed_coverage, beta_equal_tailed_interval  # costs most of a second

    # As opda's confidence_bands(method="ld_equal_tailed"), which takes 3 s for 125 draws, with a fifth of its samples.
    samples = np.sort(np.random.default_rng(num_draws).random((NUM_SAMPLES, num_draws)), axis=1)
    ranks, widest = np.arange(1, num_draws + 1), np.zeros(NUM_SAMPLES)
    for rank, sample in zip(ranks, samples.T, strict=True):
        np.maximum(widest, beta_equal_tailed_coverage(rank, num_draws + 1 - rank, sample), out=widest)
    width = np.quantile(widest, level_of(num_draws))
    lows, highs = beta_equal_tailed_interval(ranks, num_draws + 1 - ranks, width)
    return lows, highs


@cache
def _ranks(num_draws: int, minimize: bool) -> NDArray[np.intp]:
    """Ranks of the order statistics that are a curve's low end, median and high end after 1..R trials: shape (3, R).

    Rank 0 is the lower end of the support, R + 1 its upper end.  The ranks do not depend on the outcomes or their ties.
    """
    from opda.nonparametric import EmpiricalDistribution

    lows, highs = levels(num_draws)
    ranks, extended = np.arange(1, num_draws + 1), np.arange(num_draws + 2)
    # Below an order statistic, F is at most the high end there.  From it on, F is at least the low end there.
    bands = (
        EmpiricalDistribution(extended, ws=np.diff([*highs, 1.0], prepend=0.0, append=1.0)),
        EmpiricalDistribution(ranks),
        EmpiricalDistribution(extended, ws=np.diff([0.0, *lows], prepend=0.0, append=1.0)),
    )
    return np.array([band.quantile_tuning_curve(ranks, minimize=minimize) for band in bands], dtype=np.intp)


def curves(outcomes: Floats, worst: float, minimize: bool) -> Floats:
    """Low end, median and high end of tuning curves after 1..R trials: shape (3, ..., R), for outcomes (..., R).

    No outcome is worse than ``worst``.  None is better than 0 if it is minimized, or than 1 if it is maximized.
    """
    low, high = (0.0, worst) if minimize else (worst, 1.0)
    one = outcomes[..., :1]
    extended = np.concatenate([np.full_like(one, low), np.sort(outcomes), np.full_like(one, high)], axis=-1)
    return np.stack([extended[..., ranks] for ranks in _ranks(outcomes.shape[-1], minimize)])
