"""What is said of a trained network later: in MLflow a run of its own, nested under the one that trained it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import InvalidInput, first_line, masked
from tuner.mlflow_runs import (  # it sets MLflow up before that is imported
    SEARCH_TAG,
    TRIAL_TAG,
    finite,
    with_login_apart,
)

# isort: split
from mlflow.entities import Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run of a search in MLflow."""

    run_id: str
    experiment_id: str
    search: str
    """Name of its search."""
    name: str


class Tracked:
    """The searches' runs in one MLflow."""

    def __init__(self, uri: str) -> None:
        """Raises :class:`InvalidInput` for a SQLite file that is not there, which MLflow would make."""
        file = uri.removeprefix("sqlite:///")
        if file != uri and not Path(file).exists():
            raise InvalidInput(f"--tracking-uri {uri}: is not there")
        self._uri = uri
        self._client = MlflowClient(with_login_apart(uri))

    def by_id(self, run_id: str) -> TrainedRun:
        """Raises :class:`InvalidInput` where there is no such run, or it is none of a search's trainings."""
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            raise InvalidInput(f"run {run_id} in {masked(self._uri)}: {first_line(error)}") from None
        tags = run.data.tags
        if not tags.get(TRIAL_TAG):
            raise InvalidInput(f"run {run_id} in {masked(self._uri)}: is no training of a search")
        return TrainedRun(run_id, run.info.experiment_id, tags["tuner.search"], tags[TRIAL_TAG])

    def by_name(self, experiment: str, search_id: str, name: str) -> TrainedRun | None:
        """A search's training; None where MLflow does not have it."""
        found = self._client.get_experiment_by_name(experiment)
        asked = f"tags.`{SEARCH_TAG}` = '{search_id}' AND tags.`{TRIAL_TAG}` = '{name}'"
        runs = self._client.search_runs([found.experiment_id], asked) if found else []
        return (
            TrainedRun(runs[0].info.run_id, runs[0].info.experiment_id, runs[0].data.tags["tuner.search"], name)
            if runs
            else None
        )

    def log_nested(
        self,
        under: TrainedRun,
        name: str,
        *,
        parameters: Mapping[str, object],
        metrics: Mapping[str, float],
        folder: Path,
    ) -> str:
        """Makes a run under another, with a folder's files as its artifacts, and returns its id.

        It does not carry the search's own tags: to the search it is none of its trainings.
        """
        tags = {MLFLOW_PARENT_RUN_ID: under.run_id, "tuner.search": under.search, "tuner.diagnosed": under.name}
        run = self._client.create_run(under.experiment_id, run_name=f"{under.name}/{name}", tags=tags)
        params = [Param(key, str(value)) for key, value in parameters.items()]
        self._client.log_batch(run.info.run_id, finite(metrics, at=time.time(), step=0), params)
        self._client.log_artifacts(run.info.run_id, str(folder))
        self._client.set_terminated(run.info.run_id, "FINISHED")
        return str(run.info.run_id)
