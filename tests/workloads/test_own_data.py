"""A user's own data: what is taken and what is refused, and what a training is promised of it."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from tests.own_workloads import SIZES, Margin, drawn, images, line, margins, tokens
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics, is_finished
from tuner.core.store import Store
from tuner.core.trial_spec import TrialSpec, WorkloadSpec
from tuner.order import Batch, shuffled_batches
from tuner.train import train
from tuner.train.final_weights import score_on_test
from tuner.train.trainer import Trainer
from tuner.workloads import map_style, tensors
from tuner.workloads.data import load_data
from tuner.workloads.own_data import OwnData
from tuner.workloads.samples import OwnSamples
from tuner.workloads.splits import SealedSplit

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
PLENTY = 2**40
"""Free bytes."""
X, Y = np.zeros((6, 2), dtype=np.float32), np.arange(6) % 3
SPLITS = ("train", "validation", "test")


def given(task: Any = "classification", **changes: Any) -> OwnData:
    return tensors(**{"train": (X, Y), "validation": (X, Y), "test": (X, Y), "task": task, **changes})


def named(name: str, model: str = "tests.own_workloads:linear") -> WorkloadSpec:
    return WorkloadSpec(data=f"tests.own_workloads:{name}", model=model, batch_size=16)


def samples(own: OwnData, batch_size: int = 16) -> OwnSamples:
    return OwnSamples(own, splits_note="", batch_size=batch_size, device=CPU, free=PLENTY)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.arange(6.0), torch.float64),
        (np.arange(6, dtype=">f4"), torch.float32),
        (np.arange(6, dtype=np.uint16), torch.int32),
        (np.arange(6, dtype=np.uint8), torch.uint8),
        (np.arange(6)[::-1], torch.int64),
        ([0, 1, 2, 3, 4, 5], torch.int64),
        (torch.arange(6, dtype=torch.bfloat16), torch.bfloat16),
        (torch.ones(6, requires_grad=True), torch.float32),
    ],
)
def test_arrays_and_tensors_keep_their_values(values: Any, dtype: torch.dtype) -> None:
    own = given(train=(values, Y), validation=(values, Y), test=(values, Y))
    inputs, labels = own.splits["train"]
    assert inputs.dtype == dtype and labels.dtype == torch.int64 and not inputs.requires_grad
    plain = values.detach().float().numpy() if isinstance(values, Tensor) else np.asarray(values)
    assert np.array_equal(inputs.double().numpy(), plain.astype(np.float64))
    assert (own.num_classes, own.num_outputs, own.input_shape) == (3, 3, ())


def test_a_mapped_file_is_not_copied(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    with warnings.catch_warnings(action="error"):
        inputs, _ = given(train=(mapped, Y)).splits["train"]
    assert np.shares_memory(inputs.numpy(), mapped)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"train": X}, "train is a ndarray: must be a pair"),
        ({"train": (X, Y[:5])}, "train has 6 inputs and 5 labels"),
        ({"test": (X[:0], Y[:0])}, "test is empty"),
        ({"train": (np.array([None] * 6), Y)}, "inputs of train have the type object: must be numbers"),
        ({"train": (np.array(list("abcdef")), Y)}, "inputs of train have the type <U1"),
        ({"train": (X.astype(complex), Y)}, "inputs of train have the type complex128"),
        ({"train": ([[1.0], [2.0, 3.0]], Y)}, "inputs of train: no array can be made of a list"),
        ({"train": (X, 3)}, "labels of train are one number"),
        ({"train": (X[:, :0], Y)}, r"inputs of train have the shape \(6, 0\)"),
        ({"test": (X * np.nan, Y)}, "inputs of test: sample 0 is not finite"),
        ({"test": (np.where(np.arange(6)[:, None] == 4, np.inf, X), Y)}, "inputs of test: sample 4 is not finite"),
        (
            {"validation": (X[:, :1], Y)},
            r"inputs of validation are float32 of shape \(1,\), and those of train are float32 of shape \(2,\)",
        ),
        ({"validation": (X.astype(int), Y)}, "inputs of validation are int64 of shape"),
        ({"test": (X, Y[:, None])}, r"labels of test are int64 of shape \(1,\), and those of train are int64 of shape"),
        ({name: (X, Y.astype(float)) for name in SPLITS}, "labels are float64 of shape"),
        ({"validation": (X, Y - 1)}, "the smallest label is -1"),
        ({name: (X, 0 * Y) for name in SPLITS}, "all labels are 0"),
        ({"task": "regression", "train": (X, 0 * Y + 3)}, "all labels of train are equal"),
        ({"task": "classifcation"}, "task is 'classifcation': must be 'classification', 'regression' or an object"),
        ({"task": nn.MSELoss()}, "task is a MSELoss without 'name'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_a_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        given(**changes)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["", 3, "a|b", "$x$", "[bold]", "x" * 31, " x", "a\nb"])
def test_a_score_has_a_name_that_can_be_shown(name: Any) -> None:
    task = Margin()
    task.name = name
    with pytest.raises(InvalidInput, match="must name its score"):
        given(task)


class Items:
    """A map-style dataset that counts what is read of it."""

    def __init__(self, *items: Any) -> None:
        self.items, self.read = items, list[int]()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.items[index]


def test_every_item_of_a_map_style_dataset_is_read_once_and_is_what_tensors_take() -> None:
    counted = Items(*zip(X, Y, strict=True))
    pairs = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    made = map_style(train=counted, validation=pairs, test=pairs, task="classification")
    assert counted.read == list(range(6)) and made.digest == given().digest


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (iter([]), "train is a list_iterator without a length"),
        (Items(), "train is empty"),
        (Items((X[0], 0, 1)), r"train\[0\] is a tuple: must be a pair"),
        (Items((X[0], 0), (X[0, :1], 1)), r"item 1 of train has float32 of shape \(1,\), and item 0 has float32 of"),
        (Items((X[0], 0), (X[0], np.nan)), "item 1 of train: sample 0 is not finite"),
        (Items((X[0], "cat")), "item 0 of train have the type <U3"),
    ],
)
def test_datasets_that_cannot_be_read_are_refused(dataset: Any, said: str) -> None:
    good = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    with pytest.raises(InvalidInput, match=said):
        map_style(train=dataset, validation=good, test=good, task="classification")


def test_a_dataset_larger_than_the_free_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.workloads.own_data.free_memory", lambda: 95)
    good = Items(*zip(X, Y, strict=True))
    with pytest.raises(InvalidInput, match="train needs 96 bytes of memory: 95 are free"):
        map_style(train=good, validation=good, test=good, task="classification")


def test_the_digest_changes_with_everything_that_counts() -> None:
    one = X.copy()
    one[5, 1] = 1e-30
    changed = [
        given(test=(one, Y)),
        given(test=(X, Y[::-1])),
        given(test=(X[:5], Y[:5])),
        given(train=(X[:5], Y[:5])),
        given(**{name: (X.astype(np.float64), Y) for name in SPLITS}),
        given(**{name: (X.reshape(6, 1, 2), Y) for name in SPLITS}),
        given("regression"),
        given(Margin()),
    ]
    assert len({own.digest for own in [given(), *changed]}) == 1 + len(changed)
    assert given().digest == given(train=(torch.from_numpy(X), Y.tolist())).digest


@pytest.mark.parametrize("make", [line, tokens, images, margins])
def test_parts_are_the_bits_of_the_whole_at_each_call(make: Callable[[], OwnData]) -> None:
    data = samples(make())
    data.sealed = False
    batches = shuffled_batches(SIZES[0], 16, seed=3, epoch=0)
    first = list(data.train_batches(batches))
    inputs, labels = make().splits["train"]
    assert torch.equal(first[0][0], inputs[batches[0].indices]) and torch.equal(first[0][1], labels[batches[0].indices])
    assert first[0][0].dtype == inputs.dtype
    again = list(data.train_batches([Batch(batch.indices, seed=0) for batch in reversed(batches)]))
    for (x, y), (x_again, y_again) in zip(first, reversed(again), strict=True):
        assert torch.equal(x, x_again) and torch.equal(y, y_again)
    for cuts in ((0, 8, 16), (0, 5, 6, 16)):
        parts = [next(data.train_batches(batches[:1], slice(*ends))) for ends in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat([x for x, _ in parts]), first[0][0])
    whole = [torch.cat(column) for column in zip(*data.evaluation_batches("test"), strict=True)]
    assert all(map(torch.equal, whole, make().splits["test"]))
    parts = [pair for ends in ((0, 7), (7, 7), (7, 20)) for pair in data.evaluation_batches("test", slice(*ends))]
    assert torch.equal(torch.cat([x for x, _ in parts]), whole[0])


def test_an_evaluation_is_in_chunks_of_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(own: OwnData, batch_size: int) -> list[int]:
        return [len(labels) for _, labels in samples(own, batch_size).evaluation_batches("validation")]

    assert sizes(line(), 1) == [30]
    monkeypatch.setattr("tuner.workloads.own_data.CHUNK_BYTES", 8 * 5 * 4)
    assert sizes(line(), 1) == [8, 8, 8, 6], "8 inputs have that many bytes"
    assert sizes(line(), 20) == [20, 10], "training shows that such a batch fits"
    monkeypatch.setattr("tuner.workloads.own_data.CHUNK_BYTES", 9 * 11 * 7 * 4)
    assert sizes(tokens(), 1) == [9, 9, 9, 3], "the outputs of 9 samples have that many bytes"


def test_a_model_that_works_in_place_does_not_change_the_data() -> None:
    data = samples(line())
    before = data.digest, [x.clone() for x, _ in data.evaluation_batches("validation")]
    for x, y in itertools.chain(data.evaluation_batches("validation"), data.train_batches([Batch(torch.arange(9), 0)])):
        x.zero_()
        y.zero_()
    assert torch.equal(torch.cat([x for x, _ in data.evaluation_batches("validation")]), torch.cat(before[1]))
    assert float(next(data.train_batches([Batch(torch.arange(9), 0)]))[0].abs().sum()) > 0


def test_the_test_split_is_sealed() -> None:
    with pytest.raises(SealedSplit):
        next(iter(load_data(named("line"), CPU).evaluation_batches("test")))
    assert next(iter(load_data(named("line"), CPU, sealed=False).evaluation_batches("test")))


def test_models_are_offered_what_the_data_has() -> None:
    assert samples(line()).model_arguments == {"num_outputs": 2, "input_shape": (5,)}
    assert samples(tokens()).model_arguments == {"num_classes": 7, "num_outputs": 7, "input_shape": (11,)}
    assert samples(margins()).model_arguments == {"num_outputs": 1, "input_shape": (5,)}
    of_images = {"num_classes": 2, "num_outputs": 2, "input_shape": (1, 8, 8), "channels": 1, "image_size": 8}
    assert samples(images()).model_arguments == of_images
    assert (samples(images()).chance, samples(line()).chance, samples(margins()).chance) == (0.5, 0, 0)
    # Labels that are classes for a task of one's own: guessing is worth what only that task knows.
    own = samples(given(Margin()))
    assert own.model_arguments["num_classes"] == 3 and own.chance == 0
    bytes_of_images = given(**{name: (np.zeros((6, 3, 8, 8), np.uint8), Y) for name in SPLITS})
    assert "image_size" not in samples(bytes_of_images).model_arguments


def numbers(history: list[EpochMetrics]) -> list[dict[str, Any]]:
    timed = ("seconds", "images_per_second", "finished_at")
    return [{k: v for k, v in dataclasses.asdict(m).items() if not k.endswith(timed)} for m in history]


@pytest.mark.parametrize(
    ("workload", "least"),
    [
        (named("line"), 0.9),
        (named("tokens", "tests.own_workloads:Recurrent"), 0.5),
        (named("margins"), 0.9),
        (named("images", model="resnet8"), 0.6),
    ],
    ids=lambda value: value.data.partition(":")[2] if isinstance(value, WorkloadSpec) else "",
)
def test_a_training_learns_goes_on_with_the_same_bits_and_is_tested(
    workload: WorkloadSpec, least: float, tmp_path: Path
) -> None:
    spec = TrialSpec(workload=workload, epochs=12)
    whole = Trainer(spec, CPU)
    while not is_finished(spec, whole.history):
        whole.train_to_evaluation()
    assert whole.history[-1].validation_accuracy > least and whole.history[-1].train_accuracy > least

    def kept() -> Any:
        return train(spec, store=Store(tmp_path), checkpoint_seconds=0, device=CPU, keep_weights=True)

    next(kept())
    torch.manual_seed(1)
    assert numbers(list(kept())) == numbers(whole.history)
    found = score_on_test(spec, Store(tmp_path), CPU)
    assert found.data == whole.data.digest and found.accuracy > least - 0.2


class Volume(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3)
        self.out = nn.Linear(2, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.conv(x).mean((2, 3, 4)))
        return logits


def volumes() -> OwnData:
    train, validation, test = ((x, (x.mean((1, 2, 3, 4)) > 0).long()) for x in drawn(1, 4, 4, 4))
    return tensors(train=train, validation=validation, test=test, task="classification")


def test_a_model_with_weights_of_five_dimensions_trains() -> None:
    here = "tests.workloads.test_own_data"
    workload = WorkloadSpec(data=f"{here}:volumes", model=f"{here}:Volume", batch_size=16)
    *_, last = train(TrialSpec(workload=workload, epochs=1), device=CPU)
    assert 0 < last.validation_accuracy < 1


def test_the_score_is_r_squared_about_the_mean_of_the_training_labels() -> None:
    training = Trainer(TrialSpec(workload=named("line"), epochs=9, precision="float64"), CPU)
    for _ in range(9):
        training.train_to_evaluation()
    loss, score = training.network.evaluate("validation")
    (x, y), (_, labels) = line().splits["validation"], line().splits["train"]
    with torch.no_grad():
        squares = (training.network.model(x.double()) - y).square()
    variance = (labels.double() - labels.double().mean(0)).square().mean()
    assert loss == pytest.approx(float(squares.mean()) / 2, rel=1e-12)
    assert score == pytest.approx(1 - float(squares.mean() / variance), rel=1e-12) and score > 0.5


def test_tensors_that_do_not_fit_on_the_device_stay_on_the_cpu() -> None:
    meta = torch.device("meta")  # a device that takes everything and computes nothing
    for free, home in ((PLENTY, "meta"), (100, "cpu")):
        data = OwnSamples(line(), splits_note="", batch_size=16, device=meta, free=free)
        assert {x.device.type for pair in data._splits.values() for x in pair} == {home}
        ((inputs, labels),) = data.train_batches([Batch(torch.arange(4), 0)])
        assert inputs.device.type == labels.device.type == "meta"
