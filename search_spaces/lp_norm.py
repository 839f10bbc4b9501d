"""Direction: steepest descent in l_p, with p annealed from above 2 to 2.

The learning rate is searched over the range of the larger norms: at p above 2 the step is nearly that of sign descent.
"""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.variant import Variant

LPSGDM = Variant(
    name="lpsgdm",
    idea="l_p-norm descent after momentum, p annealed towards 2",
    source="Xu and Yang 2026, arXiv 2606.02078",
    fixed={"rule": "lpsgd", "momentum.schedule": "constant", "norm.interval": "epoch", "norm.scale": "none"},
    searched={
        "lr.peak": FloatDistribution(3e-4, 1e-1, log=True),
        "lr.schedule": CategoricalDistribution(("cosine", "linear", "constant")),
        "lr.warmup": FloatDistribution(0.0, 0.2),
        "momentum.value": FloatDistribution(0.8, 0.98),
        "norm.p_max": FloatDistribution(3.0, 20.0, log=True),
        "norm.p_end": FloatDistribution(2.0, 3.0),
        "norm.shape": CategoricalDistribution(("cosine", "linear", "step", "exponential")),
        "norm.hold": FloatDistribution(0.0, 0.3),
        "decay.weight": FloatDistribution(1e-4, 1e-1, log=True),
    },
    default={
        "lr.peak": 1e-2,
        "lr.schedule": "cosine",
        "lr.warmup": 0.05,
        "momentum.value": 0.9,
        "norm.p_max": 6.0,
        "norm.p_end": 2.0,
        "norm.shape": "cosine",
        "norm.hold": 0.0,
        "decay.weight": 1e-2,
    },
)
