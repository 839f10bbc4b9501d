"""Searches whose databases and servers go away while they train: everything is there afterwards, once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import FORMULA, LONG, RACED, Running, check_whole, epochs_logged, search
from tests.postgres import Postgres
from tests.tracked import Server

pytestmark = pytest.mark.slow


def num_epochs(folder: Path) -> int:
    return sum(map(len, epochs_logged(folder).values()))


def away(stop: Callable[[], None], start: Callable[[], None], seconds: float) -> None:
    stop()
    time.sleep(seconds)
    start()


def test_a_search_outlives_its_databases_and_servers(postgres: Postgres, tmp_path: Path) -> None:
    storage, backend = postgres.create_database("lives-optuna"), postgres.create_database("lives-mlflow")
    with Server(tmp_path, backend) as server:
        outages: dict[str, Callable[[], None]] = {
            "PostgreSQL crashes": lambda: postgres.restart("immediate"),
            "PostgreSQL is away": lambda: away(postgres.stop, postgres.start, 10),
            "MLflow is killed": lambda: away(server.kill, server.start, 5),
        }
        places = ["--storage", storage, "--tracking-uri", server.address]
        running = Running(tmp_path, *LONG, *places, "--no-early-stopping", program=FORMULA, EPOCH_SECONDS="0.4")
        for number, (name, outage) in enumerate(outages.items()):
            running.wait_until(lambda number=number: num_epochs(tmp_path) > 4 + 8 * number)  # type: ignore[misc]
            outage()
            assert running.process.poll() is None, f"{name}: {running.output()}"
        assert running.wait() == 0, running.output()
        assert "MLflow has not received everything" not in running.output()
        check_whole(tmp_path, dict.fromkeys(RACED, 3), storage=storage, tracking_uri=server.address)
    log = (tmp_path / "runs/a/ray.log").read_text()
    assert "Optuna's storage works again" in log, "the outages were not felt"


@pytest.mark.extensive
def test_a_search_ends_cleanly_where_its_database_stays_away(postgres: Postgres, tmp_path: Path) -> None:
    storage = postgres.create_database("gone")
    impatient = (
        "import sys; from tuner.core import retry; from tuner.search.__main__ import main;"
        "retry.RETRY_SECONDS = 2; sys.exit(main(sys.argv[1:]))"
    )
    running = Running(tmp_path, *LONG, "--storage", storage, program=["-c", impatient])
    running.wait_until(lambda: num_epochs(tmp_path) > 8)
    postgres.stop("immediate")
    assert running.wait() == 3, running.output()
    assert "Optuna's storage has failed for 2 s: " in running.output()
    assert "Resume with: python -m tuner.search --resume a" in running.output()
    assert "Traceback" not in running.output()
    postgres.start()
    resumed = search(tmp_path, "--resume", "a")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    check_whole(tmp_path, dict.fromkeys(RACED, 3), storage=storage)
