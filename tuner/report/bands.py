"""Confidence bands of tuning curves (opda), and how often they hold for searches of this kind, by simulation.

    curve(n) = median of the best of n draws from F = F^-1(1 - 2^(-1/n)), smaller being better;  F^-1(2^(-1/n)), larger

The band is a band of F: intervals from the Beta distributions of the order statistics, widened until all hold at once
(Learned-Miller and DeStefano, IEEE Trans. Inf. Theory 54, 2008; Lourie, Cho and He, arXiv 2311.09480).  It is exact for
independent draws from one continuous F.  A search breaks these assumptions: its outcomes have ties, its draws may be
points of a Sobol sequence, and rungs compare its trials with each other.  Searches of the same kind are therefore
simulated on a response surface (ours):

    accuracy_k = 0.99 - 0.89 exp(-rate_k k / K) + 0.004 z_k
    rate_k     = 8 2^(z/6 + z' (1 - k/K) - 9 sum_j 2^-j (u_j - 1/2)^2)

after evaluation k of K, at the point u of the unit cube, with j from 0 and all z standard normal.  Points at the upper
end of u_0 diverge at once.  The target is 0.95; good settings reach it after two fifths of the budget.  Curves cross
because of z': the rank correlation between a ninth of the budget and its end is 0.63.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from tuner.core.search_spec import Objective
from tuner.report.intervals import Interval, share_interval
from tuner.study.objectives import OBJECTIVES
from tuner.study.successive_halving import SuccessiveHalving

NUM_SEARCHES = 1000
"""Simulated searches per policy: a share of 95% is then known to within 1.5%."""
NUM_SAMPLES = 20_000
"""Samples for the width of a band: its level is then accurate to within 0.3%."""
BATCH = 2_000_000
"""Most evaluations that are simulated at a time: 16 MB per array."""
TARGET = 0.95
"""Validation accuracy that is the target in the simulation."""
DIMENSIONS = 8
"""Most settings that matter in the simulation; each has half the weight of the one before."""

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The properties of a search that a band's coverage may depend on."""

    num_trials: int
    """Random trials, at least 2."""
    num_evaluations: int
    """Evaluations of a whole training, at least 1, at equal distances over its budget."""
    objective: Objective
    """One with a single value, so not ``pareto``."""
    rungs: bool
    """Whether trials are stopped early."""
    sobol: bool
    """Whether the draws are points of a Sobol sequence; else they are independent."""
    dimension: int
    """Dimension of the space, at least 1."""
    diverging: float
    """Share of the space that diverges, in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often a band holds."""

    share: Interval
    """Share of simulated searches whose band held the policy's curve from ``holds_from`` on, with a 95% interval."""
    holds_from: int | None
    """Fewest trials from which on ``share`` is at least the band's level; None if never (``share`` is then from 1)."""


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


@cache
def simulated_coverage(policy: Policy) -> Coverage:
    """How often the band of a search's outcomes holds the policy's own tuning curve, at all numbers of trials at once.

    For each n up to R, that curve is the median over all simulated searches of the best of their first n trials.
    """
    minimize = OBJECTIVES[policy.objective][0].direction == "minimize"
    outcomes = np.concatenate(list(_outcomes(policy)))
    best = (np.minimum if minimize else np.maximum).accumulate(outcomes, axis=1)
    truth = np.quantile(best, 0.5, axis=0, method="inverted_cdf")  # an observed value, as the band's ends are
    low, _, high = curves(outcomes, SIMULATED[policy.objective][1], minimize)
    held = (low <= truth) & (truth <= high)
    num_held = np.logical_and.accumulate(held[:, ::-1], axis=1)[:, ::-1].sum(axis=0)
    shares = [share_interval(int(count), NUM_SEARCHES) for count in num_held]
    level = level_of(policy.num_trials)
    holds_from = next((n for n, share in enumerate(shares, start=1) if share.estimate >= level), None)
    return Coverage(shares[(holds_from or 1) - 1], holds_from)


