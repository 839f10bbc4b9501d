"""The stochastic differential equations: two forms of one, and what their noise must be."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.core.errors import InvalidInput
from tuner.theory import make_problem, standard_problem
from tuner.theory.pde import solve_pde
from tuner.theory.sde import simulate_sde
from tuner.theory.sgd import simulate_sgd
from tuner.theory.steps import EffectiveSgd, Sgd

pytestmark = pytest.mark.usefixtures("one_thread")

TIMES = np.linspace(0, 6, 61)


@pytest.mark.slow
@pytest.mark.parametrize("hyperbolic", [False, True])
def test_both_forms_come_to_the_limit(hyperbolic: bool) -> None:
    problem, sgd = standard_problem(noise=0.3), EffectiveSgd(lr=0.6, nu=1.5, decay=0.05)
    cloud = simulate_sde(problem, sgd, TIMES, num_particles=20_000, num_runs=2, step=1 / 200, hyperbolic=hyperbolic)
    limit = solve_pde(problem, sgd, TIMES)
    for name in ("risk", "curvature", "norm", "distance"):
        np.testing.assert_allclose(getattr(cloud, name).mean(0), getattr(limit, name)[0], rtol=0.03)


def test_independent_noise_for_u_and_v_is_wrong() -> None:
    problem, sgd = standard_problem(), EffectiveSgd(lr=0.8)
    limit = solve_pde(problem, sgd, TIMES)
    shared, independent = (
        simulate_sde(problem, sgd, TIMES, num_particles=8000, num_runs=2, step=1 / 200, shared=shared)
        for shared in (True, False)
    )
    assert shared.gap_to(limit).mean() < 0.05
    assert independent.gap_to(limit).mean() > 0.2


def test_gradient_flow_keeps_q() -> None:
    """Without noise q = S sech(theta) stands still: S^2 = q^2 + 4 beta^2 of one type."""
    problem = make_problem([1.0], [2.0])
    for hyperbolic in (False, True):
        flow = simulate_sde(
            problem, EffectiveSgd(lr=0.5, nu=0.0), TIMES, num_particles=1, step=1e-3, hyperbolic=hyperbolic
        )
        beta = 2 - np.sqrt(flow.distance[0])
        np.testing.assert_allclose(flow.norm[0] ** 2 - 4 * beta**2, 1, atol=2e-3)
        assert flow.risk[0, -1] < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("power", [0.0, pytest.param(0.5, marks=pytest.mark.extensive)])
def test_powers_of_the_gradient(power: float) -> None:
    problem, times = standard_problem(), np.linspace(0, 3, 31)
    runs = simulate_sgd(problem, Sgd(lr=0.3, power=power), times, dimension=1600, num_runs=16)
    limit = simulate_sde(
        problem, EffectiveSgd(lr=0.3), times, num_particles=8000, num_runs=4, step=1 / 400, power=power
    )
    gap = np.abs(runs.risk.mean(axis=0) / limit.risk.mean(axis=0) - 1)
    assert gap.mean() < 0.03
    if power == 0:  # its noise does not vanish with the risk
        assert limit.risk[:, -10:].min() > 1e-3


def test_bad_calls() -> None:
    problem, sgd = standard_problem(), EffectiveSgd(lr=0.1)
    for wrong, words in (
        ({"power": 2.0}, "power"),
        ({"hyperbolic": True, "shared": False}, "hyperbolic"),
        ({"step": 0.0}, "step"),
        ({"num_runs": 0}, "num_runs"),
    ):
        with pytest.raises(InvalidInput, match=words):
            simulate_sde(problem, sgd, [1.0], num_particles=40, **wrong)
    with pytest.raises(InvalidInput, match="decay"):
        simulate_sde(problem, EffectiveSgd(lr=0.1, nu=2.0), [1.0], num_particles=40, power=0.5)
    with pytest.raises(InvalidInput, match="differ in size"):
        simulate_sde(make_problem([1.0], [1.0], u=1, v=1), sgd, [1.0], num_particles=4, hyperbolic=True)
