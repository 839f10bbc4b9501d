"""The MLflow runs of one search: what MLflow is known to hold of each, and what waits to be written to it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from mlflow.entities import LifecycleStage, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from tuner.core.errors import masked
from tuner.tracking.client import make_database
from tuner.tracking.logged_model import MODEL_TAG, SPEC_TAG, WinningModel, log_model
from tuner.tracking.run_state import DataSet, RunState, dataset_input, worth

logger = logging.getLogger(__name__)

PARENT = ""
"""Value of :data:`TRIAL_TAG` for the parent run; no trial has this name."""
SEARCH_TAG, TRIAL_TAG = "tuner.search_id", "tuner.trial"
"""Tags of every run of a search: the search's id, and the name of its training."""
REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
"""MLflow's error codes that a retry does not change; the main case is a run that somebody has deleted."""
LAST_METRIC = "speed/images_per_second"
"""The metric of an epoch that is written last: if MLflow holds it, it holds all metrics of the epoch."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Tags of a new experiment; without them MLflow's UI opens its pages for language models."""


class Runs:
    """The runs of one search by the name of their trial; :data:`PARENT` is the name of the parent run.

    A method that raises can be called again after :meth:`sync`: what waits stays until MLflow has taken it.
    """

    def __init__(
        self,
        *,
        uri: str,
        experiment: str,
        search: str,
        search_id: str,
        tags: Mapping[str, str],
        dataset: DataSet | None,
    ) -> None:
        self._uri, self._experiment, self._search, self._search_id = uri, experiment, search, search_id
        self._shared_tags = {SEARCH_TAG: search_id, **tags}
        self._inputs = [dataset_input(dataset)] if dataset else []
        self._experiment_id = ""
        self._client: MlflowClient
        self.by_name: dict[str, RunState] = {}
        self._waiting: dict[str, None] = {}
        """Names of the runs for which something may wait, in the order in which they were requested."""
        self.refused = False
        """Whether MLflow has refused a write for good."""

    def sync(self) -> None:
        """Reads what MLflow holds of this search, for the runs whose id this program does not know yet.

        Deletes further runs of the same training, and makes the experiment if it does not exist.
        """
        if self._uri.startswith("sqlite:///"):
            make_database(Path(self._uri.removeprefix("sqlite:///")))
        self._client = client = MlflowClient(self._uri)
        experiment = client.get_experiment_by_name(self._experiment)
        self._experiment_id = (
            experiment.experiment_id if experiment else client.create_experiment(self._experiment, tags=EXPERIMENT_TAGS)
        )
        found: dict[str, list[Run]] = {}
        for run in self._existing():
            found.setdefault(run.data.tags[TRIAL_TAG], []).append(run)
        for name, same in found.items():
            state = self.by_name.setdefault(name, RunState())
            run = max(same, key=lambda run: worth(run, state.run_id))
            for other in same:
                # A server that waited for its database can make a run long after its request seemed to fail.
                if other is not run and other.info.lifecycle_stage == LifecycleStage.ACTIVE:
                    client.delete_run(other.info.run_id)
            if state.run_id is not None:
                continue
            state.run_id = run.info.run_id
            state.parent_id = run.data.tags.get(MLFLOW_PARENT_RUN_ID)
            state.has_dataset = bool(run.inputs and run.inputs.dataset_inputs)
            state.metric_names = frozenset(run.data.metrics)
            if name == PARENT:
                state.status = state.status or "RUNNING"
            elif run.info.status != "RUNNING":
                state.ended = True
            elif not state.metrics:
                steps = client.get_metric_history(run.info.run_id, LAST_METRIC)
                state.logged_epoch = max((metric.step for metric in steps), default=0)

    def to_write(self, name: str) -> RunState:
        """The state of a run, new if the name is new; the next :meth:`write_all` writes what waits in it."""
        self._waiting[name] = None
        return self.by_name.setdefault(name, RunState())

    def write_all(self) -> None:
        """Writes everything that waits, except the parent's status.

        The parent is written first, because its children name its id.  Its status is written last, after all else.
        """
        before = self.by_name[PARENT].run_id
        self.write(PARENT)
        if self.by_name[PARENT].run_id != before:
            self._waiting |= dict.fromkeys(self.by_name)  # runs made before it have no parent yet
        for name in [name for name in self._waiting if name != PARENT]:
            self.write(name)
            self.write_status(name)
            del self._waiting[name]

    def _existing(self) -> list[Run]:
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
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

    def attempt(self, what: str, write: Callable[[], None]) -> bool:
        """Calls ``write`` and returns whether MLflow accepted it.

        A write that MLflow refuses (:data:`REFUSALS`) is logged and dropped.  Any other failure is raised.
        """
        try:
            write()
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            logger.error("MLflow refuses %s; it is not written: %s", what, masked(str(error)))
            self.refused = True
            return False
        return True

    def write(self, name: str) -> None:
        """Writes what waits for a run, except its status; a run that MLflow refuses counts as ended."""
        run = self.by_name[name]
        if not self.attempt(f"run {name!r}", lambda: self._write(name, run)):
            run.ended = True

    def _write(self, name: str, run: RunState) -> None:
        if run.ended:
            run.metrics, run.params, run.tags, run.status = [], {}, {}, None
        else:
            self._write_to(name, run)
        if name != PARENT and run.run_id and run.parent_id != (parent_id := self.by_name[PARENT].run_id) and parent_id:
            # The run was made while MLflow refused the parent, or the parent is a new one after a lost database.
            run.late_tags[MLFLOW_PARENT_RUN_ID] = run.parent_id = parent_id
        if (run.late_tags or run.late_metrics) and run.run_id is not None:
            tags = [RunTag(key, value) for key, value in run.late_tags.items()]
            self._client.log_batch(run.run_id, run.late_metrics, tags=tags)
            run.late_metrics, run.late_tags = [], {}

    def _write_to(self, name: str, run: RunState) -> None:
        if run.run_id is None:
            # None also if MLflow has refused the parent.  Its trials then have no parent until there is one.
            parent_id = self.by_name[PARENT].run_id
            parent = {MLFLOW_PARENT_RUN_ID: parent_id} if parent_id else {}
            created = self._client.create_run(
                self._experiment_id,
                run_name=name or self._search,
                tags={**self._shared_tags, TRIAL_TAG: name, **parent, **run.tags},
            )
            run.run_id, run.parent_id, run.tags = created.info.run_id, parent_id, {}
        if self._inputs and not run.has_dataset:
            # Logged twice, after a lost answer, it is still one input.
            self._client.log_inputs(run.run_id, self._inputs)
            run.has_dataset = True
        if run.metrics or run.params or run.tags:
            metrics, tags = list(run.metrics), [RunTag(key, value) for key, value in run.tags.items()]
            params = [Param(key, value) for key, value in run.params.items()]
            # The client splits this into batches of the size that servers accept.
            self._client.log_batch(run.run_id, metrics, params, tags)
            del run.metrics[: len(metrics)]
            run.params, run.tags = {}, {}

    def write_status(self, name: str) -> None:
        """Writes a run's status if one waits: ends the run, or marks it as running."""
        run = self.by_name[name]
        if run.status is None or run.ended:
            return
        assert run.run_id is not None
        if run.status == "RUNNING":
            self._client.update_run(run.run_id, status="RUNNING")
        else:
            self._client.set_terminated(run.run_id, run.status)
            run.ended = True
        run.status = None

    def log_artifact(self, path: Path) -> None:
        """Logs a file or a folder, under its own name, as an artifact of the parent; it replaces an earlier one."""
        parent = self.by_name[PARENT]
        if parent.run_id and not parent.ended:
            self._client.log_artifact(parent.run_id, str(path))

    def log_model(self, model: WinningModel) -> None:
        """Logs a model as an output of its own run and of the parent run, once per spec."""
        parent = self.by_name[PARENT]
        states = [run for run in (self.by_name.get(model.run), parent) if run]
        run_ids = [run.run_id for run in states if run.run_id]
        if run_ids and not parent.ended:
            name = re.sub(r"[^A-Za-z0-9_-]", "-", f"{self._search}-{model.run}")
            tags = {SEARCH_TAG: self._search_id, SPEC_TAG: model.spec_digest}
            uri = log_model(self._client, self._experiment_id, name, model.folder, tags=tags, run_ids=run_ids)
            self._client.set_tag(run_ids[-1], MODEL_TAG, uri)
