"""Memory: momentum computed from the learning rate by critical damping."""

from __future__ import annotations

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
        "decay.weight": 5e-4,
    },
)
