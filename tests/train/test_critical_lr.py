"""The predicted critical learning rate: the equation's where the Hessian is known, and in trainings it changes none."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search_spaces import SPACES
from tuner.core.metrics import EpochMetrics
from tuner.core.serialization import with_settings
from tuner.core.store import Store
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.optimizers import RandomScaling
from tuner.optimizers.rules import make_optimizer, set_hyperparameters
from tuner.theory import linearised_critical_lr, noise_factor
from tuner.train import critical_lr, train
from tuner.train.critical_lr import NUM_REMEMBERED, cached_prediction, is_covered, predict_critical_lr, spectrum
from tuner.train.curvature import Curvature, estimate_curvature
from tuner.train.train_state import TrainState
from tuner.train.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
KAPPA = torch.cat([torch.tensor([3.0]), torch.ones(199)]).double()
NOT_NUMBERS = {
    "seconds", "evaluation_seconds", "compile_seconds", "loading_seconds", "curvature_seconds", "images_per_second",
    "finished_at",
}  # fmt: skip
PREDICTION = {"critical_lr", "lr_over_critical"}


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(critical_lr, "_REMEMBERED", type(critical_lr._REMEMBERED)())


def optimizer_of(**settings: Any) -> OptimizerSpec:
    names = {name.replace("__", "."): value for name, value in settings.items()}
    return with_settings(OptimizerSpec(), {"lr.schedule": "constant", "momentum.value": 0.0, **names})


def known_curvature() -> Curvature:
    """Of the quadratic loss whose Hessian has the eigenvalues KAPPA."""
    weights = torch.ones(len(KAPPA), dtype=torch.float64, requires_grad=True)
    estimate = estimate_curvature(lambda: (KAPPA * weights**2).sum() / 2, [weights], seed=0)
    assert estimate is not None
    return estimate


def critical(optimizer: OptimizerSpec, batch: int, num_steps: int = 100) -> float:
    found = predict_critical_lr(optimizer, known_curvature(), len(KAPPA), batch, num_steps)
    assert found is not None
    return found


@pytest.mark.parametrize("batch", [1, 8, 512])
@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0.0, False), (0.7, False), (0.95, False), (0.05, True), (0.7, True), (0.95, True)]
)
def test_at_the_predicted_rate_the_variance_of_the_weights_stands_still(
    batch: int, momentum: float, nesterov: bool
) -> None:
    """Each coordinate's second moments of (x, v), coupled by gradient noise of variance kappa sum kappa E x^2/B."""
    spec = optimizer_of(momentum__value=momentum, momentum__nesterov=nesterov)
    radii = []
    for lr in np.array([0.99, 1.0, 1.01]) * critical(spec, batch):
        maps, noises = [], []
        for kappa in (3.0, 1.0):
            first = 1 + momentum if nesterov else 1.0  # x <- x - lr (first g + second v), v <- momentum v + g
            second = momentum**2 if nesterov else momentum
            step = np.array([[1 - lr * first * kappa, -lr * second], [kappa, momentum]])
            noise = np.array([-lr * first, 1.0])
            maps.append(np.kron(step, step))
            noises.append(np.kron(noise, noise) * kappa / batch)
        counts, ks = (1.0, 199.0), (3.0, 1.0)
        whole = np.zeros((8, 8))
        for i in range(2):
            whole[4 * i : 4 * i + 4, 4 * i : 4 * i + 4] += maps[i]
            for j in range(2):
                whole[4 * i : 4 * i + 4, 4 * j] += noises[i] * counts[j] * ks[j]
        radii.append(max(abs(np.linalg.eigvals(whole))))
    assert radii[0] < 1 < radii[2]
    assert radii[1] == pytest.approx(1, abs=1e-6)


