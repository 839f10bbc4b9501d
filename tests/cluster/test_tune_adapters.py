"""What Ray Tune is given of a search, and what it keeps of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
from ray.tune.experiment import Trial

from search_spaces import Variant
from tuner.cluster.ray_cluster import Resources
from tuner.cluster.tune_adapters import MOST_PASSES, EarlyStopping, TrialSearcher, TuneCallback
from tuner.core.errors import StorageFailed
from tuner.core.serialization import from_dict
from tuner.core.trial_spec import TrialSpec
from tuner.study.recorder import Recorder

Open = Callable[..., Recorder]
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


def searcher_of(recorder: Recorder, max_live: int) -> TrialSearcher:
    return TrialSearcher(recorder.scheduler, Resources(1, 0, 1), max_live=lambda: max_live)


def test_tune_keeps_a_text_of_a_spec_and_few_numbers(open_recorder: Open, toy: Toy) -> None:
    """It copies each setting of a trial's config several times, and counts each number of each result."""
    recorder = open_recorder([toy()], trials=2, round_size=1)
    config = searcher_of(recorder, 2).suggest("a")
    assert from_dict(TrialSpec, json.loads(config["spec"])) == recorder.records["toy-00"].spec
    assert not any(isinstance(value, dict | list) for value in config.values())


def test_no_more_trials_are_given_than_may_live(open_recorder: Open, toy: Toy) -> None:
    recorder = open_recorder([toy()], trials=3, round_size=1)
    searcher = searcher_of(recorder, 2)
    given: list[Any] = [searcher.suggest(str(number)) for number in range(3)]
    assert [config and config["trial"] for config in given] == ["toy-00", "toy-01", None]
    recorder.end("toy-00", failure="of no matter")
    assert searcher.suggest("3")["trial"] == "toy-02"


def scheduler_of(recorder: Recorder, controller: Controller, *statuses: str, slots: int) -> EarlyStopping:
    """The scheduler of a run that has these trials, in the order in which they were added."""
    scheduler = EarlyStopping(recorder.scheduler, slots=lambda: slots)
    controller.live = [cast(Trial, FakeTrial(status)) for status in statuses]
    for trial in controller.live:
        scheduler.on_trial_add(controller, trial)
    return scheduler


@pytest.mark.parametrize(
    ("statuses", "slots", "chosen"),
    [
        ("RPP", 2, 1),  # both slots are in use: the first that waits gets the worker that becomes free
        ("RRP", 2, 2),
        ("PPP", 2, 1),  # the other slot is empty, and an actor starts in it for the first one
        ("PRP", 3, 2),
        ("PPPPP", 4, 3),
        ("PP", 1, 0),
        ("PP", 8, 1),
        ("RR", 2, None),
    ],
)
def test_a_free_worker_goes_to_the_first_trial_that_no_other_is_starting_for(
    open_recorder: Open, toy: Toy, statuses: str, slots: int, chosen: int | None
) -> None:
    controller, names = Controller(live=[]), {"R": Trial.RUNNING, "P": Trial.PENDING}
    recorder = open_recorder([toy()], trials=1, round_size=1)
    scheduler = scheduler_of(recorder, controller, *(names[letter] for letter in statuses), slots=slots)
    for _ in range(2):
        assert scheduler.choose_trial_to_run(controller) is (None if chosen is None else controller.live[chosen])


def test_no_trial_is_passed_over_for_ever(open_recorder: Open, toy: Toy) -> None:
    """As where an actor that was requested never starts; ended trials are forgotten."""
    controller = Controller(live=[])
    scheduler = scheduler_of(open_recorder([toy()], trials=1, round_size=1), controller, Trial.PENDING, slots=2)
    first = controller.live[0]
    for number in itertools.count():
        younger = cast(Trial, FakeTrial(Trial.PENDING))
        scheduler.on_trial_add(controller, younger)
        controller.live = [first, younger]
        if scheduler.choose_trial_to_run(controller) is first:
            break
        assert number < 100 and len(scheduler._added) == 2
    assert number == 2 * MOST_PASSES - 1


def test_tune_has_no_logs_to_read_at_the_end(open_recorder: Open, toy: Toy) -> None:
    """An empty list would have it read those of its snapshot."""
    trials = [cast(Trial, object()) for _ in range(3)]
    first = trials[0]
    TuneCallback(open_recorder([toy()], trials=1, round_size=1)).on_experiment_end(trials)
    assert trials == [first]


@dataclass
class GivenTrial:
    """What the callback looks at."""

    config: dict[str, Any]
    max_failures: int = 3
    pickled_error_file: str | None = None
    error_file: str | None = None


def test_a_trial_that_tune_takes_up_and_gives_up_at_one_loss_is_given_again(open_recorder: Open, toy: Toy) -> None:
    """Tune hears twice of an actor that dies while it is handed its next trial."""
    recorder = open_recorder([toy()], trials=2, round_size=1)
    searcher, callback = (
        searcher_of(recorder, 9),
        TuneCallback(recorder),
    )
    trial = cast(Trial, GivenTrial(searcher.suggest("a")))
    searcher.suggest("b")
    for told in (callback.on_trial_recover, callback.on_trial_error):
        told(iteration=1, trials=[trial], trial=trial)
    assert not recorder.records["toy-00"].ended
    assert searcher.suggest("c")["trial"] == "toy-00"
    assert searcher.suggest("d") is None, "all are given, and none has ended: one may have to be given again"
    for name in ("toy-00", "toy-01"):
        recorder.end(name, failure="of no matter")
    assert searcher.suggest("e") == TrialSearcher.FINISHED


def test_a_trial_that_fails_too_often_ends(open_recorder: Open, toy: Toy) -> None:
    recorder = open_recorder([toy()], trials=1, round_size=1)
    callback = TuneCallback(recorder)
    trial = cast(Trial, GivenTrial(searcher_of(recorder, 9).suggest("a")))
    for _ in range(recorder.spec.max_failures + 1):
        assert "failure" not in trial.config or trial.config["failure"] is None
        callback.on_trial_recover(iteration=1, trials=[trial], trial=trial)
    assert trial.config["failure"], "its next start ends it"
    callback.on_trial_error(iteration=1, trials=[trial], trial=trial)
    assert recorder.records["toy-00"].status == "failed"


def test_an_end_that_cannot_be_written_stops_the_search_and_is_no_failure(
    open_recorder: Open, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = open_recorder([toy()], trials=1, round_size=1)
    trial = cast(Trial, GivenTrial(searcher_of(recorder, 9).suggest("a")))
    callback = TuneCallback(recorder)

    def away(*_: Any) -> None:
        raise StorageFailed("Optuna's storage has failed for 120 s")

    monkeypatch.setattr(recorder.studies["toy"], "tell", away)
    callback.on_trial_complete(iteration=1, trials=[trial], trial=trial)
    assert not recorder.records["toy-00"].ended, "what is not written has not ended"
    with pytest.raises(StorageFailed, match="120 s"):
        callback.on_step_end(iteration=1, trials=[trial])
