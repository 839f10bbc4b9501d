"""The state of one MLflow run: what MLflow is known to hold, and what waits to be written."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflow.entities import Dataset, DatasetInput, InputTag, LifecycleStage, Metric, Run
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT
from mlflow.utils.validation import MAX_DATASET_DIGEST_SIZE


@dataclass(frozen=True, slots=True)
class DataSet:
    """The data that a search trains on."""

    name: str
    digest: str
    source: str
    """The folder of the data, or the package that contains it."""
    sizes: Mapping[str, int]
    """Split -> number of samples."""
    num_classes: int | None
    """Number of classes; None for a regression."""


@dataclass(slots=True)
class RunState:
    """What MLflow is known to hold of one run, and what waits to be written to it."""

    run_id: str | None = None
    """The run's id in MLflow; None until the run exists there."""
    parent_id: str | None = None
    """Id of the run that it names as its parent."""
    ended: bool = False
    logged_epoch: int = 0
    """The last epoch whose metrics MLflow holds or that wait; 0 for none."""
    has_dataset: bool = False
    metric_names: frozenset[str] = frozenset()
    """Names of the metrics that earlier programs wrote."""
    metrics: list[Metric] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    late_metrics: list[Metric] = field(default_factory=list)
    """Metrics that are written even if the run has ended; written twice, a metric is still one row."""
    late_tags: dict[str, str] = field(default_factory=dict)
    """Tags that are written even if the run has ended."""
    status: str | None = None
    """The status that waits to be written: RUNNING, FINISHED or FAILED; None for none."""

    def add(self, values: Mapping[str, float], *, at: float, step: int) -> None:
        """Adds metrics at the time ``at``, in seconds since 1970; values that are not finite are left out."""
        self.metrics += finite(values, at=at, step=step)

    def replace(self, values: Mapping[str, float], *, at: float) -> None:
        """Adds metrics that replace an earlier program's; nan replaces one that is not finite any more."""
        self.add(values, at=at, step=0)
        gone = [name for name, value in values.items() if not math.isfinite(value) and name in self.metric_names]
        self.metrics += [Metric(name, math.nan, int(1000 * at), 0) for name in gone]


def finite(values: Mapping[str, float], *, at: float, step: int) -> list[Metric]:
    """Metrics of the finite values; MLflow stores inf as 1.8e308, which spoils its charts.

    ``at`` is in seconds since 1970.
    """
    return [Metric(name, value, int(1000 * at), step) for name, value in values.items() if math.isfinite(value)]


def worth(run: Run, known: str | None) -> tuple[bool, bool, bool, int]:
    """Sort key for several runs of one training; the run with the largest key is kept.

    A run that this program knows comes first, then runs that are not deleted, have ended, and hold the most metrics.
    """
    active = run.info.lifecycle_stage == LifecycleStage.ACTIVE
    return run.info.run_id == known, active, run.info.status != "RUNNING", len(run.data.metrics)


def dataset_input(dataset: DataSet) -> DatasetInput:
    """The data set as MLflow logs it with a run."""
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