def losses(spec: OptimizerSpec, lr: float, batch: int, num_steps: int) -> tuple[float, float]:
    """Least squares on Gaussian inputs of covariance KAPPA, without noise: the risk before and after SGD."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.ones(len(KAPPA), dtype=torch.float64, requires_grad=True)
    spec = dataclasses.replace(spec, lr=dataclasses.replace(spec.lr, peak=lr))
    optimizer = make_optimizer([weights], spec, num_steps=num_steps)
    for number in range(num_steps):
        inputs = torch.randn(batch, len(KAPPA), dtype=torch.float64, generator=generator) * KAPPA.sqrt()
        set_hyperparameters(optimizer, lr=lr, momentum=spec.momentum.value, p=2.0)
        if isinstance(optimizer, RandomScaling):
            optimizer.seek(number, number)
        optimizer.zero_grad()
        ((inputs @ weights) ** 2).mean().div(2).backward()
        optimizer.step()
        if not float(weights.detach().abs().max()) < 1e30:
            return float(KAPPA.sum()), math.inf
    return float(KAPPA.sum()), float((KAPPA * weights.detach() ** 2).sum())


@pytest.mark.parametrize("batch", [4, 64])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum__value": 0.9},
        {"momentum__value": 0.9, "momentum__nesterov": True},
        {"scaling__law": "exponential"},
        {"scaling__law": "exponential", "momentum__value": 0.8},
        {"rule": "lpsgd"},
        {"rule": "lpsgd", "momentum__value": 0.9},
    ],
    ids=str,
)
def test_sgd_converges_below_the_predicted_rate_and_diverges_above(settings: dict[str, Any], batch: int) -> None:
    """A random factor of whole steps has rare long steps: the mean square is a stricter judge than one path."""
    spec = optimizer_of(**settings)
    rate = critical(spec, batch)
    below, above = (0.7, 1.4) if spec.scaling.law == "none" else (0.5, 4.0)
    start, end = losses(spec, below * rate, batch, 3000)
    assert end < 0.01 * start
    start, end = losses(spec, above * rate, batch, 3000)
    assert end > 100 * start


def test_the_rate_is_the_equations_for_the_whole_spectrum() -> None:
    scaled = optimizer_of(scaling__law="gamma", scaling__shape=4.0, momentum__value=0.8)
    for spec, factor in (
        (optimizer_of(momentum__value=0.8), 1.0),
        (scaled, noise_factor(law="gamma", shape=4.0, momentum=0.8)),
    ):
        expected = linearised_critical_lr(KAPPA.numpy(), batch=2, momentum=0.8, factor=factor)
        assert critical(spec, 2) == pytest.approx(expected, rel=1e-6)


def test_the_prediction_is_of_the_peak_at_the_step_that_is_longest() -> None:
    one_cycle = optimizer_of(lr__schedule="cosine", lr__warmup=0.5, lr__peak=0.3, momentum__value=0.9)
    assert critical(one_cycle, 8) == pytest.approx(critical(optimizer_of(momentum__value=0.9), 8))
    cycled = dataclasses.replace(one_cycle, momentum=dataclasses.replace(one_cycle.momentum, schedule="cycle", low=0.5))
    assert critical(cycled, 8) > critical(one_cycle, 8)
    matched = dataclasses.replace(one_cycle, momentum=dataclasses.replace(one_cycle.momentum, schedule="matched"))
    (lr, *_) = [
        m.lr
        for m in train(
            TrialSpec(optimizer=dataclasses.replace(matched, lr=optimizer_of(lr__peak=0.3).lr), epochs=1), device=CPU
        )
    ]
    assert critical(matched, 8) == pytest.approx(critical(one_cycle, 8) * 0.3 / lr)


def test_the_random_factor_counts_only_while_it_is_active() -> None:
    at_end = {"lr__schedule": "cosine", "lr__warmup": 0.9, "scaling__law": "exponential"}
    plain, always = critical(optimizer_of(), 8), critical(optimizer_of(**at_end), 8)
    assert critical(optimizer_of(**at_end, scaling__active=0.5), 8) == plain > always


@pytest.mark.parametrize("mean", [-1.0, 0.0, 6.0 / 10])
def test_where_the_rest_of_the_trace_is_not_above_0_only_the_largest_eigenvalue_stands(mean: float) -> None:
    curvature = Curvature(top=6.0, residual=0.0, mean=mean, num_products=1)
    assert spectrum(curvature, 10) == ([6.0], [1.0])
    found = predict_critical_lr(optimizer_of(), curvature, 10, 10**9, 100)
    assert found == pytest.approx(2 / 6)
    assert spectrum(dataclasses.replace(curvature, mean=1.0), 5) == ([6.0], [1.0])
    assert spectrum(dataclasses.replace(curvature, mean=1.5), 5) == ([6.0, 0.375], [1.0, 4.0])


@pytest.mark.parametrize(
    ("settings", "covered"),
    [
        ({"rule": "adamw"}, False),
        ({"rule": "lion"}, False),
        ({"rule": "lpsgd", "norm__p_max": 6.0}, False),
        ({"rule": "lpsgd", "norm__scale": "rms"}, True),
        ({"order__composition": "backward"}, True),
    ],
    ids=str,
)
def test_only_steps_that_the_equation_is_of_are_covered(settings: dict[str, Any], covered: bool) -> None:
    spec = optimizer_of(**settings)
    assert is_covered(spec) == covered
    assert (predict_critical_lr(spec, known_curvature(), len(KAPPA), 8, 100) is not None) == covered
    asked: list[float] = []

    def estimate(tolerance: float) -> Curvature:
        asked.append(tolerance)
        return known_curvature()

    trial = TrialSpec(optimizer=spec, predict_critical_lr=True)
    cached_prediction(trial, estimate, 200, 100, "here")
    assert bool(asked) == covered, "no estimate is made for nothing"


def test_no_rate_is_critical_where_no_direction_bends_upwards() -> None:
    assert (
        predict_critical_lr(optimizer_of(), Curvature(top=-1.0, residual=0.0, mean=-2.0, num_products=1), 9, 8, 9)
        is None
    )


def test_one_estimate_serves_all_optimizers_of_the_same_first_weights() -> None:
    asked: list[int] = []

    def estimate(seed: int, **settings: Any) -> float | None:
        def made(tolerance: float) -> Curvature:
            asked.append(seed)
            return dataclasses.replace(known_curvature(), top=3.0 + seed)

        spec = TrialSpec(optimizer=optimizer_of(**settings), seed=seed, predict_critical_lr=True)
        return cached_prediction(spec, made, 200, 100, CPU)

    first, other = estimate(0), estimate(0, momentum__value=0.9)
    assert first != other and estimate(1) != first and asked == [0, 1]
    for seed in range(2, NUM_REMEMBERED + 1):
        estimate(seed)
    assert estimate(1) != first and len(asked) == NUM_REMEMBERED + 1
    assert estimate(0) == first and asked[-1] == 0, "the oldest is forgotten"


def small(variant: str = "sgdm", **changes: Any) -> TrialSpec:
    optimizer = with_settings(OptimizerSpec(), SPACES[variant].default_settings())
    return dataclasses.replace(TrialSpec(optimizer=optimizer, epochs=3, predict_critical_lr=True), **changes)


def numbers(history: list[EpochMetrics], without: set[str] = frozenset()) -> list[dict[str, Any]]:  # type: ignore[assignment]
    return [{k: v for k, v in dataclasses.asdict(m).items() if k not in NOT_NUMBERS | without} for m in history]


@pytest.mark.parametrize("changes", [{}, {"curvature": 2}, {"precision": "bfloat16"}], ids=str)
def test_a_training_has_the_same_bits_with_a_prediction(changes: dict[str, Any]) -> None:
    asked = list(train(small(**changes), device=CPU))
    plain = list(train(small(**changes, predict_critical_lr=False), device=CPU))
    assert numbers(asked, PREDICTION) == numbers(plain, PREDICTION)
    assert all(m.critical_lr is None and m.lr_over_critical is None for m in plain)
    (rate,) = {m.critical_lr for m in asked}
    assert rate is not None and {m.lr_over_critical for m in asked} == {0.1 / rate}
    assert asked[0].curvature_seconds > 0 and (plain[0].curvature_seconds > 0) == ("curvature" in changes)
    assert [m.gradient_evaluations for m in asked] == [16, 32, 48]


def test_the_prediction_is_that_of_the_networks_own_curvature() -> None:
    training = Trainer(small("critical"), CPU)
    curvature = training.network.curvature(critical_lr.TOLERANCE)
    assert curvature is not None
    metrics = training.train_to_evaluation()
    parameters = list(training.network.model.parameters())
    expected = predict_critical_lr(training.spec.optimizer, curvature, sum(p.numel() for p in parameters), 64, 48)
    assert metrics.critical_lr == expected


def interrupted(spec: TrialSpec, store: Store, num_epochs: int, seconds: float) -> Iterator[EpochMetrics]:
    return itertools.islice(train(spec, store=store, checkpoint_seconds=seconds, device=CPU), num_epochs)


@pytest.mark.parametrize("seconds", [0.0, 1e9], ids=["after its checkpoints", "before its first one"])
def test_a_training_that_is_resumed_has_the_same_prediction(seconds: float, tmp_path: Path) -> None:
    whole = list(train(small(), device=CPU))
    for num_epochs in (1, 2, 3):
        critical_lr._REMEMBERED.clear()  # as in another process
        history = list(interrupted(small(), Store(tmp_path), num_epochs, seconds))
        assert numbers(history) == numbers(whole)[:num_epochs]


def test_a_training_that_diverges_at_once_has_its_prediction() -> None:
    optimizer = with_settings(small().optimizer, {"lr.peak": 1e4})
    (metrics,) = train(small(optimizer=optimizer), device=CPU)
    assert metrics.diverged and metrics.critical_lr is not None and metrics.curvature_seconds > 0
    assert metrics.lr_over_critical is not None and metrics.lr_over_critical > 1000


class Kinked(nn.Module):
    """Has a first derivative and, at its first weights, no finite second one."""

    def __init__(self, num_pixels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_pixels, num_classes)
        self.shift = nn.Parameter(torch.zeros(num_classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1)) + self.shift.abs() ** 1.5
        return logits


def kinked(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    return Kinked(channels * image_size**2, num_classes)


def test_where_the_hessian_is_not_finite_nothing_is_predicted_and_the_training_goes_on() -> None:
    history = list(train(small(workload=WorkloadSpec(model="tests.train.test_critical_lr:kinked")), device=CPU))
    assert len(history) == 3 and not history[-1].diverged
    assert all(m.critical_lr is None and m.curvature_seconds > 0 for m in history)


def test_what_no_prediction_covers_costs_no_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainState, "curvature", lambda *_: pytest.fail("an estimate was made"))
    metrics = next(train(small("adamw"), device=CPU))
    assert metrics.critical_lr is None and metrics.lr_over_critical is None
