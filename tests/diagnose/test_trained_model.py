"""Files of weights in all their forms."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.trained_digits import CPU, SPEC
from tuner.core.errors import InvalidInput
from tuner.core.serialization import to_json, with_settings
from tuner.core.store import Store
from tuner.diagnose.trained_model import load_trained_model
from tuner.train import train
from tuner.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("decay", [0.0, 0.9], ids=["last weights", "averaged weights"])
def test_a_checkpoint_and_final_weights_are_what_was_evaluated(decay: float, tmp_path: Path) -> None:
    optimizer = with_settings(SPEC.optimizer, {"average.decay": decay})
    spec = dataclasses.replace(SPEC, optimizer=optimizer, epochs=2)
    training = Trainer(spec, CPU)
    for _ in range(2):
        training.train_to_evaluation()
    list(train(spec, store=Store(tmp_path), checkpoint_seconds=0, keep_weights=True))
    (tmp_path / "spec.json").write_text(to_json(spec))
    expected = training.network.evaluated_state()
    weights, checkpoint = (load_trained_model(str(tmp_path / name)) for name in ("weights.pt", "checkpoint-000002.pt"))
    assert weights.data == training.data.digest and checkpoint.data is None
    assert weights.state.keys() == checkpoint.state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(weights.state[name], tensor) and torch.equal(checkpoint.state[name], tensor), name


def test_the_spec_may_be_elsewhere_and_has_to_be_that_of_the_weights(tmp_path: Path) -> None:
    list(train(SPEC, store=Store(tmp_path), keep_weights=True))
    path = tmp_path / "weights.pt"
    with pytest.raises(InvalidInput, match="name the training that it comes from with --spec"):
        load_trained_model(str(path))
    (tmp_path / "mine.json").write_text(to_json(SPEC))
    assert load_trained_model(str(path), spec_file=tmp_path / "mine.json").spec == SPEC
    (tmp_path / "other.json").write_text(to_json(dataclasses.replace(SPEC, seed=9)))
    with pytest.raises(InvalidInput, match="has the weights of another training"):
        load_trained_model(str(path), spec_file=tmp_path / "other.json")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"format": 1}, "text"])
def test_files_of_something_else_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    (tmp_path / "spec.json").write_text(to_json(SPEC))
    with pytest.raises(InvalidInput, match=r"x\.pt"):
        load_trained_model(str(tmp_path / "x.pt"))


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"epochs": 0}', '{"seeds": 3}'])
def test_a_spec_that_cannot_be_read_is_refused(text: str, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "x.pt")
    (tmp_path / "spec.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"spec\.json"):
        load_trained_model(str(tmp_path / "x.pt"))
