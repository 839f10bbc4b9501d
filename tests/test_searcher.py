"""What Ray Tune is given of a search, and what it keeps of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from ray.tune.experiment import Trial

from search_spaces import Variant
from tuner.cluster import Resources
from tuner.ledger import Ledger
from tuner.searcher import LedgerCallback, LedgerSearcher, RungScheduler
from tuner.settings import from_dict
from tuner.spec import TrialSpec

Open = Callable[..., Ledger]
Toy = Callable[..., Variant]


@dataclass(eq=False)
class FakeTrial:
    """What a scheduler looks at."""

    status: str


@dataclass
class Controller:
    """What a scheduler asks of Tune's."""

    live: list[Trial]

    def get_live_trials(self) -> set[Trial]:
        return set(self.live)


def test_tune_keeps_a_text_of_a_spec_and_few_numbers(open_ledger: Open, toy: Toy) -> None:
    """It copies each setting of a trial's config several times, and counts each number of each result."""
    ledger = open_ledger([toy()], trials=2)
    config = LedgerSearcher(ledger, Resources(1, 0, 1), max_live=lambda: 2).suggest("a")
    assert from_dict(TrialSpec, json.loads(config["spec"])) == ledger.records["toy-00"].spec
    assert not any(isinstance(value, dict | list) for value in config.values())


def test_no_more_trials_are_given_than_may_live(open_ledger: Open, toy: Toy) -> None:
    ledger = open_ledger([toy()], trials=3)
    searcher = LedgerSearcher(ledger, Resources(1, 0, 1), max_live=lambda: 2)
    given: list[Any] = [searcher.suggest(str(number)) for number in range(3)]
    assert [config and config["trial"] for config in given] == ["toy-00", "toy-01", None]
    ledger.end("toy-00", failure="of no matter")
    assert searcher.suggest("3")["trial"] == "toy-02"


def test_of_the_trials_that_live_the_first_that_waits_is_next(open_ledger: Open, toy: Toy) -> None:
    """A controller that names all trials, ended ones too, is not asked for them."""
    scheduler = RungScheduler(open_ledger([toy()], trials=1))
    trials = [cast(Trial, FakeTrial(status)) for status in (Trial.RUNNING, Trial.PENDING, Trial.PENDING)]
    controller = Controller(live=trials)
    assert scheduler.choose_trial_to_run(controller) is None
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    assert scheduler.choose_trial_to_run(controller) is trials[1]
    controller.live = trials[::2]
    assert scheduler.choose_trial_to_run(controller) is trials[2]
    scheduler.on_trial_add(controller, trials[1])
    controller.live = [trials[1]]
    assert scheduler.choose_trial_to_run(controller) is trials[1]
    controller.live = []
    assert scheduler.choose_trial_to_run(controller) is None and not scheduler._added


def test_tune_has_no_logs_to_read_at_the_end(open_ledger: Open, toy: Toy) -> None:
    """An empty list would have it read those of its snapshot."""
    trials = [cast(Trial, object()) for _ in range(3)]
    first = trials[0]
    LedgerCallback(open_ledger([toy()], trials=1)).on_experiment_end(trials)
    assert trials == [first]
