"""The space of an optimizer that is given by import path alone: its learning rate, under a cosine.

The range of the learning rate is the class's where it is known.  Otherwise it is a factor of 30 to both sides of the
default of ``lr`` in the signature, and 1e-4 to 1 without one.  All of this is ours.  All other arguments stay at their
defaults; ``--space NAME:arguments.X=...`` searches them.
"""

from __future__ import annotations

import re

from optuna.distributions import FloatDistribution

from search_spaces.variant import Variant

LEARNING_RATES: dict[str, tuple[float, float, float]] = {
    # Their default of 1e-3 is for steps of another length.
    "SGD": (1e-2, 1.0, 0.1),
    "ASGD": (1e-2, 1.0, 0.1),
    "RMSprop": (1e-4, 1e-2, 1e-3),
    "Adagrad": (1e-3, 1e-1, 1e-2),
    "Adadelta": (0.1, 10.0, 1.0),
    "Adam": (3e-4, 3e-2, 1e-3),
    "AdamW": (3e-4, 3e-2, 1e-3),
    "NAdam": (3e-4, 3e-2, 2e-3),
    "RAdam": (3e-4, 3e-2, 1e-3),
    "Adamax": (6e-4, 6e-2, 2e-3),
    "Lion": (5e-5, 5e-3, 1e-3),
    "LBFGS": (0.05, 1.0, 0.5),
    # Ten to fifty times the rate of SGD under a schedule (the library's own advice).
    "SGDScheduleFree": (0.1, 10.0, 1.0),
    "AdamWScheduleFree": (3e-4, 3e-2, 2.5e-3),
    "RAdamScheduleFree": (3e-4, 3e-2, 2.5e-3),
}
"""Name of the class -> lowest and highest learning rate, and the default."""

STEADY = ("schedulefree", "prodigy", "dadapt")
"""Beginnings or ends of lower-case names whose optimizers choose their own decay: the learning rate is constant."""

CREATE_GRAPH = ("SophiaH", "AdaHessian", "Adahessian")
"""Classes that differentiate the gradient again."""

CONTIGUOUS = ("LBFGS", "AdamP", "SGDP", "SWATS", "Nero")
"""Classes that view parameters as vectors."""

ADAPTIVE = ("Prodigy", "DAdaptAdam", "DAdaptSGD", "DAdaptAdaGrad", "DAdaptAdan", "DAdaptLion")
"""Classes that find the size of their steps themselves: their learning rate is a factor near 1."""


def optimizer_variant(path: str, cls: str, *, lr: float | None = None) -> Variant:
    """The variant of the optimizer at ``path``, ``package.module:callable``, of class or function name ``cls``.

    ``lr`` is the default of its argument ``lr``.  The name is the class's in small letters.
    """
    low, high, default = _learning_rate(cls, lr)
    steady = any(word in cls.lower() for word in STEADY)
    return Variant(
        name=re.sub(r"[^a-z0-9]+", "-", cls.lower()).strip("-"),
        idea=f"{cls}, an optimizer given by import path",
        source=path,
        optimizer=path,
        fixed={
            "lr.schedule": "constant" if steady else "cosine",
            **({"create_graph": True} if cls in CREATE_GRAPH else {}),
            **({"contiguous": True} if cls in CONTIGUOUS else {}),
        },
        searched={"lr.peak": FloatDistribution(low, high, log=True)},
        default={"lr.peak": default},
    )


def _learning_rate(cls: str, lr: float | None) -> tuple[float, float, float]:
    if cls in ADAPTIVE:
        return 0.3, 3.0, 1.0
    if cls in LEARNING_RATES:
        return LEARNING_RATES[cls]
    if lr is None or not 1e-30 < lr < 1e6:
        return 1e-4, 1.0, 1e-2
    return lr / 30, lr * 30, lr
