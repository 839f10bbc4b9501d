"""Whether the report's statistics have the levels that they state, on costs whose truth is known.  It takes minutes.

It simulates three things on one thread:

1. The intervals of tuner.report.intervals, on costs whose logarithms are normal with standard deviation 0.2.  Beside
   them stand simpler intervals that the report does not use: a percentile bootstrap of pairs, one that selects the
   cheapest trial anew in every resample, and a median without the misses.
2. The same on costs in whole epochs, where ratios tie.
3. Whole searches of two variants that are equal, or of which one is faster.  They go through exploration with rungs,
   selection and fresh seeds to the verdict.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.recording import conditions, parser, record, show
from benchmarks.simulated_search import Truth, curve, simulate
from search_spaces import SPACES
from tuner.core.search_spec import SearchSpec
from tuner.report.comparison import compare
from tuner.report.intervals import Interval, median_interval, paired_ratio, search_ratio
from tuner.study.results import Search

Costs: TypeAlias = NDArray[np.float64]
Way: TypeAlias = Callable[[np.random.Generator], Interval]

WIDTH = 0.2
RESAMPLES = 1000
NUM_TRUTH = 200_000
"""Draws that approximate a truth without a formula."""
OTHER_SEEDS = 1000
"""Difference between the seeds of two runs that must be independent."""
SAME = Truth(width=1e9)
"""A variant whose settings make no difference, so the settings of two winners are equally good."""


def lognormal(generator: np.random.Generator, num: int) -> Costs:
    """Costs with the median 1."""
    return np.asarray(np.exp(WIDTH * generator.normal(size=num)))


def whole_epochs(generator: np.random.Generator, num: int | tuple[int, int], epochs: float, width: float) -> Costs:
    """Costs around ``epochs`` epochs, rounded up."""
    return np.asarray(np.ceil(epochs * np.exp(width * generator.normal(size=num))))


def median(generator: np.random.Generator, *, num: int, limit: float = math.inf, drop: bool = False) -> Interval:
    """The interval for the median of costs of median 1; costs above ``limit`` are misses, which ``drop`` omits."""
    costs = lognormal(generator, num)
    hit = costs <= limit
    return median_interval(costs[hit].tolist() if drop else np.where(hit, costs, math.inf).tolist())


def pairs(generator: np.random.Generator, *, num: int, limit: float = math.inf, bootstrap: bool = False) -> Interval:
    """The interval for the ratio of two equal costs, in pairs; costs above ``limit`` are misses."""
    drawn = (lognormal(generator, num) for _ in range(2))
    ours, theirs = (np.where(costs <= limit, costs, math.inf) for costs in drawn)
    if not bootstrap:
        return paired_ratio(ours.tolist(), theirs.tolist())
    logs = np.log(ours / theirs)
    return _percentiles(logs[generator.integers(num, size=(RESAMPLES, num))].mean(axis=1))


def arms(generator: np.random.Generator, *, num: int, bootstrap: bool = False) -> Interval:
    """The interval for the ratio of two searches whose random arms have equal costs."""
    ours, theirs = lognormal(generator, num), lognormal(generator, num)
    if not bootstrap:
        return search_ratio(ours.tolist(), theirs.tolist())
    best = [arm[generator.integers(num, size=(RESAMPLES, num))].min(axis=1) for arm in (ours, theirs)]
    return _percentiles(np.log(best[0] / best[1]))


def _percentiles(logs: Costs) -> Interval:
    low, middle, high = np.exp(np.quantile(logs, (0.025, 0.5, 0.975))).tolist()
    return Interval(middle, low, high, 0.95, "bootstrap")


LIMIT = 1.1
"""Limit that three costs in ten exceed."""
WAYS: dict[str, Way] = {
    **{f"median of {n}": partial(median, num=n) for n in (3, 6, 12)},
    "median of 12, 3 in 10 missed": partial(median, num=12, limit=LIMIT),
    "median of 12, misses left out (not taken)": partial(median, num=12, limit=LIMIT, drop=True),
    **{f"ratio of {n} pairs": partial(pairs, num=n) for n in (3, 6, 12)},
    **{f"ratio of {n} pairs, 3 in 10 missed": partial(pairs, num=n, limit=LIMIT) for n in (6, 12)},
    **{f"ratio of {n} pairs, bootstrap (not taken)": partial(pairs, num=n, bootstrap=True) for n in (3, 6, 12)},
    **{f"ratio of searches of {n} random trials": partial(arms, num=n) for n in (3, 4, 16, 64)},
    **{f"the same of {n}, bootstrap (not taken)": partial(arms, num=n, bootstrap=True) for n in (4, 16, 64)},
}
"""Name -> simulation of one interval; the true value is 1."""


def coverage(way: Way, num: int, generator: np.random.Generator) -> dict[str, float]:
    """The level that intervals state, and how often they contain 1 and estimate less than 1 (ties count half)."""
    made = [way(generator) for _ in range(num)]
    return {
        "level": float(np.mean([interval.level for interval in made])),
        "coverage": float(np.mean([interval.low <= 1 <= interval.high for interval in made])),
        "below": float(np.mean([(1 - np.sign(interval.estimate - 1)) / 2 for interval in made])),
    }


def in_whole_epochs(num_pairs: int, ratio: float, num: int, generator: np.random.Generator) -> dict[str, float]:
    """Coverage of intervals for a ratio of costs of 3 to 10 whole epochs: mean and least over 20 laws.

    ``called`` is the largest share of p-values up to .05.  The truth is the quantity that the interval estimates: the
    geometric mean, or the median if all ratios are equal.
    """
    covered, called = [], []
    for epochs, width in itertools.product((3.2, 3.5, 5.5, 7.7, 9.9), (0.02, 0.05, 0.1, 0.2)):
        draws = [
            whole_epochs(generator, (num + NUM_TRUTH // num_pairs, num_pairs), e, width)
            for e in (epochs * ratio, epochs)
        ]
        many = draws[0][num:] / draws[1][num:]
        truths = {"paired t on logarithms": float(np.exp(np.log(many).mean())), "signs": float(np.median(many))}
        made = [
            paired_ratio(ours.tolist(), theirs.tolist()) for ours, theirs in zip(*(d[:num] for d in draws), strict=True)
        ]
        covered.append(np.mean([interval.low <= truths[interval.method] <= interval.high for interval in made]))
        called.append(np.mean([interval.p_value is not None and interval.p_value <= 0.05 for interval in made]))
    return {"mean": float(np.mean(covered)), "least": float(np.min(covered)), "called": float(np.max(called))}


def searches(num: int, trials: int, truth: Truth, speed: float = 1.0) -> Iterator[Search]:
    """Searches over ``sgdm`` and a twin that trains ``speed`` times as fast.

    The confirmed runs of the two are independent, which is the least that equal seeds can give.
    """
    sgdm = SPACES["sgdm"]
    twins = (sgdm, dataclasses.replace(sgdm, name="twin"))
    truths = {"sgdm": truth, "twin": dataclasses.replace(truth, speed=speed * truth.speed)}
    for seed in range(num):
        search = simulate(SearchSpec(name="twins", trials=trials, seed=seed), truths, variants=twins)
        for run in search.confirmed("twin").values():
            run.history = curve(dataclasses.replace(run.spec, seed=run.spec.seed + OTHER_SEEDS), truths["twin"])
        yield search


def verdicts(num: int, trials: int, truth: Truth, speed: float) -> dict[str, float]:
    """Share of searches with each verdict, about the variants and about their settings."""
    counts: Counter[str] = Counter()
    for search in searches(num, trials, truth, speed):
        (found,) = compare(search)
        counts.update([f"variant {found.verdict}", f"settings {found.settings_verdict}"])
    ends = ("faster", "slower")
    return {f"{what} {end}": counts[f"{what} {end}"] / num for what in ("variant", "settings") for end in ends}


def main() -> None:
    """Runs the simulations and prints three tables."""
    options = parser(__doc__, "calibration")
    options.add_argument("--intervals", type=int, default=2000, help="simulations of each interval")
    options.add_argument("--searches", type=int, default=400, help="simulations of each search")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    before, generator = conditions(), np.random.default_rng(chosen.seed)

    alone = {name: coverage(way, chosen.intervals, generator) for name, way in WAYS.items()}
    columns = ["", "level stated", "covers", "estimates too low"]
    lines = [[name, *(f"{value:.1%}" for value in found.values())] for name, found in alone.items()]
    show(f"{chosen.intervals} simulations each", columns, lines)

    num = chosen.intervals // 2
    grid = {
        f"ratio {ratio:g} of {n} pairs": in_whole_epochs(n, ratio, num, generator)
        for n in (3, 6, 12)
        for ratio in (1, 0.8, 0.55)
    }
    lines = [[name, *(f"{value:.1%}" for value in found.values())] for name, found in grid.items()]
    columns = ["", "covers", "least", "p <= .05, most"]
    show(f"whole epochs, {num} simulations of each of 20 laws", columns, lines)

    whole = {}
    for truth, speed, trials in [(SAME, 1.0, 8), *itertools.product((Truth(),), (1.0, 1.5, 2.0), (8, 32))]:
        name = f"{speed:g} times as fast, {trials} trials" + (", no setting matters" if truth is SAME else "")
        whole[name] = verdicts(chosen.searches, trials, truth, speed)
    lines = [[name, *(f"{value:.1%}" for value in found.values())] for name, found in whole.items()]
    show(f"verdicts of {chosen.searches} searches each", ["", *next(iter(whole.values()))], lines)

    record(chosen.out, before, {"intervals": alone, "whole_epochs": grid, "searches": whole})


if __name__ == "__main__":
    main()
