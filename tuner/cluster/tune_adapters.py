"""Connects Ray Tune to the search: Tune's questions go to the trial scheduler, its events to the recorder."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher, SearchGenerator

from tuner.cluster.ray_cluster import Resources
from tuner.cluster.trial_actor import TrialTask
from tuner.core.errors import StorageFailed
from tuner.core.metrics import EpochMetrics, FinalScore
from tuner.core.serialization import from_dict, to_json
from tuner.study.recorder import Recorder
from tuner.study.scheduler import TrialScheduler
from tuner.study.trial_record import TrialRecord


class TrialSearcher(Searcher):
    """Suggests the scheduler's trials to Tune.  It has no state that Tune would have to save."""

    def __init__(self, trials: TrialScheduler, resources: Resources, *, max_live: Callable[[], float]) -> None:
        """``max_live`` returns how many trials may run or wait: one more than fit, so that no worker waits."""
        super().__init__()
        self.trials = trials
        self.resources = resources
        self.max_live = max_live
        self.suggested: TrialRecord | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | Any:
        if self.trials.num_live >= self.max_live():
            return None
        self.suggested = self.trials.next_trial()
        if self.suggested is None:
            # A trial that runs now may fail and have to be suggested again.
            return Searcher.FINISHED if self.trials.all_planned and not self.trials.num_live else None
        task = TrialTask(
            trial=self.suggested.name,
            phase=self.suggested.phase,
            spec=to_json(self.suggested.spec),
            root=self.trials.search.root.place,
            folder=self.suggested.folder_name,
            checkpoint_seconds=self.trials.spec.checkpoint_seconds,
            workers=self.trials.spec.workers_per_trial,
            threads=self.resources.threads,
            gpu_share=min(self.resources.gpus, 1.0),
        )
        return dataclasses.asdict(task)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Does nothing: :class:`TuneCallback` ends trials, because it knows their names."""

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class TrialGenerator(SearchGenerator):
    """Makes Tune's trials.  Trials that ended in an earlier program enter Tune's list as ended and do not run."""

    def __init__(self, searcher: TrialSearcher) -> None:
        super().__init__(searcher)
        self.trial_searcher = searcher

    def create_trial_if_possible(self, experiment_spec: dict[str, Any]) -> Trial | None:
        trial = super().create_trial_if_possible(experiment_spec)
        record = self.trial_searcher.suggested
        if trial is None or record is None:
            return trial
        # Tune's tools look for the log in this folder.  By Tune's name a test would have another folder than its run.
        assert trial.storage is not None
        trial.relative_logdir = trial.storage.trial_dir_name = record.folder_name  # type: ignore[assignment]
        trial.init_local_path()
        if record.ended:
            trial.set_status(Trial.ERROR if record.status == "failed" else Trial.TERMINATED)
            if record.history:
                trial.update_last_result({"metrics": to_json(record.history[-1]), "done": True})
        return trial

    def save_to_dir(self, dirpath: str, session_str: str) -> None:  # type: ignore[override]
        pass


class EarlyStopping(FIFOScheduler):
    """Stops the trials that the trial scheduler does not continue."""

    def __init__(self, trials: TrialScheduler, *, slots: Callable[[], float]) -> None:
        """``slots`` returns how many trials fit at a time."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.trials = trials
        self.slots = slots
        self._added: dict[Trial, int] = {}
        """Live trial -> how many trials had been added before it."""
        self._num_added = 0

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        self._added[trial] = self._num_added
        self._num_added += 1

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The first pending trial that no starting actor is for.

        Tune's own method goes through all trials of the run at every event.  Tune requests an actor for each pending
        trial, in their order, and gives the chosen trial the actor of a trial that has ended; its request is then
        withdrawn.  While slots are empty, as after a wait, actors are starting in them, for the first pending trials.
        If these were chosen, the requests of short trials would all be withdrawn before their actors are up, and the
        slots would stay empty.  A trial that many younger ones have passed is chosen nonetheless.
        """
        live = tune_controller.get_live_trials()
        self._added = {trial: number for trial, number in self._added.items() if trial in live}
        pending = [trial for trial in self._added if trial.status == Trial.PENDING]
        if not pending:
            return None
        slots = max(int(min(self.slots(), len(self._added))), 1)
        num_running = sum(trial.status == Trial.RUNNING for trial in self._added)
        # One slot is that of the actor that is given away.
        num_starting = max(slots - 1 - num_running, 0)
        if self._num_added - self._added[pending[0]] > MOST_PASSES * slots:
            num_starting = 0
        return pending[min(num_starting, len(pending) - 1)]

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if trial.config["phase"] == "test":
            return str(self.CONTINUE)
        should_continue = self.trials.should_continue(trial.config["trial"], _metrics(result["metrics"]))
        return str(self.CONTINUE if should_continue else self.STOP)


MOST_PASSES = 20
"""Younger trials per slot that may begin before a pending one, which is about what a worker's start takes."""

