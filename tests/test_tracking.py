"""MLflow holds each run once and each epoch once, whatever is told twice and whoever is away in between."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tuner import tracking as module
from tuner.convergence import epoch_metrics, speed_metrics
from tuner.spec import EpochMetrics
from tuner.tracking import PARENT, SEARCH_TAG, TRIAL_TAG, Tracking

Epoch = Callable[..., EpochMetrics]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")
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


def assert_each_epoch_once(uri: str, run: Run, history: list[EpochMetrics]) -> None:
    client = MlflowClient(uri)
    for key, value in epoch_metrics(history[-1]).items():
        stored = client.get_metric_history(run.info.run_id, key)
        assert [metric.step for metric in stored] == [metrics.epoch for metrics in history], key
        assert stored[-1].value == value
        assert [metric.timestamp for metric in stored] == [int(1000 * metrics.finished_at) for metrics in history]


@pytest.fixture
def history(epoch: Epoch) -> list[EpochMetrics]:
    return [epoch(number, number / 10) for number in range(1, 9)]


def test_a_search_is_a_parent_and_a_run_a_trial(mlflow_uri: str, history: list[EpochMetrics], tmp_path: Path) -> None:
    (tmp_path / "table.md").write_text("| a |")
    tracking = opened(mlflow_uri)
    endings = {"a-00": "finished", "a-01": "stopped", "a-02": "diverged", "a-03": "failed"}
    for name, status in endings.items():
        tell(tracking, name, history, status)
    assert tracking.finish("finished", {"search/train_share": 0.5}, [tmp_path / "table.md"], timeout=60)
    found = runs(mlflow_uri)
    assert set(found) == {PARENT, *endings}
    parent = found.pop(PARENT)
    assert parent.info.run_name == "s" and parent.info.status == "FINISHED"
    assert parent.data.params == {"seed": "3"} and parent.data.metrics == {"search/train_share": 0.5}
    assert [file.path for file in MlflowClient(mlflow_uri).list_artifacts(parent.info.run_id)] == ["table.md"]
    for name, run in found.items():
        assert run.info.run_name == name
        assert run.info.status == ("FAILED" if endings[name] == "failed" else "FINISHED")
        tags = {"who": "me", "variant": "toy", "arm": "random", "status": endings[name]}
        assert (tags | {"mlflow.parentRunId": parent.info.run_id}).items() <= run.data.tags.items()
        assert run.data.params == {"lr.peak": "0.1"}
        assert_each_epoch_once(mlflow_uri, run, history)
        assert run.data.metrics["speed/epochs_to_50"] == 5.0


def test_a_trial_without_an_epoch(mlflow_uri: str) -> None:
    tracking = opened(mlflow_uri)
    tell(tracking, "a-00", [], "failed")
    assert tracking.finish("finished", {}, [], timeout=60)
    assert runs(mlflow_uri)["a-00"].info.status == "FAILED"


def test_what_is_not_finite_is_left_out(mlflow_uri: str, epoch: Epoch) -> None:
    tracking = opened(mlflow_uri)
    odd = epoch(2, 0.5, train_loss=float("inf"), validation_loss=float("nan"), diverged=True)
    tell(tracking, "a-00", [epoch(1, 0.4), odd], "diverged")
    assert tracking.finish("finished", {"search/train_share": float("nan")}, [], timeout=60)
    client, run = MlflowClient(mlflow_uri), runs(mlflow_uri)["a-00"]
    for key, steps in [("train/loss", [1]), ("validation/loss", [1]), ("validation/accuracy", [1, 2])]:
        assert [metric.step for metric in client.get_metric_history(run.info.run_id, key)] == steps


def test_everything_told_again_changes_nothing(mlflow_uri: str, history: list[EpochMetrics]) -> None:
    """The trial ends after the first program, goes on in the second, and all is told again by the third."""
    for length, status in [(3, None), (8, "finished"), (8, "finished")]:
        tracking = opened(mlflow_uri)
        tell(tracking, "a-00", history[:length], status)
        tell(tracking, "a-01", history[:2], "stopped")
        assert tracking.finish("finished" if status else "interrupted", {}, [], timeout=60)
        found = runs(mlflow_uri)
        assert found[PARENT].info.status == ("FINISHED" if status else "RUNNING")
        assert found["a-00"].info.status == ("FINISHED" if status else "RUNNING")
        assert_each_epoch_once(mlflow_uri, found["a-00"], history[:length])
        assert_each_epoch_once(mlflow_uri, found["a-01"], history[:2])
    assert len(MlflowClient(mlflow_uri).get_metric_history(found["a-00"].info.run_id, "speed/auc")) == 1


def test_searches_of_one_name_do_not_meet(mlflow_uri: str, history: list[EpochMetrics]) -> None:
    for search_id, length in [("one", 2), ("two", 5)]:
        tracking = opened(mlflow_uri, search_id=search_id)
        tell(tracking, "a-00", history[:length], "stopped")
        assert tracking.finish("finished", {}, [], timeout=60)
    for search_id, length in [("one", 2), ("two", 5)]:
        assert_each_epoch_once(mlflow_uri, runs(mlflow_uri, search_id)["a-00"], history[:length])


def test_more_epochs_and_parameters_than_one_batch_takes(mlflow_uri: str, epoch: Epoch) -> None:
    long = [epoch(number, 0.5) for number in range(1, 251)]
    tracking = opened(mlflow_uri, parameters={f"p{number}": number for number in range(250)})
    tell(tracking, "a-00", long, "finished")
    assert tracking.finish("finished", {}, [], timeout=60)
    found = runs(mlflow_uri)
    assert len(found[PARENT].data.params) == 250
    assert_each_epoch_once(mlflow_uri, found["a-00"], long)


def test_a_write_that_is_refused_is_tried_again(
    mlflow_uri: str, history: list[EpochMetrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the client fails once, before it did anything or after it did."""
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    calls: Counter[str] = Counter()
    names = ("get_experiment_by_name", "create_experiment", "search_runs", "create_run", "log_batch", "set_terminated")
    for name in names:
        original = getattr(MlflowClient, name)

        def fail_first(*args: Any, name: str = name, original: Any = original, **named: Any) -> Any:
            calls[name] += 1
            if calls[name] == 1:
                raise ConnectionError("away")
            if calls[name] == 4 and name in ("log_batch", "set_terminated"):
                original(*args, **named)
                raise ConnectionError("the answer is lost")
            return original(*args, **named)

        monkeypatch.setattr(MlflowClient, name, fail_first)
    tracking = opened(mlflow_uri)
    for name in ("a-00", "a-01", "a-02", "a-03"):
        tell(tracking, name, history, "finished")
    assert tracking.finish("finished", {}, [], timeout=60)
    assert all(calls[name] >= 2 for name in names), calls
    for name, run in runs(mlflow_uri).items():
        if name != PARENT:
            assert_each_epoch_once(mlflow_uri, run, history)


