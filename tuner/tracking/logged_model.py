"""Logs a trained model to MLflow, complete and once, even if a program was killed while it logged the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.tracking import MlflowClient


def log_model(
    client: MlflowClient,
    experiment_id: str,
    name: str,
    folder: Path,
    *,
    tags: Mapping[str, str],
    run_ids: Sequence[str],
) -> str:
    """Logs the model in ``folder`` as an output of the runs ``run_ids`` and returns its URI.

    The first of the runs trained it.  A model that has all ``tags`` already is the same model: what it lacks is added.
    """
    known = client.search_logged_models(
        [experiment_id], " AND ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    )
    model = (
        known[0]
        if known
        else client.create_logged_model(experiment_id, name, source_run_id=run_ids[0], tags=dict(tags))
    )
    if model.status != LoggedModelStatus.READY:
        client.log_model_artifacts(model.model_id, str(folder))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    for run_id in run_ids:
        outputs = client.get_run(run_id).outputs
        if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
            client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    return str(model.model_uri)


SPEC_TAG, MODEL_TAG = "tuner.spec", "winning_model"
"""A tag of a model, the digest of its training's spec, and a tag of the parent run, the URI of its newest model."""


@dataclass(frozen=True, slots=True)
class WinningModel:
    """A trained model as ``python -m tuner.tracking.served_model`` saves it."""

    folder: Path
    run: str
    """Name of the run that trained it."""
    spec_digest: str
    """Digest of that run's spec: equal for the same model."""
