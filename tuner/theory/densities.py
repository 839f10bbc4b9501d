"""Densities of all types of coordinates at one time, on grids that move with them, and their time steps.

The equations are those of :mod:`tuner.theory.pde`.  The numerics are ours except for the parts named below.  The noise
vanishes with the risk, so densities become ever narrower.  So each density has its own frame theta = m + s z, where m
and s follow its mean and standard deviation, and z is divided into equal cells::

    d_t rho = d_z[((a + m' + z s')/s) rho] + (D/s^2) d_z^2 rho

- Space: exponentially fitted fluxes (Scharfetter and Gummel, 1969).  They are of second order, keep densities positive
  and conserve mass.
- Time: the two equal implicit stages of Alexander's SDIRK (SIAM J. Numer. Anal. 14, 1977), with coefficients at the
  middle of the step.  They are of second order and L-stable.  The explicit part is limited flux by flux if it would
  empty a cell.
- Step: a fraction of the cell's size over the rate of the fastest contraction or spread.  Half the cells take half the
  steps.

A Gaussian does not move in its frame, so the initial densities may be arbitrarily narrow.  If a density comes near the
end of its grid, as the skewed densities of large learning rates do, the grid is extended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_banded
from scipy.special import ndtr

from tuner.core.errors import InvalidInput
from tuner.theory.problem import Floats, Problem
from tuner.theory.steps import EffectiveSgd, at

STAGE = 1 - math.sqrt(0.5)
"""Implicit fraction of each stage."""
START = 1e-6
"""Standard deviation of theta at the start, in place of 0; it adds to the risk in proportion to its square."""
STEPS = 0.6
"""A step, times the rate of the fastest contraction or spread, divided by the size of a cell."""
REACH = 10.0
"""Length of the initial grids to either side, in standard deviations."""
EDGE = 1e-10
"""Share of a type's mass, or of the risk, in the last cell above which the grid is too short."""
EXPLODED = 1e4
"""Growth of the risk that counts as an explosion, relative to the larger of the first risk and that of zero weights."""
FASTEST = 1e6
"""Cells per step at which velocities are cut off."""
WIDTH = 80.0
"""Default of the largest length of grids to either side, in standard deviations."""
LARGEST = 100.0
"""Logarithm of q e^|theta| at which beta is cut off; no density reaches it."""


class GridLeft(InvalidInput):
    """A density has reached the end of its grid."""


class Exploded(InvalidInput):
    """The risk of the limit has grown without bound."""


def hyperbolic_start(problem: Problem) -> tuple[Floats, Floats]:
    """theta and log q of each type at the start, both (K,).

    Raises :class:`InvalidInput` if |u| = |v| for some type, and for weights of order e^50 or larger.
    """
    sum_, difference = np.abs(problem.u + problem.v), np.abs(problem.u - problem.v)
    if (sum_ == 0).any() or (difference == 0).any():
        raise InvalidInput("u and v: must differ in size, as q = u^2 - v^2 = 0 has no theta")
    # Not the logarithms of quotient and product, which overflow earlier.
    theta, log_q = np.log(sum_) - np.log(difference), np.log(sum_) + np.log(difference)
    if (log_q + np.abs(theta)).max() > LARGEST:
        raise InvalidInput(f"u and v: must be below {math.exp(LARGEST / 2):.0e}")
    return theta, log_q


@dataclass(frozen=True, slots=True)
class _Moments:
    """Properties of the densities that a step needs; all but the risk and its rate are (K,)."""

    risk: float
    risk_rate: float
    """dP/dt."""
    mean: Floats
    mean_rate: Floats
    variance: Floats
    contraction: Floats
    """2 Cov(theta, a)/Var(theta): the rate at which the variance would fall without noise."""


