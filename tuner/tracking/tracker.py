"""Writes a search to MLflow: a parent run, a child run a training, each epoch exactly once; one a variant at the end.

A thread of the driver writes in batches, so that nothing waits for the server.  Everything may be told again (after a
restart, everything is): what MLflow holds already is left alone, what is missing is written.  While the server is away
the thread tries again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tuner.core.errors import masked
from tuner.core.metrics import EpochMetrics, epoch_metrics
from tuner.tracking.logged_model import WinningModel
from tuner.tracking.run_state import DataSet, finite
from tuner.tracking.runs import PARENT, SEARCH_TAG, TRIAL_TAG, Runs

__all__ = ["DataSet", "PARENT", "SEARCH_TAG", "TRIAL_TAG", "Tracker", "WinningModel"]

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
LOAD_SECONDS = 10.0
"""Between two readings of this machine's load."""


class Tracker:
    """The MLflow side of one search."""

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        search: str,
        search_id: str,
        parameters: Mapping[str, object],
        tags: Mapping[str, str],
        dataset: DataSet | None = None,
        system_metrics: bool = False,
    ) -> None:
        """``dataset`` becomes an input of every run; with ``system_metrics`` the parent run gets this machine's load
        while the search goes on."""
        self._runs = Runs(
            uri=uri, experiment=experiment, search=search, search_id=search_id, tags=tags, dataset=dataset
        )
        self._artifacts: list[Path] = []
        self._model: WinningModel | None = None
        self._tasks: queue.Queue[Callable[[], None]] = queue.Queue()
        self._closing = threading.Event()
        self._written = threading.Event()
        self._synchronized = False
        self.start_trial(PARENT, parameters, {})
        threading.Thread(target=self._write, name="mlflow", daemon=True).start()
        if system_metrics:
            threading.Thread(target=self._watch, name="system metrics", daemon=True).start()

    def start_trial(self, name: str, parameters: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """A training exists."""

        def task() -> None:
            run = self._runs.to_write(name)
            if not run.ended:
                run.params = {key: str(value) for key, value in parameters.items()}
                run.tags = {**tags, "status": "running"}

        self._tasks.put(task)

    def log_epoch(self, name: str, metrics: EpochMetrics) -> None:
        """A training has finished an epoch."""

        def task() -> None:
            run = self._runs.to_write(name)
            if metrics.epoch > run.logged_epoch and not run.ended:
                # The time is the epoch's own, so that what is written again after a failure is the same row.
                run.add(epoch_metrics(metrics), at=metrics.finished_at, step=metrics.epoch)
                run.logged_epoch = metrics.epoch

        self._tasks.put(task)

    def end_trial(
        self, name: str, status: str, summary: Mapping[str, float], last: EpochMetrics | None, tags: Mapping[str, str]
    ) -> None:
        """A training has ended: finished, stopped, diverged or failed."""

        def task() -> None:
            run = self._runs.to_write(name)
            if not run.ended:
                if last:
                    run.add(summary, at=last.finished_at, step=last.epoch)
                run.tags |= {**tags, "status": status}
                run.status = "FAILED" if status == "failed" else "FINISHED"

        self._tasks.put(task)

    def log_variants(self, rows: Mapping[str, tuple[Mapping[str, float], Mapping[str, str]]]) -> None:
        """The leaderboard: metrics and tags of a run a variant, in the place of those that an earlier program wrote.

        Names are to be the same each time: a metric that is not finite any more is overwritten, one that is not given
        stays.
        """

        def task() -> None:
            for name, (metrics, tags) in rows.items():
                run = self._runs.to_write(name)
                run.ended = False
                run.replace(metrics, at=time.time())
                run.tags = {**tags, "phase": "variant", "variant": name}
                run.status = "FINISHED"

        self._tasks.put(task)

    def amend(self, name: str, tags: Mapping[str, str], summary: Mapping[str, float], last: EpochMetrics) -> None:
        """Tags of a run that may have changed since it ended, and final metrics that may have been lacking then."""

        def task() -> None:
            run = self._runs.to_write(name)
            run.late_metrics = finite(summary, at=last.finished_at, step=last.epoch)
            run.late_tags = dict(tags)

        self._tasks.put(task)

    def finish(
        self,
        status: str,
        summary: Mapping[str, float],
        artifacts: Sequence[Path],
        *,
        timeout: float,
        tags: Mapping[str, str] | None = None,
        model: WinningModel | None = None,
    ) -> bool:
        """Writes what is left, the parent's summary, tags, files, folders and model; whether MLflow has it all in time.

        ``timeout`` is in seconds.  ``interrupted`` leaves the parent run RUNNING, as the search is.
        """

        def task() -> None:
            run = self._runs.to_write(PARENT)
            run.replace(summary, at=time.time())
            run.tags |= {**(tags or {}), "status": status}
            run.status = "RUNNING" if status == "interrupted" else "FINISHED"
            self._artifacts, self._model = list(artifacts), model

        self._tasks.put(task)
        self._closing.set()
        return self._written.wait(timeout) and not self._runs.refused

    def _watch(self) -> None:
        from tuner.tracking.system_metrics import SystemLoad  # psutil is for those who ask for it

        load = SystemLoad()
        while not self._closing.wait(LOAD_SECONDS):
            self._note_load(load.read(), time.time())

    def _note_load(self, values: Mapping[str, float], now: float) -> None:
        # Seconds as steps: a later program's come after an earlier one's.
        self._tasks.put(lambda: self._runs.to_write(PARENT).add(values, at=now, step=int(now)))

    def _write(self) -> None:
        pause = FLUSH_SECONDS
        has_failed = False
        while True:
            closing = self._closing.is_set()
            failed = False
            try:
                if not self._synchronized:
                    self._runs.sync()
                while not self._tasks.empty():
                    self._tasks.get()()
                self._runs.write_all()
                if closing:
                    if has_failed:
                        self._runs.sync()  # what was asked for in vain may have been done since
                    self._conclude()
                    self._written.set()
                    return
            except Exception as error:
                # Messages may hold the address's password.
                logger.error("MLflow did not take a write; trying again: %s", masked(str(error)))
                failed = has_failed = True
            # An answer may have been lost after the server did what it was asked: look before asking again.
            self._synchronized = not failed
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS) if failed else FLUSH_SECONDS
            if closing:
                time.sleep(min(pause, FLUSH_SECONDS))
            else:
                self._closing.wait(pause)

    def _conclude(self) -> None:
        while self._artifacts:
            self._runs.log_artifact(self._artifacts[0])
            del self._artifacts[0]
        if (model := self._model) is not None:
            self._runs.attempt(f"model {model.run!r}", lambda: self._runs.log_model(model))
            self._model = None
        self._runs.write_status(PARENT)
