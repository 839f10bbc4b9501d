"""The Gaussian closure, beside the PDE that it stands for."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.core.errors import InvalidInput
from tuner.theory import critical_lr_of, make_problem, standard_problem
from tuner.theory.closure import solve_closure
from tuner.theory.pde import solve_pde
from tuner.theory.steps import EffectiveSgd

TIMES = np.linspace(0, 6, 61)


def test_is_near_the_pde_at_moderate_rates_and_not_at_large_ones() -> None:
    problem = standard_problem(noise=0.1)
    gaps = []
    for ratio in (0.1, 0.3, 0.5):
        sgd = EffectiveSgd(lr=ratio * critical_lr_of(problem), decay=0.02)
        closure, limit = solve_closure(problem, sgd, TIMES), solve_pde(problem, sgd, TIMES)
        gaps.append(float(closure.gap_to(limit)[0]))
        if ratio < 0.5:
            for name in ("curvature", "norm", "distance"):
                np.testing.assert_allclose(getattr(closure, name), getattr(limit, name), rtol=0.05)
    assert gaps[0] < 0.005 < gaps[1] < 0.03 < gaps[2]


def test_without_noise_it_is_exact() -> None:
    problem = make_problem([0.5, 2.0], [1.0, -1.5], u=0.8, v=0.1)
    sgd = EffectiveSgd(lr=lambda t: 0.3 * (1 - t / 12), nu=0.0)
    closure, limit = solve_closure(problem, sgd, TIMES), solve_pde(problem, sgd, TIMES, cell=0.05)
    np.testing.assert_allclose(closure.risk, limit.risk, rtol=5e-3)


def test_where_it_breaks_it_says_so() -> None:
    with pytest.raises(InvalidInput, match="closure leaves its range"):
        solve_closure(standard_problem(), EffectiveSgd(lr=20.0), TIMES)
