"""MLflow's database file: whole, or not there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from mlflow.tracking import MlflowClient

from tuner.tracking.client import make_database


def opens(path: Path) -> bool:
    return [experiment.name for experiment in MlflowClient(f"sqlite:///{path}").search_experiments()] == ["Default"]


def test_a_program_killed_while_it_makes_the_tables_leaves_no_half_of_them(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    program = (
        f"from pathlib import Path; from tuner.tracking.client import make_database; make_database(Path({str(path)!r}))"
    )
    for num_bytes in (1, 200_000, 600_000):
        with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL) as killed:
            draft = tmp_path / f"mlflow.db.{killed.pid}.new"
            while killed.poll() is None and not (draft.exists() and draft.stat().st_size >= num_bytes):
                time.sleep(0.001)
            killed.kill()
        assert not path.exists() or opens(path)
    make_database(path)
    assert opens(path)


def test_a_database_that_is_there_is_left_alone_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    make_database(path)
    before = path.stat()
    make_database(path)
    assert path.stat() == before
    assert os.listdir(tmp_path) == ["mlflow.db"]
    assert opens(path)
