"""Predictions for given settings of SGD: critical learning rate, plateau, rate and time to a goal."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from tuner.core.errors import InvalidInput
from tuner.theory.closure import solve_closure
from tuner.theory.densities import Densities, Exploded
from tuner.theory.pde import follow, solve_pde
from tuner.theory.problem import Floats, Numbers, Problem
from tuner.theory.stability import (
    convergence_rate,
    critical_lr_of,
    final_size,
    frozen_critical_lr,
    linearised_critical_lr,
    noise_factor,
    plateau,
)
from tuner.theory.steps import EffectiveSgd, Sgd, at
from tuner.theory.trajectory import Trajectory, require_times

MODERATE = 0.1
"""Fraction of the critical rate up to which the closure replaces the PDE.  On 40 random problems the risks differ by 2%
or less in the mean over time, and by 5% at worst (benchmarks/theory.py)."""
SHORTEST, HOPELESS, LONGEST = 6.0, 24.0, 96.0
"""Ends of a trajectory, in steps/d: the first; the last without the goal reached, if the goal is not above the plateau;
the last without the goal reached, if it is above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The prediction for constant settings.  Times are in steps/d."""

    effective_lr: float
    """gamma_e = gamma/(1 - mu)."""
    nu: float
    """Noise factor."""
    critical_lr: float
    """Learning rate gamma above which the risk stays at a plateau; inf if there is none."""
    first_critical_lr: float
    """Learning rate gamma above which the risk rises at first, and runs may diverge before it falls."""
    linearised_critical_lr: float
    """Critical learning rate gamma of the network linearised at the end, with momentum; it depends on d."""
    overdamped: bool
    """Whether no direction oscillates under this momentum at the end: h <= (1 - sqrt mu)^2.  If one does, d is too
    small for the limit, which has no momentum."""
    plateau: float
    """Final risk that noise leaves; the further risk that weight decay leaves is not included."""
    rate: float | None
    """rho of P ~ exp(-rho t) at late times; None if the risk does not fall to 0 exponentially."""
    goal: float
    """The risk to be reached."""
    time_to_goal: float
    """First time at which the risk is at most ``goal``; inf if the trajectory ends before."""
    trajectory: Trajectory
    """The solution of the PDE."""


def predict(problem: Problem, sgd: Sgd, *, dimension: int, goal: float, horizon: float | None = None) -> Prediction:
    """The prediction for ``sgd``, with a constant learning rate, on ``dimension`` coordinates.

    ``goal`` is a risk above 0.  The trajectory ends at ``horizon``.  By default it ends at 1.25 times the time to the
    goal, and not before 6.

    Raises :class:`InvalidInput` for a schedule, for a goal out of range, for a dimension too small for all types, and
    in the cases of :func:`tuner.theory.pde.solve_pde`.
    """
    if callable(sgd.lr):
        raise InvalidInput("lr: must be a constant, since a schedule has no critical value")
    if not 0 < goal < math.inf:
        raise InvalidInput(f"goal = {goal}: must be above 0")
    counts = problem.counts_of(dimension)
    limit = sgd.effective(dimension)
    lr, nu = float(limit.lr), float(limit.nu)  # type: ignore[arg-type]
    densities = Densities(problem, 0.1)
    critical, left = critical_lr_of(problem, nu=nu), plateau(problem, lr, nu=nu)
    first = frozen_critical_lr(problem, problem.u**2 + problem.v**2, nu=nu)
    memory = 1 - sgd.momentum
    try:
        trajectory, time_to_goal = _until(densities, limit, goal, horizon, left)
    except Exploded as error:
        less_noise = " or less noise in the labels" if problem.noise > 0 else ""
        rates = f"{critical * memory:.4g} is critical, and {first * memory:.4g} at the initial weights"
        raise Exploded(f"{error}{less_noise}: {rates}") from None
    q = np.exp(densities.log_q)
    rate = None
    if lr < critical and problem.noise == 0 and sgd.decay == 0:
        rate, q = _late_rate(problem, q, lr, nu, float(trajectory.risk[0, -1]))
    kappa = problem.lam * final_size(problem.target, q) / dimension
    factor = noise_factor(law=sgd.law, shape=sgd.shape, momentum=sgd.momentum)
    linearised = linearised_critical_lr(
        kappa, counts=counts.astype(np.float64), batch=sgd.batch, momentum=sgd.momentum, factor=factor
    )
    return Prediction(
        effective_lr=lr,
        nu=nu,
        critical_lr=critical * memory,
        first_critical_lr=first * memory,
        linearised_critical_lr=linearised,
        overdamped=sgd.lr * float(kappa.max()) <= (1 - math.sqrt(sgd.momentum)) ** 2,
        plateau=left,
        rate=rate,
        goal=goal,
        time_to_goal=time_to_goal,
        trajectory=trajectory,
    )


def solve_limit(problem: Problem, sgd: EffectiveSgd, times: Numbers, *, moderate: float = MODERATE) -> Trajectory:
    """The limit for any schedules: by the closure up to ``moderate`` times the critical rate, else by the PDE.

    Raises :class:`InvalidInput` in the cases of :func:`tuner.theory.pde.solve_pde`.
    """
    ends = require_times(times)
    looked_at = np.linspace(0, ends[-1], 201)
    strongest = max(at(sgd.lr, time) * at(sgd.nu, time) for time in looked_at)
    if strongest <= moderate * critical_lr_of(problem):
        with suppress(InvalidInput):  # short bursts of the learning rate may take the closure out of its range
            return solve_closure(problem, sgd, ends)
    return solve_pde(problem, sgd, ends, cell=0.2)


def _until(
    densities: Densities, limit: EffectiveSgd, goal: float, horizon: float | None, plateau: float
) -> tuple[Trajectory, float]:
    end = horizon or SHORTEST
    trajectory = follow(densities, limit, np.linspace(0, end, 121))
    while True:
        reached = float(trajectory.time_to(goal)[0])
        wanted = 1.25 * reached if math.isfinite(reached) else LONGEST if goal > plateau else HOPELESS
        if horizon or end >= wanted:
            return trajectory, reached
        start, end = end, min(2 * end, wanted)
        trajectory = trajectory.followed_by(follow(densities, limit, np.linspace(start, end, 121)[1:]))


def _late_rate(problem: Problem, q: Floats, lr: float, nu: float, risk: float) -> tuple[float | None, Floats]:
    """The rate rho and the final q: the remaining risk, whose time integral is P/rho, still lowers q."""
    rate = None
    for _ in range(20):
        last = q * np.exp(-2 * nu * lr**2 * problem.lam * (risk / rate if rate else 0.0))
        size = final_size(problem.target, last)
        if lr >= frozen_critical_lr(problem, size, nu=nu):
            return None, last
        rate = convergence_rate(problem, size, lr, nu=nu)
    return rate, last
