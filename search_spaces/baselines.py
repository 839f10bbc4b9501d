"""The well-known optimizers, each with its usual hyperparameters."""

from __future__ import annotations

import dataclasses

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

# Without the 1/(1 - momentum) that a buffer adds to the step, the learning rate is larger.
SGD = dataclasses.replace(
    SGDM.but(
        fixed={"momentum.value": 0.0},
        searched={"lr.peak": FloatDistribution(3e-2, 3.0, log=True)},
        default={"lr.peak": 0.3},
    ),
    name="sgd",
    idea="SGD without momentum",
    source="Robbins and Monro 1951",
)

NESTEROV = dataclasses.replace(
    SGDM.but(fixed={"momentum.nesterov": True}),
    name="nesterov",
    idea="SGD with Nesterov momentum",
    source="Nesterov 1983; Sutskever et al., ICML 2013",
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

# A sign is a longer step than AdamW's: the paper takes a learning rate 3 to 10 times smaller, and a weight decay 3 to
# 10 times larger.  The ranges follow the paper; the default learning rate suits a short training.
LION = dataclasses.replace(
    ADAMW.but(
        fixed={"rule": "lion"},
        searched={
            "lr.peak": FloatDistribution(5e-5, 5e-3, log=True),
            "second_moment": CategoricalDistribution((0.95, 0.98, 0.99, 0.999)),
            "decay.weight": FloatDistribution(1e-3, 1.0, log=True),
        },
        default={"lr.peak": 1e-3, "second_moment": 0.99, "decay.weight": 0.1},
    ),
    name="lion",
    idea="the sign of an interpolated momentum",
    source="Chen et al., NeurIPS 2023, arXiv 2302.06675",
)

# The rise is a part of the cycle, longer than a warm-up; the momentum is lowest where the learning rate is largest.
ONE_CYCLE = dataclasses.replace(
    SGDM.but(
        fixed={"lr.schedule": "one-cycle", "momentum.schedule": "cycle"},
        searched={
            "lr.warmup": FloatDistribution(0.15, 0.5),
            "momentum.value": FloatDistribution(0.9, 0.98),
            "momentum.low": FloatDistribution(0.8, 0.9),
        },
        default={"lr.warmup": 0.3, "momentum.value": 0.95, "momentum.low": 0.85},
    ),
    name="one-cycle",
    idea="the learning rate rises to a large peak and falls, the momentum does the opposite",
    source="Smith and Topin 2019, arXiv 1708.07120",
)
