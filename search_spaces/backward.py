"""Order: the newest batch's step is applied first, from an anchor, again for every iterate that is evaluated.

As in the paper, this is plain SGD with a constant learning rate, without momentum and weight decay.  Replays count
towards the budget of gradient evaluations, which is the same for all variants.  If the backward phase begins with the
training, the iterate after n batches costs n gradient evaluations, so that the budget reaches only a fraction of the
batches that forward SGD reaches.  A later start, fewer evaluations or a window reduce the cost.

The control is forward SGD with the same fixed settings, at the same budget.
"""

from __future__ import annotations

import dataclasses

from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces.variant import Variant

BACKWARD = Variant(
    name="backward",
    idea="SGD whose batches are composed backwards: the newest step first",
    source="Dherin et al., TMLR 2025, arXiv 2502.01557",
    fixed={
        "rule": "sgd",
        "lr.schedule": "constant",
        "momentum.schedule": "constant",
        "momentum.value": 0.0,
        "order.composition": "backward",
        "order.window": 0,
    },
    searched={
        "lr.peak": FloatDistribution(3e-3, 1.0, log=True),
        "order.start": CategoricalDistribution((0.0, 0.5, 0.8, 0.9)),
        "order.interval": CategoricalDistribution((1, 2, 5)),
    },
    default={"lr.peak": 0.3, "order.start": 0.0, "order.interval": 1},
)

BACKWARD_WINDOW = dataclasses.replace(
    BACKWARD.but(
        # The window bounds what an evaluation costs, so each epoch has one.
        fixed={"order.interval": 1},
        searched={"order.window": CategoricalDistribution((4, 8, 16, 32, 64, 128))},
        default={"order.window": 16},
    ),
    name="backward-window",
    idea="SGD composed backwards within blocks of batches",
)

BACKWARD_FORWARD = dataclasses.replace(
    BACKWARD.but(fixed={"order.composition": "forward", "order.start": 0.0, "order.interval": 1}),
    name="backward-forward",
    idea="forward SGD at backward's settings and gradient evaluations",
    source="ours",
    controls="backward",
)
