"""Whether several trainings name the same layer groups, compared with chance.  Source: ours.

Two rankings that name three of seven groups at random name the same three with probability 1/35.  A model's
architecture can also make all its trainings agree without any common error, for example by large gradients in the first
layers.  So the overlap across optimizers has to be compared with the overlap across the seeds of one optimizer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom, kendalltau

from tuner.core.errors import InvalidInput

NUM_PERMUTATIONS = 10_000


@dataclass(frozen=True, slots=True)
class Overlap:
    """What the first k groups of two rankings have in common."""

    shared: int
    """Number of groups that both rankings name, in [0, k]."""
    chance: float
    """Probability of sharing at least so many groups if one ranking names k of n groups at random."""
    tau: float
    """Kendall's rank correlation over all groups, in [-1, 1]; nan for fewer than two."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """What any number of rankings of the same groups have in common."""

    pairs: dict[tuple[int, int], Overlap]
    """Positions of two rankings, the smaller one first, -> their overlap."""
    mean_shared: float
    """Mean number of shared groups over all pairs of rankings."""
    expected_shared: float
    """Mean number of shared groups that chance would give: k^2/n."""
    p_value: float
    """Probability of a mean at least so large if each ranking names its groups at random and independently.

    It is exact for two rankings.  For more it is estimated from 10,000 draws of a fixed seed, and so at least 1/10,001.
    """


def agreement(rankings: Sequence[Sequence[str]], num_named: int) -> Agreement:
    """What rankings of the same groups, each from first to last, have in common in their first ``num_named``.

    Raises :class:`InvalidInput` for fewer than two rankings, for rankings of different groups, and for a number that is
    not in [1, number of groups).
    """
    if len(rankings) < 2:
        raise InvalidInput("--compare: needs at least two runs")
    groups = sorted(rankings[0])
    for ranking in rankings:
        if sorted(ranking) != groups:
            raise InvalidInput("--compare: the runs are of different models: their layer groups differ")
    if not 0 < num_named < len(groups):
        raise InvalidInput(f"--num-groups {num_named}: must be in [1, {len(groups) - 1}]")
    pairs = {
        (first, second): _overlap(rankings[first], rankings[second], num_named)
        for first, second in itertools.combinations(range(len(rankings)), 2)
    }
    mean = sum(pair.shared for pair in pairs.values()) / len(pairs)
    expected = num_named**2 / len(groups)
    if len(rankings) == 2:
        return Agreement(pairs, mean, expected, pairs[0, 1].chance)
    return Agreement(pairs, mean, expected, _p_value(mean, len(rankings), len(groups), num_named))


def _overlap(ours: Sequence[str], theirs: Sequence[str], num_named: int) -> Overlap:
    shared = len(set(ours[:num_named]) & set(theirs[:num_named]))
    # P(X >= shared), where X is the number of named groups among num_named that are drawn from all.
    chance = float(hypergeom(len(ours), num_named, num_named).sf(shared - 1))
    tau = float(kendalltau([ours.index(name) for name in theirs], range(len(theirs))).statistic)
    return Overlap(shared, chance, tau)


def _p_value(mean: float, num_rankings: int, num_groups: int, num_named: int) -> float:
    draw = np.random.default_rng(0)
    places = draw.random((NUM_PERMUTATIONS, num_rankings, num_groups)).argsort(axis=2).argsort(axis=2)
    # v rankings that name a group are v (v - 1) / 2 pairs that share it; the sum over groups counts all shared groups.
    votes = (places < num_named).sum(axis=1)
    means = (votes * (votes - 1) / 2).sum(axis=1) / math.comb(num_rankings, 2)
    return float((1 + (means >= mean - 1e-9).sum()) / (1 + NUM_PERMUTATIONS))
