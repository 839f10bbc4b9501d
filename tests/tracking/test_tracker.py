"""MLflow holds each run once and each epoch once, whatever is told twice and whoever is away in between."""

from __future__ import annotations

import itertools
import json
import math
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.tracking import MlflowClient

from tests.tracked import Between, Server, killed_at, opened, runs, tell
from tuner.core.metrics import EpochMetrics, epoch_metrics
from tuner.tracking import tracker as module
from tuner.tracking.runs import Runs
from tuner.tracking.tracker import PARENT, DataSet, WinningModel

Epoch = Callable[..., EpochMetrics]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader:DeprecationWarning")
DIGITS = DataSet("digits", "0123456789abcdef" * 4, "scikit-learn", {"train": 3, "validation": 2, "test": 1}, 10)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow puts artifacts where the program is."""
    monkeypatch.chdir(tmp_path)


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
        tags = {"who": "me", "variant": "toy", "round": "0", "status": endings[name]}
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


def test_a_run_that_is_made_after_its_caller_gave_up_is_taken_back(
    mlflow_uri: str, history: list[EpochMetrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that waits for its database does what it was asked when nobody listens any more."""
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    original = MlflowClient.create_run
    calls = itertools.count()
    unanswered: list[Callable[[], Run]] = []

    def create_run(client: MlflowClient, *args: Any, **named: Any) -> Run:
        if next(calls) in (0, 2):  # the parent's and the trial's
            unanswered.append(lambda: original(client, *args, **named))
            raise ConnectionError("no answer in time")
        run = original(client, *args, **named)
        while unanswered:
            unanswered.pop()()
        return run

    monkeypatch.setattr(MlflowClient, "create_run", create_run)
    tracking = opened(mlflow_uri)
    tell(tracking, "a-00", history, "finished")
    assert tracking.finish("finished", {}, [], timeout=60)
    assert_each_epoch_once(mlflow_uri, runs(mlflow_uri)["a-00"], history)


def test_trials_whose_parent_was_refused_get_it_from_the_next_program(
    mlflow_uri: str, history: list[EpochMetrics], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MlflowClient.create_run

    def create_run(client: MlflowClient, *args: Any, **named: Any) -> Run:
        if named["run_name"] == "s":
            raise MlflowException("no", INVALID_PARAMETER_VALUE)
        return original(client, *args, **named)

    for refused in (True, False, False):
        with monkeypatch.context() as patch:
            if refused:
                patch.setattr(MlflowClient, "create_run", create_run)
            tracking = opened(mlflow_uri)
            tell(tracking, "a-00", history, "finished")
            tell(tracking, "a-01", history[:3])
            assert tracking.finish("interrupted", {}, [], timeout=60) != refused
        found = runs(mlflow_uri)
        parent = found.pop(PARENT).info.run_id if not refused else None
        assert [run.data.tags.get("mlflow.parentRunId") for run in found.values()] == [parent] * 2
        assert_each_epoch_once(mlflow_uri, found["a-00"], history)


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


def assert_dataset_once(run: Run) -> None:
    assert run.inputs is not None
    (given,) = run.inputs.dataset_inputs
    assert given.dataset.profile is not None
    assert (given.dataset.name, given.dataset.digest) == ("digits", DIGITS.digest[:36])
    assert json.loads(given.dataset.source) == {"uri": "scikit-learn"}
    sizes = {"train": 3, "validation": 2, "test": 1}
    assert json.loads(given.dataset.profile) == {"digest": DIGITS.digest, "num_classes": 10, **sizes}
    assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "training"}


@pytest.mark.parametrize("done", [False, True])
def test_every_run_has_the_data_set_once(done: bool, mlflow_uri: str, history: list[EpochMetrics]) -> None:
    with killed_at("log_inputs", done=done):
        tracking = opened(mlflow_uri, dataset=DIGITS)
        tell(tracking, "a-00", history[:2])
    for _ in range(2):
        tracking = opened(mlflow_uri, dataset=DIGITS)
        tell(tracking, "a-00", history, "finished")
        tracking.log_variants({"a": ({}, {})})
        assert tracking.finish("finished", {}, [], timeout=60)
    found = runs(mlflow_uri)
    assert set(found) == {PARENT, "a-00", "a"}
    for run in found.values():
        assert_dataset_once(run)


def leaderboard(uri: str) -> list[str]:
    """Names of the runs in MLflow's table of variants, sorted by rank."""
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'e'")
    found = client.search_runs(
        [experiment.experiment_id], "tags.phase = 'variant'", order_by=["metrics.`leaderboard/rank` ASC"]
    )
    return [run.info.run_name or "" for run in found]


def row(rank: int, epochs: float, verdict: str) -> tuple[dict[str, float], dict[str, str]]:
    return {"leaderboard/rank": rank, "leaderboard/epochs": epochs}, {"verdict": verdict}


