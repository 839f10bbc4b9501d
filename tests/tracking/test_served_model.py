"""The served model says of raw pixels what the trained network says of its own images."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from tests.own_workloads import tokens
from tests.tracked import opened, runs, tell
from tuner.core.metrics import EpochMetrics
from tuner.core.serialization import digest, with_settings
from tuner.core.store import WEIGHTS, Store
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.study.trial_folder import write_spec
from tuner.tracking.tracker import PARENT, WinningModel
from tuner.train import train
from tuner.workloads.data import load_data
from tuner.workloads.datasets import load_digits
from tuner.workloads.images import EVALUATION_BATCH

with warnings.catch_warnings(action="ignore"):  # MLflow's own, when its types are imported
    import mlflow.pyfunc
    import mlflow.pytorch
    from mlflow.models import get_model_info

    from tuner.tracking.served_model import load_served, main

pytestmark = pytest.mark.usefixtures("one_thread")
SPEC = TrialSpec(workload=WorkloadSpec(batch_size=128, loader_workers=0), epochs=1)


def confirmed(folder: Path, spec: TrialSpec) -> EpochMetrics:
    """Trains as a confirmed run does; its last metrics."""
    write_spec(folder, spec)
    return list(train(spec, store=Store(folder), keep_weights=True))[-1]


def validation() -> tuple[Tensor, Tensor]:
    """Raw pixels and labels."""
    whole = load_digits(WorkloadSpec())
    positions = whole.splits["validation"]
    return torch.from_numpy(whole.pixels[positions]).permute(0, 3, 1, 2), torch.from_numpy(whole.labels[positions])


def assert_scores(probabilities: Tensor, metrics: EpochMetrics) -> None:
    """The probabilities of the validation images have the loss and accuracy that the training told."""
    _, labels = validation()
    assert float(nll_loss(probabilities.double().log(), labels)) == pytest.approx(metrics.validation_loss, rel=1e-4)
    assert float((probabilities.argmax(1) == labels).double().mean()) == metrics.validation_accuracy


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        replace(SPEC, precision="float64"),
        replace(SPEC, optimizer=with_settings(OptimizerSpec(), {"average.decay": 0.5})),
    ],
    ids=["plain", "float64", "average"],
)
def test_the_model_scores_as_the_training_did(spec: TrialSpec, tmp_path: Path) -> None:
    metrics = confirmed(tmp_path, spec)
    model, _, _ = load_served(tmp_path)
    with torch.inference_mode():
        assert_scores(model(validation()[0]), metrics)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EpochMetrics]:
    """An MLflow model made by the command, and the last metrics of its training."""
    folder = tmp_path_factory.mktemp("run")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    metrics = confirmed(folder, SPEC)
    torch.set_num_threads(before)
    command = [sys.executable, "-m", "tuner.tracking.served_model", str(folder), str(folder / "model")]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in folder.iterdir()} >= {"model", "spec.json", WEIGHTS}
    return folder / "model", metrics


def test_loaded_by_mlflow_it_scores_the_same(saved: tuple[Path, EpochMetrics]) -> None:
    """As a module, as a function of arrays, and in batches of any size, one alone too."""
    pixels, _ = validation()
    model = mlflow.pytorch.load_model(str(saved[0]))
    with torch.inference_mode():
        assert_scores(model(pixels), saved[1])
    function = mlflow.pyfunc.load_model(str(saved[0]))
    array = np.ascontiguousarray(pixels)
    parts = [function.predict(part) for part in (array[:1], array[1:3], array[3:])]
    assert_scores(torch.from_numpy(np.concatenate(parts)), saved[1])


@pytest.mark.slow
def test_logged_by_a_search_it_is_loaded_by_its_uri(
    saved: tuple[Path, EpochMetrics], mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    tracking = opened(mlflow_uri)
    tell(tracking, "a/confirm-1", [saved[1]], "finished")
    model = WinningModel(saved[0], "a/confirm-1", digest(SPEC))
    assert tracking.finish("finished", {}, [], model=model, timeout=60)
    loaded = mlflow.pytorch.load_model(runs(mlflow_uri)[PARENT].data.tags["winning_model"])
    with torch.inference_mode():
        assert_scores(loaded(validation()[0]), saved[1])


def test_it_says_what_it_takes_and_gives(saved: tuple[Path, EpochMetrics]) -> None:
    info = get_model_info(str(saved[0]))
    (inputs,), (outputs,) = info.signature.inputs.inputs, info.signature.outputs.inputs
    assert (inputs.type, inputs.shape) == (np.uint8, (-1, 1, 8, 8))
    assert (outputs.type, outputs.shape) == (np.float32, (-1, 10))
    data = load_data(SPEC.workload, torch.device("cpu"))
    assert info.metadata == {"classes": [*"0123456789"], "spec": digest(SPEC), "data": data.digest}
    example = np.array(json.loads((saved[0] / "input_example.json").read_text()))
    assert np.array_equal(example, validation()[0][[0, EVALUATION_BATCH - 1]])
    required = (saved[0] / "requirements.txt").read_text().split()
    assert required == [f"mlflow=={mlflow.__version__}", f"torch=={torch.__version__.partition('+')[0]}"]


@pytest.mark.slow
def test_it_is_loaded_where_this_package_is_not(saved: tuple[Path, EpochMetrics], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['tuner'] = None; import mlflow.pyfunc, numpy;"
        "model = mlflow.pyfunc.load_model(sys.argv[1]);"
        "print(model.predict(numpy.zeros((3, 1, 8, 8), dtype=numpy.uint8)).sum())"
    )
    command = [sys.executable, "-c", code, str(saved[0])]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert float(ran.stdout) == pytest.approx(3)


def test_what_is_wrong_is_said_in_a_line(
    saved: tuple[Path, EpochMetrics], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved[0].parent
    content = torch.load(folder / WEIGHTS, weights_only=True)
    (tmp_path / "bare").mkdir()
    for name, spec, changes in (
        ("weightless", SPEC, None),
        ("seed", replace(SPEC, seed=1), {}),
        ("data", SPEC, {"data": "other"}),
    ):
        write_spec(tmp_path / name, spec)
        if changes is not None:
            torch.save({**content, **changes}, tmp_path / name / WEIGHTS)
    for given, out, said in (
        (folder, folder / "model", "exists already"),
        (tmp_path / "bare", tmp_path / "out", "no folder of a confirmed run"),
        (tmp_path / "weightless", tmp_path / "out", "is not there"),
        (tmp_path / "seed", tmp_path / "out", "weights of another training"),
        (tmp_path / "data", tmp_path / "out", "the data is not what these weights were trained on"),
    ):
        assert main([str(given), str(out)]) == 2
        errors = capsys.readouterr().err
        assert said in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:The tensor attributes self.recurrent")  # torch.export's, of a GRU
def test_a_model_of_tokens_takes_tokens(tmp_path: Path) -> None:
    workload = WorkloadSpec(data="tests.own_workloads:tokens", model="tests.own_workloads:Recurrent", batch_size=16)
    metrics = confirmed(tmp_path, TrialSpec(workload=workload, epochs=2))
    assert main([str(tmp_path), str(tmp_path / "model")]) == 0
    ids, labels = tokens().splits["validation"]
    function = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    logits = torch.from_numpy(np.concatenate([function.predict(part) for part in (ids[:1].numpy(), ids[1:].numpy())]))
    assert float((logits.argmax(1) == labels).double().mean()) == pytest.approx(metrics.validation_accuracy, abs=1e-12)
