"""Runs programs in a temporary folder of their own, timed from outside; it ends only programs that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow.tracking import MlflowClient

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_SECONDS = 1800.0
FAREWELL_SECONDS = 60.0
SEARCH_NAME = "measured"


@dataclass(frozen=True, slots=True)
class Finished:
    """A program that ran to its end."""

    folder: Path
    started_at: float
    """Start of the process, in seconds since 1970."""
    ended_at: float
    """End of the process, in seconds since 1970."""
    output: str

    @property
    def seconds(self) -> float:
        """Wall time from the start of the process to its end."""
        return self.ended_at - self.started_at


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder with a short name, since the paths of Ray's sockets below it must not be long."""
    with tempfile.TemporaryDirectory(prefix="b-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def run(
    module: str,
    arguments: Sequence[str],
    folder: Path,
    *,
    watch: Callable[[int], None] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> Finished:
    """Runs ``python -m module arguments`` in the folder; ``watch`` is called with its process id ten times a second.

    Raises RuntimeError, with the end of the output, if the program fails, and TimeoutExpired after ``timeout`` seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment["RAY_TMPDIR"] = str(folder)
    # A terminated benchmark must terminate the program that it runs.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (folder / "output.txt").open("w") as output:
        started_at = time.time()
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        try:
            status = _wait(process, started_at + timeout, watch)
        finally:
            _end(process)
        ended_at = time.time()
    text = (folder / "output.txt").read_text()
    if status != 0:
        raise RuntimeError(f"{module} ended with status {status}:\n{text[-2000:]}")
    return Finished(folder, started_at, ended_at, text)


def search(arguments: Sequence[str], folder: Path, *, watch: Callable[[int], None] | None = None) -> Finished:
    """Runs ``python -m tuner.search``, with its results and databases in the folder."""
    return run("tuner.search", ["--name", SEARCH_NAME, *arguments], folder, watch=watch)


def search_folder(finished: Finished) -> Path:
    """Folder of the search that :func:`search` ran."""
    return finished.folder / "runs" / SEARCH_NAME


def mlflow_runs(finished: Finished) -> dict[str, tuple[dict[str, float], float, float]]:
    """Name of each of the search's runs in MLflow -> its metrics, start and end (seconds since 1970)."""
    client = MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return {
        run.info.run_name: (dict(run.data.metrics), run.info.start_time / 1000, (run.info.end_time or 0) / 1000)
        for run in client.search_runs(experiments, max_results=10_000)
    }


def _wait(process: subprocess.Popen[bytes], until: float, watch: Callable[[int], None] | None) -> int:
    if watch is None:
        return process.wait(until - time.time())
    while process.poll() is None:
        if time.time() > until:
            raise subprocess.TimeoutExpired(process.args, until)
        watch(process.pid)
        time.sleep(0.1)
    return process.wait()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminates a program that still runs, so it can stop its own Ray; kills it after FAREWELL_SECONDS."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(FAREWELL_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
