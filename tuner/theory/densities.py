"""Densities of all types of coordinates at one time, on grids that move with them, and their steps.

The equations are those of :mod:`tuner.theory.pde`; the numerics are ours but for the parts named.  As the noise dies
with the risk, densities become ever narrower.  So each has its own frame theta = m + s z, where m and s follow its mean
and deviation, and z is cut into equal cells::

    d_t rho = d_z[((a + m' + z s')/s) rho] + (D/s^2) d_z^2 rho

- space: exponentially fitted fluxes (Scharfetter and Gummel, 1969): of second order, positive, nothing leaves;
- time: the two equal implicit stages of Alexander's SDIRK (SIAM J. Numer. Anal. 14, 1977) at the values of the middle
  of the step, of second order and L-stable; its explicit part is limited flux by flux where it would empty a cell;
- the step is the size of a cell times a part of the fastest contraction or spread: half the cells, half the steps.

A Gaussian stands still in its frame, so the start may be as narrow as one likes.  Where a density comes near the end of
the grid, as the skewed ones of large learning rates do, the grid is made longer.
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
"""The implicit part of each stage."""
START = 1e-6
"""Deviation of theta at the start, in place of 0; what it adds to the risk is its square."""
STEPS = 0.6
"""Over the size of a cell: the part that a step takes of the time in which the fastest variance contracts by e."""
REACH = 10.0
"""Deviations to either side at the start."""
EDGE = 1e-10
"""Share of a type's mass, or of the risk, next to an end of the grid from which the grid is too short."""
EXPLODED = 1e4
"""Risk over the first, or that of zero weights, from which on it is taken to have exploded."""
FASTEST = 1e6
"""Cells a step at which velocities are cut off."""
WIDTH = 80.0
"""Deviations that grids reach to either side at most, where nothing else is said."""
LARGEST = 100.0
"""Logarithm at which beta is cut off: no density is there."""


class GridLeft(InvalidInput):
    """A density has come to an end of its grid."""


class Exploded(InvalidInput):
    """The risk of the limit has grown without bound."""


def hyperbolic_start(problem: Problem) -> tuple[Floats, Floats]:
    """theta and log q of each type at the start, (K,) both; InvalidInput where |u| = |v| and for immense weights."""
    sum_, difference = np.abs(problem.u + problem.v), np.abs(problem.u - problem.v)
    if (sum_ == 0).any() or (difference == 0).any():
        raise InvalidInput("u and v: must differ in size, as q = u^2 - v^2 = 0 has no theta")
    # Not the logarithms of quotient and product, which leave the range of numbers first.
    theta, log_q = np.log(sum_) - np.log(difference), np.log(sum_) + np.log(difference)
    if (log_q + np.abs(theta)).max() > LARGEST:
        raise InvalidInput(f"u and v: must be below {math.exp(LARGEST / 2):.0e}")
    return theta, log_q


@dataclass(frozen=True, slots=True)
class _Moments:
    """What a step needs to know of the densities, (K,) each but the risk."""

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
        """Of each type in each cell, (K, N)."""
        self._evaluate()

    def _cut(self) -> None:
        self.faces = self.cell * np.arange(-self.num_half, self.num_half + 1)
        self.centers = (self.faces[1:] + self.faces[:-1]) / 2

    def _evaluate(self) -> None:
        """delta, beta and S of each type in each cell, (K, N) all."""
        theta = self.mean[:, None] + self.deviation[:, None] * self.centers
        self.beta, self.size = _beta_and_size(theta, self.log_q[:, None])
        self.delta = self.beta - self.problem.target[:, None]

    def advance(self, sgd: EffectiveSgd, latest: float) -> None:
        """One step, not beyond ``latest``."""
        time = self.time
        now = self._moments(at(sgd.lr, time), at(sgd.nu, time), sgd.decay)
        lr = at(sgd.lr, time)
        spreads = 4 * at(sgd.nu, time) * lr**2 * float(self.problem.lam.max()) * now.risk
        fastest = max(float(now.contraction.max()), spreads, lr * float(self.problem.lam.max()) * 1e-3, 1e-9)
        # Widths grow as the root of time at first, which equal steps would follow with less than second order.
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
        """Risk, curvature, norm and distance now, (4, 1)."""
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
        # Of delta^2 along the densities and as q falls, by Ito: d beta/d theta = S/2, d^2 beta/d theta^2 = beta.
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
        """Mean and deviation after the step, as if the drift were linear; a frame need not be exact."""
        gone = -np.expm1(-now.contraction * step)
        waits = np.where(now.contraction * step > 1e-12, gone / np.maximum(now.contraction, 1e-300), step)
        half = np.maximum(now.contraction / 2, 1e-300)
        slides = np.where(half * step > 1e-12, -np.expm1(-half * step) / half, step)
        variance = now.variance * (1 - gone) + 2 * diffusion * waits
        return now.mean + now.mean_rate * slides, np.sqrt(variance)

    def _transport(self, velocity: Floats, diffusion: Floats, step: float) -> None:
        """The densities after a step of d_t rho = d_z[velocity rho] + diffusion d_z^2 rho; velocity at the faces."""
        strength = np.maximum(diffusion, 1e-300)[:, None] / self.cell**2
        # In cells that are left at once, faster would only cost digits, and with them signs.
        speed = np.clip(velocity[:, 1:-1] / self.cell, -FASTEST / step, FASTEST / step)
        # What crosses an inner face from the left cell, and from the right one, of their masses a unit of time.
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
        """What each cell adds to the excess risk, as a share of it, (K, N)."""
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
    """x/(e^x - 1) of x >= 0."""
    bounded = np.clip(x, 1e-8, 700.0)
    return np.where(x < 1e-8, 1 - x / 2, bounded / np.expm1(bounded))


def _limited(net: Floats, mass: Floats) -> Floats:
    """What cells gain from net flows over inner faces (K, N - 1), to the left, none giving more than it has."""
    left, right = np.maximum(net, 0), np.maximum(-net, 0)
    given = np.zeros_like(mass)
    given[:, 1:] += left
    given[:, :-1] += right
    # Less than all, by more than rounding, so that nothing negative is left.
    part = np.minimum(1.0, (1 - 1e-14) * mass / np.maximum(given, 1e-300))
    left, right = left * part[:, 1:], right * part[:, :-1]
    gain = np.zeros_like(mass)
    gain[:, :-1] += left - right
    gain[:, 1:] += right - left
    return gain
