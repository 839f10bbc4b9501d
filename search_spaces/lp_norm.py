"""Direction: steepest descent in l_p, with p annealed from above 2 to 2.

The range of the learning rate is that of the larger norms: at p above 2 the step is nearly that of sign descent.

The transform is not homogeneous, so annealing p also shortens the steps, and a gain may come from that alone.  Each
control changes one thing.  ``fixed`` does not anneal.  ``rms`` removes the change of length.  ``dual`` restores the
factor that steepest descent has and the paper drops.  ``sign`` keeps nothing but the sign.  With the dual factor, the
steps of a tensor of n parameters are about n^((p-2)/p) of a typical entry of m.  With the RMS of m, they are as long as
SGD's.  The ranges of the learning rate follow from this.
"""

from __future__ import annotations

import dataclasses
import math

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.variant import Value, Variant

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
        "norm.variable": CategoricalDistribution(("p", "alpha")),
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
        "norm.variable": "p",
        "norm.hold": 0.0,
        "decay.weight": 1e-2,
    },
    # The paper's setting for ResNet-50 on ImageNet.
    points={"imagenet": {"norm.p_max": 9.0, "lr.peak": 2e-3, "decay.weight": 5e-3}},
)

LPSGD = dataclasses.replace(
    LPSGDM.but(fixed={"momentum.value": 0.0}),
    name="lpsgd",
    idea="l_p-norm descent, p annealed towards 2",
)

_HELD: dict[str, Value] = {"norm.shape": "constant", "norm.p_end": 2.0, "norm.variable": "p", "norm.hold": 0.0}

LPSGDM_FIXED = dataclasses.replace(
    LPSGDM.but(fixed=_HELD),
    name="lpsgdm-fixed",
    idea="l_p-norm descent after momentum, p held",
    source="ours",
    controls="lpsgdm",
)

LPSGDM_RMS = dataclasses.replace(
    LPSGDM.but(
        fixed={"norm.scale": "rms"},
        searched={"lr.peak": FloatDistribution(3e-2, 3.0, log=True)},
        default={"lr.peak": 0.3},
    ),
    name="lpsgdm-rms",
    idea="l_p-norm descent after momentum, each tensor's step as long as SGD's",
    source="ours",
    controls="lpsgdm",
)

LPSGDM_DUAL = dataclasses.replace(
    LPSGDM.but(
        fixed={"norm.scale": "dual"},
        searched={"lr.peak": FloatDistribution(1e-4, 1e-1, log=True)},
        default={"lr.peak": 3e-3},
    ),
    name="lpsgdm-dual",
    idea="l_p-norm descent after momentum, with the dual norm's factor",
    source="ours",
    controls="lpsgdm",
)

LPSGDM_SIGN = dataclasses.replace(
    LPSGDM.but(
        fixed={**_HELD, "norm.p_max": math.inf},
        searched={"lr.peak": FloatDistribution(1e-4, 1e-2, log=True)},
        default={"lr.peak": 1e-3},
    ),
    name="lpsgdm-sign",
    idea="sign descent after momentum: p is infinite",
    source="Bernstein et al., ICML 2018, arXiv 1802.04434",
    controls="lpsgdm",
)
