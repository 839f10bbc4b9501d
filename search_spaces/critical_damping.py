"""Memory: momentum computed from the learning rate by critical damping.

The control keeps the momentum constant and changes the learning rate instead, so that lr/(1 - momentum), the length of
the critical schedule's steps, is the same at every step.  The two then differ only in their memory.
"""

from __future__ import annotations

import dataclasses

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.variant import Variant

CRITICAL = Variant(
    name="critical",
    idea="momentum that follows the learning rate: 1 - 2 zeta sqrt(lr)",
    source="Pasichnyk 2026, arXiv 2603.28921",
    fixed={"rule": "sgd", "momentum.schedule": "critical"},
    searched={
        "lr.peak": FloatDistribution(1e-2, 0.25, log=True),
        "lr.schedule": CategoricalDistribution(("cosine", "linear", "constant")),
        "lr.warmup": FloatDistribution(0.0, 0.2),
        "momentum.form": CategoricalDistribution(("linear", "square", "exponential")),
        "momentum.zeta": FloatDistribution(0.25, 2.0, log=True),
        "momentum.floor": FloatDistribution(0.0, 0.5),
        "momentum.cap": FloatDistribution(0.9, 0.999),
        "momentum.rescale": CategoricalDistribution(("none", "lr", "sqrt-lr")),
        "decay.weight": FloatDistribution(1e-5, 1e-2, log=True),
    },
    default={
        "lr.peak": 0.1,
        "lr.schedule": "cosine",
        "lr.warmup": 0.05,
        "momentum.form": "linear",
        "momentum.zeta": 1.0,
        "momentum.floor": 0.0,
        "momentum.cap": 0.99,
        "momentum.rescale": "none",
        "decay.weight": 5e-4,
    },
)

HYBRID = dataclasses.replace(
    CRITICAL.but(
        fixed={"momentum.schedule": "hybrid"},
        searched={
            "momentum.value": CategoricalDistribution((0.85, 0.9, 0.95)),
            "momentum.switch": CategoricalDistribution(("fraction", "accuracy", "crossing")),
            "momentum.switch_fraction": FloatDistribution(0.1, 0.9),
            "momentum.switch_accuracy": FloatDistribution(0.85, 0.93),
        },
        default={
            "momentum.value": 0.9,
            "momentum.switch": "fraction",
            "momentum.switch_fraction": 0.5,
            "momentum.switch_accuracy": 0.9,
        },
    ),
    name="hybrid",
    idea="momentum that follows the learning rate at first, and is constant for the refinement",
    when={
        "momentum.switch_fraction": ("momentum.switch", ("fraction",)),
        "momentum.switch_accuracy": ("momentum.switch", ("accuracy",)),
    },
)

CRITICAL_MATCHED = dataclasses.replace(
    CRITICAL.but(
        fixed={"momentum.schedule": "matched", "momentum.rescale": "none"},
        searched={"momentum.value": FloatDistribution(0.8, 0.98)},
        default={"momentum.value": 0.9},
    ),
    name="critical-matched",
    idea="constant momentum, and the learning rate that gives it the critical schedule's effective step",
    source="ours",
    controls="critical",
)
