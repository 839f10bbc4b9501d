"""The command as a user starts it: in a folder of its own, with Ray, Optuna and MLflow as they are."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import optuna
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from tests.waiting import HANG_SECONDS
from tuner.core.search_spec import NUM_REPEATS
from tuner.study.results import Search, load_search
from tuner.study.trial_folder import TEST, folder_name
from tuner.study.trial_record import POINTS

TINY = ["--trials", "2", "--round-size", "1", "--refine-trials", "0"]
"""A race of two rounds of one training each, which decides nothing, and no refinement."""
RACED = ["sgdm", "lpsgdm"]
LONG = ["--name", "a", "--epochs", "6", "--trials", "3", "--round-size", "1", "--refine-trials", "0"]
LONG += ["--confirm-seeds", "1", "--variants", *RACED]
"""A race of three rounds, which decides nothing."""
ALONE = ["--trials", "1", "--round-size", "1", "--variants", "sgdm"]
NUM_ALONE = 1 + NUM_REPEATS
"""Trials of such a search, which has no race: the default point with several seeds."""
SMALL = ["--name", "a", "--epochs", "2", *TINY, "--confirm-seeds", "0"]


SEARCH = ("-m", "tuner.search")
FORMULA = ("-m", "tests.formula")
"""The same with trainings that are formulas, for tests of what is around a training."""
HELD_EPOCH = 3
"""Beyond it such a training goes when the file that ``HOLD`` names is there."""
ROOT = Path(__file__).resolve().parent.parent


def search(folder: Path, *arguments: str, program: Sequence[str] = SEARCH) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m tuner.search`` to its end."""
    return subprocess.run(
        [sys.executable, *program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
        env=environment(),
    )


def environment(**more: str) -> dict[str, str]:
    """This one, in which programs and their workers find the tests' modules too."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        **more,
    }


class Running:
    """A search that is being run, to be killed or interrupted; the end of its test ends it (``conftest.py``)."""

    begun: ClassVar[list[Running]] = []

    def __init__(self, folder: Path, *arguments: str, program: Sequence[str] = SEARCH, **more: str) -> None:
        self.printed = folder / "out.txt"
        with self.printed.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, *arguments],
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(**more),
            )
        self.begun.append(self)

    def wait_until(self, happened: Callable[[], bool], every: float = 0.05) -> None:
        """Returns as soon as something happened; fails where the search ends before."""
        end = time.monotonic() + HANG_SECONDS
        while not happened():
            assert self.process.poll() is None, f"ended before: {self.output()}"
            assert time.monotonic() < end, f"did not happen: {self.output()}"
            time.sleep(every)

    def kill(self) -> None:
        """kill -9 of the driver alone; what it started has to notice by itself."""
        self.process.kill()
        self.process.wait()

    def interrupt(self) -> int:
        """Ctrl-C in the terminal: SIGINT to the driver and all that share its process group."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(timeout=HANG_SECONDS)

    def output(self) -> str:
        return self.printed.read_text()


def epochs_logged(folder: Path, name: str = "a") -> dict[str, list[int]]:
    """Trial -> the epochs in its log, in the order in which they stand."""
    return {
        path.parent.name: [json.loads(line)["training_iteration"] for line in path.read_text().splitlines()]
        for path in sorted((folder / "runs" / name).glob("*/result.json"))
    }


def studies(folder: Path, name: str = "a", storage: str | None = None) -> dict[str, optuna.Study]:
    """Variant -> its study in this search."""
    storage = storage or f"sqlite:///{folder}/runs/{name}/optuna.db"
    names = [study for study in optuna.get_all_study_names(storage) if study.startswith(f"{name}/")]
    return {study.removeprefix(f"{name}/"): optuna.load_study(study_name=study, storage=storage) for study in names}


def mlflow_runs(
    folder: Path, tracking_uri: str | None = None, experiment_name: str = "sgd-tuner"
) -> tuple[MlflowClient, list[Run]]:
    """The client and all runs of the experiment."""
    client = MlflowClient(tracking_uri or f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name(experiment_name)
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id], max_results=1000))


