"""The page docs/your-data.md: what it says to type is typed."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.command import ALONE, NUM_ALONE, ROOT, check_whole, mlflow_runs, search
from tests.tracked import load_function
from tuner.core.metrics import EpochMetrics
from tuner.core.trial_spec import TrialSpec, WorkloadSpec
from tuner.report.__main__ import main as report
from tuner.search.__main__ import main
from tuner.study.results import load_search
from tuner.train import train
from tuner.workloads import tensors
from tuner.workloads.own_data import OwnData
from tuner.workloads.probe import probe

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = (ROOT / "docs/your-data.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
MODULES = {match[1]: block for block in BLOCKS if (match := re.match(r"# (\w+)\.py\n", block))}
COMMANDS = {
    match[1]: shlex.split(line)
    for line in PAGE.splitlines()
    if (match := re.match(r"    python -m .*--workload (\w+):", line))
}
"""Module -> the command that names it."""


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the page's modules are written."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
        sys.modules.pop(name, None)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def trained(module: str, epochs: int, data_dir: str | None = None) -> list[EpochMetrics]:
    """One training of what the module's command names."""
    given = dict(zip(COMMANDS[module][3::2], COMMANDS[module][4::2], strict=True))
    batch_size = int(given.get("--batch-size", 64))
    workload = WorkloadSpec(data=given["--workload"], model=given["--model"], data_dir=data_dir, batch_size=batch_size)
    probe(workload)
    return list(train(TrialSpec(workload=workload, epochs=epochs), device=torch.device("cpu")))


def test_the_page_has_ten_lines_to_begin_with() -> None:
    assert list(MODULES) == list(COMMANDS) == ["diabetes", "letters", "scans"]
    lines = [line for line in MODULES["diabetes"].splitlines() if line]
    assert len(lines) == 10 and BLOCKS[0] == MODULES["diabetes"]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The page's first command, with flags that make it small."""
    folder = tmp_path_factory.mktemp("diabetes")
    (folder / "diabetes.py").write_text(MODULES["diabetes"])
    small = ["--name", "a", "--epochs", "4", "--targets", ".1", ".2", *ALONE, "--confirm-seeds", "1"]
    ran = search(folder, *COMMANDS["diabetes"][3:], *small)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder, ran


@pytest.mark.slow
def test_the_ten_lines_are_searched(
    searched: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, ran = searched
    check_whole(folder, {"sgdm": NUM_ALONE})
    assert ", best R^2 0." in ran.stdout and "Data: diabetes:data; as diabetes:data returns them." in ran.stdout
    assert "could not be saved" not in ran.stdout and "accuracy" not in ran.stdout
    frame = load_search("a", output=str(folder / "runs")).trials()
    assert (frame[frame.phase == "confirm"]["test/accuracy"] > 0.1).all()
    # A report needs no function of the user's.
    (folder / "diabetes.py").rename(folder / "elsewhere.py")
    monkeypatch.chdir(folder)
    assert report(["a"]) == 0
    written = (folder / "runs/a/report.md").read_text()
    (folder / "elsewhere.py").rename(folder / "diabetes.py")
    assert "diabetes:mlp on diabetes:data" in written and "| test R^2 |" in written
    assert written.count("accuracy") == 1 and "R^2, which files and MLflow call accuracy" in written


@pytest.mark.slow
def test_mlflow_has_the_data_and_the_model(
    searched: tuple[Path, subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = searched
    _, runs = mlflow_runs(folder)
    parent = next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    confirmed = next(run for run in runs if run.data.tags.get("phase") == "confirm")
    assert confirmed.inputs is not None
    dataset = confirmed.inputs.dataset_inputs[0].dataset
    assert dataset.name == "diabetes:data" and "diabetes:data" in dataset.source
    function = load_function(f"sqlite:///{folder}/mlflow.db", parent.data.tags["winning_model"])
    monkeypatch.syspath_prepend(folder)
    own: OwnData = importlib.import_module("diabetes").data()
    (inputs, labels), task = own.splits["test"], own.task
    outputs = torch.from_numpy(function.predict(inputs.float().numpy()))
    score = task.score(float(task.score_sum(outputs, labels)), len(labels))
    known = [r.data.metrics["test/accuracy"] for r in runs if r.data.tags.get("phase") == "confirm"]
    assert any(score == pytest.approx(other, rel=1e-5) for other in known)


@pytest.mark.slow
def test_a_search_does_not_go_on_with_other_data(
    searched: tuple[Path, subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _ = searched
    monkeypatch.chdir(folder)
    (folder / "diabetes.py").write_text(MODULES["diabetes"].replace("20 * x", "21 * x"))
    assert main(["--resume", "a"]) == 2
    assert capsys.readouterr().err == "error: --resume a: the data has changed since the search was started\n"
    (folder / "diabetes.py").write_text(MODULES["diabetes"])


def test_a_table_is_learned(typed: Path) -> None:
    assert trained("diabetes", epochs=10)[-1].validation_accuracy > 0.25


def test_a_language_model_learns_which_letters_are_frequent(typed: Path) -> None:
    (last,) = trained("letters", epochs=1)
    assert last.validation_accuracy > 0.15, "the share of spaces"
    assert last.chance < 0.02


def test_images_of_16_bits_are_read_by_the_users_function(typed: Path) -> None:
    generator = np.random.default_rng(0)
    for split, number in (("train", 40), ("validation", 10), ("test", 10)):
        for place, name in enumerate(("dark", "light")):
            folder = typed / "scans" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(20_000 * place, 45_000 + 20_000 * place, (12, 12), dtype=np.uint16)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    *_, last = trained("scans", epochs=12, data_dir=str(typed / "scans"))
    assert last.validation_accuracy > 0.75 and last.chance == 0.5


def test_a_task_of_ones_own_is_trained_by(typed: Path) -> None:
    (block,) = (block for block in BLOCKS if block.startswith("class Within"))
    namespace: dict[str, type] = {}
    exec(block, namespace)
    own: OwnData = importlib.import_module("diabetes").data()
    (typed / "within.py").write_text(
        f"import diabetes\nfrom tuner.workloads import tensors\n{block}\n"
        "def data():\n    return tensors(**diabetes.data().splits, task=Within())\n"
    )
    spec = WorkloadSpec(data="within:data", model="diabetes:mlp", batch_size=16)
    assert probe(spec)["score"] == "within 10%"
    *_, last = train(TrialSpec(workload=spec, epochs=10), device=torch.device("cpu"))
    made = tensors(**own.splits, task=namespace["Within"]())
    assert made.digest == probe(spec)["digest"]
    num_right = last.validation_accuracy * 80
    assert 5 <= num_right < 40 and num_right == pytest.approx(round(num_right), abs=1e-4)
