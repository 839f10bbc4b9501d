"""The runs of one search in MLflow: what is known to be there, and what waits to be written to each."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

# MLflow reports its use to a host outside, at import; whoever wants that sets the variable.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# Its client would try for minutes inside one call; `tracking` tries again itself, and looks first what was taken.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
# It would print two lines into the display for each run that ends.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")

from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import MAX_DATASET_DIGEST_SIZE

from tuner.core.errors import masked
from tuner.tracking.client import make_database
from tuner.tracking.logged_model import log_model

logger = logging.getLogger(__name__)

PARENT = ""
"""Name of the parent run in the tag that names a search's runs; no trial has it."""
SEARCH_TAG, TRIAL_TAG = "tuner.search_id", "tuner.trial"
SPEC_TAG, MODEL_TAG = "tuner.spec", "winning_model"
"""Of a model: the digest of its training's spec.  Of the parent run: the URI of its newest model."""
REFUSALS = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
"""Answers that asking again does not change: of a run that somebody deleted, above all."""
LAST_METRIC = "speed/images_per_second"
"""The last metric of an epoch to be written: where it is, all are."""
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Without it the UI opens its pages for language models."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """The data that a search trains on."""

    name: str
    digest: str
    source: str
    """Its folder, or the package that it comes with."""
    sizes: Mapping[str, int]
    """Split -> number of samples."""
    num_classes: int | None
    """None where nothing is classified."""


@dataclass(frozen=True, slots=True)
class WinningModel:
    """A trained model as ``python -m tuner.tracking.served_model`` saves it."""

    folder: Path
    run: str
    """Name of the run that trained it."""
    spec_digest: str
    """Digest of that run's spec: equal for the same model."""


@dataclass(slots=True)
class RunState:
    """What is known to be in MLflow of one run, and what is waiting to go there."""

    run_id: str | None = None
    parent_id: str | None = None
    """The run that it names as its parent."""
    ended: bool = False
    logged_epoch: int = 0
    has_dataset: bool = False
    metric_names: frozenset[str] = frozenset()
    """Of the metrics that earlier programs wrote."""
    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    late_metrics: list[Metric] = field(default_factory=list)
    """Written even where the run has ended; told twice, it is one row still.  The next likewise."""
    late_tags: dict[str, str] = field(default_factory=dict)
    status: str | None = None

    def add(self, values: Mapping[str, float], *, at: float, step: int) -> None:
        """Metrics of a time in seconds since 1970; those that are not finite are left out."""
        self.metrics += finite(values, at=at, step=step)

    def renew(self, values: Mapping[str, float], *, at: float) -> None:
        """Metrics that take the place of an earlier program's; where one is not finite any more, nan does."""
        self.add(values, at=at, step=0)
        gone = [name for name, value in values.items() if not math.isfinite(value) and name in self.metric_names]
        self.metrics += [Metric(name, math.nan, int(1000 * at), 0) for name in gone]


def finite(values: Mapping[str, float], *, at: float, step: int) -> list[Metric]:
    """Metrics of those that are: MLflow stores inf as 1.8e308, which spoils its charts."""
    return [Metric(name, value, int(1000 * at), step) for name, value in values.items() if math.isfinite(value)]


