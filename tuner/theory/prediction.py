"""What theory says of a way of running SGD, before it is run: critical rate, plateau, rate and time to a goal."""

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
"""Part of the critical rate up to which the closure stands for the PDE: of 40 random problems within 2% of the risk in
the mean over time, 5% at worst (benchmarks/theory.py)."""
SHORTEST, HOPELESS, LONGEST = 6.0, 24.0, 96.0
"""Times that are looked at: at least, where the goal lies below the plateau, and at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Of constant settings.  Times are in steps/d."""

    effective_lr: float
    nu: float
    critical_lr: float
    """The learning rate, as it is set, from which on the risk stays at a plateau."""
    first_critical_lr: float
    """Likewise the one from which on the risk rises at first, and runs may diverge before it falls."""
    linearised_critical_lr: float
    """Likewise of the network linearised where it ends, with all its steps' memory; d counts here."""
    overdamped: bool
    """Whether no direction swings under this momentum where it ends: h <= (1 - sqrt mu)^2.  Else d is too small for the
    limit to know of its memory."""
    plateau: float
    """What noise leaves of the risk in the end; weight decay, which leaves more, apart."""
    rate: float | None
    """rho of P ~ exp(-rho t), late; None where it does not fall to 0."""
    goal: float
    """The risk that is to be reached."""
    time_to_goal: float
    """inf where it is not reached by the trajectory's end."""
    trajectory: Trajectory
    """The PDE's."""


def predict(problem: Problem, sgd: Sgd, *, dimension: int, goal: float, horizon: float | None = None) -> Prediction:
    """What becomes of ``sgd``, of constant learning rate, on ``dimension`` coordinates.

    ``goal`` is a risk above 0.  The trajectory ends at ``horizon``, by default a quarter later than the goal is met,
    and no earlier than 6.  Raises :class:`InvalidInput` for a schedule, for a dimension that has no room for all types,
    and as :func:`tuner.theory.pde.solve_pde` does.
    """
    if callable(sgd.lr):
        raise InvalidInput("lr: must be a constant, of which alone there is a critical value")
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
        rates = f"{critical * memory:.4g} is critical, and {first * memory:.4g} at the first weights"
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
    """The limit, of any schedules: by the PDE, or the closure up to ``moderate`` times the critical rate."""
    ends = require_times(times)
    looked_at = np.linspace(0, ends[-1], 201)
    strongest = max(at(sgd.lr, time) * at(sgd.nu, time) for time in looked_at)
    if strongest <= moderate * critical_lr_of(problem):
        with suppress(InvalidInput):  # short and strong bursts of the learning rate may take it out of its range
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
    """The rate, and q in the end: what is left of the risk, P/rho in all, still takes some of it."""
    rate = None
    for _ in range(20):
        last = q * np.exp(-2 * nu * lr**2 * problem.lam * (risk / rate if rate else 0.0))
        size = final_size(problem.target, last)
        if lr >= frozen_critical_lr(problem, size, nu=nu):
            return None, last
        rate = convergence_rate(problem, size, lr, nu=nu)
    return rate, last
