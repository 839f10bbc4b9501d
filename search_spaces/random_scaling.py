"""Length: each step of SGD with momentum is multiplied by a random factor of mean 1.

A random factor of second moment m2 lowers the largest stable learning rate, the more so the larger the momentum.  An
exponential factor, on a quadratic and in PyTorch's form, lowers it from 2 (1 + momentum) / curvature to
(1 - momentum^2) / curvature.  So learning rates lie lower than SGD's, and momentum 0 is among the choices.

The theory requires the exponential distribution.  The control has gamma distributions of the same mean, whose variance
1/shape goes to 0 as the shape grows.
"""

from __future__ import annotations

import dataclasses

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.baselines import SGDM

RANDOM_SCALING = dataclasses.replace(
    SGDM.but(
        fixed={"scaling.law": "exponential"},
        searched={
            "lr.peak": FloatDistribution(1e-3, 0.2, log=True),
            "momentum.value": CategoricalDistribution((0.0, 0.9, 0.95, 0.99)),
            "scaling.active": CategoricalDistribution((1.0, 0.8, 0.5)),
            "average.decay": CategoricalDistribution((0.0, 0.9, 0.99)),
        },
        default={"lr.peak": 5e-2, "scaling.active": 1.0, "average.decay": 0.0},
    ),
    name="random-scaling",
    idea="each step of SGD with momentum times a random factor with an exponential distribution",
    source="Zhang and Cutkosky, ICML 2024, arXiv 2405.09742",
)

RANDOM_SCALING_GAMMA = dataclasses.replace(
    RANDOM_SCALING.but(
        fixed={"scaling.law": "gamma"},
        searched={"scaling.shape": CategoricalDistribution((2.0, 4.0, 16.0))},
        default={"scaling.shape": 2.0},
    ),
    name="random-scaling-gamma",
    idea="each step of SGD with momentum times a random factor with a gamma distribution, which varies less",
    source="ours",
    controls="random-scaling",
)
