"""What is checked of a user's own data and model before a search begins."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuner.core.errors import InvalidInput
from tuner.core.trial_spec import WorkloadSpec
from tuner.search.__main__ import main
from tuner.workloads.check import check_workload, prepare
from tuner.workloads.probe import probe

NUMBERS = itertools.count()
HEAD = """
import torch
from torch import nn
from tuner.workloads import map_style, tensors

def splits(*shape, labels=lambda n: torch.arange(n) % 3):
    return {name: (torch.ones(n, *shape), labels(n)) for name, n in (("train", 20), ("validation", 6), ("test", 6))}

def data():
    return tensors(**splits(4), task="classification")

def net(input_shape, num_outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(input_shape).numel(), num_outputs))
"""
OWN_TASK = """
class Task:
    name = "hits"
    def loss(self, outputs, labels):
        return {loss}
    def score(self, outputs, labels):
        return {score}
def data():
    return tensors(**splits(4), task=Task())
"""
FINE = "nn.functional.cross_entropy(outputs, labels)"


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., WorkloadSpec]:
    """Writes a module of data and a model, and returns the workload of the two."""
    (tmp_path / "modules").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")

    def write(text: str = "", **changes: Any) -> WorkloadSpec:
        name = f"own_{os.getpid()}_{next(NUMBERS)}"
        (tmp_path / "modules" / f"{name}.py").write_text(HEAD + text)
        return WorkloadSpec(**{"data": f"{name}:data", "model": f"{name}:net", "batch_size": 8, **changes})

    return write


def test_what_is_right_is_described(written: Callable[..., WorkloadSpec]) -> None:
    found = probe(written())
    assert found["sizes"] == {"train": 20, "validation": 6, "test": 6}
    assert (found["num_classes"], found["score"], len(found["digest"])) == (3, "accuracy", 64)
    assert probe(written(OWN_TASK.format(loss=FINE, score="0.5")))["score"] == "hits"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def data(): raise KeyError('x')", r"--workload .*:data: raised KeyError: 'x' \(own_.*\.py, line 14\)"),
        ("def data(): exit(0)", r"--workload .*:data: raised SystemExit"),
        ("def data(): return splits(4)", "returned a dict, and must return what tuner.workloads.tensors or map_style"),
        ("def data(folder): pass", "needs 'folder', and there is nothing to give it"),
        ("def data(data_dir): pass", "needs --data-dir"),
        ("def data(): return tensors(**splits(4, labels=torch.zeros), task='regression')", "all labels of train are"),
        ("def net(num_outputs, depth): pass", "--model .*:net: needs 'depth', and there is num_classes, num_outputs, "),
        ("def net(): return 3", "--model .*:net: gave a int, not a torch.nn.Module"),
        ("def net(): raise ValueError('no')", r"--model .*:net: cannot be built .*ValueError: no \(own_.*, line 14\)"),
        (
            "def net(): return nn.Linear(5, 3)",
            r"cannot take torch.float32 of shape \(4, 4\): RuntimeError: .*shapes cannot be multiplied",
        ),
        ("def net(): return nn.Linear(4, 2)", "--model .*:net: gives 2 outputs, and labels reach 2"),
        ("def net(): return nn.GRU(4, 3)", "its outputs are a tuple, and must be one tensor"),
        (
            "def net(): return nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (4, 1)))",
            r"--model .*: outputs of shape \(4, 4, 1\) for labels of shape",
        ),
        (
            "def data(): return tensors(**splits(4, labels=torch.rand), task='regression')",
            r"outputs of shape \(4, 1\) for labels of shape \(4,\): regression needs one shape",
        ),
        (OWN_TASK.format(loss=FINE, score="1.5"), r"the score 'hits' is 1.5: must be in \[0, 1\]"),
        (OWN_TASK.format(loss="3.0", score=".5"), "the loss of the task 'hits' is a float: must be one number"),
        (OWN_TASK.format(loss="outputs", score=".5"), r"is a tensor of shape \(4, 3\): must be one number"),
        (OWN_TASK.format(loss="torch.ones(())", score=".5"), r"a tensor of shape \(\) without a gradient"),
        (OWN_TASK.format(loss="outputs[99].sum()", score=".5"), "the task 'hits' raised IndexError: .*line 18"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(written: Callable[..., WorkloadSpec], text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        probe(written(text))
    assert "\n" not in str(refused.value)


def test_data_that_is_no_images_needs_a_model_of_its_own(written: Callable[..., WorkloadSpec]) -> None:
    spec = written()
    with pytest.raises(InvalidInput, match=r"--model resnet8: takes square images of floats, and .*:data has .*\(4,\)"):
        probe(WorkloadSpec(data=spec.data, batch_size=8))
    of_images = written("def data(): return tensors(**splits(3, 9, 9), task='classification')", model="resnet8")
    assert probe(of_images)["num_classes"] == 3
    predicted = "def data(): return tensors(**splits(3, 9, 9, labels=lambda n: torch.rand(n, 2)), task='regression')"
    assert probe(written(predicted, model="resnet8"))["score"] == "R^2"


def test_the_folder_is_given_to_a_function_that_names_it(written: Callable[..., WorkloadSpec]) -> None:
    made = "tensors(**splits(4), task='classification')"
    text = f"def data(data_dir=3):\n    return {made} if data_dir in (3, 'here') else data_dir"
    assert probe(written(text)) == probe(written(text, data_dir="here"))
    with pytest.raises(InvalidInput, match=r"--data-dir here: .*:data has no parameter data_dir"):
        probe(written(data_dir="here"))


def test_a_batch_larger_than_the_training_split_is_refused(written: Callable[..., WorkloadSpec]) -> None:
    with pytest.raises(InvalidInput, match="--batch-size 21: must be at most 20, the training split"):
        probe(written(batch_size=21))


@pytest.mark.slow  # two processes import torch
def test_data_that_differs_between_processes_is_refused(written: Callable[..., WorkloadSpec]) -> None:
    """A hash, as the order of a set, is the same at each call in one process."""
    net = "def net(): return nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))\n"
    labels = "lambda n: torch.arange(n) * (hash('x') % 10**6)"
    spec = written(f"{net}def data(): return tensors(**splits(4, labels={labels}), task='regression')")
    with pytest.raises(InvalidInput, match="returns other data in each process; seed its random numbers"):
        prepare(spec)


@pytest.mark.slow  # two processes import torch
def test_a_search_is_told_what_it_has_to_know(written: Callable[..., WorkloadSpec]) -> None:
    spec = written("import atexit; print('chatter'); atexit.register(print, 'last words')")
    check_workload(spec)
    prepared = prepare(spec)
    assert prepared.note == f"as {spec.data} returns them"
    assert (prepared.num_classes, prepared.score, prepared.sizes["test"]) == (3, "accuracy", 6)
    with pytest.raises(InvalidInput, match=r"--stream always: .* is held in memory"):
        check_workload(written(stream="always"))
    with pytest.raises(InvalidInput, match="--model diagonal: takes the workload diagonal alone; give another"):
        check_workload(written(model="diagonal"))


@pytest.mark.slow  # two processes import torch
def test_the_command_refuses_it_with_status_2_and_creates_nothing(
    written: Callable[..., WorkloadSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    spec = written("def data(): return 3")
    assert main(["--workload", spec.data, "--model", spec.model]) == 2
    printed, said = capsys.readouterr()
    assert not printed and said.startswith(f"error: --workload {spec.data}: returned a int, and must return what tuner")
    assert said.count("\n") == 1
    assert not list(Path.cwd().iterdir())
