"""Searches told to MLflow, programs and servers killed while they do it, and what MLflow holds then."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tuner.core.metrics import EpochMetrics, speed_metrics
from tuner.tracking.tracker import SEARCH_TAG, TRIAL_TAG, Tracker

TARGETS = (0.5,)


def opened(uri: str, *, search_id: str = "id", **changes: Any) -> Tracker:
    values: dict[str, Any] = {"experiment": "e", "search": "s", "parameters": {"seed": 3}, "tags": {"who": "me"}}
    return Tracker(uri=uri, search_id=search_id, **{**values, **changes})


def tell(tracking: Tracker, name: str, history: list[EpochMetrics], status: str | None = None) -> None:
    tracking.start_trial(name, {"lr.peak": 0.1}, {"variant": "toy"})
    for metrics in history:
        tracking.log_epoch(name, metrics)
    if status is not None:
        last = history[-1] if history else None
        tracking.end_trial(name, status, speed_metrics(history, TARGETS) if history else {}, last, {"round": "0"})


def runs(uri: str, search_id: str = "id") -> dict[str, Run]:
    """By trial name, PARENT the parent's; each trial at most once."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("e")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`{SEARCH_TAG}` = '{search_id}'")
    counts = Counter(run.data.tags[TRIAL_TAG] for run in found)
    assert set(counts.values()) <= {1}, counts
    return {run.data.tags[TRIAL_TAG]: run for run in found}


def load_function(uri: str, model: str) -> Any:
    """A logged model as a function of arrays."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):  # MLflow's own, when imported
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        import mlflow.pyfunc

        return mlflow.pyfunc.load_model(model)


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


class Server:
    """An MLflow server on one port, which can be killed and started again; its artifacts are beside its log."""

    def __init__(self, folder: Path, backend: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        self.address = f"http://127.0.0.1:{port}"
        self._folder = folder
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
        self._command += ["--backend-store-uri", backend, "--workers", "1"]
        self._command += ["--artifacts-destination", str(folder / "artifacts")]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    def start(self) -> None:
        """Returns when it answers."""
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        log = self._folder / "server.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                self._command, stdout=out, stderr=out, start_new_session=True, env=environment, cwd=self._folder
            )
        while True:
            assert self._process.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer:
                    assert answer.read() == b"OK"
                return
            except OSError:
                time.sleep(0.1)

    def kill(self) -> None:
        """kill -9, of its workers too: they are its group, which holds nothing else."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Between:
    """A gateway before a server: for each request, by its path, ``judge`` says what becomes of it.

    None: it is passed on and answered.  :data:`LOST`: passed on, and its answer is lost.  Any other number: it is not
    passed on, and answered by this HTTP status.
    """

    LOST = 0

    def __init__(self, server: str, judge: Callable[[str], int | None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fate = judge(self.path.partition("?")[0])
                if fate:
                    self.send_response(fate)
                    self.end_headers()
                    self.wfile.write(b"<html>no</html>")
                    return
                headers = {key: self.headers[key] for key in ("Content-Type", "Accept") if key in self.headers}
                request = urllib.request.Request(server + self.path, body or None, headers, method=self.command)
                try:
                    answer = urllib.request.urlopen(request, timeout=30)
                except urllib.error.HTTPError as error:
                    answer = error
                with answer:
                    content = answer.read()
                if fate is None:
                    self.send_response(answer.status)
                    self.send_header("Content-Type", answer.headers["Content-Type"])
                    self.end_headers()
                    self.wfile.write(content)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Between:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
