"""A search killed at any moment and resumed ends with exactly the planned trials, each as if nothing had happened."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.simulated_search import Truth, simulate
from tests.command import (
    ALONE,
    FORMULA,
    LONG,
    NUM_ALONE,
    RACED,
    Running,
    check_whole,
    epochs_logged,
    metrics_by_epoch,
    mlflow_runs,
    search,
    studies,
)
from tuner.core.serialization import from_dict
from tuner.core.trial_spec import TrialSpec
from tuner.search.__main__ import main
from tuner.study.results import load_search
from tuner.train import train

pytestmark = pytest.mark.slow


def _num_asked(folder: Path) -> int:
    with contextlib.suppress(Exception), contextlib.closing(sqlite3.connect(folder / "runs/a/optuna.db")) as database:
        return int(database.execute("select count(*) from trials").fetchone()[0])
    return 0


def _num_epochs(folder: Path) -> int:
    return sum(map(len, epochs_logged(folder).values()))


def check_numbers(folder: Path) -> None:
    """The epochs in the logs, of confirmed runs too, are those of trainings that nobody kills."""
    torch.set_num_threads(1)
    for name in epochs_logged(folder):  # confirmed runs too
        spec = from_dict(TrialSpec, json.loads((folder / "runs/a" / name / "spec.json").read_text()))
        for metrics, line in zip(train(spec), metrics_by_epoch(folder, name), strict=True):
            assert metrics.train_loss == line["train/loss"]
            assert metrics.validation_loss == line["validation/loss"]
            assert metrics.validation_accuracy == line["validation/accuracy"]


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "spec written": lambda folder: (folder / "runs/a/search.json").exists(),
    "first trial asked": lambda folder: _num_asked(folder) >= 1,
    "first checkpoint": lambda folder: bool(list((folder / "runs/a").glob("*/checkpoint-*.pt"))),
    "middle of a trial": lambda folder: any(3 <= len(epochs) < 6 for epochs in epochs_logged(folder).values()),
    "first trial ended": lambda folder: any(len(epochs) == 6 for epochs in epochs_logged(folder).values()),
    "a confirmed run": lambda folder: bool(list((folder / "runs/a").glob("*.confirm-2/checkpoint-*.pt"))),
    "a test": lambda folder: bool(list((folder / "runs/a").glob("*/test.json"))),
}


DECIDED = ["--name", "a", "--epochs", "6", "--variants", "sgdm", "adamw", "--round-size", "1", "--refine-trials", "0"]
DECIDED += ["--alpha", "0.9", "--space", "adamw:lr.peak=1e-6:1e-5:log"]
"""A race of which adamw, which learns nothing, is out after two rounds."""


def test_killed_and_interrupted_it_ends_as_if_nobody_had(tmp_path: Path) -> None:
    arguments = [*DECIDED, "--trials", "2", "--targets", "0.2", "0.3", "--confirm-seeds", "1"]
    killed = Running(tmp_path, *arguments, "--no-early-stopping")
    killed.wait_until(lambda: MOMENTS["middle of a trial"](tmp_path))
    killed.kill()

    interrupted = Running(tmp_path, "--resume", "a")
    interrupted.wait_until(lambda: MOMENTS["a confirmed run"](tmp_path))
    assert interrupted.interrupt() == 130
    assert "Resume with: python -m tuner.search --resume a" in interrupted.output()
    assert "Traceback" not in interrupted.output()
    _, runs = mlflow_runs(tmp_path)
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert (parent.data.tags["status"], parent.info.status) == ("interrupted", "RUNNING")
    assert any(study.trials for study in studies(tmp_path).values())

    resumed = search(tmp_path, "--resume", "a")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    # Each round is counted once.  The variant that is out has no confirmed run.
    check_whole(tmp_path, {"sgdm": 2, "adamw": 2})
    check_numbers(tmp_path)
    ended = load_search("a", output=str(tmp_path / "runs"))
    assert (len(ended.race.rounds), ended.race.wins, ended.race.out) == (
        2,
        {("sgdm", "adamw"): 2, ("adamw", "sgdm"): 0},
        {"adamw": 1},
    )
    assert {record.variant for record in ended.records.values() if record.phase == "confirm"} == {"sgdm"}


@pytest.mark.extensive
def test_a_race_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    """Once before the slow variant is out, and once after; its rounds are those of a search that nobody kills."""
    variants = ("sgdm", "lpsgdm", "adamw")
    space = ("sgdm:lr.peak=0.05:0.2:log", "lpsgdm:lr.peak=0.05:0.2:log", "adamw:lr.peak=1e-4:2e-4:log")
    race = ["--trials", "6", "--round-size", "1", "--refine-trials", "0", "--alpha", "0.5", "--confirm-seeds", "0"]
    arguments = ["--name", "a", "--epochs", "8", *race, "--variants", *variants, "--space", *space]
    logged: dict[str, list[int]] = {}
    for num_logs in (4, 13):
        running = Running(tmp_path, *arguments, program=FORMULA, EPOCH_SECONDS="0.1")
        running.wait_until(lambda num=num_logs: len(epochs_logged(tmp_path)) >= num)  # type: ignore[misc]
        running.kill()
        logged = epochs_logged(tmp_path)
        arguments = ["--resume", "a"]
    before = load_search("a", output=str(tmp_path / "runs"))
    assert list(before.race.out) == ["adamw"] and not before.race.is_over, "killed at another moment"
    ended = search(tmp_path, "--resume", "a", program=FORMULA)
    assert ended.returncode == 0, ended.stdout + ended.stderr

    after = load_search("a", output=str(tmp_path / "runs"))
    counts = {name: len(after.trials_of(name)) for name in variants}
    assert counts["adamw"] == len(before.trials_of("adamw")) < 6, "it stays out"
    check_whole(tmp_path, counts)
    assert logged.keys() <= epochs_logged(tmp_path).keys()
    spec = dataclasses.replace(after.spec, name="alone", resume=None, storage=None)
    alone = simulate(spec, dict.fromkeys(variants, Truth(speed=1.2)), variants=after.variants)
    assert after.race.wins == alone.race.wins and after.race.out == alone.race.out
    assert len(after.race.rounds) == len(alone.race.rounds) == 6


@pytest.mark.extensive
@pytest.mark.parametrize(
    "moments",
    [
        ("spec written", "first checkpoint", "first trial ended", "a test"),
        ("first trial asked", "middle of a trial", "a confirmed run"),
    ],
)
def test_killed_at_one_moment_after_the_other(moments: Sequence[str], tmp_path: Path) -> None:
    arguments = LONG
    for moment in moments:
        running = Running(tmp_path, *arguments)
        running.wait_until(lambda moment=moment: MOMENTS[moment](tmp_path))  # type: ignore[misc]
        running.kill()
        arguments = ["--resume", "a"]
    resumed = search(tmp_path, *arguments)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    check_whole(tmp_path, dict.fromkeys(RACED, 3))


@pytest.mark.extensive
def test_killed_again_and_again_the_numbers_are_those_of_trainings_nobody_killed(tmp_path: Path) -> None:
    arguments = [*LONG, "--no-early-stopping"]
    for _ in range(3):
        before = _num_epochs(tmp_path)
        running = Running(tmp_path, *arguments)
        # Counts fall while a resumed trial's log is written again, so: three epochs beyond the last kill.
        running.wait_until(lambda before=before: _num_epochs(tmp_path) >= before + 3)  # type: ignore[misc]
        running.kill()
        arguments = ["--resume", "a"]
    resumed = search(tmp_path, "--resume", "a")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    check_whole(tmp_path, dict.fromkeys(RACED, 3))
    check_numbers(tmp_path)


def test_cut_off_by_its_time_budget_finished_and_grown_it_trains_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--name", "a", "--epochs", "2", *ALONE, "--refine-trials", "0", "--confirm-seeds", "2"]
    cut = search(tmp_path, *small, "--time-budget", "1s", program=FORMULA)
    assert "--resume a" in cut.stdout
    assert cut.returncode in (0, 1)
    first = search(tmp_path, "--resume", "a", program=FORMULA)
    assert first.returncode == 0, first.stdout + first.stderr
    check_whole(tmp_path, {"sgdm": NUM_ALONE})
    logs = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/a/*/result.json")}

    (tmp_path / "elsewhere").mkdir()
    again = search(tmp_path / "elsewhere", "--resume", "a", "--output", "../runs", program=FORMULA)
    assert again.returncode == 0, again.stderr
    assert not list((tmp_path / "elsewhere").iterdir()), "its databases are where it was started"
    assert {path: path.stat().st_mtime_ns for path in logs} == logs, "nothing was trained"
    tables = [ran.stdout.partition("Best settings of ")[2] for ran in (first, again)]
    assert tables[1].splitlines()[:4] == tables[0].splitlines()[:4] != [], "the same winner and settings"

    monkeypatch.chdir(tmp_path)
    assert main(["--name", "a"]) == 2
    assert "--resume a" in capsys.readouterr().err

    more = ["--trials", "3", "--variants", "sgdm", "adamw", "--max-concurrent", "1"]
    grown = search(tmp_path, "--resume", "a", *more, program=FORMULA)
    assert grown.returncode == 0, grown.stdout + grown.stderr
    assert {path: path.stat().st_mtime_ns for path in logs} == logs
    # A race of three rounds now, beside the trials that sgdm had alone.
    check_whole(tmp_path, {"sgdm": NUM_ALONE + 3, "adamw": 3}, grown=True)
