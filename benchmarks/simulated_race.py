"""Races of variants whose speeds are known: each training is a draw, everything else is the race's own code.

    log2 t = log2(typical budget / speed) + spread s + noise z,    s, z ~ N(0, 1)

t is a training's time to the target in gradient evaluations.  s stands for its settings and z for its seed; both are
correlated over the variants of a slot, because these have equal quantiles and seeds.  The settings with the largest s
never reach the target.  A training is looked at after each epoch: there it has reached the target, is stopped, or goes
on.  Workers take trainings in the race's order and train side by side, so with many workers a cap comes late.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import TypeAlias

import numpy as np
from scipy import special

from tuner.race import log_evidence
from tuner.study.rounds import Race

EPOCHS, STEPS_PER_EPOCH = 10, 16
BUDGET = EPOCHS * STEPS_PER_EPOCH
MOST_ROUNDS = 200
UNEVEN = 0.1
"""Standard deviation of the logarithm of an epoch's seconds, over trainings."""
ERROR = 0.05
FASTEST = "0"
"""The first variant, which has the largest speed, or shares it with others."""

Place: TypeAlias = tuple[str, int, int]
"""Variant, round and slot of a training."""
Draws: TypeAlias = Sequence[Sequence[float]]
"""Variant -> slot -> time to the target; inf for settings that never reach it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What trainings are like, whichever variant they are of."""

    typical: float
    """Time of the middle settings of a variant of speed 1, as a share of the budget, above 0."""
    spread: float
    """Standard deviation over settings, in doublings of time."""
    missed: float
    """Share of the settings that never reach the target, in [0, 1)."""
    noise: float = 0.27
    """Standard deviation over seeds, in doublings of time."""
    correlation: float = 0.55
    """Correlation of two variants in a slot, of s and of z, in [0, 1].  Differences of seeds are .255 wide with it."""


WORLDS = {
    "digits": World(typical=0.55, spread=0.35, missed=0.2),
    "kinder": World(typical=0.4, spread=0.18, missed=0.02),
}
"""Name -> world.

``digits`` is fitted to 192 trainings of ResNet-8 on digits to an accuracy of .95: those of four variants at 48 equal
points and seeds.  Their medians are .5 to .7 of the budget, the standard deviation of those that arrive is .36
doublings, and a quarter miss.
``kinder`` is an easier target with narrower ranges.  It has half the spread, and a fast variant misses one in fifty.
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a race ended, and what could be read from it on the way."""

    left: tuple[str, ...]
    """The variants that are not out."""
    rounds: int
    """Rounds that were counted."""
    cost: float
    """Cost of a variant in full trainings: all gradient evaluations over the budget and the number of variants."""
    false_sentence: bool
    """Whether "i is faster than j" was false, for any pair, and its evidence ever at least K (K - 1)/.05.

    Variants that go out at (K - 1)/alpha hardly ever get there, so it is for races that put none out.
    """
    called: bool
    """Whether one variant was left alone, or another one was ever called different from the fastest, as the
    baseline: at 2 (K - 1)/alpha."""

    @property
    def decided(self) -> bool:
        """Whether the fastest alone is left."""
        return self.left == (FASTEST,)


def speeds_of(num: int, ratio: float) -> list[float]:
    """Speeds of variants of which the first takes ``ratio`` times as long as each other one, which has speed 1."""
    return [1 / ratio, *([1.0] * (num - 1))]


def draw(world: World, speeds: Sequence[float], size: int, generator: np.random.Generator) -> Draws:
    """The times of a round's trainings, were each to train on until it reaches the target."""
    drawn = generator.standard_normal((2, 1 + len(speeds), size))
    shared, own = math.sqrt(world.correlation), math.sqrt(1 - world.correlation)
    settings, seeds = shared * drawn[:, :1] + own * drawn[:, 1:]
    logs = world.spread * settings + world.noise * seeds - np.log2(speeds)[:, None]
    never = settings > special.ndtri(1 - world.missed)
    return np.where(never, math.inf, world.typical * BUDGET * 2.0**logs).tolist()  # type: ignore[no-any-return]


