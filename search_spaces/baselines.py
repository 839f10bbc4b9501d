"""The optimizers that everybody knows, tuned as the field tunes them."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.variant import Variant

SGDM = Variant(
    name="sgdm",
    idea="SGD with constant momentum",
    source="Polyak 1964; Sutskever et al., ICML 2013",
    fixed={"rule": "sgd", "momentum.schedule": "constant"},
    searched={
        "lr.peak": FloatDistribution(1e-2, 1.0, log=True),
        "lr.schedule": CategoricalDistribution(("cosine", "linear", "constant")),
        "lr.warmup": FloatDistribution(0.0, 0.2),
        "momentum.value": FloatDistribution(0.8, 0.98),
        "decay.weight": FloatDistribution(1e-5, 1e-2, log=True),
    },
    default={
        "lr.peak": 0.1,
        "lr.schedule": "cosine",
        "lr.warmup": 0.05,
        "momentum.value": 0.9,
        "decay.weight": 5e-4,
    },
)

ADAMW = Variant(
    name="adamw",
    idea="Adam with decoupled weight decay",
    source="Loshchilov and Hutter, ICLR 2019, arXiv 1711.05101",
    fixed={"rule": "adamw", "momentum.schedule": "constant"},
    searched={
        "lr.peak": FloatDistribution(3e-4, 3e-2, log=True),
        "lr.schedule": CategoricalDistribution(("cosine", "linear", "constant")),
        "lr.warmup": FloatDistribution(0.0, 0.2),
        "momentum.value": FloatDistribution(0.8, 0.98),
        "second_moment": CategoricalDistribution((0.95, 0.99, 0.999)),
        "decay.weight": FloatDistribution(1e-4, 1e-1, log=True),
    },
    default={
        "lr.peak": 1e-3,
        "lr.schedule": "cosine",
        "lr.warmup": 0.05,
        "momentum.value": 0.9,
        "second_moment": 0.999,
        "decay.weight": 1e-2,
    },
)
