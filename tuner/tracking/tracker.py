"""Writes a search to MLflow: one parent run, one child run per training and, at the end, one child run per variant.

Each epoch is written exactly once.  A thread of the driver writes in batches, so that the search does not wait for the
server.  Everything may be reported again, and after a restart everything is: the thread writes only what MLflow lacks.
Writing is retried while the server is unreachable.
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
"""Seconds between two batches."""
LONGEST_PAUSE_SECONDS = 30.0
"""Longest pause, in seconds, before a failed write is retried."""
LOAD_SECONDS = 10.0
"""Seconds between two readings of this machine's load."""


class Tracker:
    """Reports one search to MLflow; all methods but :meth:`finish` return at once."""

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
        """Makes the parent run and starts to write.

        ``dataset`` becomes an input of every run.  With ``system_metrics`` this machine's load is logged to the parent
        run while the search goes on.
        """
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
        """Reports that a training exists."""

        def task() -> None:
            run = self._runs.to_write(name)
            if not run.ended:
                run.params = {key: str(value) for key, value in parameters.items()}
                run.tags = {**tags, "status": "running"}

        self._tasks.put(task)

    def log_epoch(self, name: str, metrics: EpochMetrics) -> None:
        """Reports that a training has finished an epoch; an epoch that was reported before is ignored."""

        def task() -> None:
            run = self._runs.to_write(name)
            if metrics.epoch > run.logged_epoch and not run.ended:
                # The epoch's own time makes a row that is written again after a failure the same row.
                run.add(epoch_metrics(metrics), at=metrics.finished_at, step=metrics.epoch)
                run.logged_epoch = metrics.epoch

        self._tasks.put(task)

    def end_trial(
        self, name: str, status: str, summary: Mapping[str, float], last: EpochMetrics | None, tags: Mapping[str, str]
    ) -> None:
        """Reports that a training has ended: ``status`` is finished, stopped, diverged or failed."""

        def task() -> None:
            run = self._runs.to_write(name)
            if not run.ended:
                if last:
                    run.add(summary, at=last.finished_at, step=last.epoch)
                run.tags |= {**tags, "status": status}
                run.status = "FAILED" if status == "failed" else "FINISHED"

        self._tasks.put(task)

    def log_variants(self, rows: Mapping[str, tuple[Mapping[str, float], Mapping[str, str]]]) -> None:
        """Reports the leaderboard: metrics and tags, one run per variant.  They replace those of an earlier program.

        The names of the metrics have to be the same each time.  A metric that is not finite any more is overwritten;
        a metric that is not given stays as it is.
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
        """Writes tags that may have changed since a run ended, and final metrics that it may have lacked then."""

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
        """Writes everything that waits, then the parent's summary, tags, artifacts (files and folders) and model.

        Returns whether MLflow accepted everything within ``timeout`` seconds.  The status ``interrupted`` leaves the
        parent run RUNNING, because the search can be resumed.
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
        from tuner.tracking.system_metrics import SystemLoad  # imports psutil, which only this option needs

        load = SystemLoad()
        while not self._closing.wait(LOAD_SECONDS):
            self._note_load(load.read(), time.time())

    def _note_load(self, values: Mapping[str, float], now: float) -> None:
        # Steps are seconds since 1970, so that a later program's come after an earlier one's.
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
                        self._runs.sync()  # a request that seemed to fail may have been carried out since
                    self._conclude()
                    self._written.set()
                    return
            except Exception as error:
                # A message may contain the password of the address.
                logger.error("A write to MLflow failed and is retried: %s", masked(str(error)))
                failed = has_failed = True
            # The server may have carried out a request whose answer was lost, so its state is read before a retry.
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