def run_race(
    world: World,
    speeds: Sequence[float],
    seed: int,
    *,
    size: int = 4,
    alpha: float = ERROR,
    workers: int = 1,
    plans: Sequence[int] = (MOST_ROUNDS,),
) -> Outcome:
    """One race of variants of these speeds, the largest first; it is resumed with more rounds as ``plans`` say.

    A race that is resumed is a new one that is told of all trainings so far, in any order.
    """
    names = [str(i) for i in range(len(speeds))]
    generator, shuffler = np.random.default_rng(seed), np.random.default_rng((seed, 2))
    draws: list[Draws] = []
    ended: list[tuple[Place, float]] = []
    cost, false_sentence, called = 0, False, False
    for planned in plans:
        race = Race(names, size, planned, alpha)
        for i in shuffler.permutation(len(ended)).tolist():
            (name, number, slot), time = ended[i]
            race.end(name, number, slot, time)
        for place, time, spent in _trainings(race, draws, lambda: draw(world, speeds, size, generator), workers, seed):
            num_counted = len(race.rounds)
            race.end(*place, time)
            ended.append((place, time))
            cost += spent
            if len(race.rounds) > num_counted:
                false_sentence = false_sentence or _is_any_false(race, speeds)
                called = called or _is_any_called(race)
    return Outcome(tuple(race.left), len(race.rounds), cost / BUDGET / len(names), false_sentence, called)


def figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Shares of races, and the mean and 90% quantile of the cost of a variant in full trainings."""
    costs = [one.cost for one in outcomes]
    return {
        "fastest out": float(np.mean([FASTEST not in one.left for one in outcomes])),
        "called": float(np.mean([one.called for one in outcomes])),
        "decided": float(np.mean([one.decided for one in outcomes])),
        "rounds": float(np.mean([one.rounds for one in outcomes])),
        "cost": float(np.mean(costs)),
        "cost, 90%": float(np.quantile(costs, 0.9)),
    }


def _places(race: Race, seed: int) -> Iterator[Place]:
    """What the scheduler gives to free workers, one after the other."""
    for number in range(race.num_rounds):
        for name, slot in race.order(number, seed):
            if race.is_over:
                return
            if race.takes_part(name, number) and not race.has_ended(name, number, slot):
                yield name, number, slot


def _trainings(
    race: Race, draws: list[Draws], more: Callable[[], Draws], workers: int, seed: int
) -> Iterator[tuple[Place, float, int]]:
    """Trainings as they end: the place, the time that counts and the gradient evaluations spent.

    The caller tells the race of each before it asks for the next one.
    """
    generator, started, waiting = np.random.default_rng((seed, 1)), count(), _places(race, seed)
    running: list[tuple[float, int, int, float, Place, float]] = []
    """A heap of: time of the next evaluation, order of starting, epoch, seconds of an epoch, place, time to target."""
    caps: dict[tuple[str, int], float] = {}
    now = 0.0
    while True:
        while len(running) < workers and (place := next(waiting, None)) is not None:
            name, number, slot = place
            while len(draws) <= number:
                draws.append(more())
            seconds = math.exp(UNEVEN * generator.standard_normal())
            heapq.heappush(running, (now + seconds, next(started), 1, seconds, place, draws[number][int(name)][slot]))
        if not running:
            return
        now, order, epoch, seconds, place, time = heapq.heappop(running)
        spent, where = STEPS_PER_EPOCH * epoch, place[:2]
        if where not in caps:
            caps[where] = race.cap(*where) if race.takes_part(*where) else 0.0
        if time > spent < min(caps[where], BUDGET):
            heapq.heappush(running, (now + seconds, order, epoch + 1, seconds, place, time))
            continue
        caps.clear()  # its end may change all of them
        yield place, time if time <= spent else math.inf, spent


@cache
def _log_evidence(won: int, lost: int) -> float:
    return log_evidence(won, lost)


def _is_any_false(race: Race, speeds: Sequence[float]) -> bool:
    # Such races put nobody out, so their own alpha is 0.
    bar = math.log(Race(race.variants, race.size, 0, ERROR).sentence_threshold("0", "1", any_pair=True))
    return any(
        speeds[int(i)] <= speeds[int(j)] and _log_evidence(won, race.wins[j, i]) >= bar
        for (i, j), won in race.wins.items()
    )


def _is_any_called(race: Race) -> bool:
    if len(race.left) == 1:
        return True
    against = [(FASTEST, name) for name in race.variants if name != FASTEST]
    return any(
        _log_evidence(race.wins[i, j], race.wins[j, i]) >= math.log(race.sentence_threshold(i, j, any_pair=False))
        for pair in against
        for i, j in (pair, pair[::-1])
    )