MOST_LOST_MACHINES = 20
"""Lost machines that a trial may have before each further one counts as its failure: the trial may be the cause."""


class TuneCallback(Callback):
    """Passes Tune's events to the recorder and counts failures.

    Tune counts a lost machine as its trial's failure unless the machine was drained.  Tune is therefore set to allow
    one failure more than ``--max-failures``, and one more for each lost machine.  A trial that has failed too often
    ends itself at its next start.  Tune ends it if it cannot start.
    """

    def __init__(self, recorder: Recorder, *, on_end: Callable[[TrialRecord], None] | None = None) -> None:
        """``on_end`` is called after each trial or confirmed run has ended."""
        self.recorder = recorder
        self.on_end = on_end
        self.num_failures: Counter[str] = Counter()
        self._storage_failed: StorageFailed | None = None

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.recorder.start(trial.config["trial"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        name = trial.config["trial"]
        if "storage_failed" in result:
            raise StorageFailed(result["storage_failed"])
        if "failure" in result:
            self._end(name, result["failure"])
        elif "test" in result:
            self.recorder.record_test(name, from_dict(FinalScore, result["test"]), result["busy_seconds"])
        else:
            self.recorder.record(name, _metrics(result["metrics"]), result["busy_seconds"])

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        name = trial.config["trial"]
        if self.recorder.search.record(name).num_lost_machines < MOST_LOST_MACHINES and lost_machine(trial):
            trial.max_failures += 1
            self.recorder.lost_machine(name)
            return
        self.num_failures[name] += 1
        if self.num_failures[name] > self.recorder.spec.max_failures:
            trial.config["failure"] = _reason(trial)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        name = trial.config["trial"]
        if self.num_failures[name] > self.recorder.spec.max_failures:
            self._end(name, _reason(trial))
        else:
            # Tune reports an actor twice if it is lost while it gets its next trial.  Tune restarts the trial at the
            # first report and gives it up at the second.
            self.recorder.scheduler.again(name)

    def _end(self, name: str, failure: str | None = None) -> None:
        try:
            self.recorder.end(name, failure=failure)
        except StorageFailed as error:  # raised here, it would count as the trial's failure
            self._storage_failed = error
            return
        record = self.recorder.records.get(name)
        if record and self.on_end:
            self.on_end(record)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self._storage_failed:
            raise self._storage_failed

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        # Everything is saved.  Tune would read the logs of all trials in its list into tables that nobody uses.
        del trials[1:]


def lost_machine(trial: Trial) -> bool:
    """Whether a trial last failed because its worker's machine was drained, has died or is unreachable.

    A worker that crashes or runs out of memory is no lost machine: its machine reports the death at once.
    """
    try:
        with open(trial.pickled_error_file or "", "rb") as file:
            error = cloudpickle.load(file)
    except OSError:
        return False
    if isinstance(error, RayTaskError):
        error = error.as_instanceof_cause()
    if not isinstance(error, RayActorError):
        return False
    if error.preempted or isinstance(error, ActorUnavailableError) or error.actor_id is None:
        return True
    cause = ray._private.state.actors(error.actor_id).get("DeathCause")
    context = cause and cause.actor_died_error_context
    return bool(context and context.reason == context.Reason.Value("NODE_DIED"))


@lru_cache(maxsize=1)  # Tune passes each result to the scheduler and then to the callback
def _metrics(text: str) -> EpochMetrics:
    return from_dict(EpochMetrics, json.loads(text))


def _reason(trial: Trial) -> str:
    """The last line of Ray's message on a failure, which names the exception; at most 500 characters."""
    # This is the driver's own copy.  The copy that trial.get_error() reads comes to the search's folder later.
    try:
        lines = [line for line in Path(trial.error_file or "").read_text().splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1].strip()[:500] if lines else "the worker died"