def _outcomes(policy: Policy) -> Iterator[Floats]:
    """Outcomes of all simulated searches, in batches of shape (searches, trials)."""
    generator = np.random.default_rng(0)
    value, worst = SIMULATED[policy.objective]
    size = max(1, BATCH // (policy.num_trials * policy.num_evaluations))
    for start in range(0, NUM_SEARCHES, size):
        points = _points(policy, start, min(size, NUM_SEARCHES - start), generator)
        accuracies = _accuracies(points, policy.num_evaluations, generator)
        lost = points[..., 0] > 1 - policy.diverging
        if policy.rungs:
            lost |= stopped(accuracies, lost, TARGET)
        yield np.where(lost, worst, value(accuracies))


def _points(policy: Policy, start: int, num_searches: int, generator: np.random.Generator) -> Floats:
    """Points in the unit cube: shape (searches, trials, dimension)."""
    dimension = min(policy.dimension, DIMENSIONS)
    if policy.sobol:
        return _sobol(policy.num_trials)[start : start + num_searches, :, :dimension]
    return generator.random((num_searches, policy.num_trials, dimension))


@lru_cache(maxsize=1)
def _sobol(num_trials: int) -> Floats:
    # One set serves all variants of a search: the first coordinates of a scrambled sequence are one themselves.
    from scipy.stats import qmc

    generator = np.random.default_rng(1)
    log2 = (num_trials - 1).bit_length()
    sequences = (qmc.Sobol(DIMENSIONS, rng=generator) for _ in range(NUM_SEARCHES))
    return np.stack([sequence.random_base2(log2)[:num_trials] for sequence in sequences])


def _accuracies(points: Floats, num_evaluations: int, generator: np.random.Generator) -> Floats:
    """Accuracy after each evaluation, in [0, 1]: shape (searches, trials, evaluations)."""
    shape = points.shape[:2]
    distances = (points - 0.5) ** 2 @ 2.0 ** -np.arange(points.shape[2])
    shares = np.arange(1, num_evaluations + 1) / num_evaluations
    early = generator.normal(size=(*shape, 1)) * (1 - shares)
    rates = 8 * np.exp2((generator.normal(size=shape) / 6 - 9 * distances)[..., None] + early)
    jitter = 0.004 * generator.normal(size=(*shape, num_evaluations))
    accuracies: Floats = 0.99 - 0.89 * np.exp(-rates * shares) + jitter
    return accuracies.clip(0.0, 1.0)


def stopped(accuracies: Floats, diverged: Bools, target: float) -> Bools:
    """Which trials the rungs stop, for many searches at once: shape (searches, trials).

    A search trains its trials one after the other.  The rule is that of
    :class:`tuner.study.successive_halving.SuccessiveHalving`.

    ``accuracies`` has shape (searches, trials, evaluations), ``diverged`` (searches, trials).  A trial that diverges
    takes part at no rung.  A trial that has reached the target takes part and always continues.
    """
    rungs = SuccessiveHalving()
    num_trials, num_evaluations = accuracies.shape[1:]
    shares = np.arange(1, num_evaluations) / num_evaluations  # the last evaluation is not judged
    num_passed = np.searchsorted(rungs.shares, shares, side="right")
    firsts = np.unique(num_passed, return_index=True)[1]
    lost: Bools = diverged.copy()
    for k in firsts[num_passed[firsts] > 0]:
        judged = np.where(lost, -np.inf, accuracies[..., k])
        num_kept = np.ceil(np.cumsum(~lost, axis=1) / rungs.reduction)
        reached = accuracies[..., : k + 1].max(axis=2) >= target
        for trial in range(num_trials):
            num_better = (judged[:, :trial] > judged[:, trial, None]).sum(axis=1)
            lost[:, trial] |= (num_better >= num_kept[:, trial]) & ~reached[:, trial]
    return lost & ~diverged


def _times(accuracies: Floats) -> Floats:
    hits = accuracies >= TARGET
    shares: Floats = (hits.argmax(axis=2) + 1) / accuracies.shape[2]
    return np.where(hits.any(axis=2), shares, 1 + TARGET - accuracies.max(axis=2))


SIMULATED: dict[Objective, tuple[Callable[[Floats], Floats], float]] = {
    "time-to-target": (_times, 2.0),
    "accuracy": (lambda accuracies: accuracies[..., -1], 0.0),
    "auc": (lambda accuracies: 1 - accuracies.mean(axis=2), 1.0),
}
"""A single objective -> its value for accuracies (searches, trials, evaluations), and its worst value; budget 1."""
