"""Two processes that train one network: the numbers of one, the same bits each time."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces import SPACES
from tests.processes import CPU, Processes
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics, is_finished
from tuner.core.serialization import with_settings
from tuner.core.store import Store
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.optimizers import RandomScaling
from tuner.train import train
from tuner.train.data_parallel import SINGLE_PROCESS, Replicas
from tuner.train.final_weights import load_weights
from tuner.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = ("seconds", "evaluation_seconds", "compile_seconds", "curvature_seconds", "images_per_second", "finished_at")
CURVATURE = ("curvature_top", "curvature_mean", "damping_ratio", "critical_lr", "lr_over_critical")
PARTLY_USED = WorkloadSpec(model="tests.train.test_data_parallel:partly_used")
DIAGONAL = WorkloadSpec(data="diagonal", model="diagonal")
TOKENS = WorkloadSpec(data="tests.own_workloads:tokens", model="tests.own_workloads:Recurrent", batch_size=16)
MARGINS = WorkloadSpec(data="tests.own_workloads:margins", model="tests.own_workloads:linear", batch_size=16)


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(2) as processes:
        yield processes


def small(variant: str = "sgdm", **changes: Any) -> TrialSpec:
    optimizer = with_settings(OptimizerSpec(), SPACES[variant].default_settings())
    return dataclasses.replace(TrialSpec(optimizer=optimizer, epochs=2, precision="float64"), **changes)


def numbers(history: list[EpochMetrics]) -> list[dict[str, Any]]:
    return [{k: v for k, v in dataclasses.asdict(metrics).items() if k not in TIMES} for metrics in history]


def first_step(replicas: Replicas, spec: TrialSpec) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, score, gradients and buffers of the first step."""
    training = Trainer(spec, CPU, replicas)
    ((number, batch, (images, labels)),) = training._load([0])
    assert len(images) == spec.workload.batch_size // replicas.world_size
    loss, score, _ = training.network.step(number, batch, images, labels, training._hyperparameters(number, None))
    model = training.network.model
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss, score, {**gradients, **dict(model.named_buffers())}


@pytest.mark.parametrize("workload", [WorkloadSpec(), PARTLY_USED, DIAGONAL, TOKENS, MARGINS])
def test_gradients_and_statistics_of_a_step_are_those_of_the_whole_batch(
    two: Processes, workload: WorkloadSpec
) -> None:
    spec = small(workload=workload)
    loss, score, expected = first_step(SINGLE_PROCESS, spec)
    for of_rank in two(first_step, spec):
        torch.testing.assert_close(of_rank[0], loss.double(), rtol=1e-12, atol=0)
        assert float(of_rank[1]) == pytest.approx(float(score), rel=1e-12)
        assert of_rank[2].keys() == expected.keys()
        for name, tensor in of_rank[2].items():
            tensor, whole = tensor.double(), expected[name].double()
            assert (tensor - whole).norm() <= 1e-12 * whole.norm(), name


