"""Performance profiles: the share of workloads on which a variant costs at most a factor more than the fastest.

    share(tau) = |{workloads: cost <= tau (least cost of all variants there)}| / |workloads|,      1 <= tau <= 4

The cost is the median of the confirmed runs of the best settings, in gradient evaluations to the highest target.
A variant that missed the target or is not confirmed counts at no tau.  On a workload where every variant missed, none
counts.  Source: Dolan and More, Math. Programming 91, 2002, arXiv cs/0102001; up to tau = 4 as in Dahl et al., arXiv
2306.07179.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tuner.report.comparison import times
from tuner.study.results import Search

LARGEST_FACTOR = 4.0
"""Largest tau of a profile."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A variant's step function of the factor; its value at a factor holds up to the next factor."""

    variant: str
    factors: tuple[float, ...]
    """Increasing from 1 to 4: all factors at which any variant's share rises, and both ends."""
    shares: tuple[float, ...]
    """Shares of workloads, in [0, 1], one per factor."""
    num_workloads: int


def performance_profiles(searches: Sequence[Search]) -> list[Profile]:
    """The profiles of the variants that all searches have, in the order of the first search; a search is a workload."""
    costs = [_costs(search) for search in searches]
    names = [name for name in (costs[0] if costs else ()) if all(name in known for known in costs)]
    least = [min((known[name] for name in names), default=math.inf) for known in costs]
    ratios = {
        name: [known[name] / best if best < math.inf else math.inf for known, best in zip(costs, least, strict=True)]
        for name in names
    }
    steps = {ratio for row in ratios.values() for ratio in row if ratio <= LARGEST_FACTOR}
    factors = tuple(sorted({1.0, LARGEST_FACTOR, *steps}))
    return [
        Profile(
            name,
            factors,
            tuple(sum(ratio <= factor for ratio in row) / len(costs) for factor in factors),
            len(costs),
        )
        for name, row in ratios.items()
    ]


def left_out(searches: Sequence[Search]) -> list[str]:
    """The variants that some searches lack and that therefore have no profile."""
    names = [[variant.name for variant in search.variants] for search in searches]
    return list(dict.fromkeys(name for row in names for name in row if not all(name in other for other in names)))


def _costs(search: Search) -> dict[str, float]:
    """Variant -> its median cost to the highest target; inf if it missed the target or is not confirmed."""
    goal = max(search.spec.training.targets, default=None)  # not measured yet
    reached = {
        time.variant: time.interval.estimate
        for time in times(search)
        if time.target == goal and time.unit == "gradient_evaluations"
    }
    return {variant.name: reached.get(variant.name, math.inf) for variant in search.variants}