def test_the_run_table_is_the_leaderboard(mlflow_uri: str, history: list[EpochMetrics]) -> None:
    def finish_search(rows: dict[str, tuple[dict[str, float], dict[str, str]]]) -> None:
        tracking.log_variants(rows)
        assert tracking.finish("finished", {}, [], timeout=60)

    tracking = opened(mlflow_uri)
    tell(tracking, "a-00", history, "finished")
    finish_search({"a": row(1, 5.0, "faster"), "b": row(2, math.inf, ""), "c": row(3, 9.0, "slower")})
    assert leaderboard(mlflow_uri) == ["a", "b", "c"]
    first = runs(mlflow_uri)
    assert set(first) == {PARENT, "a-00", "a", "b", "c"}
    assert first["b"].data.metrics == {"leaderboard/rank": 2.0}
    tags = {"phase": "variant", "variant": "a", "verdict": "faster", "who": "me"}
    assert (tags | {"mlflow.parentRunId": first[PARENT].info.run_id}).items() <= first["a"].data.tags.items()

    for name, done in [("log_batch", False), ("log_batch", True), ("set_terminated", True), (None, None)]:
        tracking = opened(mlflow_uri)
        tell(tracking, "a-00", history, "finished")
        rows = {"a": row(2, math.inf, "undecided"), "b": row(1, 4.0, "faster"), "c": row(3, 9.0, "slower")}
        if name is None:
            finish_search(rows)
        else:
            assert done is not None
            with killed_at(name, done=done):
                tracking.log_variants(rows)
                tracking.finish("finished", {}, [], timeout=0)
    assert leaderboard(mlflow_uri) == ["b", "a", "c"]
    second = runs(mlflow_uri)
    assert {run.info.run_id for run in second.values()} == {run.info.run_id for run in first.values()}
    assert {run.info.status for run in second.values()} == {"FINISHED"}
    assert second["b"].data.metrics == {"leaderboard/rank": 1.0, "leaderboard/epochs": 4.0}
    assert second["a"].data.tags["verdict"] == "undecided"
    assert second["a"].data.metrics["leaderboard/rank"] == 2.0
    # What MLflow cannot take back.
    assert math.isnan(second["a"].data.metrics["leaderboard/epochs"])


def test_the_parent_says_the_verdict(mlflow_uri: str) -> None:
    """A note as long as it likes: MLflow keeps the beginning, and refuses nothing."""
    for value, note in [(2.0, "# a is faster\n" + 9_000 * "x"), (math.inf, "# nobody knows")]:
        tracking = opened(mlflow_uri)
        tags = {"mlflow.note.content": note, "verdict": note[:5]}
        assert tracking.finish("finished", {"speedup": value, "never": math.inf}, [], tags=tags, timeout=60)
        parent = runs(mlflow_uri)[PARENT]
        assert parent.data.tags["mlflow.note.content"][:100] == note[:100] and parent.data.tags["verdict"] == note[:5]
        assert parent.data.tags["status"] == "finished"
        assert list(parent.data.metrics) == ["speedup"]
        assert parent.data.metrics["speedup"] == value or (
            math.isinf(value) and math.isnan(parent.data.metrics["speedup"])
        )


@pytest.mark.parametrize("done", [False, True])
def test_files_and_folders_are_there_once(done: bool, mlflow_uri: str, tmp_path: Path) -> None:
    table, report = tmp_path / "table.md", tmp_path / "report"
    report.mkdir()
    for round_ in ("killed", "first", "second"):
        table.write_text(round_)
        (report / "page.html").write_text(round_)
        tracking = opened(mlflow_uri)
        if round_ == "killed":
            with killed_at("log_artifact", done=done):
                tracking.finish("finished", {}, [table, report], timeout=0)
            continue
        assert tracking.finish("finished", {}, [table, report], timeout=60)
        client, run_id = MlflowClient(mlflow_uri), runs(mlflow_uri)[PARENT].info.run_id
        assert [file.path for file in client.list_artifacts(run_id)] == ["report", "table.md"]
        assert [file.path for file in client.list_artifacts(run_id, "report")] == ["report/page.html"]
        for path in ("table.md", "report/page.html"):
            assert Path(client.download_artifacts(run_id, path)).read_text() == round_


