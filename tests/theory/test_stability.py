"""Closed forms: limits, roots, and what a simulated linear model does on either side of the critical rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tuner.core.errors import InvalidInput
from tuner.core.optimizer_spec import Law
from tuner.optimizers.random_scaling import draw_scale
from tuner.theory import (
    Problem,
    convergence_rate,
    critical_lr,
    critical_lr_of,
    effective_lr,
    final_size,
    frozen_critical_lr,
    grid_problem,
    linearised_critical_lr,
    make_problem,
    noise_factor,
    plateau,
    standard_problem,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_critical_rate_of_the_standard_problem_is_four_thirds() -> None:
    problem = standard_problem()
    assert critical_lr_of(problem) == pytest.approx(4 / 3)
    assert critical_lr(problem.lam, problem.target) == pytest.approx(4 / 3)
    assert critical_lr(problem.lam, problem.target, nu=2) == pytest.approx(2 / 3)


def test_shares_weigh_types() -> None:
    uneven = make_problem([1.0, 2.0], [1.0, -3.0], share=[0.75, 0.25])
    repeated = [1.0, 1.0, 1.0, 2.0], [1.0, 1.0, 1.0, -3.0]
    assert critical_lr_of(uneven) == pytest.approx(critical_lr(*repeated))
    assert plateau(uneven, 1.0) == pytest.approx(plateau(make_problem(*repeated), 1.0))


def test_nothing_to_learn_has_no_critical_rate() -> None:
    assert critical_lr([1.0, 0.0], [0.0, 2.0]) == math.inf
    assert plateau(make_problem([1.0, 0.0], [0.0, 2.0]), 50.0) == 0


@pytest.mark.parametrize("nu", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("ratio", [0.3, 0.99, 1.01, 1.2, 3.0, 100.0])
def test_plateau_is_the_largest_root(ratio: float, noise: float, nu: float) -> None:
    problem = standard_problem(noise=noise)
    lr = ratio * critical_lr_of(problem, nu=nu)
    found = plateau(problem, lr, nu=nu)

    def excess(risk: float) -> float:
        x, size = lr * nu * risk, np.abs(problem.target)
        each = np.where(size > x, 2 * x * size - x**2, size**2)
        return noise**2 + float(problem.share @ (problem.lam * each)) - 2 * risk

    assert excess(found) == pytest.approx(0, abs=1e-9)
    assert all(excess(risk) < 0 for risk in found * (1 + np.geomspace(1e-4, 100, 50)) + 1e-9)
    assert (found > 0) == (noise > 0 or ratio > 1)
    assert found <= problem.risk(np.zeros_like(problem.target)) + 1e-12


def test_plateau_begins_at_the_critical_rate_without_a_jump() -> None:
    problem = standard_problem()
    risks = [plateau(problem, (1 + part) * critical_lr_of(problem)) for part in (1e-9, 1e-6, 1e-3)]
    assert 0 <= risks[0] < 1e-8 and risks[0] < risks[1] < 1e-5 < risks[2] < 1e-2


def test_rate_of_one_type_is_in_closed_form() -> None:
    for lr in (0.05, 0.3, 0.7):
        problem, size = make_problem([1.0], [1.0]), np.array([2.2])
        assert convergence_rate(problem, size, lr) == pytest.approx(2 * lr * 2.2 - (lr * 2.2) ** 2)
        assert convergence_rate(problem, size, lr, nu=0.5) == pytest.approx(2 * lr * 2.2 - 0.5 * (lr * 2.2) ** 2)


def test_rate_vanishes_where_the_risk_would_rise() -> None:
    problem = standard_problem()
    size = final_size(problem.target, np.full(20, 0.5))
    limit = frozen_critical_lr(problem, size)
    rates = [convergence_rate(problem, size, part * limit) for part in (0.2, 0.9, 0.999, 0.99999)]
    assert rates[1] > rates[2] > rates[3] > 0 and rates[3] < 1e-3
    assert rates[0] < 2 * 0.2 * limit * float((problem.lam * size).min())
    with pytest.raises(InvalidInput, match="does not fall"):
        convergence_rate(problem, size, 1.001 * limit)


def test_linearised_rate_in_its_limits() -> None:
    kappa = np.geomspace(1e-3, 1, 200)
    assert linearised_critical_lr(kappa, batch=math.inf, momentum=0.9) == pytest.approx(3.8)
    small = linearised_critical_lr(kappa * 1e-6, batch=1, momentum=0.9)
    assert small == pytest.approx(2 * (1 - 0.9) / (kappa * 1e-6).sum(), rel=0.02)
    spread = np.full(10_000, 1e-4)
    assert linearised_critical_lr(spread, batch=1, momentum=0.5) == pytest.approx(2 * 0.5 / 1.0, rel=1e-3)
    assert linearised_critical_lr([1e-4], counts=[10_000], batch=1, momentum=0.5) == pytest.approx(
        linearised_critical_lr(spread, batch=1, momentum=0.5)
    )
    assert linearised_critical_lr(spread, batch=4, factor=2) == pytest.approx(linearised_critical_lr(spread, batch=2))


@pytest.mark.parametrize(("batch", "momentum"), [(1, 0.0), (1, 0.5), (40, 0.0), (40, 0.8)])
def test_a_linear_model_falls_below_the_linearised_rate_and_rises_above(batch: int, momentum: float) -> None:
    dimension, num_runs = 200, 5
    kappa = torch.linspace(0.2, 1.8, dimension)
    limit = linearised_critical_lr(kappa.tolist(), batch=batch, momentum=momentum)

    def growth(lr: float) -> float:
        generator = torch.Generator().manual_seed(0)
        delta = torch.ones(num_runs, dimension)
        buffer = torch.zeros_like(delta)
        risks = []
        for _ in range(1000):
            x = torch.randn(num_runs, batch, dimension, generator=generator) * kappa.sqrt()
            gradient = ((x @ delta[:, :, None]) * x).mean(1)
            buffer = momentum * buffer + gradient
            delta = delta - lr * buffer
            risks.append(float((kappa * delta**2).sum(1).median()))
            if not 1e-12 < risks[-1] < 1e12:
                break
        return math.log(risks[-1] / risks[len(risks) // 2])

    assert growth(0.85 * limit) < 0 < growth(1.15 * limit)


@pytest.mark.parametrize(
    ("law", "shape", "square"),
    [("none", 2.0, 1.0), ("exponential", 2.0, 2.0), ("uniform", 2.0, 4 / 3), ("gamma", 4.0, 1.25)],
)
def test_noise_factor_is_the_mean_square_of_what_a_gradient_gets(law: Law, shape: float, square: float) -> None:
    assert noise_factor(law=law, shape=shape) == pytest.approx(square)
    assert noise_factor(8, law=law, shape=shape) == pytest.approx(square / 8)
    generator = torch.Generator().manual_seed(0)
    factors = torch.tensor([[draw_scale(law, shape, generator) for _ in range(30)] for _ in range(3000)])
    weights = 0.7 ** torch.arange(30)
    # Of Nesterov's step g + mu m the newest gradient has 1 + mu, and all others the powers from mu^2 on.
    nesterovs = torch.cat([torch.tensor([1.7]), weights[2:]])
    for powers, nesterov in ((weights, False), (nesterovs, True)):
        got = float(((factors[:, : len(powers)] * powers).sum(1) * (1 - 0.7)).square().mean())
        expected = noise_factor(law=law, shape=shape, momentum=0.7, nesterov=nesterov)
        assert expected == pytest.approx(got, rel=0.03)


def test_effective_rate() -> None:
    assert effective_lr(0.1, 0.9) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: critical_lr([1.0], [1.0, 2.0]), "2 values for 1"),
        (lambda: critical_lr(np.ones((1, 1)), np.ones((1, 1))), "shape"),
        (lambda: critical_lr([], []), "shape"),
        (lambda: critical_lr([-1.0, 1.0], [1.0, 1.0]), "at least 0"),
        (lambda: critical_lr([0.0], [1.0]), "one above 0"),
        (lambda: critical_lr([math.nan], [1.0]), "finite"),
        (lambda: critical_lr([1.0], [1.0], nu=0), "without gradient noise"),
        (lambda: plateau(standard_problem(), -1.0), "above 0"),
        (lambda: plateau(standard_problem(), math.nan), "above 0"),
        (lambda: effective_lr(0.1, 1.0), "no learning rate is stable"),
        (lambda: effective_lr(0.1, -0.1), "momentum"),
        (lambda: noise_factor(0), "batch"),
        (lambda: linearised_critical_lr([1.0], batch=0), "batch"),
        (lambda: linearised_critical_lr([1.0], batch=1, momentum=1.2), "momentum"),
        (lambda: linearised_critical_lr([1.0], batch=1, factor=0.5), "factor"),
        (lambda: linearised_critical_lr([1.0], batch=1, counts=[1.0, 2.0]), "counts"),
        (lambda: convergence_rate(standard_problem(noise=0.1), np.ones(20), 0.1), "plateau"),
        (lambda: make_problem([1.0, 1.0], [1.0, 1.0], share=[0.5, 0.4]), "sum 1"),
        (lambda: make_problem([1.0], [1.0], u=[1.0, 2.0]), "2 values"),
        (lambda: make_problem([1.0], [1.0], noise=-1.0), "noise"),
        (lambda: standard_problem().types_of(19), "too few"),
    ],
)
def test_bad_input_is_one_sentence(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_coordinates_are_of_types_by_share() -> None:
    problem = make_problem([1.0, 2.0, 3.0], [0.0, 0.0, 1.0], share=[0.5, 0.3, 0.2])
    assert np.bincount(problem.types_of(1000)).tolist() == [500, 300, 200]
    assert len(problem.types_of(17)) == 17
    assert grid_problem([1, 2], [3, 4]).lam.tolist() == [1, 1, 2, 2]
    first: Problem = grid_problem([1, 2], [3, 4])
    assert first.first_risk == pytest.approx((9 + 16 + 2 * 9 + 2 * 16) / 8)
