"""The limit as stochastic differential equations, one for each coordinate, many runs at a time.

The *same* noise drives u and v of a coordinate, since one gradient moves both::

    dU = -gamma V dZ - gamma w U dt,   dV = -gamma U dZ - gamma w V dt
    dZ = lambda delta dt + sqrt(2 nu P lambda) dB,   P = avg lambda delta^2/2 + sigma^2/2

In hyperbolic form, with q = |u^2 - v^2|, beta = q sinh(theta)/2 and S = q cosh(theta)::

    d theta = -2 gamma lambda (q sinh(theta)/2 - beta*) dt - 2 gamma sqrt(2 nu P lambda) dB
    d log q = -2 (nu gamma^2 lambda P + gamma w) dt

For directions sign(z) |z|^a in place of the gradient z, with M_p = E|N(0, 1)|^p and f(z) = sign(z) |z|^a::

    dU = -f(V) dZ,   dV = -f(U) dZ
    dZ = gamma ((2 P)^((a - 1)/2) lambda^((a + 1)/2) M_(a + 1)^2 delta dt + (2 P)^(a/2) lambda^(a/2) M_(2 a) dB)

They are integrated by the Euler-Maruyama method.  In hyperbolic form the noise is additive.  The equations are ours;
that such a limit exists is shown in https://arxiv.org/abs/2605.17177.  With independent noise for u and v the equations
are wrong: ``shared=False`` demonstrates it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from tuner.core.errors import InvalidInput
from tuner.theory.densities import hyperbolic_start
from tuner.theory.problem import Numbers, Problem
from tuner.theory.steps import EffectiveSgd, at
from tuner.theory.trajectory import Trajectory, from_rows, require_times


def simulate_sde(
    problem: Problem,
    sgd: EffectiveSgd,
    times: Numbers,
    *,
    num_particles: int,
    num_runs: int = 1,
    step: float = 1 / 400,
    hyperbolic: bool = False,
    shared: bool = True,
    power: float = 1.0,
    seed: int = 0,
) -> Trajectory:
    """``num_runs`` runs of ``num_particles`` coordinates each, in steps of at most ``step`` > 0 of time.

    The risk of a run is the mean over its own coordinates.  ``power`` is a, in [0, 1]; below 1 it needs nu = 1 and no
    decay.  A ``power`` below 1 and ``shared=False`` need the form in (u, v).

    Raises :class:`InvalidInput` for values out of range and for other combinations, and in hyperbolic form if |u| = |v|
    for some type.
    """
    checked = require_times(times)
    if num_runs < 1 or not 0 < step < math.inf:
        raise InvalidInput(f"num_runs = {num_runs}, step = {step}: must be at least 1, and above 0")
    if not 0 <= power <= 1 or (power < 1 and (sgd.nu != 1 or sgd.decay)):
        raise InvalidInput(f"power = {power}: must be in [0, 1], and below 1 without decay and with nu = 1")
    if hyperbolic and (power < 1 or not shared):
        raise InvalidInput("hyperbolic: goes with power = 1 and shared noise")
    cloud = _Cloud(problem, num_particles, num_runs, hyperbolic, shared, power, torch.Generator().manual_seed(seed))
    rows: list[Tensor] = []
    time = 0.0
    for target in checked:
        num_steps = math.ceil((target - time) / step)
        for k in range(num_steps):
            length = (target - time) / num_steps
            cloud.step(sgd, time + k * length, length)
        time = float(target)
        rows.append(cloud.observe())
    return from_rows(checked, (row.numpy() for row in rows))


class _Cloud:
    """Coordinates of all runs, (R, N): u and v, or in hyperbolic form theta and log q."""

    def __init__(
        self,
        problem: Problem,
        num_particles: int,
        num_runs: int,
        hyperbolic: bool,
        shared: bool,
        power: float,
        generator: torch.Generator,
    ) -> None:
        types = problem.types_of(num_particles)

        def of_type(values: np.ndarray) -> Tensor:
            return torch.tensor(values[types])

        self.noise, self.hyperbolic, self.shared, self.power = problem.noise, hyperbolic, shared, power
        self.generator = generator
        self.lam, self.target = of_type(problem.lam), of_type(problem.target)
        first, second = hyperbolic_start(problem) if hyperbolic else (problem.u, problem.v)
        self.first, self.second = (of_type(part).repeat(num_runs, 1) for part in (first, second))

    def step(self, sgd: EffectiveSgd, time: float, length: float) -> None:
        lr, nu = at(sgd.lr, time), at(sgd.nu, time)
        delta = self.beta() - self.target
        risk = self.risk(delta)[:, None]
        drift, deviation = self._coefficients(nu, risk)

        def step_of_z() -> Tensor:
            noise = torch.empty_like(delta).normal_(generator=self.generator) * math.sqrt(length)
            return lr * (drift * delta * length + deviation * noise)

        if self.hyperbolic:
            self.first -= 2 * step_of_z()
            self.second -= 2 * (nu * lr**2 * self.lam * risk + lr * sgd.decay) * length
            return
        to_u = step_of_z()
        to_v = to_u if self.shared else step_of_z()
        u, v = self.first, self.second
        shrink = 1 - lr * sgd.decay * length
        self.first, self.second = u * shrink - self._direction(v) * to_u, v * shrink - self._direction(u) * to_v

    def _coefficients(self, nu: float, risk: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of delta dt and of dB in dZ, without the learning rate."""
        a = self.power
        drift = (2 * risk) ** ((a - 1) / 2) * self.lam ** ((a + 1) / 2) * _moment(a + 1) ** 2
        return drift, math.sqrt(nu) * (2 * risk * self.lam) ** (a / 2) * _moment(2 * a)

    def _direction(self, z: Tensor) -> Tensor:
        return z if self.power == 1 else z.sign() * z.abs().pow(self.power)

    def beta(self) -> Tensor:
        return self.second.exp() * self.first.sinh() / 2 if self.hyperbolic else self.first * self.second

    def risk(self, delta: Tensor) -> Tensor:
        """P of each run, (R,)."""
        return (self.lam * delta.square()).mean(1) / 2 + self.noise**2 / 2

    def observe(self) -> Tensor:
        """Risk, curvature, norm and distance of each run, (4, R)."""
        delta = self.beta() - self.target
        square = self.first.square() + self.second.square()
        size = self.second.exp() * self.first.cosh() if self.hyperbolic else square
        return torch.stack([self.risk(delta), (self.lam * size).mean(1), size.mean(1), delta.square().mean(1)])


def _moment(p: float) -> float:
    """E|N(0, 1)|^p."""
    return 2 ** (p / 2) * math.gamma((p + 1) / 2) / math.sqrt(math.pi)
