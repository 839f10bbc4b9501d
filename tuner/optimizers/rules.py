"""Update rules by name, and the one place where a schedule's values reach an optimizer.

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
    # above 0 under a schedule, so that set_hyperparameters knows a rule that keeps a buffer from one that has none
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
    """The optimizer that the spec describes, at its peak learning rate and first p; schedules are the caller's.

    Before each step, :func:`set_hyperparameters` gives it that step's values.  ``num_steps``, at least 1, is the length
    of the training; random scaling may be active for a fraction of it.  None leaves it active.
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
    """Set a step's learning rate, then momentum and p where the rule has them, on every parameter group.

    The momentum is beta_1 in AdamW and Lion.  An optimizer made with momentum gets the smallest normal float for 0:
    the step is the same, but SGD and LPSGD leave their buffer out of date at exactly 0 and would later take it up
    again.  ``rescale`` is that of :class:`tuner.core.optimizer_spec.MomentumSpec`, from the learning rate that is set.
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
                # asked by get: the table makes an empty state for every parameter that it is indexed with
                buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
                if buffer is not None:
                    buffer *= (before / lr) ** RESCALES[rescale]


RESCALES: dict[Rescale, float] = {"lr": 1.0, "sqrt-lr": 0.5}
"""Name -> the power of the learning rates' ratio by which a buffer is multiplied."""
