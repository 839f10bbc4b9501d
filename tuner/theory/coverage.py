"""Which ways of running SGD, as :class:`tuner.core.trial_spec.OptimizerSpec` says them, the limit covers, and as what.

Covered is the rule ``sgd``, with any schedule of the learning rate, any momentum that follows from the spec alone,
Nesterov's too (with as little memory on the scale of time as the other), weight decay, and random factors.  So is
backward composition with constant settings: its iterate after n steps has the law of the forward one, as the samples
are independent; what it pays for replays is not the limit's concern.
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
    """Why the limit says nothing of it; None where it does."""
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
    """What is left of a training of ``num_steps`` steps in the limit; ``squares`` is for beta = u^2 - v^2.

    Raises :class:`InvalidInput` where it is not covered.
    """
    reason = not_covered(spec)
    if reason:
        raise InvalidInput(f"the limit does not cover it: {reason}")
    switch = switch_step(spec, num_steps, ())
    num_active = round(spec.scaling.active * num_steps)
    lrs, nus = [], []
    for step in range(num_steps):
        knobs = hyperparameters_at(spec, step, num_steps, steps_per_epoch, switch)
        law = spec.scaling.law if step < num_active else "none"
        lrs.append(effective_lr(knobs.lr, knobs.momentum) * (2 if squares else 1) if knobs.lr > 0 else 0.0)
        shape, nesterov = spec.scaling.shape, spec.momentum.nesterov
        nus.append(noise_factor(batch, law=law, shape=shape, momentum=knobs.momentum, nesterov=nesterov))

    def line(values: list[float]) -> Callable[[float], float]:
        # Not steps, at each of which a solver would look twice.
        places = (np.arange(num_steps) + 0.5) / dimension
        return lambda time: float(np.interp(time, places, values))

    return EffectiveSgd(
        lr=line(lrs),
        nu=line(nus),
        # Per step it is lr w u: of the square's u and v half as much for the same lr.
        decay=spec.decay.weight * dimension / (2 if squares else 1),
    )
