"""The winning model is in MLflow whole and once, whenever a program was killed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.tracking import MlflowClient

from tests.tracked import killed_at, opened, runs, tell
from tuner.core.metrics import EpochMetrics
from tuner.tracking.tracker import PARENT, SEARCH_TAG, Tracker, WinningModel


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow puts artifacts where the program is."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def history(epoch: Callable[..., EpochMetrics]) -> list[EpochMetrics]:
    return [epoch(1, 0.5), epoch(2, 0.75)]


def models(uri: str) -> list[LoggedModel]:
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'e'")
    return list(client.search_logged_models([experiment.experiment_id]))


@pytest.fixture
def winner(tmp_path: Path) -> WinningModel:
    """No model in truth: its files are only carried."""
    folder = tmp_path / "model"
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}")
    (folder / "data" / "weights").write_text("1 2 3")
    return WinningModel(folder, run="a/confirm-1", spec_digest="d1")


def assert_logged(uri: str, model: LoggedModel, winner: WinningModel) -> None:
    """Whole, and once an output of the run that trained it and of the parent."""
    assert model.status == LoggedModelStatus.READY
    found = runs(uri)
    assert model.source_run_id == found[winner.run].info.run_id
    for name in (winner.run, PARENT):
        outputs = found[name].outputs
        assert outputs is not None
        assert [output.model_id for output in outputs.model_outputs].count(model.model_id) == 1
    for path in ("MLmodel", "data/weights"):
        assert (Path(model.artifact_location) / path).read_text() == (winner.folder / path).read_text()


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize(
    "method", ["create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs", "set_tag"]
)
def test_the_winning_model_is_logged_once(
    method: str, done: bool, mlflow_uri: str, history: list[EpochMetrics], winner: WinningModel
) -> None:
    def program() -> Tracker:
        tracking = opened(mlflow_uri, search="a.search")
        tell(tracking, winner.run, history, "finished")
        return tracking

    with killed_at(method, done=done):
        program().finish("finished", {}, [], model=winner, timeout=0)
    for _ in range(2):
        assert program().finish("finished", {}, [], model=winner, timeout=60)
    (model,) = models(mlflow_uri)
    assert_logged(mlflow_uri, model, winner)
    assert model.name == "a-search-a-confirm-1" and model.tags[SEARCH_TAG] == "id"
    assert runs(mlflow_uri)[PARENT].data.tags["winning_model"] == model.model_uri


def test_another_winner_is_another_model(mlflow_uri: str, history: list[EpochMetrics], winner: WinningModel) -> None:
    for search_id, digest in [("id", "d1"), ("id", "d2"), ("other", "d1")]:
        tracking = opened(mlflow_uri, search_id=search_id)
        tell(tracking, winner.run, history, "finished")
        assert tracking.finish("finished", {}, [], model=replace(winner, spec_digest=digest), timeout=60)
    logged = {(model.tags[SEARCH_TAG], model.tags["tuner.spec"]): model for model in models(mlflow_uri)}
    assert len(models(mlflow_uri)) == len(logged) == 3
    assert runs(mlflow_uri)[PARENT].data.tags["winning_model"] == logged["id", "d2"].model_uri
    for digest in ("d1", "d2"):
        assert_logged(mlflow_uri, logged["id", digest], winner)


def test_a_model_that_is_refused_keeps_the_search_from_no_end(
    mlflow_uri: str, history: list[EpochMetrics], winner: WinningModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **named: object) -> None:
        raise MlflowException("no", INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(MlflowClient, "create_logged_model", refuse)
    assert not opened(mlflow_uri).finish("finished", {}, [], model=winner, timeout=60)
    assert runs(mlflow_uri)[PARENT].info.status == "FINISHED"
