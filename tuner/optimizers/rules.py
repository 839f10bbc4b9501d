"""Update rules by name, and the one place that writes a schedule's values into an optimizer.

Biases and BatchNorm's weights get the same weight decay as every other parameter, as in the papers' experiments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from tuner.core.optimizer_spec import OptimizerSpec, Rescale, Rule
from tuner.optimizers.lion import Lion
from tuner.optimizers.lp_sgd import LPSGD
from tuner.optimizers.random_scaling import RandomScaling


def _momentum(spec: OptimizerSpec) -> float:
    # Above 0 under a schedule: set_hyperparameters sees by it whether the rule keeps a buffer.
    return spec.momentum.value if spec.momentum.schedule == "constant" else spec.momentum.cap


RULES: dict[Rule, Callable[[ParamsT, OptimizerSpec], Optimizer]] = {
    "sgd": lambda parameters, spec: torch.optim.SGD(
        parameters,
        lr=spec.lr.peak,
        momentum=_momentum(spec),
        weight_decay=spec.decay.weight,
        nesterov=spec.momentum.nesterov,
    ),
    "adamw": lambda parameters, spec: torch.optim.AdamW(
        parameters, lr=spec.lr.peak, betas=(_momentum(spec), spec.second_moment), weight_decay=spec.decay.weight
    ),
    "lpsgd": lambda parameters, spec: LPSGD(
        parameters,
        lr=spec.lr.peak,
        p=spec.norm.p_max,
        momentum=_momentum(spec),
        weight_decay=spec.decay.weight,
        scale=spec.norm.scale,
        scope=spec.norm.scope,
        nesterov=spec.momentum.nesterov,
    ),
    "lion": lambda parameters, spec: Lion(
        parameters, lr=spec.lr.peak, betas=(_momentum(spec), spec.second_moment), weight_decay=spec.decay.weight
    ),
}
"""Name -> factory.  Weight decay is coupled (added to the gradient) in ``sgd``, decoupled in the others."""


def make_optimizer(parameters: ParamsT, spec: OptimizerSpec, *, num_steps: int | None = None) -> Optimizer:
    """The optimizer that the spec describes, at its peak learning rate and first p.

    Schedules are up to the caller: before each step, :func:`set_hyperparameters` sets that step's values.
    ``num_steps``, at least 1, is the length of the training; random scaling may be active for a fraction of it.
    With None it is always active.
    """
    optimizer = RULES[spec.rule](parameters, spec)
    if spec.scaling.law == "none":
        return optimizer
    return RandomScaling(
        optimizer,
        spec.scaling.law,
        shape=spec.scaling.shape,
        num_active_steps=None if num_steps is None else round(spec.scaling.active * num_steps),
        scale_decay=spec.scaling.decay,
    )


def set_hyperparameters(
    optimizer: Optimizer, *, lr: float | Tensor, momentum: float, p: float, rescale: Rescale = "none"
) -> None:
    """Sets the learning rate of a step, and momentum and p if the rule has them, on every parameter group.

    The momentum is beta_1 in AdamW and Lion.  An optimizer made with momentum gets the smallest normal float in place
    of 0.  The step is the same, but at exactly 0 torch's SGD would not update its buffer and LPSGD would not create
    one.  ``rescale`` multiplies the buffer as :class:`tuner.core.optimizer_spec.MomentumSpec` describes; a is the
    group's learning rate before the call, b is ``lr``.
    """
    for group in optimizer.param_groups:
        before, group["lr"] = group["lr"], lr
        if "betas" in group:
            group["betas"] = (momentum, group["betas"][1])
        if "momentum" in group:
            keeps_buffer = optimizer.defaults["momentum"] > 0
            group["momentum"] = max(momentum, sys.float_info.min) if keeps_buffer else momentum
        if "p" in group:
            group["p"] = p
        if rescale != "none" and before != lr:
            for parameter in group["params"]:
                # get, since indexing would make an empty state for a parameter that has none
                buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
                if buffer is not None:
                    buffer *= (before / lr) ** RESCALES[rescale]


RESCALES: dict[Rescale, float] = {"lr": 1.0, "sqrt-lr": 0.5}
"""Name -> the power of the learning rates' ratio by which a buffer is multiplied."""
