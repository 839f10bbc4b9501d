"""The command on real searches: what it says, keeps, tells MLflow, and refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tests.command import mlflow_runs
from tests.trained_digits import SPEC, linear, trained, trained_state, two_layers
from tuner.core.serialization import to_json
from tuner.core.store import WEIGHTS
from tuner.core.trial_spec import TrialSpec, WorkloadSpec
from tuner.diagnose.__main__ import main

pytestmark = pytest.mark.usefixtures("one_thread")
ONE = ["--threads", "1"]


@pytest.fixture(scope="session")
def searched(finished: tuple[Path, object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished search with a copy of its MLflow, to be written to."""
    folder = tmp_path_factory.mktemp("searched") / "copy"
    shutil.copytree(finished[0], folder)
    spec = folder / "runs/a/search.json"
    spec.write_text(spec.read_text().replace(str(finished[0]), str(folder)))
    return folder


@pytest.fixture
def there(searched: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: the search's and its MLflow's."""
    monkeypatch.chdir(searched)
    return searched


def runs_under(folder: Path, name: str) -> tuple[Run, list[Run]]:
    """A training's run, and those nested under it."""
    _, runs = mlflow_runs(folder)
    (parent,) = [run for run in runs if run.info.run_name == name]
    return parent, [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]


@pytest.mark.slow
def test_a_confirmed_run_is_diagnosed_and_repaired_into_mlflow(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["a/sgdm/confirm-1", "--repair", "--epochs", "1", *ONE]) == 0
    said = capsys.readouterr().out
    folder = there / "runs/a/sgdm.confirm-1/diagnosis"
    content = json.loads((folder / "diagnosis.json").read_text())
    errors = sum(map(sum, content["confusion"])) - sum(row[k] for k, row in enumerate(content["confusion"]))
    assert f"{errors} of 360 images of the validation split are misclassified" in said
    assert "Epochs: " in said and "damped" in said
    assert [*content["repair"]] == ["repair", "all groups", "random groups", "lowest groups"]
    assert len(content["named"]) == 2 == len(content["repair"]["random groups"]["groups"])
    assert {path.name for path in folder.iterdir()} == {"diagnosis.json", "diagnosis.png", "errors.png", "repaired.pt"}

    parent, (run,) = runs_under(there, "sgdm/confirm-1")
    assert run.info.status == "FINISHED" and run.info.run_name == "sgdm/confirm-1/diagnosis"
    assert run.data.metrics["errors"] == errors
    named = content["named"][0]
    assert run.data.metrics[f"invariant/{named}"] == pytest.approx(content["groups"][named]["invariant"])
    assert run.data.metrics["repair/net"] == content["repair"]["repair"]["net"]
    client, _ = mlflow_runs(there)
    assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} >= {"diagnosis.json", "diagnosis.png"}
    # By its id in MLflow it is the same one; and the search still knows its own runs from this one.
    assert main([parent.info.run_id, *ONE]) == 0
    assert f"{errors} of 360 images" in capsys.readouterr().out
    resumed = subprocess.run(
        [sys.executable, "-m", "tuner.search", "--resume", "a"], check=False, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert len(runs_under(there, "sgdm/confirm-1")[1]) == 2


@pytest.mark.slow
def test_a_trial_is_trained_again_once_and_nothing_of_it_is_left_but_its_weights(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["a/adamw-00", *ONE]) == 0
    again = there / "runs/a/adamw-00/trained-again"
    assert [path.name for path in again.iterdir()] == [WEIGHTS]
    written = (again / WEIGHTS).stat().st_mtime_ns
    first = capsys.readouterr().out.splitlines()[0]
    assert main(["a/adamw-00", "--groups", "linear", "--no-mlflow", *ONE]) == 0
    assert (again / WEIGHTS).stat().st_mtime_ns == written
    assert capsys.readouterr().out.splitlines()[0] == first
    assert len(runs_under(there, "adamw-00")[1]) == 1


@pytest.mark.slow
def test_what_mlflow_does_not_take_leaves_a_failed_run_and_the_files(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise MlflowException("no room")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifact", refuse)
        assert main(["a/adamw/confirm-2", *ONE]) == 3
    assert "fails: no room" in capsys.readouterr().err
    parent, (run,) = runs_under(there, "adamw/confirm-2")
    assert run.info.status == "FAILED"
    assert (there / "runs/a/adamw.confirm-2/diagnosis/diagnosis.json").exists()
    # Its id belongs to one search: another of the same name is not taken for it.
    spec = there / "runs/a/search.json"
    saved = spec.read_text()
    spec.write_text(saved.replace(json.loads(saved)["id"], "0" * 32))
    assert "belongs to another search" in refused([parent.info.run_id], capsys)
    spec.write_text(saved)


def test_threads_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(file_of(tmp_path)), "--threads", "0"]) == 2
    assert "--threads 0: must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_runs_are_compared(there: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--compare", "a/sgdm/confirm-1", "a/sgdm/confirm-2", "a/adamw/confirm-1", *ONE]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in ("a/sgdm/confirm-1", "a/sgdm/confirm-2", "a/adamw/confirm-1"))
    assert "Chance gives 0.80; p = " in " ".join(said.split())


