"""Update rules: four by name and any other by import path, and the one place that sets a step's hyperparameters.

A rule is a callable(parameters, lr=..., **arguments) that returns a ``torch.optim.Optimizer``.  If its first argument
is called ``model``, it gets the model in place of the parameters.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from tuner.core.errors import InvalidInput, unknown
from tuner.core.import_path import BY_NAME, install_hint, load, parameters_of, said
from tuner.core.optimizer_spec import OptimizerSpec, Rescale
from tuner.core.serialization import Setting
from tuner.optimizers.lp_sgd import LPSGD
from tuner.optimizers.parameter_groups import group_parameters
from tuner.optimizers.random_scaling import RandomScaling


@dataclass(frozen=True, slots=True)
class Rule:
    """An optimizer's class or function, and the arguments that fields of a spec set."""

    path: str
    """``package.module:callable``."""
    arguments: Callable[[OptimizerSpec], dict[str, Any]]
    """The arguments besides ``lr``."""


def _momentum(spec: OptimizerSpec) -> float:
    # Above 0 under a schedule: set_hyperparameters sees by it whether the rule keeps a buffer.
    return spec.momentum.value if spec.momentum.schedule == "constant" else spec.momentum.cap


def _betas(spec: OptimizerSpec) -> dict[str, Any]:
    return {"betas": (_momentum(spec), spec.second_moment), "weight_decay": spec.decay.weight}


def _buffer(spec: OptimizerSpec) -> dict[str, Any]:
    return {
        "momentum": _momentum(spec),
        "weight_decay": spec.decay.weight,
        "nesterov": spec.momentum.nesterov,
    }


RULES: dict[str, Rule] = {
    "sgd": Rule("torch.optim:SGD", _buffer),
    "adamw": Rule("torch.optim:AdamW", _betas),
    "lpsgd": Rule(
        "tuner.optimizers:LPSGD",
        lambda spec: {**_buffer(spec), "p": spec.norm.p_max, "scale": spec.norm.scale, "scope": spec.norm.scope},
    ),
    "lion": Rule("tuner.optimizers:Lion", _betas),
}
"""Name -> rule.  Weight decay is coupled (added to the gradient) in ``sgd``, decoupled in the others."""


def make_optimizer(model: nn.Module | ParamsT, spec: OptimizerSpec, *, num_steps: int | None = None) -> Optimizer:
    """The optimizer that the spec describes, at its peak learning rate and first p.

    Parameters in place of the model will do for a rule that takes parameters, with ``parameter_groups`` all.
    Schedules are up to the caller: before each step, :func:`set_hyperparameters` sets that step's values.
    ``num_steps``, at least 1, is the length of the training; random scaling may be active for a fraction of it.
    With None it is always active.

    Raises :class:`InvalidInput` for a rule that cannot be imported or made, for an argument that it does not take, and
    for a result that is not an optimizer of the model's parameters.
    """
    rule = RULES.get(spec.rule) or Rule(spec.rule, lambda spec: {})
    optimizer = _made(rule, model, spec)
    if isinstance(model, nn.Module):
        _require_all_parameters(optimizer, model, rule.path)
    if spec.momentum.schedule != "own" and not any({"momentum", "betas"} & set(g) for g in optimizer.param_groups):
        raise InvalidInput(
            f"momentum.schedule = {spec.momentum.schedule}: must be own for {rule.path}, "
            "whose parameter groups have neither momentum nor betas"
        )
    for group in optimizer.param_groups:
        if "lr" not in group:
            raise InvalidInput(f"{rule.path}: a parameter group has no lr, which a schedule sets at each step")
        if not _is_ratio(group.get("lr_ratio", 1.0)) or group["lr"] < 0:
            raise InvalidInput(f"parameter_groups: lr_ratio = {group.get('lr_ratio', group['lr'])}: must be at least 0")
        if "lr_ratio" in group:
            group["lr"] = spec.lr.peak * group["lr_ratio"]
        elif group["lr"] != spec.lr.peak:
            group["lr_ratio"] = float(group["lr"]) / spec.lr.peak
    if spec.scaling.law == "none":
        return optimizer
    return RandomScaling(
        optimizer,
        spec.scaling.law,
        shape=spec.scaling.shape,
        num_active_steps=None if num_steps is None else round(spec.scaling.active * num_steps),
        scale_decay=spec.scaling.decay,
    )


