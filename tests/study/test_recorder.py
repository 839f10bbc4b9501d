"""What happens to trials, also to those of programs that are killed: each planned one runs and ends once, everywhere.

No training here: the worker of these tests writes a trial's epochs as :mod:`tuner.cluster.trial_actor` does, from a
formula.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType, ModuleType
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from optuna.trial import TrialState

from search_spaces import Variant
from tuner.core.metrics import EpochMetrics, FinalScore
from tuner.core.search_spec import NUM_REPEATS
from tuner.core.serialization import to_json
from tuner.core.store import WEIGHTS
from tuner.study import optuna_study, refinement, results, rounds, sampler, scheduler, trial_folder
from tuner.study import recorder as recorder_module
from tuner.study.recorder import Recorder
from tuner.study.trial_folder import TEST, append_epoch, read_epochs
from tuner.study.trial_record import TrialRecord
from tuner.tracking import runs
from tuner.tracking import tracker as tracking_module
from tuner.tracking.runs import Runs
from tuner.tracking.tracker import PARENT, TRIAL_TAG

Open = Callable[..., Recorder]
Toy = Callable[..., Variant]
Epoch = Callable[..., EpochMetrics]
Work = Callable[[Recorder], None]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")
EPOCHS = 9
RACE: dict[str, Any] = {"trials": 4, "round_size": 2, "refine_trials": 0, "epochs": EPOCHS}
"""Of two variants: four trials each.  No training of these tests reaches the target, so that no round is decided."""
ALONE: dict[str, Any] = {"trials": 1, "round_size": 1, "epochs": EPOCHS}
"""Of one variant: its default point, and its repeats."""
NUM_ALONE = 1 + NUM_REPEATS


@pytest.fixture
def work(epoch: Epoch) -> Work:
    """Runs a recorder's trials to their ends, two at a time."""

    def run(recorder: Recorder) -> None:
        live: list[Iterator[None]] = []
        while True:
            while len(live) < 2 and (record := recorder.scheduler.next_trial()) is not None:
                if not record.ended:
                    live.append(train(recorder, record))
            if not live:
                return
            for trial in list(live):
                if next(trial, "ended") == "ended":
                    live.remove(trial)

    def train(recorder: Recorder, record: TrialRecord) -> Iterator[None]:
        folder = recorder.search.folder / record.folder_name
        recorder.start(record.name)
        if record.phase == "test":
            assert (folder / WEIGHTS).read_text() == to_json(record.spec)
            recorder.record_test(record.name, FinalScore(0.5, 0.9, "data"), 0.1)
            recorder.end(record.name)
            return
        checkpoint = folder / "checkpoint-000001.pt"
        height = 0.3 + 0.6 * (record.spec.optimizer.lr.peak**0.3) * (1 - 0.3 * record.spec.optimizer.momentum.value)
        for number in range(1, EPOCHS + 1):
            diverges = record.number == 2 and number == 5
            if number == EPOCHS and record.phase == "confirm":
                (folder / WEIGHTS).write_text(to_json(record.spec))
            metrics = epoch(number, height * (1 - 0.5**number), budget=10 * EPOCHS, diverged=diverges)
            draft = checkpoint.with_name("draft")
            draft.write_text(str(max(number, int(checkpoint.read_text()) if checkpoint.exists() else 0)))
            draft.replace(checkpoint)  # whole or not at all, as in a training
            last = diverges or number == EPOCHS
            should_continue = last or recorder.scheduler.should_continue(record.name, metrics)
            recorder.record(record.name, metrics, 0.1)
            if diverges or not should_continue:
                break
            yield
        recorder.end(record.name)

    return run


