"""Final weights are those that were evaluated; the test split is read from them, and by nothing else."""

from __future__ import annotations

import ast
import dataclasses
from pathlib import Path

import pytest
import torch

from search_spaces import SPACES
from tests.worker import worked
from tuner.core.errors import InvalidInput
from tuner.core.serialization import with_settings
from tuner.core.store import WEIGHTS, Store
from tuner.core.trial_spec import OptimizerSpec, TrialSpec
from tuner.train import train
from tuner.train.final_weights import load_weights, score_on_test
from tuner.train.train_state import TrainState
from tuner.train.trainer import Trainer
from tuner.workloads.data import load_data
from tuner.workloads.splits import SealedSplit

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
AVERAGED = with_settings(OptimizerSpec(), {"average.decay": 0.9})


def spec_of(optimizer: OptimizerSpec = OptimizerSpec(), **changes: object) -> TrialSpec:  # noqa: B008
    return TrialSpec(optimizer=optimizer, **{"epochs": 2, "seed": 5, **changes})  # type: ignore[arg-type]


def accuracy_of(spec: TrialSpec, store: Store, split: str) -> tuple[float, float]:
    """As :func:`score_on_test`, for any split, by a plain loop."""
    data = load_data(spec.workload, CPU, sealed=False)
    network = TrainState(dataclasses.replace(spec, optimizer=OptimizerSpec()), data, CPU, num_steps=1)
    network.model.load_state_dict(load_weights(store, spec)["model"])
    network.model.eval()
    losses, correct = [], []
    with torch.inference_mode():
        for images, labels in data.evaluation_batches(split):
            logits = network.model(images)
            losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
            correct.append(logits.argmax(1) == labels)
    return float(torch.cat(losses).double().mean()), float(torch.cat(correct).double().mean())


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(OptimizerSpec(), id="sgd"),
        pytest.param(AVERAGED, id="averaged"),
        pytest.param(with_settings(OptimizerSpec(), SPACES["backward"].default_settings()), id="backward"),
    ],
)
def test_the_weights_are_those_that_were_evaluated_last(optimizer: OptimizerSpec, tmp_path: Path) -> None:
    spec, store = spec_of(optimizer), Store(tmp_path)
    *_, last = train(spec, store=store, keep_weights=True)
    loss, accuracy = accuracy_of(spec, store, "validation")
    assert accuracy == last.validation_accuracy
    assert loss == pytest.approx(last.validation_loss, rel=1e-5)
    score = score_on_test(spec, store, CPU)
    loss, accuracy = accuracy_of(spec, store, "test")
    assert score.loss == pytest.approx(loss, rel=1e-5) and score.accuracy == accuracy
    assert score.data == load_data(spec.workload, CPU).digest


def test_they_are_written_before_the_last_epoch_is_told_and_not_before(tmp_path: Path) -> None:
    path, training = tmp_path / "weights.pt", train(spec_of(), store=Store(tmp_path), keep_weights=True)
    assert [(metrics.epoch, path.exists()) for metrics in training] == [(1, False), (2, True)]


def test_an_interrupted_training_leaves_the_same_weights(tmp_path: Path) -> None:
    spec = spec_of(AVERAGED)
    list(train(spec, store=Store(tmp_path / "whole"), keep_weights=True))
    cut = Store(tmp_path / "cut")
    training = train(spec, store=cut, keep_weights=True)
    next(training)
    training.close()  # type: ignore[attr-defined]
    list(train(spec, store=cut, keep_weights=True))
    whole, resumed = (load_weights(store, spec)["model"] for store in (Store(tmp_path / "whole"), cut))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_divergence_leaves_none(tmp_path: Path) -> None:
    spec = spec_of(with_settings(OptimizerSpec(), {"lr.peak": 1e6}))
    assert [metrics.diverged for metrics in train(spec, store=Store(tmp_path), keep_weights=True)] == [True]
    assert not list(tmp_path.glob("weights*"))


def test_weights_of_another_training_or_other_data_are_refused(tmp_path: Path) -> None:
    store, path, spec = Store(tmp_path), tmp_path / "weights.pt", spec_of(epochs=1)
    list(train(spec, store=store, keep_weights=True))
    with pytest.raises(InvalidInput, match="has the weights of another training"):
        score_on_test(dataclasses.replace(spec, seed=6), store)
    with pytest.raises(InvalidInput, match="is not there"):
        score_on_test(spec, store / "no")
    content = torch.load(path, weights_only=True)
    torch.save({**content, "data": "other"}, path)
    with pytest.raises(InvalidInput, match="the data is not what these weights were trained on"):
        score_on_test(spec, store)


def test_a_training_that_asked_for_the_test_split_would_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = TrainState.evaluate
    monkeypatch.setattr(TrainState, "evaluate", lambda self, split, newest=(): evaluate(self, "test", newest))
    with pytest.raises(SealedSplit):
        next(train(spec_of()))


def test_no_training_has_data_that_is_not_sealed() -> None:
    assert Trainer(spec_of(), CPU).data.sealed
    for optimizer in (OptimizerSpec(), AVERAGED):
        with pytest.raises(SealedSplit):
            Trainer(spec_of(optimizer), CPU).network.evaluate("test")


def test_one_place_unseals_the_test_split() -> None:
    """Whoever opens it elsewhere has to come here first."""
    opened = []
    for path in sorted(Path(__file__).parents[2].glob("tuner/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.keyword) and node.arg == "sealed"
            if named or (isinstance(node, ast.Attribute) and node.attr == "sealed" and isinstance(node.ctx, ast.Store)):
                opened.append(path.name)
    # load_data itself hands it to the data, whose own default is True.
    assert sorted(opened) == ["data.py", "diagonal.py", "final_weights.py", "images.py", "samples.py", "streaming.py"]


def test_a_worker_tests_the_weights_that_a_confirmed_run_left(tmp_path: Path) -> None:
    spec = spec_of(epochs=1)
    (trained,) = worked(tmp_path, spec, "confirm")
    assert trained["done"] and (tmp_path / "a" / WEIGHTS).exists()
    (first,) = worked(tmp_path, spec, "test")
    assert first["test"]["data"] == load_data(spec.workload, CPU).digest and first["done"]
    assert worked(tmp_path, spec, "test") == [first]


@pytest.mark.parametrize("phase", ["race", "refine"])
def test_a_trial_keeps_no_weights(phase: str, tmp_path: Path) -> None:
    worked(tmp_path, spec_of(epochs=1), phase)
    assert not (tmp_path / "a" / WEIGHTS).exists()
