"""SGD on diagonal linear networks: identities of its steps, and the limits it comes to."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tuner.core.errors import InvalidInput
from tuner.theory import critical_lr_of, make_problem, plateau, standard_problem
from tuner.theory.pde import solve_pde
from tuner.theory.sgd import Networks, Parametrization, simulate_sgd
from tuner.theory.steps import EffectiveSgd, Sgd
from tuner.theory.trajectory import Trajectory

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = np.linspace(0, 6, 61)


def one_step(lr: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q before and after a step on Gaussian data, and the gradient's g, of each coordinate."""
    problem = make_problem([0.5, 1.5], [1.0, -1.0], u=1.3, v=0.4)
    networks = Networks(problem, Sgd(lr=lr), 40, 3, "product", torch.float64)
    before = networks.u**2 - networks.v**2
    u = networks.u.clone()
    inputs = torch.randn(3, 1, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    networks.step(inputs, torch.zeros(3, 1, dtype=torch.float64), torch.full((3, 1), lr, dtype=torch.float64))
    g = (u - networks.u) / (lr * 0.4)
    return before, networks.u**2 - networks.v**2, g


def test_a_step_multiplies_q_by_one_minus_its_square() -> None:
    before, after, g = one_step(0.7)
    torch.testing.assert_close(after, before * (1 - 0.49 * g**2), rtol=1e-12, atol=1e-12)
    assert (after < before).all() and (before - after).max() > 0.01


@pytest.mark.parametrize("lr", [0.2, 0.6])
def test_squares_are_the_product_at_twice_the_rate(lr: float) -> None:
    problem = standard_problem(noise=0.2)

    def run(lr: float, decay: float, parametrization: Parametrization) -> Trajectory:
        sgd = Sgd(lr=lr, momentum=0.4, batch=2, law="uniform", decay=decay)
        return simulate_sgd(
            problem, sgd, TIMES, dimension=60, num_runs=4, parametrization=parametrization, dtype=torch.float64
        )

    product, squares = run(lr, 1e-3, "product"), run(lr / 2, 2e-3, "squares")
    for name in ("risk", "curvature", "norm", "distance"):
        np.testing.assert_allclose(getattr(squares, name), getattr(product, name), rtol=1e-9)
    assert np.abs(run(lr, 1e-3, "squares").risk / product.risk - 1)[:, 5:].mean() > 1e-2


@pytest.mark.slow
def test_gap_to_the_limit_falls_as_the_root_of_the_dimension() -> None:
    problem = standard_problem()
    limit = solve_pde(problem, EffectiveSgd(lr=0.4), TIMES)
    gaps = {
        d: float(np.median(simulate_sgd(problem, Sgd(lr=0.4), TIMES, dimension=d, num_runs=32).gap_to(limit)))
        for d in (100, 400, 1600)
    }
    slope = np.polyfit(np.log(list(gaps)), np.log(list(gaps.values())), 1)[0]
    assert -0.6 <= slope <= -0.4, gaps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ratio", "law"),
    [(0.9, "none"), pytest.param(1.2, "none", marks=pytest.mark.extensive), (0.6, "exponential")],
)
def test_what_is_left_in_the_end_is_the_plateau(ratio: float, law: str) -> None:
    """With exponential factors, of mean square 2, .6 of the critical rate is 1.2 times theirs."""
    problem, late = standard_problem(), np.concatenate([[0.0], np.linspace(40, 50, 41)])
    lr = ratio * critical_lr_of(problem)
    runs = simulate_sgd(problem, Sgd(lr=lr, law=law), late, dimension=800, num_runs=4)  # type: ignore[arg-type]
    predicted = plateau(problem, lr, nu=2.0 if law == "exponential" else 1.0)
    left = float(runs.risk[:, 1:].mean())
    if ratio == 0.9:
        assert predicted == 0 and left < 1e-3 * problem.first_risk
    else:
        assert left == pytest.approx(predicted, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "sgd",
    [
        # "all" has both of these.
        pytest.param(Sgd(lr=0.04, momentum=0.9), marks=pytest.mark.extensive),
        pytest.param(Sgd(lr=3.2, batch=8), marks=pytest.mark.extensive),
        Sgd(lr=0.6, momentum=0.5, batch=4, law="exponential"),
        Sgd(lr=0.4, decay=1e-4),
        Sgd(lr=lambda t: 0.8 * (1 - t / 6)),
    ],
    ids=["momentum", "batch", "all", "decay", "schedule"],
)
def test_ways_of_running_collapse_on_the_limit(sgd: Sgd) -> None:
    problem = standard_problem(noise=0.2)
    limit = solve_pde(problem, sgd.effective(1600), TIMES)
    runs = simulate_sgd(problem, sgd, TIMES, dimension=1600, num_runs=8)
    assert float(np.abs(runs.risk.mean(axis=0) / limit.risk[0] - 1).mean()) < 0.03
    plain = solve_pde(problem, EffectiveSgd(lr=0.15), TIMES)
    assert float(np.abs(runs.risk.mean(axis=0) / plain.risk[0] - 1).mean()) > 0.1


def test_a_run_that_diverges_is_infinite_from_then_on() -> None:
    runs = simulate_sgd(standard_problem(), Sgd(lr=30.0), TIMES, dimension=40, num_runs=3)
    assert runs.diverged.all() and (runs.time_to(1e-9) == math.inf).all()
    assert np.isinf(runs.risk[:, -1]).all() and not np.isnan(runs.risk).any()


def test_data_does_not_depend_on_how_it_is_used() -> None:
    few, many = (
        simulate_sgd(standard_problem(), Sgd(lr=0.3), times, dimension=40, num_runs=2)
        for times in ([0.0, 3.0], [0.0, 1.0, 2.0, 3.0])
    )
    assert np.array_equal(few.risk[:, -1], many.risk[:, -1])


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": -0.1},
        {"lr": math.inf},
        {"lr": 0.1, "momentum": 1.0},
        {"lr": 0.1, "batch": 0},
        {"lr": 0.1, "decay": -1.0},
        {"lr": 0.1, "power": 1.5},
        {"lr": 0.1, "power": 0.0, "momentum": 0.9},
    ],
)
def test_bad_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInput):
        Sgd(**wrong)  # type: ignore[arg-type]


def test_bad_calls() -> None:
    problem, sgd = standard_problem(), Sgd(lr=0.1)
    with pytest.raises(InvalidInput, match="rise"):
        simulate_sgd(problem, sgd, [1.0, 0.5], dimension=40)
    with pytest.raises(InvalidInput, match="num_runs"):
        simulate_sgd(problem, sgd, [1.0], dimension=40, num_runs=0)
    with pytest.raises(InvalidInput, match="parametrization"):
        simulate_sgd(problem, sgd, [1.0], dimension=40, parametrization="cubes")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="too few"):
        simulate_sgd(problem, sgd, [1.0], dimension=10)