class PartlyUsed(nn.Module):
    def __init__(self, num_pixels: int, num_classes: int) -> None:
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.hidden = nn.Linear(num_pixels, 20, bias=False)
        self.norm = nn.BatchNorm1d(20, affine=False)
        self.output = nn.Linear(20, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.output(self.norm(self.hidden(images.flatten(1))).relu())
        return logits


def partly_used(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    return PartlyUsed(channels * image_size**2, num_classes)


def whole_training(replicas: Replicas, spec: TrialSpec) -> tuple[list[EpochMetrics], dict[str, Tensor], list[float]]:
    """History, final weights and random scales."""
    training = Trainer(spec, CPU, replicas)
    scales: list[float] = []
    optimizer = training.network.optimizer
    if isinstance(optimizer, RandomScaling):
        optimizer.register_step_post_hook(lambda *_: scales.append(optimizer.last_scale))
    while not is_finished(spec, training.history):
        training.train_to_evaluation()
    return training.history, training.network.evaluated_state(), scales


def assert_close(history: list[EpochMetrics], expected: list[EpochMetrics], tolerance: float) -> None:
    for ours, theirs in zip(numbers(history), numbers(expected), strict=True):
        assert ours == {k: v and pytest.approx(v, rel=tolerance) for k, v in theirs.items()}


AVERAGED = with_settings(
    OptimizerSpec(), {**SPACES["random-scaling-gamma"].default_settings(), "rule": "lpsgd", "average.decay": 0.9}
)
VARIED: dict[str, TrialSpec] = {
    "sgdm": small("sgdm"),
    "lpsgdm": small("lpsgdm"),
    "adamw": small("adamw"),
    "critical": small("critical"),
    "backward": small("backward", epochs=3),
    "averaged": small(optimizer=AVERAGED),
}


@pytest.mark.parametrize("name", VARIED)
def test_two_workers_train_as_one_does(two: Processes, name: str) -> None:
    """As far as rounding goes: 32 steps make 1e-16 to 3e-14, and a thousand times that is allowed."""
    spec = VARIED[name]
    history, weights, scales = whole_training(SINGLE_PROCESS, spec)
    assert bool(scales) == (name == "averaged")
    first, second = two(whole_training, spec)
    assert_close(first[0], history, 3e-11)
    for _, its_weights, its_scales in (first, second):
        assert its_scales == scales, "one draw for all"
        for key, tensor in weights.items():
            assert (its_weights[key] - tensor).double().norm() <= 3e-11 * tensor.double().norm(), key
    assert all(torch.equal(first[1][key], second[1][key]) for key in weights), "the same bits on both"
    assert numbers(first[0]) == numbers(second[0])


def kept(replicas: Replicas, spec: TrialSpec, places: list[Path], num_epochs: int | None = None) -> list[EpochMetrics]:
    """The history of a training with a checkpoint after every epoch, in a place of each rank's own, or of its first
    epochs."""
    store = Store(places[replicas.rank])
    epochs = train(spec, store=store, checkpoint_seconds=0, keep_weights=True, device=CPU, replicas=replicas)
    return list(itertools.islice(epochs, num_epochs))


EVERYTHING = with_settings(OptimizerSpec(), {**SPACES["composed"].default_settings(), "average.decay": 0.9})


@pytest.mark.extensive
def test_interrupted_and_continued_is_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    """Three workers, since a sum of two is the same in any order."""
    workload = WorkloadSpec(batch_size=48)
    spec = small(optimizer=EVERYTHING, epochs=3, precision="float32", workload=workload)
    with Processes(3) as three:
        whole, *_ = three(kept, spec, [tmp_path / "whole", tmp_path / "none", tmp_path / "none"])
        for num_epochs in range(1, len(whole) + 1):
            for history in three(kept, spec, [tmp_path / "first", tmp_path / "none", tmp_path / "none"], num_epochs):
                assert numbers(history) == numbers(whole)[:num_epochs]
    assert not any(tmp_path.glob("none/*")), "rank 0 alone writes"
    weights, expected = (load_weights(Store(tmp_path / name), spec)["model"] for name in ("first", "whole"))
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_what_one_worker_began_two_go_on_with_and_the_other_way_round(two: Processes, tmp_path: Path) -> None:
    spec = small(optimizer=EVERYTHING, epochs=3)
    places = [tmp_path / "mixed", tmp_path / "none"]
    alone = kept(SINGLE_PROCESS, spec, [tmp_path / "alone"])
    kept(SINGLE_PROCESS, spec, places, 1)
    two(kept, spec, places, 2)
    assert_close(kept(SINGLE_PROCESS, spec, places), alone, 1e-10)
    for_one = Trainer(spec, CPU).network.model
    for_one.load_state_dict(load_weights(Store(tmp_path / "mixed"), spec)["model"])


def test_a_divergence_in_one_part_ends_all(two: Processes) -> None:
    ended = two(part_not_finite, small())
    assert [history[0].diverged for history in ended] == [True, True]
    assert ended[0][0].gradient_evaluations == ended[1][0].gradient_evaluations == 1


def part_not_finite(replicas: Replicas, spec: TrialSpec) -> list[EpochMetrics]:
    training = Trainer(spec, CPU, replicas)
    if replicas.rank == 1:
        images = next(iter(training.network.model.children()))
        images.register_forward_hook(lambda module, inputs, output: output * math.nan)
    training.train_to_evaluation()
    return training.history


def test_curvature_is_that_of_one_process_and_rank_0_alone_computes_it(two: Processes) -> None:
    spec = small(workload=PARTLY_USED, curvature=1, predict_critical_lr=True)
    expected, *_ = whole_training(SINGLE_PROCESS, spec)
    (first, *_), (second, *_) = two(whole_training, spec)
    assert first[0].curvature_top is not None and first[0].critical_lr is not None
    assert_close(first, expected, 1e-9)
    assert numbers(second) == numbers([dataclasses.replace(m, **dict.fromkeys(CURVATURE)) for m in first])


@pytest.mark.extensive
def test_compiled_agrees_with_eager(two: Processes) -> None:
    eager, _ = two(whole_training, small(workload=PARTLY_USED, epochs=1))
    compiled, _ = two(compiled_training, small(workload=PARTLY_USED, epochs=1, compile=True))
    assert_close(compiled, eager[0], 1e-9)


def compiled_training(replicas: Replicas, spec: TrialSpec) -> list[EpochMetrics]:
    with warnings.catch_warnings(action="ignore"):  # the compiler's own
        return whole_training(replicas, spec)[0]


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(InvalidInput, match="batch_size = 63: must be a multiple of 2 replicas"):
        Trainer(small(workload=WorkloadSpec(batch_size=63)), CPU, Replicas(0, 2))


def test_masks_of_dropout_differ(two: Processes) -> None:
    first, second = two(drawn)
    assert not torch.equal(first, second)
    assert torch.equal(first, drawn(SINGLE_PROCESS))


def drawn(replicas: Replicas) -> Tensor:
    Trainer(small(), CPU, replicas).network._seed(5)
    return torch.rand(3)


@pytest.mark.parametrize("num", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_parts_are_all_and_nearly_alike(num: int, size: int) -> None:
    parts = [range(num)[Replicas(rank, size).part(num)] for rank in range(size)]
    assert [place for part in parts for place in part] == list(range(num))
    lengths = {len(part) for part in parts}
    assert max(lengths) - min(lengths) <= (num % size > 0)


@pytest.mark.extensive
def test_a_rank_that_dies_ends_the_other() -> None:
    with Processes(2) as processes:
        processes.begin(dies_in_its_second_epoch, small(epochs=50))
        with pytest.raises(EOFError):
            processes.answer(1)
        with pytest.raises(RuntimeError, match=r"(?i)closed|reset|gloo"):
            processes.answer(0)


def dies_in_its_second_epoch(replicas: Replicas, spec: TrialSpec) -> None:
    for metrics in train(spec, device=CPU, replicas=replicas):
        if replicas.rank == 1 and metrics.epoch == 2:
            os._exit(1)
