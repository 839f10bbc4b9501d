"""The population that the samples of the workload ``diagonal`` are drawn from, as numbers, without torch.

::

    x_i ~ N(0, lambda_i/d),   y = <x, beta*>
    risk P(beta) = E (<x, beta> - y)^2/2 = sum_i lambda_i (beta_i - beta*_i)^2/(2 d)

It is :func:`tuner.theory.problem.standard_problem` on d coordinates.  ``validation`` and ``test`` are the d inputs
sqrt(lambda_i) e_i with labels y = sqrt(lambda_i) beta*_i.  The mean of r^2/2 over them is P for every beta (ours).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tuner.core.metrics import R_SQUARED
from tuner.core.trial_spec import WorkloadSpec
from tuner.theory.problem import Floats, standard_problem

DIMENSION = 400
"""Coordinates, d: twenty of each type.  A training's risk differs from the limit's by about 5% (median over seeds)."""
NUM_TRAIN = 6400
"""Samples per epoch: a hundred batches of 64."""
LAW = "x = float32(N(0, 1)) sqrt(lambda/d), drawn by the seed of the batch"
"""The law of the draws; it is part of the digest, since another law would give other data."""


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """A diagonal problem, coordinate by coordinate: each array is (d,)."""

    lam: Floats
    """lambda: d times the variance of an input."""
    target: Floats
    """beta*."""
    u: Floats
    """Initial u of the product u v."""
    v: Floats
    """Initial v of the product u v."""

    num_classes = None
    score = R_SQUARED

    @property
    def dimension(self) -> int:
        return self.lam.size

    @property
    def sizes(self) -> Mapping[str, int]:
        """Split -> number of samples."""
        return {"train": NUM_TRAIN, "validation": self.dimension, "test": self.dimension}

    @property
    def label_square(self) -> float:
        """E y^2: twice the risk with all weights at zero."""
        return float(np.mean(self.lam * self.target**2))

    def risk(self, beta: Floats) -> float:
        """The risk P(beta), for beta of shape (d,)."""
        return float(np.mean(self.lam * (beta - self.target) ** 2)) / 2

    @property
    def digest(self) -> str:
        """SHA-256 over the problem, the number of samples and the law of their draws."""
        state = hashlib.sha256(f"{LAW} {NUM_TRAIN} ".encode())
        for values in (self.lam, self.target, self.u, self.v):
            state.update(values.astype("<f8").tobytes())
        return state.hexdigest()


def make_population(dimension: int = DIMENSION) -> Population:
    """The standard problem on ``dimension`` coordinates.  Raises :class:`InvalidInput` if it has fewer than types."""
    problem = standard_problem()
    types = problem.types_of(dimension)
    return Population(problem.lam[types], problem.target[types], problem.u[types], problem.v[types])


def describe_diagonal(spec: WorkloadSpec) -> Population:
    """Digest and sizes of the data for a driver; they do not depend on the spec."""
    return make_population()
