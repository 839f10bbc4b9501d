"""Races made by hand, for the tests of what is said about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from search_spaces import SPACES
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.study.results import Search
from tuner.study.trial_record import TrialRecord

Times = Mapping[str, Sequence[float]]
"""Variant -> its time in each round, of one training; inf is a miss, and a negative one an accuracy."""


def end_rounds(search: Search, times: Times) -> Search:
    """Ends the trainings of rounds of one slot, after those that have ended; the times, and no records."""
    first = len(search.race.rounds)
    for number in range(max(map(len, times.values()))):
        for name, some in times.items():
            if number < len(some):
                search.race.end(name, first + number, 0, some[number])
    return search


def raced(times: Times, *, joined: Mapping[str, int] | None = None, **changes: Any) -> Search:
    """A search of which nothing but these times of rounds of one training is known."""
    num = max(map(len, times.values()), default=1) or 1
    values = {"name": "x", "variants": tuple(times), "round_size": 1, "trials": num, **changes}
    spec = SearchSpec.from_flags(**values)
    chosen = tuple(SPACES[name] for name in spec.variants)
    return end_rounds(Search(spec, "id", chosen, Path("x"), {}, joined=joined or {}), times)


def trained(search: Search, epoch: Callable[..., EpochMetrics], accuracies: Mapping[str, Sequence[float]]) -> Search:
    """Adds a finished training of the race, one epoch long, per accuracy and variant."""
    for name, some in accuracies.items():
        for number, accuracy in enumerate(some):
            settings = with_settings(OptimizerSpec(), SPACES[name].default_settings())
            place = {"round": number, "slot": 0}
            trial = TrialRecord(
                f"{name}-{number:02d}", name, number, search.spec.trial_spec(settings, number), "race", "finished",
                [epoch(1, accuracy)], place,
            )  # fmt: skip
            search.records[trial.name] = trial
            search.count(trial)
    return search


MISS = math.inf