class Runs:
    """The runs by the name of their trial, :data:`PARENT` the parent.

    A method that raises can be called again, after :meth:`look`: nothing that waits is taken off before MLflow has it.
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
        self._inputs = [_input(dataset)] if dataset else []
        self._experiment_id = ""
        self._client: MlflowClient
        self.by_name: dict[str, RunState] = {}
        self._waiting: dict[str, None] = {}
        """Names of the runs that something may wait for, as they were asked for."""
        self.let_go = False
        """Whether MLflow has refused something."""

    def look(self) -> None:
        """Learns what MLflow holds of this search; only what this program does not know better is taken."""
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
            run = max(same, key=lambda run: _worth(run, state.run_id))
            for other in same:
                # Asked for in vain, as it seemed, and made long after: by a server that had waited for its database.
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
        """A run, made where it is not known, that is to be among those which :meth:`write_all` writes next."""
        self._waiting[name] = None
        return self.by_name.setdefault(name, RunState())

    def write_all(self) -> None:
        """Writes all that waits, but the end of the parent.

        The parent stands first, as its children name it, and ends last, when all it holds is there.
        """
        before = self.by_name[PARENT].run_id
        self.write(PARENT)
        if self.by_name[PARENT].run_id != before:
            self._waiting |= dict.fromkeys(self.by_name)  # those that were made without it
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
        """Whether MLflow took it; what it refuses is let go, any other failure is raised."""
        try:
            write()
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            logger.error("MLflow refuses %s, which is let go: %s", what, masked(str(error)))
            self.let_go = True
            return False
        return True

    def write(self, name: str) -> None:
        """Writes what waits for a run, but its status; what is left of a run that MLflow refuses is let go."""
        run = self.by_name[name]
        if not self.attempt(f"run {name!r}", lambda: self._write(name, run)):
            run.ended = True

    def _write(self, name: str, run: RunState) -> None:
        if run.ended:
            run.metrics, run.params, run.tags, run.status = [], {}, {}, None
        else:
            self._write_to(name, run)
        if name != PARENT and run.run_id and run.parent_id != (parent_id := self.by_name[PARENT].run_id) and parent_id:
            # Made while MLflow refused the parent, or in the place of a database that was lost.
            run.late_tags[MLFLOW_PARENT_RUN_ID] = run.parent_id = parent_id
        if (run.late_tags or run.late_metrics) and run.run_id is not None:
            tags = [RunTag(key, value) for key, value in run.late_tags.items()]
            self._client.log_batch(run.run_id, run.late_metrics, tags=tags)
            run.late_metrics, run.late_tags = [], {}

    def _write_to(self, name: str, run: RunState) -> None:
        if run.run_id is None:
            # None, too, where MLflow has refused the parent: its trials are runs of their own until one is made.
            parent_id = self.by_name[PARENT].run_id
            parent = {MLFLOW_PARENT_RUN_ID: parent_id} if parent_id else {}
            created = self._client.create_run(
                self._experiment_id,
                run_name=name or self._search,
                tags={**self._shared_tags, TRIAL_TAG: name, **parent, **run.tags},
            )
            run.run_id, run.parent_id, run.tags = created.info.run_id, parent_id, {}
        if self._inputs and not run.has_dataset:
            # Told twice, after a lost answer, it is one input still.
            self._client.log_inputs(run.run_id, self._inputs)
            run.has_dataset = True
        if run.metrics or run.params or run.tags:
            metrics, tags = list(run.metrics), [RunTag(key, value) for key, value in run.tags.items()]
            params = [Param(key, value) for key, value in run.params.items()]
            # The client cuts it into batches of the size that servers take.
            self._client.log_batch(run.run_id, metrics, params, tags)
            del run.metrics[: len(metrics)]
            run.params, run.tags = {}, {}

    def write_status(self, name: str) -> None:
        """Ends a run, or marks it as running, where that waits."""
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
        """Puts a file, or a folder under its name, among the parent's artifacts, in the place of an earlier one."""
        parent = self.by_name[PARENT]
        if parent.run_id and not parent.ended:
            self._client.log_artifact(parent.run_id, str(path))

    def log_model(self, model: WinningModel) -> None:
        """Logs a model as an output of its own run and of the parent, once for each spec."""
        parent = self.by_name[PARENT]
        states = [run for run in (self.by_name.get(model.run), parent) if run]
        run_ids = [run.run_id for run in states if run.run_id]
        if run_ids and not parent.ended:
            name = re.sub(r"[^A-Za-z0-9_-]", "-", f"{self._search}-{model.run}")
            tags = {SEARCH_TAG: self._search_id, SPEC_TAG: model.spec_digest}
            uri = log_model(self._client, self._experiment_id, name, model.folder, tags=tags, run_ids=run_ids)
            self._client.set_tag(run_ids[-1], MODEL_TAG, uri)


def _worth(run: Run, known: str | None) -> tuple[bool, bool, bool, int]:
    """Of several runs of one training, the one that this program knows is kept, else the one that holds most."""
    active = run.info.lifecycle_stage == LifecycleStage.ACTIVE
    return run.info.run_id == known, active, run.info.status != "RUNNING", len(run.data.metrics)


def _input(dataset: DataSet) -> DatasetInput:
    classes = {} if dataset.num_classes is None else {"num_classes": dataset.num_classes}
    profile = {"digest": dataset.digest, **classes, **dataset.sizes}
    entity = Dataset(
        dataset.name,
        dataset.digest[:MAX_DATASET_DIGEST_SIZE],
        source_type="local",
        source=json.dumps({"uri": dataset.source}),
        profile=json.dumps(profile),
    )
    return DatasetInput(entity, [InputTag(MLFLOW_DATASET_CONTEXT, "training")])


def with_login_apart(uri: str) -> str:
    """A server's URI without user and password, which go where MLflow's client looks for them and shows nobody."""
    parts = urlsplit(uri) if uri.startswith("http") else None
    if parts is None or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
