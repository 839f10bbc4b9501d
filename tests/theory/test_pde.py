"""The densities: mass, sign, order, and the particles that they are the limit of."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from tuner.core.errors import InvalidInput
from tuner.theory import convergence_rate, critical_lr_of, final_size, make_problem, plateau, standard_problem
from tuner.theory.densities import Densities, Exploded, GridLeft
from tuner.theory.pde import solve_pde
from tuner.theory.sde import simulate_sde
from tuner.theory.steps import EffectiveSgd

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = np.linspace(0, 6, 61)


@pytest.mark.parametrize("ratio", [0.3, 1.2])
def test_mass_is_kept_and_stays_positive(ratio: float) -> None:
    problem = standard_problem()
    sgd = EffectiveSgd(lr=ratio * critical_lr_of(problem))
    densities, num_steps = Densities(problem, 0.2, 80.0), 0
    while densities.time < 3:
        densities.advance(sgd, 3.0)
        num_steps += 1
        assert densities.mass.min() >= 0
        assert np.abs(densities.mass.sum(axis=1) - 1).max() < 1e-10
    assert num_steps > 50


def test_error_falls_with_the_square_of_the_cell() -> None:
    problem, sgd, times = standard_problem(), EffectiveSgd(lr=0.4), np.linspace(0, 1, 3)
    risks = [solve_pde(problem, sgd, times, cell=cell).risk[0] for cell in (0.2, 0.1, 0.05, 0.025)]
    errors = [np.abs(coarse / fine - 1).max() for coarse, fine in itertools.pairwise(risks)]
    assert errors[0] / errors[1] > 3.4 and errors[1] / errors[2] > 3.7, errors


@pytest.mark.slow
def test_many_particles_agree() -> None:
    problem, sgd = standard_problem(), EffectiveSgd(lr=0.4)
    limit = solve_pde(problem, sgd, TIMES[:31])
    cloud = simulate_sde(problem, sgd, TIMES[:31], num_particles=200_000, step=1 / 100, hyperbolic=True)
    assert cloud.gap_to(limit)[0] < 0.01
    for name in ("curvature", "norm", "distance"):
        assert np.abs(getattr(cloud, name) / getattr(limit, name) - 1).mean() < 0.01


def test_without_noise_it_is_gradient_flow() -> None:
    problem, lr = make_problem([0.5, 2.0], [1.0, -1.5], u=0.8, v=0.1), 0.3

    def flow(time: float, state: np.ndarray) -> np.ndarray:
        u, v = state.reshape(2, -1)
        g = problem.lam * (u * v - problem.target)
        return -lr * np.concatenate([g * v, g * u])

    solved = solve_ivp(
        flow, (0, 6), np.concatenate([problem.u, problem.v]), t_eval=TIMES, rtol=1e-10, atol=1e-12, method="DOP853"
    )
    u, v = solved.y.reshape(2, 2, -1)
    risk = (problem.lam[:, None] * (u * v - problem.target[:, None]) ** 2).mean(axis=0) / 2
    found = solve_pde(problem, EffectiveSgd(lr=lr, nu=0.0), TIMES, cell=0.05)
    np.testing.assert_allclose(found.risk[0], risk, rtol=5e-3)
    np.testing.assert_allclose(found.norm[0], (u**2 + v**2).mean(axis=0), rtol=2e-3)


def test_late_rate_of_one_type() -> None:
    problem, lr = make_problem([1.0], [1.0]), 0.3
    found = solve_pde(problem, EffectiveSgd(lr=lr), np.linspace(0, 30, 301))
    size = np.array([found.norm[0, -1]])
    late = (found.risk[0] < 2e-4) & (found.risk[0] > 1e-12)
    slope = -np.polyfit(found.times[late], np.log(found.risk[0, late]), 1)[0]
    assert slope == pytest.approx(convergence_rate(problem, size, lr), rel=0.03)
    # In the end S is what q and the target make of it.
    q = math.sqrt(size[0] ** 2 - 4)
    assert final_size(problem.target, np.array([q]))[0] == pytest.approx(size[0])
    assert q < 1


@pytest.mark.slow
def test_above_the_critical_rate_it_comes_to_the_plateau() -> None:
    problem = standard_problem()
    lr = 1.2 * critical_lr_of(problem)
    found = solve_pde(problem, EffectiveSgd(lr=lr), [0.0, 30.0, 40.0], cell=0.2)
    assert found.risk[0, 1:] == pytest.approx(plateau(problem, lr), rel=0.03)


def test_types_that_no_data_shows_stand_still() -> None:
    seen = solve_pde(make_problem([1.0], [1.0]), EffectiveSgd(lr=0.5), TIMES)
    both = solve_pde(make_problem([1.0, 0.0], [1.0, 3.0]), EffectiveSgd(lr=1.0), TIMES)
    assert both.norm[0, 0] == pytest.approx(1) and both.distance[0, 0] == pytest.approx(5)
    assert both.distance[0, -1] == pytest.approx(4.5, abs=0.1)
    assert seen.risk[0, -1] < seen.risk[0, 0]


def test_starts_of_either_sign() -> None:
    """beta is a difference of two squares, whichever of u and v is larger."""
    problem = make_problem([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], u=[0.2, -0.2, -1.0], v=[1.0, 1.0, 0.2])
    cloud = simulate_sde(problem, EffectiveSgd(lr=0.3), TIMES, num_particles=15_000, step=1 / 60)
    limit = solve_pde(problem, EffectiveSgd(lr=0.3), TIMES)
    assert limit.risk[0, 0] == pytest.approx(problem.first_risk)
    assert cloud.gap_to(limit)[0] < 0.02


def test_a_schedule_may_stop_and_the_clock_goes_on() -> None:
    found = solve_pde(standard_problem(), EffectiveSgd(lr=lambda t: 0.4 if t < 3 else 0.0), TIMES)
    assert np.ptp(found.risk[0, 31:]) < 1e-9 < found.risk[0, 0] - found.risk[0, 30]


def test_fails_loudly_where_the_grid_is_left() -> None:
    problem = standard_problem()
    with pytest.raises(GridLeft, match=r"t = .* lambda = .* reaches beyond 10 deviations"):
        solve_pde(problem, EffectiveSgd(lr=0.95 * critical_lr_of(problem)), [0.0, 8.0], cell=0.2, width=10)


def test_says_so_where_the_risk_explodes() -> None:
    problem = standard_problem()
    calm = solve_pde(problem, EffectiveSgd(lr=1.7 * critical_lr_of(problem)), TIMES[:11], cell=0.2)
    assert np.isfinite(calm.risk).all() and calm.risk.max() > 2 * calm.risk[0, 0]
    with pytest.raises(Exploded, match=r"at t = 0\.1.* the risk has grown"):
        solve_pde(problem, EffectiveSgd(lr=2 * critical_lr_of(problem)), TIMES, cell=0.2)


@pytest.mark.parametrize(
    ("options", "words"), [({"cell": 0.0}, "cell"), ({"cell": 0.6}, "cell"), ({"width": 5.0}, "width")]
)
def test_bad_grids(options: dict[str, float], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        solve_pde(standard_problem(), EffectiveSgd(lr=0.1), [1.0], **options)


def test_a_start_without_q_is_refused() -> None:
    with pytest.raises(InvalidInput, match="differ in size"):
        solve_pde(make_problem([1.0], [1.0], u=0.5, v=-0.5), EffectiveSgd(lr=0.1), [1.0])
