"""What is known to be in MLflow of one run, and what waits to be written to it."""

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
    """Its folder, or the package that it comes with."""
    sizes: Mapping[str, int]
    """Split -> number of samples."""
    num_classes: int | None
    """None where nothing is classified."""


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

    def replace(self, values: Mapping[str, float], *, at: float) -> None:
        """Metrics that take the place of an earlier program's; where one is not finite any more, nan does."""
        self.add(values, at=at, step=0)
        gone = [name for name, value in values.items() if not math.isfinite(value) and name in self.metric_names]
        self.metrics += [Metric(name, math.nan, int(1000 * at), 0) for name in gone]


def finite(values: Mapping[str, float], *, at: float, step: int) -> list[Metric]:
    """Metrics of those that are: MLflow stores inf as 1.8e308, which spoils its charts."""
    return [Metric(name, value, int(1000 * at), step) for name, value in values.items() if math.isfinite(value)]


def worth(run: Run, known: str | None) -> tuple[bool, bool, bool, int]:
    """Of several runs of one training, the one that this program knows is kept, else the one that holds most."""
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
