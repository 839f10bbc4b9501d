"""A fast approximation of the limit: theta of each type is taken as Gaussian, with mean m and variance c.

Symbols are those of :mod:`tuner.theory.pde`.  The means over theta are S = q e^(c/2) cosh(m) and
beta = q e^(c/2) sinh(m)/2::

    m'       = -2 gamma lambda (beta - beta*)
    c'       = -2 gamma lambda S c + 8 nu gamma^2 lambda P
    (log q)' = -2 (nu gamma^2 lambda P + gamma w)

The moments of (u, v) do not close; those of a Gaussian theta do, but approximately.  The closure is ours.

Accuracy beside the PDE (benchmarks/theory.py): on 40 random problems the risk differs by 2% or less in the mean over
time, and by 5% at worst, up to .1 of the critical rate.  At .3 of it the risk differs by up to 44%, most for small or
uneven initial weights.  On the standard problem it differs by 4% or less up to .3.
"""

from __future__ import annotations

import numpy as np

from tuner.core.errors import InvalidInput
from tuner.theory.densities import hyperbolic_start
from tuner.theory.problem import Floats, Numbers, Problem
from tuner.theory.steps import EffectiveSgd, at
from tuner.theory.trajectory import Trajectory, require_times

WIDEST = 50.0
"""Variance of theta above which the closure fails; the weights would be of order e^25."""
LEFT = "the closure leaves its range: take a smaller learning rate, or the PDE"


def solve_closure(problem: Problem, sgd: EffectiveSgd, times: Numbers, *, tolerance: float = 1e-5) -> Trajectory:
    """Risk, curvature and norms at the times (one run), by scipy's LSODA at a relative ``tolerance``.

    Raises :class:`InvalidInput` if |u| = |v| for some type, and if the closure leaves the range that can be computed.
    """
    from scipy.integrate import solve_ivp  # slow to import

    checked = require_times(times)
    theta, log_q = hyperbolic_start(problem)
    lam, target = problem.lam, problem.target

    def rates(time: float, state: Floats) -> Floats:
        mean, variance, log_q = state.reshape(3, -1)
        # Checked here, since the solver may try the same step for ever.
        if not variance.max() <= WIDEST:
            raise InvalidInput(LEFT)
        lr, nu = at(sgd.lr, time), at(sgd.nu, time)
        beta, size, distance = _means(mean, variance, log_q, target)
        risk = (problem.share @ (lam * distance) + problem.noise**2) / 2
        noise = nu * lr**2 * lam * risk
        return np.concatenate(
            [
                -2 * lr * lam * (beta - target),
                -2 * lr * lam * size * variance + 8 * noise,
                -2 * (noise + lr * sgd.decay),
            ]
        )

    start = np.concatenate([theta, np.zeros_like(theta), log_q])
    with np.errstate(over="ignore", invalid="ignore"):
        solved = solve_ivp(
            rates, (0.0, max(checked[-1], 1e-12)), start, method="LSODA", t_eval=checked, rtol=tolerance, atol=1e-12
        )
        mean, variance, log_q = solved.y.reshape(3, len(lam), -1)
        # The variance is accurate to the solver's tolerance, so it may be below 0.
        _, size, distance = _means(mean, np.maximum(variance, 0), log_q, target[:, None])
    if not solved.success or not np.isfinite(distance).all():
        raise InvalidInput(LEFT)
    share = problem.share
    risk = (share @ (lam[:, None] * distance) + problem.noise**2) / 2
    means = share @ (lam[:, None] * size), share @ size, share @ distance
    return Trajectory(
        times=checked, risk=risk[None], curvature=means[0][None], norm=means[1][None], distance=means[2][None]
    )


def _means(mean: Floats, variance: Floats, log_q: Floats, target: Floats) -> tuple[Floats, Floats, Floats]:
    """The means of beta, S and delta^2 over a Gaussian theta."""
    scale = np.exp(log_q + variance / 2)
    beta, size = scale * np.sinh(mean) / 2, scale * np.cosh(mean)
    # A sum of a square and a variance: near the end a difference would leave rounding errors of either sign.
    spread = np.exp(2 * log_q) / 8 * np.expm1(variance) * (np.exp(variance) * np.cosh(2 * mean) + 1)
    return beta, size, (beta - target) ** 2 + spread
