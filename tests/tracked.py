"""Searches told to MLflow, programs killed while they do it, and what MLflow holds then."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tuner.convergence import speed_metrics
from tuner.spec import EpochMetrics
from tuner.tracking import SEARCH_TAG, TRIAL_TAG, Tracking

TARGETS = (0.5,)


def opened(uri: str, *, search_id: str = "id", **changes: Any) -> Tracking:
    values: dict[str, Any] = {"experiment": "e", "search": "s", "parameters": {"seed": 3}, "tags": {"who": "me"}}
    return Tracking(uri=uri, search_id=search_id, **{**values, **changes})


def tell(tracking: Tracking, name: str, history: list[EpochMetrics], status: str | None = None) -> None:
    tracking.start_trial(name, {"lr.peak": 0.1}, {"variant": "toy"})
    for metrics in history:
        tracking.log_epoch(name, metrics)
    if status is not None:
        last = history[-1] if history else None
        tracking.end_trial(name, status, speed_metrics(history, TARGETS) if history else {}, last, {"arm": "random"})


def runs(uri: str, search_id: str = "id") -> dict[str, Run]:
    """By trial name, PARENT the parent's; each trial at most once."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`{SEARCH_TAG}` = '{search_id}'")
    counts = Counter(run.data.tags[TRIAL_TAG] for run in found)
    assert set(counts.values()) <= {1}, counts
    return {run.data.tags[TRIAL_TAG]: run for run in found}


@contextmanager
def killed_at(name: str, *, done: bool) -> Iterator[None]:
    """The program inside is killed as its thread calls a method of the client, before or after that is done."""
    original = getattr(MlflowClient, name)
    died = threading.Event()

    def dying(*args: Any, **named: Any) -> None:
        if done:
            original(*args, **named)
        died.set()
        threading.Event().wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, name, dying)
        yield
        assert died.wait(60)
