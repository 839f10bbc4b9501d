"""The race: rounds of random settings that all variants try alike, until one variant is left.

In round r, every variant that is left trains the same B slots.  A slot has one seed, and one point of the unit cube
whose coordinates go by the names of settings; a variant's settings are the quantiles of its own distributions there.
The result of a variant is the least time of its B trainings.  :mod:`tuner.race` says who is out.

Rounds are counted in their order, each once all of its trainings have ended.  So what is counted depends on nothing
but the results: not on the number of workers, on which training ended first, or on a search that was killed between.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import permutations
from zlib import crc32

import numpy as np

from tuner import race

SLACK = 1.25
"""A round is watched up to this multiple of its best time.  Variants that take longer are not ordered."""
MEDIAN_FACTOR, FIRST_WITH_MEDIAN = 2.0, 3
"""From the fourth round on, a round is watched at most to twice the median of the earlier rounds' best times."""


BEFORE = -1
"""The number, in place of a round's, for a variant that was refused before any round."""
FEWEST = 3
"""Least number of variants that the thresholds are for: of two equal ones, either one out is an error (ours)."""


@dataclass(frozen=True, slots=True)
class Round:
    """A round that has been counted."""

    number: int
    """Number, from 0."""
    results: Mapping[str, float]
    """Variant -> least time of its trainings; inf where none reached the target by the end of the round.  Empty if one
    variant was alone."""
    end: float
    """Time up to which the round was watched."""

    def result(self, i: str, j: str, handicap: float = 1.0) -> int:
        """1 if i won against j, -1 if j won, 0 if neither or if one of them was not in the round."""
        if i not in self.results or j not in self.results:
            return 0
        return race.round_result(self.results[i], self.results[j], self.end, handicap)


