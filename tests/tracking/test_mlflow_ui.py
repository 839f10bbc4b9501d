"""MLflow's own pages, in a browser, show what the search wrote."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.command import mlflow_runs
from tests.waiting import HANG_SECONDS, until

CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]


@pytest.fixture(scope="module")
def server(finished: tuple[Path, object]) -> Iterator[str]:
    """``mlflow ui`` started in the search's folder with nothing but a port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "mlflow", "ui", "--port", str(port)]
    log = finished[0] / "ui.log"
    with log.open("w") as out:
        process = subprocess.Popen(program, cwd=finished[0], stdout=out, stderr=out)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError):
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            return True
        return False

    try:
        until(answers, "mlflow ui answers")
        yield address
    finally:
        process.terminate()
        process.wait(timeout=HANG_SECONDS)


def page(address: str, folder: Path) -> str:
    """The page as it stands when its scripts have run."""
    assert CHROMIUM is not None
    shown = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={folder}", "--window-size=1700,1400", "--virtual-time-budget=20000", "--dump-dom",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )  # fmt: skip
    return shown.stdout


def test_pages(server: str, finished: tuple[Path, object], tmp_path: Path) -> None:
    _, runs = mlflow_runs(finished[0])
    by_name = {run.info.run_name: run for run in runs}
    experiment = f"{server}/#/experiments/{runs[0].info.experiment_id}/runs"

    table = page(experiment, tmp_path / "1")
    assert ">a<" in table and "25</strong> matching runs" in table.replace("\u00a0", " ")

    child = page(f"{experiment}/{by_name['lpsgdm-00'].info.run_id}", tmp_path / "2")
    for text in (
        "lpsgdm-00",
        "validation/accuracy",
        "schedule/momentum",
        "speed/auc",
        "optimizer.norm.p_max",
        "variant",
    ):
        assert text in child, text

    pictures = page(f"{experiment}/{by_name['a'].info.run_id}/artifacts/report/convergence.png", tmp_path / "3")
    for text in ("convergence.png", "leaderboard.csv", "report.html", "report.md"):
        assert text in pictures, text
    assert "<img" in pictures.partition("convergence.png")[2]