def check_whole(
    folder: Path,
    trials: dict[str, int],
    name: str = "a",
    *,
    grown: bool = False,
    storage: str | None = None,
    tracking_uri: str | None = None,
    experiment: str = "sgd-tuner",
) -> None:
    """Exactly the planned trials and confirmed runs, each ended and each epoch once, in Optuna, in MLflow and for
    Tune's own tools; the test split read once, and last, unless the search has ``grown`` after it had ended."""
    seen = load_search(name, output=str(folder / "runs"), storage=storage)
    made = {f"{variant}-{number:02d}" for variant, count in trials.items() for number in range(count)}
    confirmed = {record.name for record in seen.records.values() if record.phase == "confirm"}
    logs = epochs_logged(folder, name)
    assert set(logs) == {folder_name(planned) for planned in made | confirmed}
    for trial, epochs in logs.items():
        assert epochs == list(range(1, len(epochs) + 1)), trial

    by_variant = studies(folder, name, storage)
    assert by_variant.keys() == trials.keys()
    for variant, study in by_variant.items():
        assert [trial.number for trial in study.trials] == list(range(trials[variant]))
        assert all(trial.state.is_finished() for trial in study.trials)
        for recorded in study.trials:
            assert len(recorded.intermediate_values) == len(logs[f"{variant}-{recorded.number:02d}"])
        check_places(seen, variant)
        numbers = [
            record.number for record in seen.records.values() if record.variant == variant if record.phase == "confirm"
        ]
        assert numbers == list(range(1, len(numbers) + 1))
        for point in POINTS if variant in seen.refined else ():
            assert len(seen.confirmed(variant, point)) == len(seen.wanted(variant, point))
    last_training = max((r.history[-1].finished_at for r in seen.records.values() if r.history), default=0)
    for record in seen.records.values():
        assert (record.test is not None) == (record.phase == "confirm" and record.status == "finished"), record.name
        if record.test is not None and not grown:
            assert (seen.folder / record.folder_name / TEST).stat().st_mtime > last_training, "before its time"

    client, runs = mlflow_runs(folder, tracking_uri, experiment)
    phases = {run.info.run_name: run for run in runs if run.data.tags.get("phase") in ("race", "refine", "confirm")}
    assert set(phases) == made | confirmed
    assert all("mlflow.parentRunId" in run.data.tags for run in phases.values())
    assert sum("mlflow.parentRunId" not in run.data.tags for run in runs) == 1
    assert {run.info.status for run in runs} == {"FINISHED"}
    for trial, run in phases.items():
        for key in ("validation/accuracy", "train/accuracy", "speed/gradient_evaluations"):
            steps = [metric.step for metric in client.get_metric_history(run.info.run_id, key)]
            assert steps == logs[folder_name(trial)], (trial, key)
        tests = client.get_metric_history(run.info.run_id, "test/accuracy")
        score = seen.records[trial].test
        assert [metric.value for metric in tests] == ([score.accuracy] if score else [])
        assert {"optimizer.lr.peak", "seed"} <= set(run.data.params)

    assert not list((folder / "runs" / name).glob("*/checkpoint*")), "left over"
    in_tune = as_tune_reads(folder / "runs" / name)
    trainings = {trial: found for trial, found in in_tune.items() if not trial.endswith("/test")}
    assert trainings == {trial: ["TERMINATED", len(logs[folder_name(trial)])] for trial in made | confirmed}


def check_places(search: Search, variant: str) -> None:
    """No slot, no setting and no repeat of a variant was trained twice; those of failed trainings may have been."""
    places = Counter(tuple(sorted(record.place.items())) for record in search.trials_of(variant) if record.observed)
    assert set(places.values()) <= {1}, places
    race, size = search.race, search.spec.round_size
    assert [one.number for one in race.rounds] == list(range(len(race.rounds)))
    for one in race.rounds:
        if variant in one.results:
            assert [(("round", one.number), ("slot", slot)) in places for slot in range(size)] == [True] * size, one


TUNES_OWN = """
import json, sys
from ray.tune import ExperimentAnalysis
for line in sys.stdin:
    analysis = ExperimentAnalysis(line.rstrip("\\n"))
    frames = analysis.trial_dataframes
    found = {trial.config["trial"]: [trial.status, len(frames[trial.trial_id])] for trial in analysis.trials}
    print("FOUND", json.dumps(found), flush=True)
"""


@cache
def _reader() -> subprocess.Popen[str]:
    """One for all tests of this process, with which it ends: what it imports takes seconds."""
    reader = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", TUNES_OWN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(reader.communicate)  # it ends with its input
    return reader


def as_tune_reads(folder: Path) -> dict[str, Any]:
    """Trial -> status and number of epochs, by Tune's own reading, which starts parts of Ray: in its own process."""
    reader = _reader()
    assert reader.stdin is not None and reader.stdout is not None
    reader.stdin.write(f"{folder}\n")
    reader.stdin.flush()
    for line in reader.stdout:
        kind, _, found = line.partition(" ")
        if kind == "FOUND":
            answer: dict[str, Any] = json.loads(found)
            return answer
    raise AssertionError(f"Tune cannot read {folder}")


def metrics_by_epoch(folder: Path, trial: str, name: str = "a") -> list[dict[str, float]]:
    """What a trial's log says of each epoch, times apart."""
    times = {"speed/seconds", "speed/images_per_second", "metrics", "done"}
    lines = (folder / "runs" / name / trial / "result.json").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in times} for line in lines]