def _made(rule: Rule, model: nn.Module | ParamsT, spec: OptimizerSpec) -> Optimizer:
    make = load(rule.path)
    own = rule.arguments(spec)
    arguments = {name: _value(value) for name, value in spec.arguments.items()}
    if both := sorted({"lr", *own} & set(arguments)):
        raise InvalidInput(f"arguments.{both[0]}: the rule {spec.rule} has a setting of its own for it")
    if not callable(make):
        raise InvalidInput(f"{rule.path}: is a {type(make).__name__}, must be an optimizer's class or a function")
    parameters = parameters_of(make)
    first, *named = [p.name for p in parameters or () if p.kind in BY_NAME] or [""]
    # Without a signature, or with **kwargs, any keyword is taken.
    if parameters is not None and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        if "lr" not in named:
            raise InvalidInput(f"{rule.path}: takes no lr; a rule is called as rule(parameters, lr=..., **arguments)")
        for name in arguments:
            if name not in named:
                raise unknown(f"argument of {rule.path}", name, named)
    whole = first == "model"
    if whole and (spec.parameter_groups != "all" or not isinstance(model, nn.Module)):
        raise InvalidInput(
            f"parameter_groups = {spec.parameter_groups}: must be all for {rule.path}, which has its own"
        )
    if isinstance(model, nn.Module):
        given = model if whole else group_parameters(model, spec.parameter_groups, lr=spec.lr.peak)
    else:
        given = model
    try:
        optimizer = make(given, lr=spec.lr.peak, **own, **arguments)
    except Exception as error:  # a user's factory may fail in any way
        if spec.rule in RULES and not spec.arguments:
            raise
        raise InvalidInput(f"{rule.path}: {said(error)}{install_hint(error)}") from None
    if not isinstance(optimizer, Optimizer):
        raise InvalidInput(f"{rule.path}: gave a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    if spec.parameter_groups.lstrip().startswith("{"):
        known = ["lr_ratio", *optimizer.defaults]
        for setting in {setting for group in optimizer.param_groups for setting in group} - {"params", *known}:
            raise unknown("setting in parameter_groups", setting, known)
    if "weight_decay" not in optimizer.defaults and spec.parameter_groups == "no-decay-1d":
        raise InvalidInput(f"parameter_groups = no-decay-1d: {rule.path} has no weight_decay to leave out")
    return optimizer


def _value(value: Setting) -> Any:
    """A setting as an argument: text in brackets is a tuple, since neither Optuna nor a command line has any."""
    if isinstance(value, str) and value[:1] in ("(", "["):
        try:
            return tuple(ast.literal_eval(value))
        except (ValueError, SyntaxError, TypeError):
            return value
    return value


def _require_all_parameters(optimizer: Optimizer, model: nn.Module, path: str) -> None:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not held <= set(known):
        raise InvalidInput(f"{path}: holds parameters that are not the model's")
    left = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and id(parameter) not in held
    ]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise InvalidInput(f"{path}: leaves {left[0]}{more} untrained; freeze what is not to be trained")


def _is_ratio(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def inner(optimizer: Optimizer) -> Optimizer:
    """The optimizer itself, without the random scaling around it."""
    return optimizer.optimizer if isinstance(optimizer, RandomScaling) else optimizer


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether ``step`` demands a closure.

    It does if it has no default for it, if the class has an attribute ``requires_closure`` that is true, or if its
    source raises an error where the closure is None.
    """
    cls: Any = type(inner(optimizer))
    return _demands_closure(cls)


@functools.cache  # a worker makes the same optimizer for each of its trials
def _demands_closure(cls: Any) -> bool:
    if hasattr(cls, "requires_closure"):
        return bool(cls.requires_closure)
    step = inspect.unwrap(cls.step)
    closure = inspect.signature(step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        return True
    try:
        source = inspect.getsource(step)
    except (OSError, TypeError):
        return False
    return bool(re.search(r"if closure is None:\s+raise|assert closure is not None", source))


def averages_weights(optimizer: Optimizer) -> bool:
    """Whether the optimizer evaluates other weights than it trains: it then has the methods ``train`` and ``eval``."""
    own = inner(optimizer)
    return callable(getattr(own, "train", None)) and callable(getattr(own, "eval", None))


def current_momentum(optimizer: Optimizer) -> float:
    """The momentum, or beta_1, of the first parameter group; 0 if it has neither."""
    group = optimizer.param_groups[0]
    return float(group["momentum"] if "momentum" in group else group.get("betas", (0.0,))[0])


def set_hyperparameters(
    optimizer: Optimizer, *, lr: float | Tensor, momentum: float | None, p: float, rescale: Rescale = "none"
) -> None:
    """Sets the learning rate of a step, and momentum and p if the rule has them, on every parameter group.

    A group with an ``lr_ratio`` gets that multiple of the learning rate.  The momentum is beta_1 where a group has
    betas; None leaves it as it is.  An optimizer made with momentum gets the smallest normal float in place of 0.  The
    step is the same, but at exactly 0 torch's SGD would not update its buffer and LPSGD would not create one.
    ``rescale`` multiplies the buffer as :class:`tuner.core.optimizer_spec.MomentumSpec` describes; a is the group's
    learning rate before the call, b the one after it.
    """
    for group in optimizer.param_groups:
        before = group["lr"]
        group["lr"] = after = lr * group["lr_ratio"] if "lr_ratio" in group else lr
        if momentum is not None:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            if "momentum" in group:
                keeps_buffer = optimizer.defaults.get("momentum", 0) > 0
                group["momentum"] = max(momentum, sys.float_info.min) if keeps_buffer else momentum
        if "p" in group and isinstance(inner(optimizer), LPSGD):
            group["p"] = p
        if rescale != "none" and before != after:
            for parameter in group["params"]:
                # get, since indexing would make an empty state for a parameter that has none
                buffer = optimizer.state.get(parameter, {}).get("momentum_buffer")
                if buffer is not None:
                    buffer *= (before / after) ** RESCALES[rescale]


RESCALES: dict[Rescale, float] = {"lr": 1.0, "sqrt-lr": 0.5}
"""Name -> the power of the learning rates' ratio by which a buffer is multiplied."""
