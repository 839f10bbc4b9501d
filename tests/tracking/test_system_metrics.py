"""The parent run has the machine's load, where it is asked for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.tracked import opened, runs
from tuner.tracking import tracker as module
from tuner.tracking.system_metrics import SystemLoad
from tuner.tracking.tracker import PARENT


def loads(uri: str) -> list[float]:
    """The processors' load as the parent run has it."""
    client = MlflowClient(uri)
    history = client.get_metric_history(runs(uri)[PARENT].info.run_id, "system/cpu_utilization_percentage")
    return [metric.value for metric in history]


def test_the_machines_load_is_on_the_parent_while_the_search_runs(
    mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is lost while MLflow is away, and none is read after the end."""
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(module, "LOAD_SECONDS", 0.01)
    readings = [float(number) for number in range(1, 1_000)]
    monkeypatch.setattr(SystemLoad, "read", lambda load: {"system/cpu_utilization_percentage": readings.pop(0)})
    original, back, calls = MlflowClient.log_batch, threading.Event(), Counter[str]()

    def log_batch(*args: Any) -> None:
        calls["calls"] += 1
        if not back.is_set():
            raise ConnectionError("away")
        original(*args)

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    others = set(threading.enumerate())
    tracking = opened(mlflow_uri, system_metrics=True)
    (watching,) = [thread for thread in set(threading.enumerate()) - others if thread.name == "system metrics"]
    while len(readings) > 980 or calls["calls"] < 2:
        time.sleep(0.01)
    back.set()
    while len(readings) > 960:
        time.sleep(0.01)
    assert tracking.finish("finished", {}, [], timeout=60)
    watching.join()
    stored, left = loads(mlflow_uri), readings[0]
    # The first reading is of no time, and one may be on its way when the end comes.
    assert stored == [float(number) for number in range(2, 2 + len(stored))] and left - 2 <= stored[-1] < left
    assert all(name.startswith("system/") for name in runs(mlflow_uri)[PARENT].data.metrics)


def test_the_load_is_read_where_it_is_asked_for() -> None:
    load = SystemLoad().read()
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= load.keys()
    assert all(0 <= value <= 100 for name, value in load.items() if name.endswith("percentage"))


def test_a_reading_is_of_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    load = SystemLoad()
    for percent in (10.0, 90.0):
        monkeypatch.setattr("psutil.cpu_percent", lambda percent=percent: percent)
        assert load.read()["system/cpu_utilization_percentage"] == percent


def test_no_load_is_logged_unasked(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOAD_SECONDS", 0.0)
    others = set(threading.enumerate())
    tracking = opened(mlflow_uri)
    assert "system metrics" not in [thread.name for thread in set(threading.enumerate()) - others]
    assert tracking.finish("finished", {}, [], timeout=60)
    assert runs(mlflow_uri)[PARENT].data.metrics == {}
