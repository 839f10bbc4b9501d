"""Logs a later analysis of a trained network to MLflow, as a run nested under the run that trained it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Param, Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tuner.core.errors import InvalidInput, StorageFailed, first_line, masked
from tuner.tracking.client import with_login_apart
from tuner.tracking.run_state import finite
from tuner.tracking.runs import SEARCH_TAG, TRIAL_TAG


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A training of a search, as MLflow knows it."""

    run_id: str
    experiment_id: str
    search: str
    """Name of the search that it belongs to."""
    search_id: str
    """Unique id of that search."""
    name: str
    """Name of the training in its search, such as ``sgdm/confirm-1``."""

    @classmethod
    def of(cls, run: Run) -> TrainedRun:
        tags = run.data.tags
        return cls(run.info.run_id, run.info.experiment_id, tags["tuner.search"], tags[SEARCH_TAG], tags[TRIAL_TAG])


class SearchRuns:
    """The runs of all searches in one MLflow."""

    def __init__(self, uri: str) -> None:
        """Raises :class:`InvalidInput` for a missing SQLite file and for one without MLflow's tables.

        MLflow itself would make them.
        """
        file = uri.removeprefix("sqlite:///")
        if file != uri and not _is_mlflows(Path(file)):
            raise InvalidInput(f"--tracking-uri {uri}: is not a database of MLflow")
        self._uri = uri
        self._client = MlflowClient(with_login_apart(uri))

    def by_id(self, run_id: str) -> TrainedRun:
        """The training with this run id.

        Raises :class:`InvalidInput` if there is no such run, or if it is not a training of a search.
        """
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            raise InvalidInput(f"run {run_id} in {masked(self._uri)}: {first_line(error)}") from None
        if not run.data.tags.get(TRIAL_TAG):
            raise InvalidInput(f"run {run_id} in {masked(self._uri)}: is not a training of a search")
        return TrainedRun.of(run)

    def by_name(self, experiment: str, search_id: str, name: str) -> TrainedRun | None:
        """A search's training by name; None if MLflow does not have it.

        Raises :class:`StorageFailed` if MLflow fails.
        """
        asked = f"tags.`{SEARCH_TAG}` = '{search_id}' AND tags.`{TRIAL_TAG}` = '{name}'"
        with self._asking():
            found = self._client.get_experiment_by_name(experiment)
            runs = self._client.search_runs([found.experiment_id], asked) if found else []
        return TrainedRun.of(runs[0]) if runs else None

    def log_nested(
        self,
        under: TrainedRun,
        name: str,
        *,
        parameters: Mapping[str, object],
        metrics: Mapping[str, float],
        files: Sequence[Path],
    ) -> str:
        """Makes a run nested under another, with ``files`` as its artifacts, and returns its id.

        The run does not have the tags of the search's trainings, so that the search does not take it for one.
        Raises :class:`StorageFailed` if MLflow fails.  A run that could not be written completely is marked as failed.
        """
        tags = {MLFLOW_PARENT_RUN_ID: under.run_id, "tuner.search": under.search, "tuner.diagnosed": under.name}
        with self._asking():
            run = self._client.create_run(under.experiment_id, run_name=f"{under.name}/{name}", tags=tags)
            run_id = str(run.info.run_id)
            try:
                params = [Param(key, str(value)) for key, value in parameters.items()]
                self._client.log_batch(run_id, finite(metrics, at=time.time(), step=0), params)
                for file in files:
                    self._client.log_artifact(run_id, str(file))
            except BaseException:
                with suppress(MlflowException):
                    self._client.set_terminated(run_id, "FAILED")
                raise
            self._client.set_terminated(run_id, "FINISHED")
        return run_id

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except MlflowException as error:
            raise StorageFailed(f"MLflow at {masked(self._uri)} fails: {masked(first_line(error))[:200]}") from None


def _is_mlflows(file: Path) -> bool:
    if not file.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return bool(database.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'").fetchone())
    except sqlite3.Error:
        return False