def assert_whole(recorder: Recorder, uri: str, num_trials: int, num_confirmed: int = 0) -> None:
    """Exactly the planned trials and confirmed runs, all ended, the same in memory, Optuna, MLflow and on disk."""
    statuses: dict[str, str] = {}
    for name, study in recorder.studies.items():
        trials = study.study.get_trials()
        assert len(trials) == num_trials
        places = Counter(str(sorted(study.place(trial.number).items())) for trial in trials)
        assert set(places.values()) == {1}, "two trials of one place"
        assert all(trial.state.is_finished() for trial in trials)
        statuses |= {f"{name}-{trial.number:02d}": trial.user_attrs["status"] for trial in trials}
    for name in recorder.studies:
        for number in range(1, num_confirmed + 1):
            statuses[f"{name}/confirm-{number}"] = "diverged" if number == 2 else "finished"
    assert {record.name: record.status for record in recorder.records.values()} == statuses
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.tags[TRIAL_TAG] for run in found) == sorted([PARENT, *statuses])
    for run in found:
        name = run.data.tags[TRIAL_TAG]
        if name == PARENT:
            continue
        history, folder = recorder.records[name].history, recorder.search.folder / recorder.records[name].folder_name
        assert history == read_epochs(folder)
        if "/confirm-" in name:
            finished = statuses[name] == "finished"
            assert run.data.tags["phase"] == "confirm" and run.data.tags["confirms"]
            assert (folder / TEST).exists() == (folder / WEIGHTS).exists() == ("test/accuracy" in run.data.metrics)
            assert (folder / TEST).exists() == finished
            if finished:
                assert len(client.get_metric_history(run.info.run_id, "test/accuracy")) == 1
        else:
            place = recorder.records[name].place
            assert run.data.tags["phase"] == ("race" if "round" in place else "refine")
            assert {key: run.data.tags[key] for key in place} == {key: str(value) for key, value in place.items()}
        assert history[-1].epoch == len(history)
        assert run.data.tags["status"] == statuses[name] and run.info.status == "FINISHED"
        for key in ("train/loss", "speed/images_per_second"):
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, key)]
            assert steps == list(range(1, len(history) + 1)), f"{name}: {key}"
        assert len(client.get_metric_history(run.info.run_id, "speed/auc")) == 1
        assert not list(folder.glob("checkpoint*"))


def assert_ended(recorder: Recorder) -> None:
    """All trials have ended, in memory and in Optuna, as the logs say."""
    assert recorder.scheduler.race.is_over and all(record.ended for record in recorder.records.values())
    for name, study in recorder.studies.items():
        assert len(study.study.get_trials()) == len(recorder.search.trials_of(name))
        assert all(trial.state.is_finished() for trial in study.study.get_trials())
    for record in recorder.records.values():
        assert record.history == read_epochs(recorder.search.folder_of(record))


def in_a_program_of_its_own(task: Callable[[], None]) -> int:
    """The exit status of a forked process that does the task."""
    with warnings.catch_warnings(action="ignore"):  # a fork beside threads; it opens all it uses anew
        child = os.fork()
    if child == 0:
        try:
            task()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


KILLED = 9