def file_of(folder: Path, spec: TrialSpec = SPEC) -> Path:
    """A model's state_dict beside its spec."""
    torch.save(trained_state(), folder / "model.pt")
    (folder / "spec.json").write_text(to_json(spec))
    return folder / "model.pt"


def test_a_file_of_weights_is_diagnosed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = file_of(tmp_path)
    assert main([str(path), *ONE]) == 0
    _, accuracy = trained().evaluate("validation")
    assert f"{round(360 * (1 - accuracy))} of 360 images" in capsys.readouterr().out
    assert (tmp_path / "model-diagnosis/diagnosis.png").exists()


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*arguments, *ONE]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name one RUN, or several with --compare"),
        (["{file}", "--compare", "{file}"], "name one RUN, or several with --compare"),
        (["--compare", "{file}", "{file}", "--repair"], "--repair: applies to one RUN"),
        (["--compare", "{file}"], "at least two runs"),
        (["--compare", "{file}", "{file}"], "each named once"),
        (["{file}", "--num-groups", "0", "--groups", "linear"], "--num-groups 0: must be in [1, 4]"),
        (["{file}", "--folder", "{folder}"], "contains the file of weights"),
        (["{file}", "--tracking-uri", "nonsense://x"], "--tracking-uri nonsense://x: must be"),
        (["{file}", "--repair", "--lr", "0"], "lr.peak = 0"),
        (["{file}", "--repair", "--epochs", "0"], "epochs = 0"),
        (["{file}", "--groups", "blocks.1,block.2"], "unknown layer group 'block.2'"),
        (["{file}", "--num-groups", "5"], r"--num-groups 5: must be in [1, 4], because the model has 5 groups"),
        (["{file}", "--repair", "--groups", "conv,blocks.0,blocks.1,blocks.2,linear"], "nothing would be frozen"),
        (["nothing"], "must be SEARCH/RUN"),
        (["no/sgdm-00"], "there is no search"),
        (["{file}", "--spec", "nothing.json"], "name the training that it comes from with --spec"),
        (["no/sgdm-00", "--spec", "{file}"], "applies to a file of weights"),
        (["{folder}/spec.json"], "is no file of weights"),
        (["{file}", "--folder", "{file}"], "is not a folder"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = file_of(tmp_path)
    given = [argument.format(file=file, folder=tmp_path) for argument in arguments]
    assert message in refused(given, capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "spec.json"}, "it makes nothing"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet20", "the weights are not those of resnet20 on digits"),
        ("tests.trained_digits:linear", "the weights are not those of tests.trained_digits:linear"),
    ],
)
def test_weights_of_another_model_are_refused(
    model: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(tmp_path, dataclasses.replace(SPEC, workload=WorkloadSpec(model=model)))
    assert message in refused([str(path)], capsys)


@pytest.mark.slow
def test_weights_on_other_data_and_runs_without_weights_are_refused(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(searched / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("diagnosis", "trained-again"))
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "runs/a/sgdm.confirm-1" / WEIGHTS
    content = torch.load(weights, weights_only=True)
    torch.save({**content, "data": "other"}, weights)
    assert "the data is not what these weights were trained on" in refused(["a/sgdm/confirm-1"], capsys)
    (tmp_path / "runs/a/adamw.confirm-1" / WEIGHTS).unlink()
    assert "is not there" in refused(["a/adamw/confirm-1"], capsys)
    assert "unknown run of a 'sgdm-07'" in refused(["a/sgdm-07"], capsys)
    elsewhere = ["--tracking-uri", f"sqlite:///{tmp_path}/other.db"]
    assert "is not a database of MLflow" in refused(["a/sgdm/confirm-2", *elsewhere], capsys)
    assert not list(tmp_path.glob("runs/a/*/diagnosis"))
    assert "is not a database of MLflow" in refused(["0" * 32, *elsewhere], capsys)
    assert not (tmp_path / "other.db").exists()
    MlflowClient(elsewhere[1]).search_experiments()
    capsys.readouterr()
    assert "has no run of a/sgdm/confirm-2" in refused(["a/sgdm/confirm-2", *elsewhere], capsys)
    assert "0" * 32 in refused(["0" * 32, *elsewhere], capsys)


def test_a_model_without_batch_norm_is_diagnosed_and_one_group_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for build, status in ((two_layers, 0), (linear, 2)):
        workload = WorkloadSpec(model=f"tests.trained_digits:{build.__name__}")
        (tmp_path / "spec.json").write_text(to_json(dataclasses.replace(SPEC, workload=workload)))
        torch.save(build(num_classes=10, channels=1, image_size=8).state_dict(), tmp_path / "model.pt")
        assert main([str(tmp_path / "model.pt"), *ONE]) == status
    said = capsys.readouterr()
    assert "has no BatchNorm" in said.out
    assert "is one group of layers" in said.err