class Densities:
    """The densities of all types at one time."""

    def __init__(self, problem: Problem, cell: float, width: float = WIDTH) -> None:
        self.problem = problem
        self.width = width
        self.time = 0.0
        self.num_half = math.ceil(REACH / cell)
        self.cell = REACH / self.num_half
        self._cut()
        self.mean, self.log_q = hyperbolic_start(problem)
        self.deviation = np.full_like(self.mean, START)
        mass = np.diff(ndtr(self.faces))
        self.mass = np.tile(mass / mass.sum(), (len(self.mean), 1))
        """Mass of each type in each cell, (K, N); sums to 1 over the cells."""
        self._evaluate()

    def _cut(self) -> None:
        self.faces = self.cell * np.arange(-self.num_half, self.num_half + 1)
        self.centers = (self.faces[1:] + self.faces[:-1]) / 2

    def _evaluate(self) -> None:
        """Sets delta, beta and S of each type in each cell, all (K, N)."""
        theta = self.mean[:, None] + self.deviation[:, None] * self.centers
        self.beta, self.size = _beta_and_size(theta, self.log_q[:, None])
        self.delta = self.beta - self.problem.target[:, None]

    def advance(self, sgd: EffectiveSgd, latest: float) -> None:
        """Takes one step, not beyond the time ``latest``."""
        time = self.time
        now = self._moments(at(sgd.lr, time), at(sgd.nu, time), sgd.decay)
        lr = at(sgd.lr, time)
        spreads = 4 * at(sgd.nu, time) * lr**2 * float(self.problem.lam.max()) * now.risk
        fastest = max(float(now.contraction.max()), spreads, lr * float(self.problem.lam.max()) * 1e-3, 1e-9)
        # At first, widths grow as the root of time.  With equal steps that would cost the second order.
        step = STEPS * self.cell / fastest
        step = min(step, self.cell * (time + self.cell * step), latest - time)
        if time + step > latest - 1e-3 * step:
            step = latest - time
        lr, nu = at(sgd.lr, time + step / 2), at(sgd.nu, time + step / 2)
        risk = max(now.risk + step / 2 * now.risk_rate, now.risk / 2)
        diffusion = 4 * nu * lr**2 * self.problem.lam * risk
        fall = diffusion * step / 2 + 2 * lr * sgd.decay * step  # of log q
        mean, deviation = self._frame(now, diffusion, step)
        middle, scale = (self.mean + mean) / 2, (self.deviation + deviation) / 2
        beta, _ = _beta_and_size(middle[:, None] + scale[:, None] * self.faces, self.log_q[:, None] - fall[:, None] / 2)
        drift = 2 * lr * self.problem.lam[:, None] * (beta - self.problem.target[:, None])
        moved = (mean - self.mean)[:, None] + (deviation - self.deviation)[:, None] * self.faces
        self._transport((drift + moved / step) / scale[:, None], diffusion / scale**2, step)
        self.mean, self.deviation, self.log_q = mean, deviation, self.log_q - fall
        self.time = latest if step == latest - time else time + step
        self._evaluate()
        self._lengthen()

    def observe(self) -> Floats:
        """Risk, curvature, norm and distance at the current time, (4, 1)."""
        size = (self.mass * self.size).sum(axis=1)
        distance = (self.mass * self.delta**2).sum(axis=1)
        share, lam = self.problem.share, self.problem.lam
        risk = (share @ (lam * distance) + self.problem.noise**2) / 2
        return np.array([[risk], [share @ (lam * size)], [share @ size], [share @ distance]])

    def _moments(self, lr: float, nu: float, decay: float) -> _Moments:
        lam, delta, size = self.problem.lam[:, None], self.delta, self.size
        risk = (self.problem.share @ (self.mass * lam * delta**2).sum(axis=1) + self.problem.noise**2) / 2
        diffusion = 4 * nu * lr**2 * lam * risk
        drift = 2 * lr * lam * delta
        # Rate of the mean of delta^2, by Ito and as q falls: d beta/d theta = S/2, d^2 beta/d theta^2 = beta.
        falls = diffusion / 2 + 2 * lr * decay
        rate = -drift * delta * size + diffusion * (size**2 / 2 + 2 * delta * self.beta) - 2 * delta * self.beta * falls
        mean_z = (self.mass * self.centers).sum(axis=1)
        variance_z = (self.mass * self.centers**2).sum(axis=1) - mean_z**2
        mean_drift = (self.mass * drift).sum(axis=1)
        spread = (self.mass * (drift - mean_drift[:, None]) * self.centers).sum(axis=1)
        return _Moments(
            risk=float(risk),
            risk_rate=float(self.problem.share @ (self.mass * lam * rate).sum(axis=1)) / 2,
            mean=self.mean + self.deviation * mean_z,
            mean_rate=-mean_drift,
            variance=self.deviation**2 * variance_z,
            contraction=np.maximum(2 * spread / (self.deviation * variance_z), 0.0),
        )

    def _frame(self, now: _Moments, diffusion: Floats, step: float) -> tuple[Floats, Floats]:
        """Mean and standard deviation after the step for a linear drift; a frame need not be exact."""
        gone = -np.expm1(-now.contraction * step)
        waits = np.where(now.contraction * step > 1e-12, gone / np.maximum(now.contraction, 1e-300), step)
        half = np.maximum(now.contraction / 2, 1e-300)
        slides = np.where(half * step > 1e-12, -np.expm1(-half * step) / half, step)
        variance = now.variance * (1 - gone) + 2 * diffusion * waits
        return now.mean + now.mean_rate * slides, np.sqrt(variance)

    def _transport(self, velocity: Floats, diffusion: Floats, step: float) -> None:
        """The densities after a step of d_t rho = d_z[velocity rho] + diffusion d_z^2 rho; velocity at the faces."""
        strength = np.maximum(diffusion, 1e-300)[:, None] / self.cell**2
        # Mass leaves such cells at once.  A higher speed would only add rounding errors, and with them wrong signs.
        speed = np.clip(velocity[:, 1:-1] / self.cell, -FASTEST / step, FASTEST / step)
        # Shares of the left and the right cell's mass that cross the inner face between them per unit of time.
        against = strength * _bernoulli(np.abs(speed) / strength)
        rightwards, leftwards = against + np.maximum(-speed, 0), against + np.maximum(speed, 0)
        net = leftwards * self.mass[:, 1:] - rightwards * self.mass[:, :-1]  # to the left
        explicit = self.mass + _limited(net * (1 - 2 * STAGE) * step, self.mass)
        banded = np.zeros((3, *self.mass.shape))
        banded[0, :, 1:], banded[2, :, :-1] = -leftwards, -rightwards
        banded[1, :, :-1] = rightwards
        banded[1, :, 1:] += leftwards
        banded *= STAGE * step
        banded[1] += 1
        system, shape = banded.reshape(3, -1), self.mass.shape
        stage = solve_banded((1, 1), system, explicit.reshape(-1), check_finite=False)
        self.mass = solve_banded((1, 1), system, stage, overwrite_ab=True, check_finite=False).reshape(shape)

    def _shares_of_risk(self) -> Floats:
        """Share of each cell in the excess risk, (K, N)."""
        parts: Floats = (self.problem.share * self.problem.lam)[:, None] * self.mass * self.delta**2
        risk = float(parts.sum())
        if not risk <= 2 * EXPLODED * max(self.problem.first_risk, self.problem.risk(np.zeros_like(self.mean))):
            raise Exploded(
                f"at t = {self.time:.4g} the risk has grown {EXPLODED:g}-fold, as SGD's does here; take a smaller rate"
            )
        return parts / max(risk, 1e-300)

    def _lengthen(self) -> None:
        if not np.isfinite(self.mass).all():
            raise GridLeft(f"at t = {self.time:.4g} a density is no longer finite: take a smaller learning rate")
        edge = np.maximum(self.mass, self._shares_of_risk())[:, [0, -1]].max(axis=1)
        if edge.max() <= EDGE:
            return
        more = self.num_half // 4
        if (self.num_half + more) * self.cell > self.width:
            k = int(edge.argmax())
            raise GridLeft(
                f"at t = {self.time:.4g} the density of lambda = {self.problem.lam[k]:g}, beta* = "
                f"{self.problem.target[k]:g} reaches beyond {self.width:g} deviations: take a larger width"
            )
        self.num_half += more
        self._cut()
        self.mass = np.pad(self.mass, ((0, 0), (more, more)))
        self._evaluate()