def kill_at(step: int, modules: tuple[ModuleType, ...], functions: tuple[str, ...] = ()) -> Callable[..., Any]:
    """A tracer that ends the process at once at a step: a line of these modules, or of some functions of theirs."""
    left, files = step, {module.__file__ for module in modules}

    def count(frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if functions and frame.f_code.co_name not in functions:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os._exit(KILLED)
        return count

    return count


def test_a_race_is_trained_and_recorded_round_by_round(
    open_recorder: Open, toy: Toy, work: Work, mlflow_uri: str
) -> None:
    recorder = open_recorder([toy("one"), toy("two")], **RACE)
    assert not recorder.scheduler.is_complete()
    work(recorder)
    places = [(r.place["round"], r.variant, r.place["slot"]) for r in recorder.records.values()]
    assert sorted(places) == list(itertools.product((0, 1), ("one", "two"), (0, 1)))
    assert [number for number, _, _ in places] == [0] * 4 + [1] * 4
    assert {recorder.records[name].status for name in ("one-02", "two-02")} == {"diverged"}
    assert recorder.tracking.finish("finished", {}, [], timeout=60)
    assert_whole(recorder, mlflow_uri, 4)
    again = open_recorder([toy("one"), toy("two")], **RACE)
    assert again.scheduler.is_complete()
    assert again.tracking.finish("finished", {}, [], timeout=60)
    assert_whole(again, mlflow_uri, 4)
    for name, record in recorder.records.items():
        assert (again.records[name].spec, again.records[name].history) == (record.spec, record.history)
    assert again.search.race.rounds == recorder.search.race.rounds and len(again.search.race.rounds) == 2


def test_more_trials_and_variants_are_added_to_a_complete_search(
    open_recorder: Open, toy: Toy, work: Work, mlflow_uri: str
) -> None:
    for variants, num_trials in [(["one"], 1), (["one"], 2), (["one", "two"], 2)]:
        recorder = open_recorder([toy(name) for name in variants], **ALONE | {"trials": num_trials, "refine_trials": 1})
        assert not recorder.scheduler.is_complete()
        work(recorder)
        assert recorder.tracking.finish("finished", {}, [], timeout=60)
        # Settings, four repeats of each that did not diverge, and at last a race of two rounds.
        raced = 2 if len(variants) > 1 else 0
        trials = {name: len(recorder.search.trials_of(name)) for name in variants}
        assert trials["one"] >= num_trials + NUM_REPEATS + raced
        for name in variants:
            tried = [r.place["index"] for r in recorder.search.trials_of(name) if "index" in r.place]
            assert tried == ([0] if name == "two" else list(range(num_trials)))
            assert sum(r.phase == "race" for r in recorder.search.trials_of(name)) == raced
        assert_ended(recorder)


DRIVER = (scheduler, recorder_module, optuna_study, rounds, sampler, trial_folder, sys.modules[__name__])
WRITER = (tracking_module, runs)
WRITING = ("_write", "task", "sync", "write", "write_status")


@pytest.mark.slow
def test_programs_killed_at_any_statement_leave_a_search_that_is_finished_once(
    open_recorder: Open, toy: Toy, work: Work, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One search, killed again and again, ever later, in its driver or in its writing thread."""
    monkeypatch.setattr(tracking_module, "FLUSH_SECONDS", 0.005)

    def program(step: int, in_driver: bool) -> None:
        if in_driver:
            sys.settrace(kill_at(step, DRIVER))
        else:
            threading.settrace(kill_at(step, WRITER, WRITING))
        recorder = open_recorder([toy("one"), toy("two")], **RACE)
        work(recorder)
        if not recorder.tracking.finish("finished", {}, [], timeout=60):
            raise TimeoutError

    num_killed = 0
    for number in range(22):
        # Odd steps apart, so that the statements where it ends differ from round to round.
        status = in_a_program_of_its_own(lambda n=number: program(37 + 211 * (n // 2), n % 2 == 0))  # type: ignore[misc]
        assert status in (0, KILLED)
        num_killed += status == KILLED
    assert num_killed > 6
    recorder = open_recorder([toy("one"), toy("two")], **RACE)
    work(recorder)
    assert recorder.tracking.finish("finished", {}, [], timeout=60)
    assert_whole(recorder, mlflow_uri, 4)


def test_what_optuna_has_and_mlflow_has_not_is_written_by_the_next_program(
    open_recorder: Open, toy: Toy, work: Work, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program() -> None:
        monkeypatch.setattr(Runs, "write", lambda *args: threading.Event().wait())
        work(open_recorder([toy("one")], **ALONE))

    assert in_a_program_of_its_own(program) == 0
    recorder = open_recorder([toy("one")], **ALONE)
    assert recorder.scheduler.is_complete()
    assert recorder.tracking.finish("finished", {}, [], timeout=60)
    assert_whole(recorder, mlflow_uri, NUM_ALONE)


class Killed(BaseException):
    """Stands for a program's end: nothing catches it."""


@pytest.mark.parametrize("where", ["tell", "end_trial", "submit"])
def test_a_program_killed_while_a_trial_ends(
    open_recorder: Open, toy: Toy, work: Work, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """At each end of a trial in turn, just before it is written there."""
    num_killed = 0
    for number in range(1, 4):
        recorder = open_recorder([toy("one")], **ALONE)
        owners = {"tell": recorder.studies["one"], "end_trial": recorder.tracking, "submit": recorder._pruning}
        target: Any = owners[where]
        num_calls, original = 0, getattr(target, where)

        def die(*args: Any, number: int = number, original: Any = original, **named: Any) -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls == number:
                raise Killed
            return original(*args, **named)

        with monkeypatch.context() as patch, suppress(Killed):
            patch.setattr(target, where, die)
            work(recorder)
        num_killed += num_calls == number
        recorder.tracking.finish("interrupted", {}, [], timeout=60)
    assert num_killed >= 2
    recorder = open_recorder([toy("one")], **ALONE)
    work(recorder)
    assert recorder.tracking.finish("finished", {}, [], timeout=60)
    assert_whole(recorder, mlflow_uri, NUM_ALONE)


def test_a_trial_that_fails_says_why_and_the_others_go_on(
    open_recorder: Open, toy: Toy, work: Work, mlflow_uri: str
) -> None:
    recorder = open_recorder([toy("one")], **ALONE)
    failed = recorder.scheduler.next_trial()
    assert failed is not None
    recorder.end(failed.name, failure="CUDA out of memory")
    recorder.end(failed.name, failure="told again")
    recorder.end(failed.name)
    work(recorder)
    assert recorder.tracking.finish("finished", {}, [], timeout=60)
    assert next(record.status for record in recorder.records.values()) == "failed"
    client = MlflowClient(mlflow_uri)
    in_mlflow = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    run = next(run for run in in_mlflow if run.data.tags[TRIAL_TAG] == "one-00")
    assert (run.info.status, run.data.tags["failure"]) == ("FAILED", "CUDA out of memory")


def test_epochs_told_again_change_nothing(open_recorder: Open, toy: Toy, epoch: Epoch) -> None:
    recorder = open_recorder([toy("one")], **ALONE)
    record = recorder.scheduler.next_trial()
    assert record is not None
    recorder.start(record.name)
    for number, accuracy in [(1, 0.1), (2, 0.2), (1, 0.9), (2, 0.9), (3, 0.3)]:
        recorder.record(record.name, epoch(number, accuracy), 0.5)
    assert [metrics.validation_accuracy for metrics in record.history] == [0.1, 0.2, 0.3]
    assert record.busy_seconds == 2.5, "a worker was busy with what it told again"
    assert list(recorder.studies["one"].study.get_trials()[0].intermediate_values) == [10, 20, 30]
    recorder.tracking.finish("interrupted", {}, [], timeout=60)


@pytest.mark.parametrize(
    ("changes", "stops"), [({}, True), ({"early_stopping": False}, False), ({"objective": "accuracy"}, False)]
)
def test_who_takes_longer_than_another_of_the_round_is_stopped_unless(
    open_recorder: Open, toy: Toy, epoch: Epoch, changes: dict[str, Any], stops: bool
) -> None:
    """At 1.25 times its gradient evaluations: replays are paid for, however few the steps."""
    recorder = open_recorder([toy("one"), toy("two")], trials=2, round_size=1, targets=(0.5,), **changes)
    first, second = recorder.scheduler.next_trial(), recorder.scheduler.next_trial()
    assert first is not None and second is not None and {first.variant, second.variant} == {"one", "two"}
    recorder.record(first.name, epoch(1, 0.5, gradient_evaluations=40, steps=10), 0.1)
    if not stops:  # it trains on beyond the target
        recorder.record(first.name, epoch(10, 0.5, gradient_evaluations=100), 0.1)
    recorder.end(first.name)
    assert first.status == "finished"
    for number, spent in ((1, 30), (2, 49), (3, 51)):
        metrics = epoch(number, 0.2, gradient_evaluations=spent, steps=number)
        assert recorder.scheduler.should_continue(second.name, metrics) == (spent < 50 or not stops)
        recorder.record(second.name, metrics, 0.1)
    recorder.end(second.name)
    if stops:
        (trial,) = recorder.studies[second.variant].study.get_trials()
        assert (second.status, trial.state) == ("stopped", TrialState.PRUNED)
        assert list(trial.intermediate_values) == [30, 49, 51], "the epoch that stops it too"
        assert recorder.search.race.wins[first.variant, second.variant] == 1
    recorder.tracking.finish("interrupted", {}, [], timeout=60)


@pytest.mark.parametrize("factor", [None, 3.0])
def test_trials_far_above_the_critical_rate_are_stopped_only_where_that_is_asked(
    open_recorder: Open, toy: Toy, epoch: Epoch, factor: float | None, caplog: pytest.LogCaptureFixture
) -> None:
    """After the first evaluation, whatever early stopping says; a trial without a prediction never."""
    changes = {"predict_critical_lr": True, "prune_above_critical": factor, "early_stopping": False}
    recorder = open_recorder([toy("one")], trials=4, **changes)
    for ratio, stops in ((2.9, False), (3.1, True), (None, False), (50.0, True)):
        record = recorder.scheduler.next_trial()
        assert record is not None
        metrics = epoch(1, 0.5, critical_lr=ratio and 0.1, lr_over_critical=ratio, diverged=ratio == 50.0)
        assert recorder.scheduler.should_continue(record.name, metrics) == (factor is None or not stops)
        recorder.record(record.name, metrics, 0.1)
        recorder.end(record.name)
        status = "diverged" if ratio == 50.0 else "stopped"
        assert record.status == recorder.studies["one"].study.get_trials()[-1].user_attrs["status"] == status
    said = [record.getMessage() for record in caplog.records if "without diverging" in record.getMessage()]
    assert [line.partition(" ")[0] for line in said] == ["one-01"]
    assert "was stopped without diverging" in said[0] and "3.1 times the predicted" in said[0]
    recorder.tracking.finish("interrupted", {}, [], timeout=60)


def test_confirmed_runs_are_never_pruned(open_recorder: Open, toy: Toy, epoch: Epoch) -> None:
    pruning = {"predict_critical_lr": True, "prune_above_critical": 1.0}
    recorder = open_recorder([toy("one")], trials=1, round_size=1, confirm_seeds=1, **pruning)
    while (record := recorder.scheduler.next_trial()) is not None and record.phase != "confirm":
        recorder.record(record.name, epoch(10, 0.5), 0.1)
        recorder.end(record.name)
    assert record is not None and record.spec.predict_critical_lr
    recorder.start(record.name)
    assert recorder.scheduler.should_continue(record.name, epoch(1, 0.5, critical_lr=0.01, lr_over_critical=10.0))
    recorder.tracking.finish("interrupted", {}, [], timeout=60)


def test_what_ended_in_an_earlier_program_caps_what_it_left_unfinished(
    open_recorder: Open, toy: Toy, epoch: Epoch
) -> None:
    settings: dict[str, Any] = {"trials": 2, "round_size": 1, "targets": (0.5,)}
    first = open_recorder([toy("one"), toy("two")], **settings)
    ended, running = first.scheduler.next_trial(), first.scheduler.next_trial()
    assert ended is not None and running is not None
    for number in (1, 2):
        assert first.scheduler.should_continue(running.name, epoch(number, 0.2))
        first.record(running.name, epoch(number, 0.2), 0.1)
    append_epoch(first.search.folder_of(running), epoch(3, 0.2))  # killed before Optuna is told
    first.record(ended.name, epoch(1, 0.5), 0.1)
    first.end(ended.name)
    first.tracking.finish("interrupted", {}, [], timeout=60)
    second = open_recorder([toy("one"), toy("two")], **settings)
    given = [second.scheduler.next_trial(), second.scheduler.next_trial()]
    assert [record.name for record in given if record] == [ended.name, running.name]
    assert second.records[running.name].history == []
    # Its worker tells its epochs again, from the last checkpoint on.
    assert second.scheduler.should_continue(running.name, epoch(1, 0.2))
    assert not second.scheduler.should_continue(running.name, epoch(2, 0.2))
    second.record(running.name, epoch(2, 0.2), 0.1)
    second.end(running.name)
    assert second.records[running.name].status == "stopped" and len(second.search.race.rounds) == 1
    second.tracking.finish("interrupted", {}, [], timeout=60)


def test_the_share_of_the_time_that_was_spent_training(open_recorder: Open, toy: Toy, epoch: Epoch) -> None:
    recorder = open_recorder([toy("one")], trials=2, round_size=1, epochs=1)
    assert recorder.busy_share(2) is None
    for started, ended, busy in [(100.0, 110.0, 8.0), (105.0, 120.0, 12.0)]:
        record = recorder.scheduler.next_trial()
        assert record is not None
        record.started_at, record.ended_at, record.busy_seconds = started, ended, busy
    assert recorder.busy_share(2) == pytest.approx(20 / (2 * 20))
    recorder.tracking.finish("interrupted", {}, [], timeout=60)


def test_runs_are_tagged_with_the_idea_and_with_what_they_control(
    open_recorder: Open, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = open_recorder([toy("one", idea="an idea"), toy("one-less", controls="one")], trials=1, round_size=1)
    told: dict[str, dict[str, str]] = {}
    monkeypatch.setattr(recorder.tracking, "start_trial", lambda name, parameters, tags: told.update({name: tags}))
    while (record := recorder.scheduler.next_trial()) is not None:
        recorder.start(record.name)
    assert told["one-00"]["idea"] == "an idea" and "controls" not in told["one-00"]
    assert told["one-less-00"]["controls"] == "one"
    assert told["one-00"]["phase"] == "race" and (told["one-00"]["round"], told["one-00"]["slot"]) == ("0", "0")


CONFIRMED = 3 + 2


def test_the_best_settings_and_the_default_point_are_confirmed_by_the_same_fresh_seeds_and_then_tested(
    open_recorder: Open, toy: Toy, work: Work, mlflow_uri: str
) -> None:
    recorder = open_recorder([toy("one"), toy("two")], **RACE, confirm_seeds=3)
    assert recorder.scheduler.num_planned == 2 * (4 + CONFIRMED)
    work(recorder)
    assert recorder.tracking.finish("finished", {}, [], timeout=60)
    assert_whole(recorder, mlflow_uri, 4, CONFIRMED)
    search = recorder.search
    trial_seeds = {record.spec.seed for record in search.records.values() if record.is_trial}
    for variant in search.variants:
        best = search.best(variant.name)
        assert best is not None and best.status == "finished"
        tuned, default = search.confirmed(variant.name), search.confirmed(variant.name, "default")
        assert [run.name for run in tuned.values()] == [f"{variant.name}/confirm-{number}" for number in (1, 2, 3)]
        assert [run.name for run in default.values()] == [f"{variant.name}/confirm-{number}" for number in (4, 5)]
        assert {run.spec.optimizer for run in tuned.values()} == {best.spec.optimizer}
        assert {run.spec.optimizer.lr.peak for run in default.values()} == {0.1}
        seeds = [run.spec.seed for run in tuned.values()]
        assert len(set(seeds)) == 3 and not trial_seeds & set(seeds), "fresh"
        assert seeds == [run.spec.seed for run in search.confirmed("one").values()], "one and two are paired"
        assert seeds[:2] == [run.spec.seed for run in default.values()]


def test_the_test_split_waits_for_the_last_training(open_recorder: Open, toy: Toy, epoch: Epoch) -> None:
    recorder = open_recorder([toy("one")], trials=1, round_size=1, epochs=1, confirm_seeds=2)

    def given() -> list[str]:
        names = []
        while (record := recorder.scheduler.next_trial()) is not None:
            names.append(record.name)
        return names

    def end(name: str) -> None:
        recorder.record(name, epoch(1, 0.9), 0.1)
        recorder.end(name)

    assert given() == ["one-00"] and not recorder.scheduler.all_planned, "its repeats are not known yet"
    end("one-00")
    repeats = given()
    assert repeats == [f"one-{number:02d}" for number in range(1, NUM_ALONE)]
    for name in repeats:
        assert given() == [], "its best is not known yet"
        end(name)
    runs = given()
    assert runs == ["one/confirm-1", "one/confirm-2"]
    for name in runs:
        assert given() == [] and not recorder.scheduler.all_planned
        assert recorder.scheduler.should_continue(name, epoch(1, 0.0)), "a confirmed run is never stopped"
        end(name)
    assert given() == ["one/confirm-1/test", "one/confirm-2/test"] and recorder.scheduler.all_planned
    assert not recorder.scheduler.is_complete()
    recorder.tracking.finish("interrupted", {}, [], timeout=60)


def test_a_confirmed_run_whose_worker_dies_is_failed_and_stays_so(
    open_recorder: Open, toy: Toy, work: Work, mlflow_uri: str, epoch: Epoch
) -> None:
    settings: dict[str, Any] = {"trials": 1, "round_size": 1, "epochs": 1, "confirm_seeds": 1}
    recorder = open_recorder([toy("one")], **settings)
    while (record := recorder.scheduler.next_trial()) is not None:
        recorder.start(record.name)
        if record.is_trial:
            recorder.record(record.name, epoch(1, 0.9), 0.1)
        recorder.end(record.name, failure="the worker died" if record.phase == "confirm" else None)
    recorder.tracking.finish("interrupted", {}, [], timeout=60)
    again = open_recorder([toy("one")], **settings)
    assert again.records["one/confirm-1"].status == "failed"
    work(again)
    assert again.records["one/confirm-1"].status == "failed"
    assert again.tracking.finish("finished", {}, [], timeout=60)
    assert open_recorder([toy("one")], **settings).scheduler.is_complete()
    client = MlflowClient(mlflow_uri)
    in_mlflow = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    tags = {run.data.tags[TRIAL_TAG]: run.data.tags for run in in_mlflow}
    assert tags["one/confirm-1"]["failure"] == "the worker died"


def test_a_test_that_fails_costs_no_training_and_is_done_by_the_next_program(
    open_recorder: Open, toy: Toy, work: Work, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = open_recorder([toy("one")], **ALONE, confirm_seeds=1)
    record_test, end = recorder.record_test, recorder.end
    failure = {"one/confirm-1/test": "out of memory"}
    monkeypatch.setattr(recorder, "record_test", lambda name, *rest: name in failure or record_test(name, *rest))
    monkeypatch.setattr(recorder, "end", lambda name: end(name, failure=failure.get(name)))
    work(recorder)
    run = recorder.records["one/confirm-1"]
    assert (run.status, run.test) == ("finished", None) and not recorder.scheduler.is_complete()
    assert recorder.tracking.finish("finished", {}, [], timeout=60)
    again = open_recorder([toy("one")], **ALONE, confirm_seeds=1)
    assert not again.scheduler.is_complete()
    work(again)
    again.amend()
    assert again.records["one/confirm-1"].test is not None
    assert again.scheduler.is_complete()
    assert again.tracking.finish("finished", {}, [], timeout=60)
    client = MlflowClient(mlflow_uri)
    in_mlflow = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    found = next(run for run in in_mlflow if run.data.tags[TRIAL_TAG] == "one/confirm-1")
    assert found.data.tags["test_failure"] == "out of memory" and found.info.status == "FINISHED"
    assert [m.value for m in client.get_metric_history(found.info.run_id, "test/accuracy")] == [0.9]


def test_a_copy_of_a_confirmed_run_takes_no_number_and_hides_nothing(open_recorder: Open, toy: Toy, work: Work) -> None:
    first = open_recorder([toy("one")], **ALONE, confirm_seeds=1)
    work(first)
    first.tracking.finish("finished", {}, [], timeout=60)
    folder = first.search.folder
    for copy in ("one.confirm-9", "backup.one.confirm-1"):
        shutil.copytree(folder / "one.confirm-1", folder / copy)
    specs = {path.parent.name: path.read_text() for path in folder.glob("*/spec.json")}
    more = open_recorder([toy("one")], **ALONE, confirm_seeds=2)
    work(more)
    more.tracking.finish("finished", {}, [], timeout=60)
    assert {name: (folder / name / "spec.json").read_text() for name in specs} == specs
    assert more.search.confirmed("one")[1].name == "one/confirm-2"


def test_more_trials_may_find_another_best_which_is_confirmed_beside_the_earlier_one(
    open_recorder: Open, toy: Toy, work: Work, mlflow_uri: str
) -> None:
    settings: dict[str, Any] = {"round_size": 1, "epochs": EPOCHS, "confirm_seeds": 3, "objective": "accuracy"}
    few = open_recorder([toy("one")], trials=1, **settings)
    work(few)
    few.tracking.finish("finished", {}, [], timeout=60)
    earlier = {run.name: run.history for run in few.search.confirmed("one").values()}
    assert list(earlier) == [f"one/confirm-{n}" for n in (1, 2, 3)], "of the default point, which is all it has tried"
    many = open_recorder([toy("one")], trials=9, **settings)
    assert not many.scheduler.is_complete()
    work(many)
    assert many.scheduler.num_planned == len(many.records)
    again = open_recorder([toy("one")], trials=9, **settings)
    assert again.scheduler.num_planned >= len(again.records) == len(many.records)
    many.amend()
    many.tracking.finish("finished", {}, [], timeout=60)
    assert many.search.best("one") is not few.search.best("one"), "else this tests nothing"
    assert [run.name for run in many.search.confirmed("one").values()] == [f"one/confirm-{n}" for n in (4, 5, 6)]
    assert {name: many.records[name].history for name in earlier} == earlier, "nothing is lost"
    client = MlflowClient(mlflow_uri)
    in_mlflow = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    told = {run.data.tags[TRIAL_TAG]: run.data.tags.get("confirms") for run in in_mlflow}
    assert [told[f"one/confirm-{number}"] for number in range(1, 7)] == [
        *["default"] * 2, "an earlier best", *["best"] * 3,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.extensive) for seed in range(2, 8))])
def test_killed_anywhere_a_search_is_confirmed_and_tested_once(
    open_recorder: Open, toy: Toy, work: Work, mlflow_uri: str, seed: int
) -> None:
    """The program ends at an arbitrary line of the driver's, again and again, until one comes through."""
    names, settings, num_trials, num_runs = (
        (["one", "two"], RACE | {"trials": 2, "confirm_seeds": 3}, 2, CONFIRMED)
        if seed % 2
        else (["one"], ALONE | {"confirm_seeds": 3}, NUM_ALONE, 3)
    )
    variants = [toy(name) for name in names]
    generator = random.Random(seed)

    def program() -> None:
        step = int(10 ** generator.uniform(2, 4.2))
        modules = (recorder_module, scheduler, refinement, results, rounds, trial_folder, optuna_study)
        sys.settrace(kill_at(step, modules))
        work(open_recorder(variants, **settings))

    for _ in range(4):
        in_a_program_of_its_own(program)
        generator.random()  # the child's draws are its own
    recorder = open_recorder(variants, **settings)
    work(recorder)
    assert recorder.tracking.finish("finished", {}, [], timeout=60)
    assert_whole(recorder, mlflow_uri, num_trials, num_runs)
    assert open_recorder(variants, **settings).scheduler.is_complete()
