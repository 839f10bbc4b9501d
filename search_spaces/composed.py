"""Direction, memory, length and order searched at once.

The space contains the default point of each paper's variants and of SGD with momentum.  They are enqueued: a
refinement tries as many as fit into half of it, in the order of PARTS, so that the model learns from what each idea
gives alone.  A hyperparameter that a part does not have is at its neutral value.

Backward composition has no weight decay, as in its paper.
"""

from __future__ import annotations

import dataclasses

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from search_spaces.backward import BACKWARD, BACKWARD_WINDOW
from search_spaces.baselines import SGDM
from search_spaces.critical_damping import CRITICAL, HYBRID
from search_spaces.lp_norm import LPSGD, LPSGDM
from search_spaces.random_scaling import RANDOM_SCALING, RANDOM_SCALING_GAMMA
from search_spaces.variant import Value, Variant

PARTS = (SGDM, LPSGDM, HYBRID, RANDOM_SCALING, CRITICAL, BACKWARD_WINDOW, LPSGD, BACKWARD)
"""The most promising parts come first, because a short search cannot try all."""

NEUTRAL: dict[str, Value] = {
    "lr.warmup": 0.0,
    "scaling.law": "none",
    "average.decay": 0.0,
    "order.composition": "forward",
}

_NORM = ("norm.p_max", "norm.p_end", "norm.shape", "norm.variable", "norm.hold")
_CRITICAL = ("momentum.form", "momentum.zeta", "momentum.floor", "momentum.cap", "momentum.rescale")
_SWITCH = ("momentum.switch", "momentum.switch_fraction", "momentum.switch_accuracy")

_SEARCHED: dict[str, BaseDistribution] = {
    "rule": CategoricalDistribution(("sgd", "lpsgd")),
    "lr.peak": FloatDistribution(3e-4, 1.0, log=True),
    "lr.schedule": SGDM.searched["lr.schedule"],
    "lr.warmup": SGDM.searched["lr.warmup"],
    **{name: LPSGDM.searched[name] for name in _NORM},
    "momentum.schedule": CategoricalDistribution(("constant", "critical", "hybrid")),
    "momentum.value": FloatDistribution(0.0, 0.99),
    **{name: HYBRID.searched[name] for name in (*_CRITICAL, *_SWITCH)},
    "scaling.law": CategoricalDistribution(("none", "exponential", "uniform", "gamma")),
    "scaling.shape": RANDOM_SCALING_GAMMA.searched["scaling.shape"],
    "scaling.active": RANDOM_SCALING.searched["scaling.active"],
    "average.decay": RANDOM_SCALING.searched["average.decay"],
    "order.composition": CategoricalDistribution(("forward", "backward")),
    "order.start": BACKWARD.searched["order.start"],
    "order.window": CategoricalDistribution((0, 4, 8, 16, 32, 64, 128)),
    "order.interval": BACKWARD.searched["order.interval"],
    "decay.weight": FloatDistribution(1e-5, 1e-1, log=True),
}

_DEFAULT: dict[str, Value] = {
    **RANDOM_SCALING_GAMMA.default,
    **BACKWARD_WINDOW.default_settings(),
    **HYBRID.default,
    **LPSGDM.default,
    **NEUTRAL,
    **SGDM.default_settings(),
}

_SPACE = Variant(
    name="composed",
    idea="l_p descent, momentum by critical damping, random scaling and backward composition at once",
    source="ours",
    fixed={"norm.interval": "epoch", "norm.scale": "none"},
    searched=_SEARCHED,
    default={name: _DEFAULT[name] for name in _SEARCHED},
    when={
        **dict.fromkeys(_NORM, ("rule", ("lpsgd",))),
        "momentum.value": ("momentum.schedule", ("constant", "hybrid")),
        **dict.fromkeys(_CRITICAL, ("momentum.schedule", ("critical", "hybrid"))),
        "momentum.switch": ("momentum.schedule", ("hybrid",)),
        **{name: HYBRID.when[name] for name in _SWITCH[1:]},
        "scaling.shape": ("scaling.law", ("gamma",)),
        "scaling.active": ("scaling.law", ("exponential", "uniform", "gamma")),
        **dict.fromkeys(("order.start", "order.window", "order.interval"), ("order.composition", ("backward",))),
        "decay.weight": ("order.composition", ("forward",)),
    },
)

COMPOSED = dataclasses.replace(
    _SPACE, enqueued={part.name: _SPACE.point({**NEUTRAL, **part.default_settings()}) for part in PARTS}
)
