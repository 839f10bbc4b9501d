"""The hyperparameters of an :class:`OptimizerSpec` at each step of a training.

Sources are named in :mod:`tuner.schedules` and in the search spaces.  The rules of the switch and ``matched`` are ours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from tuner.core.errors import InvalidInput
from tuner.core.import_path import load, said
from tuner.core.metrics import EpochMetrics
from tuner.core.optimizer_spec import LearningRateSpec, MomentumSpec, OptimizerSpec, Schedule
from tuner.schedules import Number, critical_momentum, learning_rate, norm_exponent


class Hyperparameters(NamedTuple):
    """The values that one step is taken with."""

    lr: float
    momentum: float
    """0 where the optimizer has its own."""
    p: float


def hyperparameters_at(
    spec: OptimizerSpec, step: int, num_steps: int, steps_per_epoch: int, switch: int | None = None
) -> Hyperparameters:
    """The hyperparameters of one step, counted from 0, in a training whose last iterate is ``num_steps``.

    ``switch`` is the first step at which ``hybrid`` has constant momentum; None if it is not known to come.

    With the learning rate a, its peak A, the critical momentum mu(a) of :func:`tuner.schedules.critical_momentum`, the
    constant c = ``momentum.value`` and l = ``momentum.low``::

        schedule  learning rate             momentum
        constant  a                         c
        critical  a                         mu(a)
        hybrid    a                         mu(a) before the switch, c from there on
        cycle     a                         c - (c - l) a/A
        matched   a (1 - c)/(1 - mu(a))     c
        own       a                         0: the optimizer has its own
    """
    lr, momentum = _rate_and_momentum(spec, step, num_steps, switch is not None and step >= switch)
    interval = 1 if spec.norm.interval == "step" else steps_per_epoch
    position, length = step // interval, math.ceil(num_steps / interval)
    p = norm_exponent(
        position,
        length,
        p_max=spec.norm.p_max,
        p_end=spec.norm.p_end,
        shape=spec.norm.shape,
        hold=spec.norm.hold,
        variable=spec.norm.variable,
    )
    return Hyperparameters(lr, momentum, p)


def switch_step(spec: OptimizerSpec, num_steps: int, history: Sequence[EpochMetrics]) -> int | None:
    """The first step at which ``hybrid`` has constant momentum; None if it is not known to come.

    - ``fraction`` switches after ``switch_fraction`` of the steps.
    - ``accuracy`` switches after the first evaluation at ``switch_accuracy`` or above.
    - ``crossing`` switches at the first step, from the peak of the learning rate on, whose critical momentum without
      its cap is at least ``value``.  Steps before the peak do not count: there the momentum is near 1 because the
      warm-up keeps the learning rate small.

    A switch never moves: it follows from the spec and from the history, which only grows and which a checkpoint holds.
    """
    momentum = spec.momentum
    if momentum.schedule != "hybrid":
        return None
    if momentum.switch == "fraction":
        return round(momentum.switch_fraction * num_steps)
    if momentum.switch == "crossing":
        return _crossing(spec.lr, momentum, num_steps)
    return next((m.steps for m in history if m.validation_accuracy >= momentum.switch_accuracy), None)


def longest_step(spec: OptimizerSpec, num_steps: int, switch: int | None = None) -> tuple[int, float, float]:
    """The step with the largest effective learning rate (the first of equals), its learning rate and its momentum.

    The effective learning rate is lr/(1 - momentum).  It is lr in ``lpsgd``, whose buffer is an average, and for a
    momentum of an optimizer's own.  All steps are computed at once, since a long training has a million.
    """
    steps = torch.arange(num_steps, dtype=torch.float64)
    parts = [(steps[:switch], False)] + ([(steps[switch:], True)] if switch is not None else [])
    values = [_rate_and_momentum(spec, part, num_steps, switched) for part, switched in parts]
    lr = torch.cat([rate for rate, _ in values])
    momentum = torch.cat([momentum + 0 * rate for rate, momentum in values])
    number = int((lr if spec.rule == "lpsgd" else lr / (1 - momentum)).argmax())
    return number, float(lr[number]), float(momentum[number])


def _rate_and_momentum(
    spec: OptimizerSpec, step: Number, num_steps: int, switched: bool
) -> tuple[Number, Number | float]:
    lr = _learning_rate(spec.lr, step, num_steps)
    value = spec.momentum.value
    match spec.momentum.schedule:
        case "constant":
            return lr, value
        case "own":
            return lr, 0.0
        case "cycle":
            return lr, value - (value - spec.momentum.low) * lr / spec.lr.peak
        case "hybrid" if switched:
            return lr, value
        case "matched":
            return lr * (1 - value) / (1 - _critical(spec.momentum, lr)), value
    return lr, _critical(spec.momentum, lr)


def _learning_rate(spec: LearningRateSpec, step: Number, num_steps: int) -> Number:
    if ":" in spec.schedule:
        return own_learning_rate(spec, step, num_steps)
    schedule = cast(Schedule, spec.schedule)
    return learning_rate(step, num_steps, peak=spec.peak, schedule=schedule, warmup=spec.warmup, end=spec.end)


def own_learning_rate(spec: LearningRateSpec, step: Number, num_steps: int) -> Number:
    """peak * f(step, num_steps) for a user's function f, whose path is the spec's schedule.

    ``step`` is a number, or a tensor of numbers, from 0 to num_steps - 1; f gets each as an int.  Raises
    :class:`InvalidInput` if f cannot be imported, with f's own error, and for a factor that is negative or not finite.
    """
    function = load(spec.schedule)

    def rate(number: int) -> float:
        try:
            factor = float(function(number, num_steps))
        except Exception as error:  # a user's function may fail in any way
            raise InvalidInput(f"lr.schedule = {spec.schedule}: step {number} of {num_steps}: {said(error)}") from None
        if not 0 <= factor < math.inf:
            raise InvalidInput(
                f"lr.schedule = {spec.schedule}: gave {factor} at step {number} of {num_steps}, must be finite and at "
                "least 0"
            )
        return spec.peak * factor

    if isinstance(step, Tensor):
        return torch.tensor([rate(int(number)) for number in step], dtype=step.dtype, device=step.device)
    return rate(int(step))


def _critical(spec: MomentumSpec, lr: Number) -> Number:
    return critical_momentum(lr, zeta=spec.zeta, form=spec.form, floor=spec.floor, cap=spec.cap)


@functools.lru_cache(maxsize=8)
def _crossing(lr: LearningRateSpec, momentum: MomentumSpec, num_steps: int) -> int | None:
    steps = torch.arange(num_steps, dtype=torch.float64)
    rates = _learning_rate(lr, steps, num_steps)
    critical = critical_momentum(rates, zeta=momentum.zeta, form=momentum.form, floor=momentum.floor)
    crossed = (critical >= momentum.value) & (steps >= rates.argmax())
    return int(crossed.nonzero()[0]) if crossed.any() else None