def test_a_run_whose_creation_was_not_answered_is_not_made_twice(
    mlflow_uri: str, history: list[EpochMetrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    original = MlflowClient.create_run
    lost: list[str] = []

    def create_run(client: MlflowClient, *args: Any, **named: Any) -> Run:
        run = original(client, *args, **named)
        if len(lost) < 2:
            lost.append(run.info.run_id)
            raise ConnectionError("the answer is lost")
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    tracking = opened(mlflow_uri)
    tell(tracking, "a-00", history, "finished")
    assert tracking.finish("finished", {}, [], timeout=60)
    assert set(runs(mlflow_uri)) == {PARENT, "a-00"}


def test_one_run_that_mlflow_refuses_keeps_no_other_out(
    mlflow_uri: str, history: list[EpochMetrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody deletes a run in MLflow while the search goes on."""
    tracking = opened(mlflow_uri)
    tell(tracking, "a-00", history[:2])
    assert tracking.finish("interrupted", {}, [], timeout=60)
    MlflowClient(mlflow_uri).delete_run(runs(mlflow_uri)["a-00"].info.run_id)
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    tracking = opened(mlflow_uri)
    tell(tracking, "a-00", history, "finished")
    tell(tracking, "a-01", history, "finished")
    tracking.finish("finished", {}, [], timeout=2)
    found = runs(mlflow_uri)
    assert "a-01" in found
    assert_each_epoch_once(mlflow_uri, found["a-01"], history)


def test_finish_says_when_mlflow_is_away(history: list[EpochMetrics], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    tracking = opened(f"http://127.0.0.1:{port}")
    tell(tracking, "a-00", history, "finished")
    assert not tracking.finish("finished", {}, [], timeout=0.5)


@pytest.fixture
def server(mlflow_uri: str, tmp_path: Path) -> Iterator[Callable[[], tuple[str, Callable[[], None]]]]:
    """Starts an MLflow server on one port and returns its address and what kills it; can be called again after that."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    running: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        process = running.pop()
        # The server's workers are its children: the whole group, which holds nothing else.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def start() -> tuple[str, Callable[[], None]]:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += [
            "--backend-store-uri",
            mlflow_uri,
            "--workers",
            "1",
            "--default-artifact-root",
            str(tmp_path / "art"),
        ]
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        log = (tmp_path / "server.log").open("ab")
        with log:
            running.append(
                subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment, cwd=tmp_path)
            )
        address = f"http://127.0.0.1:{port}"
        while True:
            assert running[-1].poll() is None, (tmp_path / "server.log").read_text()
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                return address, kill
            except OSError:
                time.sleep(0.1)

    yield start
    while running:
        kill()


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_has_everything_once(
    server: Callable[[], tuple[str, Callable[[], None]]],
    mlflow_uri: str,
    history: list[EpochMetrics],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    address, kill = server()
    tracking = opened(address)
    told = threading.Event()

    def tell_all() -> None:
        for index, metrics in enumerate(history):
            for trial in range(6):
                name = f"a-{trial:02d}"
                if index == 0:
                    tracking.start_trial(name, {"lr.peak": 0.1}, {"variant": "toy"})
                tracking.log_epoch(name, metrics)
            time.sleep(0.25)
        told.set()

    teller = threading.Thread(target=tell_all)
    teller.start()
    time.sleep(1.2)
    kill()
    time.sleep(1)
    server()
    teller.join()
    assert told.is_set()
    for trial in range(6):
        tell(tracking, f"a-{trial:02d}", [history[-1]], "finished")
    assert tracking.finish("finished", {}, [], timeout=120)
    found = runs(mlflow_uri)
    assert set(found) == {PARENT, *(f"a-{trial:02d}" for trial in range(6))}
    for name, run in found.items():
        assert run.info.status == "FINISHED"
        if name != PARENT:
            assert_each_epoch_once(mlflow_uri, run, history)


def test_no_run_is_left_active_in_this_process(mlflow_uri: str) -> None:
    assert opened(mlflow_uri).finish("finished", {}, [], timeout=60)
    assert mlflow.active_run() is None
