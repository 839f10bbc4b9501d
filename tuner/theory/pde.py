"""The limit as partial differential equations: one density rho(theta, t) for each type of coordinates.

With q = |u^2 - v^2|, beta = q sinh(theta)/2 and S = u^2 + v^2 = q cosh(theta), for a type (lambda, beta*, q0, theta0)::

    d_t rho = d_theta[a rho] + D d_theta^2 rho
    a       = 2 gamma lambda (q sinh(theta)/2 - beta*),   D = 4 nu gamma^2 lambda P
    q'      = -2 (nu gamma^2 lambda P + gamma w) q
    P       = avg lambda int (q sinh(theta)/2 - beta*)^2 rho/2 + sigma^2/2

w is the weight decay (:mod:`tuner.theory.steps`).  The types interact only through the risk P.  The equations are ours.
That such a limit exists is shown in https://arxiv.org/abs/2605.17177.  :mod:`tuner.theory.densities` solves them.
"""

from __future__ import annotations

import math

from tuner.core.errors import InvalidInput
from tuner.theory.densities import REACH, WIDTH, Densities
from tuner.theory.problem import Floats, Numbers, Problem
from tuner.theory.steps import EffectiveSgd
from tuner.theory.trajectory import Trajectory, from_rows, require_times

MOST_STEPS = 100_000
"""Largest number of steps of one solution; rates and times of order 1 take some thousands."""


def solve_pde(
    problem: Problem, sgd: EffectiveSgd, times: Numbers, *, cell: float = 0.1, width: float = WIDTH
) -> Trajectory:
    """Risk, curvature and norms of the limit at the times (one run).

    ``cell``, in (0, .5], is the size of a cell in standard deviations of a density.  ``width``, at least 10, is the
    largest length of the grids to either side, in the same unit.

    Raises :class:`InvalidInput` if |u| = |v| for some type, whose theta is infinite, and in the cases of
    :func:`follow`; :class:`GridLeft` if a density reaches farther than ``width``.
    """
    if not 0 < cell <= 0.5:
        raise InvalidInput(f"cell = {cell}: must be in (0, 0.5] deviations")
    if not REACH <= width < math.inf:
        raise InvalidInput(f"width = {width}: must be at least {REACH:g} deviations")
    return follow(Densities(problem, cell, width), sgd, times)


def follow(densities: Densities, sgd: EffectiveSgd, times: Numbers) -> Trajectory:
    """Advances the densities to each of the times, none of which is before their own.

    Raises :class:`InvalidInput` if that takes more than :data:`MOST_STEPS` steps, :class:`GridLeft` if a density
    reaches the end of its grid, and :class:`Exploded` if the risk grows without bound.  From the standard start it does
    so from about 1.8 times the critical rate on.
    """
    checked = require_times(times)
    rows: list[Floats] = []
    num_steps = 0
    for target in checked:
        while densities.time < target:
            densities.advance(sgd, target)
            num_steps += 1
            if num_steps > MOST_STEPS:
                raise InvalidInput(
                    f"at t = {densities.time:.4g} of {checked[-1]:g} the PDE has taken {MOST_STEPS} steps: take a "
                    "smaller learning rate, or shorter times"
                )
        rows.append(densities.observe())
    return from_rows(checked, rows)