def test_a_file_that_was_not_taken_is_tried_again(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    original, calls = MlflowClient.log_artifact, Counter[str]()

    def log_artifact(client: MlflowClient, run_id: str, path: str) -> None:
        calls[Path(path).name] += 1
        if calls[Path(path).name] == 1:
            raise ConnectionError("away")
        original(client, run_id, path)

    monkeypatch.setattr(MlflowClient, "log_artifact", log_artifact)
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    assert opened(mlflow_uri).finish("finished", {}, [tmp_path / "one", tmp_path / "two"], timeout=60)
    assert calls == {"one": 2, "two": 2}
    parent = runs(mlflow_uri)[PARENT]
    assert parent.info.status == "FINISHED"
    assert [file.path for file in MlflowClient(mlflow_uri).list_artifacts(parent.info.run_id)] == ["one", "two"]


def test_finish_says_when_mlflow_is_away(history: list[EpochMetrics], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    tracking = opened(f"http://127.0.0.1:{port}")
    tell(tracking, "a-00", history, "finished")
    assert not tracking.finish("finished", {}, [], timeout=0.5)


@pytest.fixture
def server(mlflow_uri: str, tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path, mlflow_uri) as started:
        yield started


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_has_everything_once(
    server: Server,
    mlflow_uri: str,
    history: list[EpochMetrics],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    tracking = opened(server.address, dataset=DIGITS)
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
    server.kill()
    time.sleep(1)
    server.start()
    teller.join()
    assert told.is_set()
    for trial in range(6):
        tell(tracking, f"a-{trial:02d}", [history[-1]], "finished")
    tracking.log_variants({"a": row(1, 5.0, "faster")})
    model = tmp_path / "model"
    model.mkdir()
    (model / "MLmodel").write_text("flavors: {}")
    assert tracking.finish("finished", {}, [model], model=WinningModel(model, "a-00", "d"), timeout=120)
    assert capsys.readouterr().out == ""
    assert leaderboard(mlflow_uri) == ["a"]
    found = runs(mlflow_uri)
    assert set(found) == {PARENT, "a", *(f"a-{trial:02d}" for trial in range(6))}
    client = MlflowClient(mlflow_uri)
    logged = client.get_logged_model(found[PARENT].data.tags["winning_model"].removeprefix("models:/"))
    stored = tmp_path / "artifacts" / logged.artifact_location.removeprefix("mlflow-artifacts:/")
    assert (stored / "MLmodel").read_text() == "flavors: {}"
    files = MlflowClient(server.address).list_artifacts(found[PARENT].info.run_id, "model")
    assert [file.path for file in files] == ["model/MLmodel"]
    for name, run in found.items():
        assert run.info.status == "FINISHED"
        assert_dataset_once(run)
        if name not in (PARENT, "a"):
            assert_each_epoch_once(mlflow_uri, run, history)


@pytest.mark.slow
def test_answers_that_are_lost_or_refused_double_and_lose_nothing(
    server: Server, mlflow_uri: str, history: list[EpochMetrics], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server behind a bad line and a busy gateway, whose database is restarted and whose login runs out."""
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    (tmp_path / "table.md").write_text("| a |")
    turns: dict[str, Iterator[int | None]] = {}

    def judge(path: str) -> int | None:
        fates = (Between.LOST, None, 500, 503, 429, 401, 403, 404, Between.LOST)
        return next(turns.setdefault(path, iter(fates)), None)

    with Between(server.address, judge) as between:
        tracking = opened(between.address, dataset=DIGITS)
        for name in ("a-00", "a-01"):
            tell(tracking, name, history, "finished")
        assert tracking.finish("finished", {}, [tmp_path / "table.md"], timeout=120)
    assert len(turns) >= 8, turns
    found = runs(mlflow_uri)
    assert set(found) == {PARENT, "a-00", "a-01"}
    for name, run in found.items():
        assert run.info.status == "FINISHED"
        assert_dataset_once(run)
        if name != PARENT:
            assert_each_epoch_once(mlflow_uri, run, history)


def test_no_run_is_left_active_in_this_process(mlflow_uri: str) -> None:
    assert opened(mlflow_uri).finish("finished", {}, [], timeout=60)
    assert mlflow.active_run() is None


def test_a_flush_goes_over_the_runs_that_something_waits_for(mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not over thousands that have ended; what failed waits on, and a new parent concerns all."""
    known = Runs(uri=mlflow_uri, experiment="e", search="s", search_id="id", tags={}, dataset=None)
    known.sync()
    for name in (PARENT, "a-00", "a-01", "a-02"):
        known.to_write(name)
    known.write_all()
    written: list[str] = []
    write, failing = Runs.write, {"a-02"}

    def watched(these: Runs, name: str) -> None:
        written.append(name)
        if name in failing:
            raise OSError
        write(these, name)

    monkeypatch.setattr(Runs, "write", watched)
    known.to_write("a-02").tags["old"] = "yes"
    known.to_write("a-01").status = "FINISHED"
    with pytest.raises(OSError):
        known.write_all()
    failing.clear()
    known.write_all()
    known.write_all()
    assert written == [PARENT, "a-02", PARENT, "a-02", "a-01", PARENT]
    assert known.by_name["a-01"].ended and not known.by_name["a-02"].tags
    known.by_name[PARENT].run_id = None
    known.write_all()
    assert {name: run.parent_id for name, run in known.by_name.items() if name != PARENT} == dict.fromkeys(
        ("a-00", "a-01", "a-02"), known.by_name[PARENT].run_id
    )
