"""Which :class:`tuner.core.trial_spec.OptimizerSpec` the limit covers, and its settings in the limit.

The limit covers the rule ``sgd`` with any schedule of the learning rate, weight decay and random factors.  It covers
any momentum that follows from the spec alone, Nesterov's included, whose memory vanishes in the limit too.

It covers backward composition if the settings are constant.  Samples are independent, so the backward iterate after n
steps has the law of the forward one.  The cost of replays does not enter the limit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tuner.core.errors import InvalidInput
from tuner.core.optimizer_spec import OptimizerSpec
from tuner.optimizers.hyperparameters import hyperparameters_at, switch_step
from tuner.theory.stability import effective_lr, noise_factor
from tuner.theory.steps import EffectiveSgd


def not_covered(spec: OptimizerSpec) -> str | None:
    """Why the limit does not cover the spec; None if it does."""
    if spec.rule != "sgd":
        return f"the direction of {spec.rule} is not the gradient's"
    if spec.average.decay > 0:
        return "an average of the weights is evaluated"
    if spec.momentum.schedule == "hybrid" and spec.momentum.switch == "accuracy":
        return "the momentum's switch waits for an accuracy"
    constant = spec.lr.schedule == "constant" and spec.lr.warmup == 0 and spec.momentum.schedule == "constant"
    if spec.order.composition == "backward" and not (constant and spec.scaling.active == 1):
        return "backward composition, with settings that change"
    return None


def limit_of(
    spec: OptimizerSpec, *, dimension: int, batch: int, num_steps: int, steps_per_epoch: int, squares: bool = False
) -> EffectiveSgd:
    """The settings in the limit of a training of ``num_steps`` steps; ``squares`` is for beta = u^2 - v^2.

    Raises :class:`InvalidInput` if the limit does not cover the spec.
    """
    reason = not_covered(spec)
    if reason:
        raise InvalidInput(f"the limit does not cover it: {reason}")
    switch = switch_step(spec, num_steps, ())
    num_active = round(spec.scaling.active * num_steps)
    lrs, nus = [], []
    for step in range(num_steps):
        hyperparameters = hyperparameters_at(spec, step, num_steps, steps_per_epoch, switch)
        law = spec.scaling.law if step < num_active else "none"
        lrs.append(
            effective_lr(hyperparameters.lr, hyperparameters.momentum) * (2 if squares else 1)
            if hyperparameters.lr > 0
            else 0.0
        )
        shape, nesterov = spec.scaling.shape, spec.momentum.nesterov
        nus.append(noise_factor(batch, law=law, shape=shape, momentum=hyperparameters.momentum, nesterov=nesterov))

    def line(values: list[float]) -> Callable[[float], float]:
        # Linear between steps: a solver would shorten its step at every jump of a step function.
        places = (np.arange(num_steps) + 0.5) / dimension
        return lambda time: float(np.interp(time, places, values))

    return EffectiveSgd(
        lr=line(lrs),
        nu=line(nus),
        # The decay per step is lr w u, and lr is doubled above for squares.
        decay=spec.decay.weight * dimension / (2 if squares else 1),
    )
