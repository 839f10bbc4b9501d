"""Simulation of SGD on a diagonal linear network, many runs at a time."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tuner.core.errors import InvalidInput, unknown
from tuner.optimizers.random_scaling import draw_scale
from tuner.theory.problem import Numbers, Problem
from tuner.theory.steps import Sgd, at
from tuner.theory.trajectory import Trajectory, from_rows, require_times

Parametrization: TypeAlias = Literal["product", "squares"]


def simulate_sgd(
    problem: Problem,
    sgd: Sgd,
    times: Numbers,
    *,
    dimension: int,
    num_runs: int = 1,
    seed: int = 0,
    parametrization: Parametrization = "product",
    dtype: torch.dtype = torch.float32,
) -> Trajectory:
    """``num_runs`` runs of SGD on ``dimension`` coordinates with fresh samples, up to the last of the times.

    ``product`` is beta = u v.  ``squares`` is beta = u^2 - v^2; its u + v and u - v start as the u and v of the
    product.  With half the learning rate it is the same run, step by step.  Norm and curvature are those of the product
    in both.  Times are rounded to whole steps of 1/d.  One generator draws the data of all runs, so the data is the
    same for the same seed, dimension, batch, number of runs and dtype.

    Raises :class:`InvalidInput` if ``num_runs`` is below 1, for an unknown parametrization, and for a dimension too
    small for all types.
    """
    checked = require_times(times)
    if num_runs < 1:
        raise InvalidInput(f"num_runs = {num_runs}: must be at least 1")
    networks = Networks(problem, sgd, dimension, num_runs, parametrization, dtype)
    generator = torch.Generator().manual_seed(seed)
    scales = torch.Generator().manual_seed(seed)
    inputs = torch.empty((num_runs, sgd.batch, dimension), dtype=dtype)
    noise = torch.zeros((num_runs, sgd.batch), dtype=dtype)
    rows: list[Tensor] = []
    done = 0
    for target in checked:
        for step in range(done, round(target * dimension)):
            inputs.normal_(generator=generator).mul_(networks.deviation)
            if problem.noise > 0:
                noise.normal_(std=problem.noise, generator=generator)
            length = torch.full((num_runs, 1), at(sgd.lr, step / dimension), dtype=dtype)
            if sgd.law != "none":
                drawn = [draw_scale(sgd.law, sgd.shape, scales) for _ in range(num_runs)]
                length *= torch.tensor(drawn, dtype=dtype)[:, None]
            networks.step(inputs, noise, length)
        done = round(target * dimension)
        rows.append(networks.observe())
    return from_rows(checked, (row.numpy() for row in rows))


class Networks:
    """The weights of all runs, (R, d) each, and their steps."""

    def __init__(
        self,
        problem: Problem,
        sgd: Sgd,
        dimension: int,
        num_runs: int,
        parametrization: Parametrization,
        dtype: torch.dtype,
    ) -> None:
        if parametrization not in ("product", "squares"):
            raise unknown("parametrization", parametrization, ("product", "squares"))
        types = problem.types_of(dimension)

        def of_type(values: np.ndarray) -> Tensor:
            return torch.tensor(values[types], dtype=dtype)

        self.sgd, self.noise, self.squares = sgd, problem.noise, parametrization == "squares"
        self.lam, self.target = of_type(problem.lam), of_type(problem.target)
        self.deviation = (self.lam / dimension).sqrt()
        u, v = of_type(problem.u), of_type(problem.v)
        if self.squares:
            u, v = (u + v) / 2, (u - v) / 2
        self.u, self.v = u.repeat(num_runs, 1), v.repeat(num_runs, 1)
        self.buffers = torch.zeros_like(self.u), torch.zeros_like(self.v)
        self.factor = dimension ** ((sgd.power - 1) / 2)

    def delta(self) -> Tensor:
        """beta - beta*, (R, d)."""
        beta = self.u.square() - self.v.square() if self.squares else self.u * self.v
        return beta.sub_(self.target)

    def step(self, inputs: Tensor, noise: Tensor, length: Tensor) -> None:
        """One step on inputs (R, B, d), with noise (R, B) in the labels and a step length of each run, (R, 1)."""
        residual = (inputs @ self.delta()[:, :, None]).squeeze(2) - noise
        g = (residual[:, None] @ inputs).squeeze(1) / self.sgd.batch
        gradients = (2 * g * self.u, -2 * g * self.v) if self.squares else (g * self.v, g * self.u)
        for weights, buffer, gradient in zip((self.u, self.v), self.buffers, gradients, strict=True):
            if self.sgd.decay > 0:
                gradient = gradient.add_(weights, alpha=self.sgd.decay)
            if self.sgd.momentum > 0:
                gradient = buffer.mul_(self.sgd.momentum).add_(gradient)
            if self.sgd.power != 1:
                gradient = gradient.sign() * gradient.abs().pow(self.sgd.power) * self.factor
            weights.addcmul_(length, gradient, value=-1)

    def observe(self) -> Tensor:
        """Risk, curvature, norm and distance of each run, (4, R)."""
        square = self.delta().square_()
        size = (self.u.square() + self.v.square()) * (2 if self.squares else 1)
        risk = (self.lam * square).mean(1) / 2 + self.noise**2 / 2
        return torch.stack([risk, (self.lam * size).mean(1), size.mean(1), square.mean(1)])
