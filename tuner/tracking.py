"""Writes a search to MLflow: a parent run, a child run a trial, each epoch exactly once.

A thread of the driver writes in batches, so that nothing waits for the server.  Everything may be told again (after a
restart, everything is): what MLflow holds already is left alone, what is missing is written.  While the server is away
the thread tries again.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# MLflow reports its use to a host outside, at import; whoever wants that sets the variable.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its client would try for minutes inside one call; this module tries again itself, and looks first what was taken.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tuner.convergence import epoch_metrics
from tuner.errors import masked
from tuner.mlflow_database import make_database
from tuner.spec import EpochMetrics

logger = logging.getLogger(__name__)

PARENT = ""
"""Name of the parent run in the tag that names a search's runs; no trial has it."""
SEARCH_TAG, TRIAL_TAG = "tuner.search_id", "tuner.trial"
REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
"""Answers that asking again does not change: of a run that somebody deleted, above all."""
LAST_METRIC = "speed/images_per_second"
"""The last metric of an epoch to be written: where it is, all are."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Without it the UI opens its pages for language models."""
FLUSH_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0


@dataclass(slots=True)
class _RunState:
    """What is known to be in MLflow of one run, and what is waiting to go there."""

    run_id: str | None = None
    ended: bool = False
    logged_epoch: int = 0
    metrics: list[Metric] = field(default_factory=list)
    params: list[Param] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None