@dataclass(slots=True)
class Race:
    """The rounds of some variants, and what follows from them.

    A training's time is the objective to be minimized: its cost to the highest target, in the search's unit, inf for a
    miss; or any other number, where ``timed`` is false and nothing is capped but by the variant's own best.
    """

    variants: Sequence[str]
    size: int
    """Slots of a round, B, at least 1."""
    num_rounds: int
    """Rounds that are planned; a search that is resumed may plan more."""
    alpha: float = 0.05
    timed: bool = True
    joined: Mapping[str, int] = field(default_factory=dict)
    """Variant -> first round that it takes part in, where that is not 0."""
    rounds: list[Round] = field(default_factory=list)
    """The rounds that have been counted, in order."""
    wins: dict[tuple[str, str], int] = field(default_factory=dict)
    """(i, j) -> rounds that i won against j."""
    out: dict[str, int] = field(default_factory=dict)
    """Variant -> the counted round that put it out; :data:`BEFORE` for one that was refused."""
    failed: set[str] = field(default_factory=set)
    """The variants that are out because they were refused, or because all of their trainings in a round failed.  This
    says nothing of their speed."""
    _times: dict[int, dict[str, dict[int, float]]] = field(default_factory=dict)
    """Round -> variant -> slot -> time of the training, for those that have ended."""
    _lost: set[tuple[str, int, int]] = field(default_factory=set)
    """Variant, round and slot of the trainings that failed and are not made again."""
    _known_sure: dict[int, list[str]] = field(default_factory=dict)
    """What :meth:`_sure` has found since the newest counted round."""

    def __post_init__(self) -> None:
        self.wins = {pair: 0 for pair in permutations(self.variants, 2)}

    @property
    def left(self) -> list[str]:
        """The variants that are not out."""
        return [name for name in self.variants if name not in self.out]

    @property
    def added(self) -> list[str]:
        """The variants that joined after the beginning, in their order."""
        later = [name for name in self.variants if self.joined.get(name, 0)]
        # By name where they joined together: a search that is resumed may list its variants in another order.
        return sorted(later, key=lambda name: (self.joined[name], name))

    @property
    def is_over(self) -> bool:
        """Whether the race needs no further training: one variant is left, or all planned rounds are counted."""
        return len(self.left) < 2 or len(self.rounds) >= self.num_rounds

    def takes_part(self, variant: str, number: int) -> bool:
        """Whether a variant's trainings in a round are of use."""
        if variant in self.out or self.joined.get(variant, 0) > number:
            return False
        return not self.is_over and len(self.rounds) <= number < self.num_rounds and bool(self._taking_part(number))

    def order(self, number: int, seed: int) -> list[tuple[str, int]]:
        """The variants that are left and the slots of a round, in the random order in which they start."""
        places = [(name, slot) for slot in range(self.size) for name in self.left]
        shuffled = np.random.default_rng((seed, number)).permutation(len(places))
        return [places[i] for i in shuffled]

    def cap(self, variant: str, number: int) -> float:
        """The time beyond which a training of a round can change nothing; inf if there is none yet.

        It is the best time of the variant's own ended trainings, or else at least the time at which the round will end,
        whatever else is still running.  Of other variants, only those count that no earlier round can still put out:
        the end follows from the variants that take part.
        """
        times = self._times.get(number, {})
        own = min(times.get(variant, {}).values(), default=math.inf)
        if not self.timed:
            return own
        sure = [name for name in self._sure(number) if name in times and self._is_trained(name, number)]
        best = min((min(times[name].values()) for name in sure), default=math.inf)
        return min(own, SLACK * best, self._median_cap(number) if len(self.rounds) >= number else math.inf)

    def end(self, variant: str, number: int, slot: int, time: float | None) -> None:
        """Takes the time of a training that has ended, and counts the rounds that this completes.

        ``time`` is None for a training that failed and is not made again.  It counts as inf.
        """
        self._times.setdefault(number, {}).setdefault(variant, {})[slot] = math.inf if time is None else time
        if time is None:
            self._lost.add((variant, number, slot))
        while not self.is_over and self._is_complete(len(self.rounds)):
            self._count(len(self.rounds))

    def refuse(self, variant: str) -> None:
        """Takes a variant out of the race before any round that it would take part in."""
        self.out[variant] = BEFORE
        self.failed.add(variant)
        self._known_sure.clear()

    def has_ended(self, variant: str, number: int, slot: int) -> bool:
        """Whether the time of a place is known."""
        return slot in self._times.get(number, {}).get(variant, {})

    def pair_threshold(self, i: str, j: str) -> float:
        """The evidence at which one of a pair puts the other out."""
        return race.pair_threshold(i, j, self._num_first, self.alpha, self.added)

    def sentence_threshold(self, i: str, j: str, *, any_pair: bool) -> float:
        """The evidence for a sentence about a pair, whoever is left: 2 (K - 1)/alpha with a baseline named beforehand.

        It is twice that of one direction, for both.  ``any_pair`` makes it K (K - 1)/alpha, for all pairs at once.  K
        is the number of variants; a variant that was added has its own share of alpha.
        """
        num = len(self.variants)
        alone = race.pair_threshold(i, j, num - len(self.added), self.alpha, self.added)
        return alone * (num if any_pair else 2)

    def best_slot(self, variant: str, number: int) -> int | None:
        """The slot of a variant's best training in a counted round; None if it has none by the round's end.

        The times of its other trainings are not known: how long they were watched depends on which ended first.
        """
        if number >= len(self.rounds) or math.isinf(best := self.rounds[number].results.get(variant, math.inf)):
            return None
        return min(slot for slot, time in self._times[number][variant].items() if time == best)

    def shared(self, i: str, j: str) -> list[Round]:
        """The counted rounds that both variants were in."""
        return [one for one in self.rounds if i in one.results and j in one.results]

    def evidence(self, i: str, j: str, handicap: float = 1.0) -> float:
        """The evidence that i is faster than j, or at least ``handicap`` times as fast."""
        if handicap == 1:
            return race.evidence(self.wins[i, j], self.wins[j, i])
        results = [one.result(i, j, handicap) for one in self.rounds]
        return race.evidence(results.count(1), results.count(-1))

    def at_least(self, i: str, j: str, threshold: float) -> float:
        """The largest h with evidence of at least ``threshold`` that i is h times as fast as j; 1 if there is none.

        Evidence falls in h, so this holds for all h at once with the error rate of one threshold.
        """
        ratios = [min(one.results[j], one.end) / one.results[i] for one in self.shared(i, j) if one.result(i, j) == 1]
        # The results change only where h passes one of these ratios.  Just below it, that round is still won.
        best = 1.0
        for ratio in sorted(ratios):
            handicap = ratio * (1 - 1e-9)
            if handicap > 1 and self.evidence(i, j, handicap) >= threshold:
                best = max(best, ratio)
        return best

    @property
    def _num_first(self) -> int:
        return max(FEWEST, len(self.variants) - len(self.added))

    def _sure(self, number: int) -> list[str]:
        """The variants that no evidence of the uncounted rounds before a round can put out."""
        if number not in self._known_sure:
            names, more = self._taking_part(number), number - len(self.rounds)
            self._known_sure[number] = [
                j
                for j in names
                if more <= 0
                or all(
                    race.evidence(self.wins[i, j] + more, self.wins[j, i]) < self.pair_threshold(i, j)
                    for i in self.left
                    if i != j
                )
            ]
        return self._known_sure[number]

    def _is_trained(self, variant: str, number: int) -> bool:
        """Whether a training of a variant has not failed in each of the uncounted rounds before a round."""
        return all(
            any((variant, before, slot) not in self._lost for slot in self._times.get(before, {}).get(variant, {}))
            for before in range(max(len(self.rounds), self.joined.get(variant, 0)), number)
        )

    def _taking_part(self, number: int) -> list[str]:
        names = [name for name in self.left if self.joined.get(name, 0) <= number]
        return names if len(names) > 1 else []

    def _is_complete(self, number: int) -> bool:
        times = self._times.get(number, {})
        return all(len(times.get(name, {})) == self.size for name in self._taking_part(number))

    def _count(self, number: int) -> None:
        self._known_sure.clear()
        names = self._taking_part(number)
        for name in names:
            if all((name, number, slot) in self._lost for slot in range(self.size)):
                self.out[name] = number
                self.failed.add(name)
        names = [name for name in names if name not in self.failed]
        results = {name: min(self._times[number][name].values()) for name in names}
        end = math.inf
        if self.timed:
            end = min(SLACK * min(results.values(), default=math.inf), self._median_cap(number))
            # How long a training went on after the end depends on when the others ended.
            results = {name: time if time <= end else math.inf for name, time in results.items()}
        counted = Round(number, results, end)
        self.rounds.append(counted)
        for i, j in permutations(names, 2):
            if counted.result(i, j) == 1:
                self.wins[i, j] += 1
        among = {pair: won for pair, won in self.wins.items() if pair[0] in names and pair[1] in names}
        for name in race.eliminated(among, alpha=self.alpha, planned=self._num_first, added=self.added):
            self.out[name] = number

    def _median_cap(self, number: int) -> float:
        if number < FIRST_WITH_MEDIAN or not self.timed:
            return math.inf
        best = [min(one.results.values()) for one in self.rounds[:number] if one.results]
        return MEDIAN_FACTOR * statistics.median(best) if best else math.inf


def quantile(name: str, seed: int, place: int) -> float:
    """The quantile of the setting ``name`` in a slot, uniform in [0, 1): the same in every variant that has it.

    ``place`` counts the slots of all rounds.  The draws of different names and places are independent.
    """
    return _draws(name, seed, place // 64)[place % 64]


@lru_cache(maxsize=4096)  # a generator takes longer than the 64 draws that it makes here
def _draws(name: str, seed: int, block: int) -> list[float]:
    return [float(u) for u in np.random.default_rng((seed, crc32(name.encode()), block)).random(64)]
