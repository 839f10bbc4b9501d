"""What docs/databases.md says to type does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command import FORMULA, SMALL, check_whole, search
from tests.postgres import BINARIES, Postgres
from tests.waiting import HANG_SECONDS
from tuner.core.errors import InvalidInput
from tuner.core.search_spec import SearchSpec
from tuner.search.preflight import check
from tuner.study.optuna_study import close_storage, open_storage

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/databases.md").read_text()


def type_in(folder: Path, about: str, **variables: str) -> None:
    """Runs the one block of commands that has something in it, in a shell that has the variables."""
    (commands,) = [block for block in re.findall(r"```sh\n(.*?)```", DOCUMENT, re.DOTALL) if about in block]
    path = os.pathsep.join([str(Path(sys.executable).parent), str(BINARIES), os.environ["PATH"]])
    ran = subprocess.run(
        ["bash", "-eu", "-c", commands],
        cwd=folder,
        env=os.environ | variables | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.slow
@pytest.mark.extensive
def test_a_search_moves_to_postgresql_is_restored_and_moves_back(postgres: Postgres, tmp_path: Path) -> None:
    first = search(tmp_path, *SMALL, "--variants", "sgdm", program=FORMULA)
    assert first.returncode == 0, first.stdout + first.stderr
    logs = {path: path.read_bytes() for path in tmp_path.glob("runs/a/*/result.json")}
    optuna, mlflow = postgres.create_database("moved-optuna"), postgres.create_database("moved-mlflow")
    sqlite = f"sqlite:///{tmp_path}/runs/a/optuna.db"

    refused = search(tmp_path, "--resume", "a", "--storage", optuna)
    assert refused.returncode == 2 and "lacks trial sgdm-00" in refused.stderr, refused.stderr
    type_in(tmp_path, "copy_studies", SQLITE=sqlite, POSTGRESQL=optuna, NAME="a")
    check_whole(tmp_path, {"sgdm": 10}, storage=optuna)

    type_in(tmp_path, "--tracking-uri", NAME="a", NEW_MLFLOW=mlflow)
    type_in(tmp_path, "pg_restore", POSTGRESQL=optuna, DUMP=str(tmp_path / "dump"))
    type_in(tmp_path, "upgrade", POSTGRESQL=optuna, MLFLOW_DATABASE=mlflow)
    check_whole(tmp_path, {"sgdm": 10}, storage=optuna, tracking_uri=mlflow)

    (tmp_path / "runs/a/optuna.db").unlink()
    type_in(tmp_path, "copy_studies", SQLITE=optuna, POSTGRESQL=sqlite, NAME="a")
    check_whole(tmp_path, {"sgdm": 10}, tracking_uri=mlflow)
    assert {path: path.read_bytes() for path in logs} == logs, "nothing was trained again"


def test_a_database_that_may_not_be_written_is_refused(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    postgres.create_database("guarded")
    postgres.sql("create role guest login")
    url = postgres.url("guarded", user="guest")
    for name in ("storage", "tracking_uri"):
        with pytest.raises(InvalidInput, match=r"read-only, or its user may not create tables there$"):
            check(SearchSpec.from_flags(name="s", **{name: url}))
    close_storage(open_storage(postgres.url("guarded")))  # the tables are there now, made by somebody else
    check(SearchSpec(name="s", storage=url))
    postgres.sql("alter role guest set default_transaction_read_only = on")
    with pytest.raises(InvalidInput, match="read-only"):
        check(SearchSpec(name="s", storage=url))