class Tracking:
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
    ) -> None:
        self._uri, self._experiment, self._search, self._search_id = uri, experiment, search, search_id
        self._shared_tags = {SEARCH_TAG: search_id, **tags}
        self._runs: dict[str, _RunState] = {}
        self._artifacts: list[Path] = []
        self._orders: queue.Queue[Callable[[], None]] = queue.Queue()
        self._closing = threading.Event()
        self._written = threading.Event()
        self._client: MlflowClient | None = None
        self._synchronized = self._let_go = False
        self._experiment_id = ""
        self.start_trial(PARENT, parameters, {})
        self._thread = threading.Thread(target=self._write, name="mlflow", daemon=True)
        self._thread.start()

    def start_trial(self, name: str, parameters: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """A trial exists."""

        def order() -> None:
            run = self._runs.setdefault(name, _RunState())
            if not run.ended:
                run.params = [Param(key, str(value)) for key, value in parameters.items()]
                run.tags = {**tags, "status": "running"}

        self._orders.put(order)

    def log_epoch(self, name: str, metrics: EpochMetrics) -> None:
        """A trial has finished an epoch."""

        def order() -> None:
            run = self._runs[name]
            if metrics.epoch > run.logged_epoch and not run.ended:
                run.metrics += _metrics(epoch_metrics(metrics), metrics)
                run.logged_epoch = metrics.epoch

        self._orders.put(order)

    def end_trial(
        self, name: str, status: str, summary: Mapping[str, float], last: EpochMetrics | None, tags: Mapping[str, str]
    ) -> None:
        """A trial has ended: finished, stopped, diverged or failed."""

        def order() -> None:
            run = self._runs[name]
            if not run.ended:
                run.metrics += _metrics(summary, last) if last else []
                run.tags |= {**tags, "status": status}
                run.status = "FAILED" if status == "failed" else "FINISHED"

        self._orders.put(order)

    def finish(self, status: str, summary: Mapping[str, float], artifacts: Sequence[Path], *, timeout: float) -> bool:
        """Writes what is left, the parent's summary and files, and says whether MLflow has it all within the timeout.

        ``interrupted`` leaves the parent run RUNNING, as the search is.
        """

        def order() -> None:
            run = self._runs[PARENT]
            now = int(time.time() * 1000)
            run.metrics += [Metric(key, value, now, 0) for key, value in summary.items() if math.isfinite(value)]
            run.tags["status"] = status
            run.status = "RUNNING" if status == "interrupted" else "FINISHED"
            self._artifacts = list(artifacts)

        self._orders.put(order)
        self._closing.set()
        return self._written.wait(timeout) and not self._let_go

    def _write(self) -> None:
        pause = FLUSH_SECONDS
        while True:
            closing = self._closing.is_set()
            failed = False
            try:
                if not self._synchronized:
                    self._synchronize()
                while not self._orders.empty():
                    self._orders.get()()
                # The parent stands first, as its children name it, and ends last, when all it holds is there.
                for name, run in self._runs.items():
                    self._flush_or_let_go(name, run)
                    if name != PARENT:
                        self._set_status(run)
                if closing:
                    self._conclude(self._runs[PARENT])
                    self._written.set()
                    return
            except Exception as error:
                # Nothing is taken off a run's lists before MLflow has it.  Messages may hold the address's password.
                logger.error("MLflow did not take a write; trying again: %s", masked(str(error)))
                failed = True
            # An answer may have been lost after the server did what it was asked: look before asking again.
            self._synchronized = not failed
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS) if failed else FLUSH_SECONDS
            if closing:
                time.sleep(min(pause, FLUSH_SECONDS))
            else:
                self._closing.wait(pause)

    def _flush_or_let_go(self, name: str, run: _RunState) -> None:
        """Writes a run's lists; what is left of a run that MLflow refuses is let go, any other failure is raised."""
        try:
            self._flush(name, run)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            logger.error("MLflow refuses run %r, what is left of it is let go: %s", name, masked(str(error)))
            run.ended = self._let_go = True

    def _conclude(self, parent: _RunState) -> None:
        assert self._client is not None
        while self._artifacts and parent.run_id and not parent.ended:
            self._client.log_artifact(parent.run_id, str(self._artifacts[0]))
            del self._artifacts[0]
        self._set_status(parent)

    def _synchronize(self) -> None:
        """Learns what MLflow holds of this search; only what this program does not know better is taken."""
        if self._uri.startswith("sqlite:///"):
            make_database(Path(self._uri.removeprefix("sqlite:///")))
        client = MlflowClient(self._uri)
        experiment = client.get_experiment_by_name(self._experiment)
        self._experiment_id = (
            experiment.experiment_id if experiment else client.create_experiment(self._experiment, tags=EXPERIMENT_TAGS)
        )
        for run in self._existing_runs(client):
            name = run.data.tags[TRIAL_TAG]
            state = self._runs.setdefault(name, _RunState())
            if state.run_id is not None:
                continue
            state.run_id = run.info.run_id
            if name == PARENT:
                state.status = state.status or "RUNNING"
            elif run.info.status != "RUNNING":
                state.ended = True
            elif not state.metrics:
                steps = client.get_metric_history(run.info.run_id, LAST_METRIC)
                state.logged_epoch = max((metric.step for metric in steps), default=0)
        self._client = client
        self._synchronized = True

    def _existing_runs(self, client: MlflowClient) -> list[Run]:
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = client.search_runs(
                [self._experiment_id],
                f"tags.`{SEARCH_TAG}` = '{self._search_id}'",
                run_view_type=ViewType.ALL,
                max_results=1000,
                page_token=token,
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def _flush(self, name: str, run: _RunState) -> None:
        assert self._client is not None
        if run.ended:
            run.metrics, run.params, run.tags, run.status = [], [], {}, None
            return
        if run.run_id is None:
            # None, too, where MLflow has refused the parent: its trials are then runs of their own.
            parent_id = self._runs[PARENT].run_id
            parent = {MLFLOW_PARENT_RUN_ID: parent_id} if parent_id else {}
            created = self._client.create_run(
                self._experiment_id,
                run_name=name or self._search,
                tags={**self._shared_tags, TRIAL_TAG: name, **parent, **run.tags},
            )
            run.run_id, run.tags = created.info.run_id, {}
        if run.metrics or run.params or run.tags:
            metrics, params, tags = list(run.metrics), list(run.params), dict(run.tags)
            # The client cuts it into batches of the size that servers take.
            self._client.log_batch(run.run_id, metrics, params, [RunTag(key, value) for key, value in tags.items()])
            del run.metrics[: len(metrics)]
            run.params, run.tags = [], {}

    def _set_status(self, run: _RunState) -> None:
        if run.status is None or run.ended:
            return
        assert self._client is not None and run.run_id is not None
        if run.status == "RUNNING":
            self._client.update_run(run.run_id, status="RUNNING")
        else:
            self._client.set_terminated(run.run_id, run.status)
            run.ended = True
        run.status = None


def _metrics(values: Mapping[str, float], at: EpochMetrics) -> list[Metric]:
    # MLflow stores inf as 1.8e308, which spoils its charts; the tag `status` says that a trial diverged.
    # The time is the epoch's own, so that what is written again after a failure is the same row.
    timestamp = int(at.finished_at * 1000)
    return [Metric(key, value, timestamp, at.epoch) for key, value in values.items() if math.isfinite(value)]
