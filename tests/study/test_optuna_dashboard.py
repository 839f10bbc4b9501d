"""optuna-dashboard, as a user starts it, shows what a search writes to its storage."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from search_spaces import SPACES
from tests.waiting import HANG_SECONDS, until
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.study.optuna_study import VariantStudy, open_storage

ENDINGS = {"finished": "Complete", "stopped": "Pruned", "diverged": "Complete", "failed": "Fail", "": "Running"}
"""How a trial ended, or has not, and what the dashboard calls it."""


@pytest.fixture
def told(storage_url: str, epoch: Callable[..., EpochMetrics]) -> str:
    """The URL of a storage with two variants of the search "first", a trial for each ending, two epochs each."""
    storage = open_storage(storage_url)
    for variant in (SPACES["sgdm"], SPACES["critical"]):
        study = VariantStudy(storage, SearchSpec.from_flags(targets=(0.9,)), variant, search="first")
        for number, status in enumerate(ENDINGS):
            assert study.ask_race(*divmod(number, 4)) == number
            history = [epoch(1, 0.5), epoch(2, 0.6 + 0.08 * number, diverged=status == "diverged")]
            for end in (1, 2):
                study.report(number, history[:end])
            if status:
                study.tell(number, status, history)
    storage.remove_session()
    return storage_url


@pytest.fixture
def dashboard(told: str, tmp_path: Path) -> Iterator[Callable[[str], Any]]:
    """Asks the dashboard's API."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = str(Path(sys.executable).parent / "optuna-dashboard")
    log = tmp_path / "dashboard.log"
    # wsgiref is one process, which ends with its id.
    program = [command, told, "--host", "127.0.0.1", "--port", str(port), "--server", "wsgiref"]
    with log.open("w") as out:
        process = subprocess.Popen(program, cwd=tmp_path, stdout=out, stderr=out)

    def ask(path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return json.load(answer)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with suppress(OSError):
            ask("/api/meta")
            return True
        return False

    try:
        until(answers, "optuna-dashboard answers")
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=HANG_SECONDS)


def test_each_variant_is_a_study_with_its_trials(dashboard: Callable[[str], Any]) -> None:
    listed = {study["study_name"]: study for study in dashboard("/api/studies")["study_summaries"]}
    assert set(listed) == {"first/sgdm", "first/critical"}
    for name, summary in listed.items():
        study = dashboard(f"/api/studies/{summary['study_id']}?after=0")
        assert study["name"] == name and study["directions"] == ["minimize"]
        trials = study["trials"]
        assert [trial["state"] for trial in trials] == list(ENDINGS.values())
        for number, trial in enumerate(trials):
            # A miss of a budget of 100: 100 (1 + .9 - best accuracy so far); a divergence is 200.  The last one
            # crosses .9 on its way from .5 to .92.
            last = {2: 200.0, 4: 10 + 10 * 0.4 / 0.42}.get(number, 100 * (1.9 - 0.6 - 0.08 * number))
            reported = {value["step"]: value["value"] for value in trial["intermediate_values"]}
            assert reported == pytest.approx({10: 140.0, 20: last})
            ended = trial["state"] in ("Complete", "Pruned")
            assert trial.get("values") == ([pytest.approx(last)] if ended else None)
            settings = {setting["name"]: setting["param_internal_value"] for setting in trial["params"]}
            assert set(settings) == set(SPACES[name.removeprefix("first/")].searched)
            assert 0.01 <= settings["lr.peak"] <= 1
            attributes = {attribute["key"]: attribute["value"] for attribute in trial["user_attrs"]}
            assert attributes.get("status", "") == list(ENDINGS)[number]
            assert (int(attributes["round"]), int(attributes["slot"])) == divmod(number, 4)
