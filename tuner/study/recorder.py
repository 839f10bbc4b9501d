"""Records what happens to trials, confirmed runs and tests: in Optuna, in their folders and in MLflow.

Everything may be written twice.  A process that resumes a killed search sends MLflow what it finds in the studies and
folders, and MLflow keeps what it already has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from optuna.storages import RDBStorage

from tuner.core.metrics import EpochMetrics, FinalScore, is_finished, speed_metrics
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import flatten
from tuner.core.store import CHECKPOINT
from tuner.study.optuna_study import close_storage
from tuner.study.scheduler import TrialScheduler
from tuner.study.trial_folder import FAILURE, append_epoch, repair_log, write_atomically, write_spec, write_test
from tuner.study.trial_record import TrialRecord
from tuner.tracking.tracker import Tracker

logger = logging.getLogger(__name__)


class Recorder:
    """Records starts, epochs, ends and test scores of a scheduler's trials."""

    def __init__(self, scheduler: TrialScheduler, tracking: Tracker, storage: RDBStorage) -> None:
        """Sends MLflow the trials that earlier processes ended."""
        self.scheduler = scheduler
        self.search = scheduler.search
        self.records = scheduler.records
        self.studies = scheduler.studies
        self.tracking = tracking
        self.storage = storage
        self._logged: dict[str, set[int]] = {}
        """Training -> the epochs in its log when this process started it."""
        self._pruning = ThreadPoolExecutor(1, thread_name_prefix="pruning")
        for record in self.records.values():
            if record.ended:
                self._open(record)
                for metrics in record.history:
                    self.tracking.log_epoch(record.name, metrics)
                self._close(record)
        self._pruning.submit(self._prune, {record.folder_name for record in self.records.values() if record.ended})

    @property
    def spec(self) -> SearchSpec:
        """The spec of the search, with its targets once they are known."""
        return self.search.spec

    def start(self, name: str) -> None:
        """Records that a worker has started a trial."""
        record = self.search.record(name)
        record.started_at = record.started_at or time.time()
        if record.status == "pending":
            record.status = "running"
            if record.phase != "test":
                self.search.write(record, lambda folder: self._begin(record, folder))
                self._open(record)

    def _begin(self, record: TrialRecord, folder: Path) -> None:
        write_spec(folder, record.spec)
        self._logged[record.name] = repair_log(folder)

    def lost_machine(self, name: str) -> None:
        """Records that a trial lost its machine; it continues on another from its last checkpoint."""
        record = self.search.record(name)
        record.num_lost_machines += 1
        if record.phase != "test":
            self._open(record)

    def record(self, name: str, metrics: EpochMetrics, busy_seconds: float) -> None:
        """Records an epoch that a trial reports; one that it reported before only adds to its busy seconds."""
        self.start(name)
        record = self.records[name]
        record.busy_seconds += busy_seconds
        if record.history and metrics.epoch <= record.history[-1].epoch:
            return
        record.history.append(metrics)
        if metrics.epoch not in self._logged[name]:
            self.search.write(record, lambda folder: append_epoch(folder, metrics))
        # Optuna gets only epochs after which the trial continues: the one that stops it is reported with its end.
        if record.is_trial and not self.scheduler.was_stopped(name):
            self.studies[record.variant].report(record.number, record.history)
        self.tracking.log_epoch(name, metrics)

    def record_test(self, name: str, score: FinalScore, busy_seconds: float) -> None:
        """Records the score of a confirmed run on the test split."""
        self.search.tests[name].busy_seconds += busy_seconds
        record = self.records[_tested(name)]
        self.search.write(record, lambda folder: write_test(folder, score))
        record.test = score

    def end(self, name: str, *, failure: str | None = None) -> None:
        """Records the end of a trial, confirmed run or test: it failed, diverged, finished or was stopped."""
        record = self.search.record(name)
        if record.ended:
            return
        self.start(name)
        record.ended_at = time.time()
        if record.phase == "test":
            # Its training finished all the same; a later process reads the test split again.
            record.status = "finished" if failure is None else "failed"
            self._close(self.records[_tested(name)], {"test_failure": failure or ""})
            return
        status = "failed" if failure is not None else self._how_it_ended(record)
        if record.is_trial:
            study = self.studies[record.variant]
            if self.scheduler.was_stopped(name):
                study.report(record.number, record.history)
            study.tell(record.number, status, record.history, failure)
        elif failure is not None:
            self.search.write(record, lambda folder: write_atomically(folder / FAILURE, failure + "\n"))
        record.status = status
        self.scheduler.end(record)
        self._say_if_prediction_failed(record)
        self._close(record)

    def _say_if_prediction_failed(self, record: TrialRecord) -> None:
        """Logs a trial far above the predicted critical learning rate that did not diverge; the report lists it too."""
        last = record.history[-1] if record.history else None
        if not last or not record.is_trial or record.status not in ("finished", "stopped"):
            return
        if self.scheduler.is_far_above_critical(last):
            logger.warning(
                "%s %s without diverging, at lr.peak %.3g, %.3g times the predicted critical learning rate",
                record.name,
                "finished" if record.status == "finished" else "was stopped",
                record.spec.optimizer.lr.peak,
                last.lr_over_critical,
            )

    def busy_share(self, slots: int) -> float | None:
        """Share of the slots' time, from the first start to the last end, spent on trials; None if none ran."""
        known = [*self.records.values(), *self.search.tests.values()]
        ran = [record for record in known if record.started_at and record.ended_at]
        if not ran:
            return None
        span = max(r.ended_at or 0 for r in ran) - min(r.started_at or 0 for r in ran)
        return sum(record.busy_seconds for record in ran) / (slots * span) if span > 0 else None

    def _how_it_ended(self, record: TrialRecord) -> str:
        if record.history and record.history[-1].diverged:
            return "diverged"
        return "finished" if is_finished(record.spec, record.history) else "stopped"

    def _open(self, record: TrialRecord) -> None:
        parameters = {name: value for name, value in flatten(record.spec).items() if value is not None}
        variant = self.studies[record.variant].variant
        tags = {
            "variant": record.variant,
            "phase": record.phase,
            "idea": variant.idea,
            "workload": self.spec.training.workload.data,
            **({"controls": variant.controls} if variant.controls else {}),
            **self._tags(record),
        }
        self.tracking.start_trial(record.name, parameters, tags)

    def amend(self) -> None:
        """Updates in MLflow what each confirmed run confirms, and adds scores that earlier processes did not read."""
        for record in self.records.values():
            if record.phase == "confirm" and record.ended and record.history:
                self.tracking.amend(record.name, self._tags(record), _scores(record), record.history[-1])

    def _close(self, record: TrialRecord, tags: Mapping[str, str] | None = None) -> None:
        """Ends a trial's run in MLflow; a finished confirmed run's only after its test, whose tags are ``tags``."""
        if record.phase != "confirm" or record.test or record.status != "finished" or tags:
            last = record.history[-1] if record.history else None
            summary = speed_metrics(record.history, self.spec.training.targets) if record.history else {}
            summary |= _scores(record)
            self.tracking.end_trial(record.name, record.status, summary, last, {**self._tags(record), **(tags or {})})
        # After Optuna has the end: a resumed search finds the end there, or else the checkpoint here.
        self._pruning.submit(self._prune, {record.folder_name})

    def _prune(self, ended: set[str]) -> None:
        """Deletes the checkpoints of trainings that have ended; in a thread, as storage may be slow to answer."""
        try:
            for name in self.search.root.names(*ended):
                folder, _, file = name.rpartition("/")
                if folder in ended and CHECKPOINT.fullmatch(file):
                    self.search.root.delete(name)
        except OSError as error:
            logger.warning("Checkpoints of ended trials stay until the search is resumed: %s", error)

    def close(self, *, wait: bool = True) -> None:
        """Closes the storage; the next process deletes the checkpoints that this one has not."""
        self._pruning.shutdown(wait=wait, cancel_futures=not wait)
        close_storage(self.storage)

    def _tags(self, record: TrialRecord) -> dict[str, str]:
        lost = {"lost_machines": str(record.num_lost_machines)} if record.num_lost_machines else {}
        if record.is_trial:
            return self.studies[record.variant].tags(record.number) | lost
        failure = self.search.folder_of(record) / FAILURE
        tags = dict(lost)
        if record.phase == "confirm":
            tags["confirms"] = " ".join(self.search.points_of(record)) or "an earlier best"
        return {**tags, "failure": failure.read_text().strip()} if record.status == "failed" else tags


def _scores(record: TrialRecord) -> dict[str, float]:
    return {"test/accuracy": record.test.accuracy, "test/loss": record.test.loss} if record.test else {}


def _tested(name: str) -> str:
    return name.removesuffix("/test")
