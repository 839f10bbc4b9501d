"""Whether the race and the report's intervals err as seldom as they say, on costs whose truth is known.

It simulates on one thread:

1. Races of K variants, of which the first takes a ratio of the others' time, with one worker and with many.  Beside
   them stands the plan that the search had before variants raced.
2. Races of one variant under two names, resumed with more rounds five times.
3. Whole searches with the real scheduler: verdicts about twins, and chosen settings against the default point.
4. The intervals of tuner.report.intervals, on costs whose logarithms are normal with standard deviation 0.2, and on
   costs in whole epochs, where ratios tie.  Beside them stand simpler intervals that the report does not use.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.before_the_race import beside_the_race
from benchmarks.recording import conditions, parser, record, show
from benchmarks.simulated_race import MOST_ROUNDS, WORLDS, Outcome, figures, run_race, speeds_of
from benchmarks.simulated_search import Truth, simulate
from benchmarks.tuned_settings import tuned
from search_spaces import SPACES
from tuner.core.search_spec import SearchSpec
from tuner.report.comparison import compare
from tuner.report.intervals import Interval, median_interval, paired_ratio
from tuner.study.results import Search

Costs: TypeAlias = NDArray[np.float64]
Way: TypeAlias = Callable[[np.random.Generator], Interval]
Figures: TypeAlias = dict[str, dict[str, float]]
"""Line of a table -> column -> value."""

RATIOS = (1.0, 0.8, 0.67, 0.5)
NULL_ROUNDS = 32
"""Rounds of a race of equals, which is seldom decided: twice as many as a search has by default."""
PLANS = (4, 8, 16, 32, 64, 128)
"""Rounds of a race that is resumed five times."""
WIDTH = 0.2
RESAMPLES = 1000
NUM_TRUTH = 200_000
"""Draws that approximate a truth without a formula."""
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
    """The interval for the ratio of two equal costs, in pairs; a cost above ``limit`` is a miss, and counts as that."""
    ours, theirs = (np.minimum(lognormal(generator, num), limit) for _ in range(2))
    if not bootstrap:
        return paired_ratio(ours.tolist(), theirs.tolist())
    logs = np.log(ours / theirs)
    resampled = logs[generator.integers(num, size=(RESAMPLES, num))].mean(axis=1)
    low, middle, high = np.exp(np.quantile(resampled, (0.025, 0.5, 0.975))).tolist()
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

    ``called`` is the largest share of p-values up to .05.  The truth is the ratio of the geometric means of the costs
    as they are known, in whole epochs.
    """
    covered, called = [], []
    for epochs, width in itertools.product((3.2, 3.5, 5.5, 7.7, 9.9), (0.02, 0.05, 0.1, 0.2)):
        ours, theirs = (
            whole_epochs(generator, (num + NUM_TRUTH // num_pairs, num_pairs), e, width)
            for e in (epochs * ratio, epochs)
        )
        truth = float(np.exp(np.log(ours[num:] / theirs[num:]).mean()))
        made = [
            paired_ratio(a.tolist(), b.tolist(), resolution=1) for a, b in zip(ours[:num], theirs[:num], strict=True)
        ]
        covered.append(np.mean([interval.low <= truth <= interval.high for interval in made]))
        called.append(np.mean([interval.p_value is not None and interval.p_value <= 0.05 for interval in made]))
    return {"mean": float(np.mean(covered)), "least": float(np.min(covered)), "called": float(np.max(called))}


def searches(num: int, trials: int, truth: Truth, speed: float = 1.0) -> Iterator[Search]:
    """Searches over ``sgdm`` and a twin that trains ``speed`` times as fast.

    All noise is a training's own, which is the least that equal settings and seeds can have in common.
    """
    sgdm = SPACES["sgdm"]
    twins = (sgdm, dataclasses.replace(sgdm, name="twin"))
    own = dataclasses.replace(truth, own=1.0)
    truths = {"sgdm": own, "twin": dataclasses.replace(own, speed=speed * truth.speed, stream=1)}
    for seed in range(num):
        spec = SearchSpec(name="twins", trials=trials, seed=seed, confirm="all")
        yield simulate(spec, truths, variants=twins)


def verdicts(num: int, trials: int, truth: Truth, speed: float) -> dict[str, float]:
    """Share of searches with each verdict, about the variants and about their settings."""
    counts: Counter[str] = Counter()
    for search in searches(num, trials, truth, speed):
        (found,) = compare(search)
        counts.update([f"variant {found.verdict}", f"settings {found.settings_verdict}"])
    ends = ("faster", "slower")
    return {f"{what} {end}": counts[f"{what} {end}"] / num for what in ("variant", "settings") for end in ends}


def raced(num: int, world: str, k: int, ratio: float, **options: Any) -> list[Outcome]:
    """Races of K variants, of which the first takes ``ratio`` times as long as each other one."""
    plans = (NULL_ROUNDS if ratio == 1 else MOST_ROUNDS,)
    return [run_race(WORLDS[world], speeds_of(k, ratio), s, **{"plans": plans, **options}) for s in range(num)]


def races(num: int) -> Figures:
    """Races in both worlds."""
    cases = [(world, k, ratio) for world in WORLDS for k in (2, 4, 8) for ratio in RATIOS]
    return {f"{world}, K = {k}, ratio {ratio:g}": figures(raced(num, world, k, ratio)) for world, k, ratio in cases}


def side_by_side(num: int) -> Figures:
    """Cost of the same races with more workers, K = 4.  Nothing else depends on their number."""
    found = {}
    for world, ratio in itertools.product(WORLDS, RATIOS):
        many = {workers: raced(num, world, 4, ratio, workers=workers) for workers in (1, 2, 16, 64)}
        same = [{(one.left, one.rounds, one.called) for one in ones} for ones in zip(*many.values(), strict=True)]
        costs = {
            f"cost, {workers} workers": float(np.mean([one.cost for one in ones])) for workers, ones in many.items()
        }
        found[f"{world}, ratio {ratio:g}"] = {**costs, "same result": float(np.mean([len(ones) == 1 for ones in same]))}
    return found


def sentences(num: int) -> Figures:
    """False sentences about any pair, in races that put nobody out."""
    found = {}
    for world, (k, ratio) in itertools.product(WORLDS, ((2, 1.0), (4, 1.0), (8, 1.0), (4, 0.8))):
        made = raced(num, world, k, ratio, alpha=0.0, plans=(NULL_ROUNDS,))
        found[f"{world}, K = {k}, ratio {ratio:g}"] = {"false": float(np.mean([one.false_sentence for one in made]))}
    return found


def resumed(num: int) -> Figures:
    """Races of one variant under two names, resumed five times, with one worker and with many."""
    return {
        f"{world}, {workers} worker{'s' * (workers > 1)}": figures(
            [run_race(WORLDS[world], (1.0, 1.0), seed, workers=workers, plans=PLANS) for seed in range(num)]
        )
        for world in WORLDS
        for workers in (1, 16)
    }


def intervals(num: int, generator: np.random.Generator) -> tuple[Figures, Figures]:
    """Coverage of intervals, and of those of costs in whole epochs."""
    alone = {name: coverage(way, num, generator) for name, way in WAYS.items()}
    cases = [(n, ratio) for n in (3, 6, 12) for ratio in (1, 0.8, 0.55)]
    return alone, {f"ratio {r:g} of {n} pairs": in_whole_epochs(n, r, num // 2, generator) for n, r in cases}


def main() -> None:
    """Runs the simulations and prints a table of each kind."""
    options = parser(__doc__, "calibration")
    options.add_argument("--races", type=int, default=1000, help="simulated races of each kind; 0 for none")
    options.add_argument("--searches", type=int, default=200, help="simulated searches of each kind; 0 for none")
    options.add_argument("--intervals", type=int, default=2000, help="simulations of each interval; 0 for none")
    options.add_argument("--seed", type=int, default=0, help="seed of the intervals")
    chosen = options.parse_args()
    before = conditions()
    made: dict[str, Figures] = {}

    def add(title: str, found: Figures) -> None:
        made[title] = found
        columns = list(next(iter(found.values())))
        show(title, ["", *columns], [[name, *(shown(c, line[c]) for c in columns)] for name, line in found.items()])

    if num := chosen.races:
        add(f"{num} races", races(num))
        add(f"{-(-num // 10)} races side by side", side_by_side(-(-num // 10)))
        add(f"sentences in {num} races that put nobody out", sentences(num))
        add(f"{num} races of one variant under two names, resumed five times", resumed(num))
        add(f"the race and the plan before it, K = 4, ratio 0.5, {num} cases", beside_the_race(num))
    if num := chosen.searches:
        cases = [(SAME, 1.0), *((Truth(), speed) for speed in (1.0, 1.5, 2.0))]
        named = {f"{s:g} times as fast" + ", no setting matters" * (truth is SAME): (truth, s) for truth, s in cases}
        add(f"verdicts of {num} searches", {name: verdicts(num, 64, *case) for name, case in named.items()})
        add(f"settings chosen in {num} searches", tuned(num))
    if num := chosen.intervals:
        alone, epochs = intervals(num, np.random.default_rng(chosen.seed))
        add(f"{num} simulations of each interval", alone)
        add(f"whole epochs, {num // 2} simulations of each of 20 laws", epochs)
    record(chosen.out, before, made)


def shown(column: str, value: float) -> str:
    """A share in percent, and any other value as a number."""
    if math.isnan(value):
        return ""
    is_number = any(word in column for word in ("cost", "rounds", "trials", "ratio"))
    return f"{value:.3g}" if is_number else f"{value:.1%}"


if __name__ == "__main__":
    main()