def _beta_and_size(theta: Floats, log_q: Floats) -> tuple[Floats, Floats]:
    """q sinh(theta)/2, and S = q cosh(theta)."""
    rising, falling = _exp(log_q + theta), _exp(log_q - theta)
    return (rising - falling) / 4, (rising + falling) / 2


def _exp(x: Floats) -> Floats:
    exponential: Floats = np.exp(np.minimum(x, LARGEST))
    return exponential


def _bernoulli(x: Floats) -> Floats:
    """x/(e^x - 1) for x >= 0."""
    bounded = np.clip(x, 1e-8, 700.0)
    return np.where(x < 1e-8, 1 - x / 2, bounded / np.expm1(bounded))


def _limited(net: Floats, mass: Floats) -> Floats:
    """Gain of each cell, (K, N), from net flows to the left over inner faces, (K, N - 1).

    No cell gives more than it has.
    """
    left, right = np.maximum(net, 0), np.maximum(-net, 0)
    given = np.zeros_like(mass)
    given[:, 1:] += left
    given[:, :-1] += right
    # Slightly less than all, by more than rounding, so no mass becomes negative.
    part = np.minimum(1.0, (1 - 1e-14) * mass / np.maximum(given, 1e-300))
    left, right = left * part[:, 1:], right * part[:, :-1]
    gain = np.zeros_like(mass)
    gain[:, :-1] += left - right
    gain[:, 1:] += right - left
    return gain
