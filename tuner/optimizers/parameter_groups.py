"""Parameter groups: which parameters of a model an optimizer treats alike.

=====================  ============================================================================================
``parameter_groups``   groups
=====================  ============================================================================================
all                    one group, so that biases and BatchNorm's weights are decayed too, as in the papers
no-decay-1d            tensors of two or more dimensions, and the others without weight decay
{"REGEX": {...}, ...}  JSON: the first expression found in a parameter's name gives its group's settings; parameters
                       that none is found in form a group without settings of its own
package.module:name    what the function name(model, lr) returns, in the form that torch's optimizers take
=====================  ============================================================================================

A group's ``lr_ratio`` multiplies the learning rate of every step.  The setting ``lr`` of a group that a function
returns gives the ratio lr/peak.  The form of the JSON follows torchtitan's list of expressions; the rest is ours.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim.optimizer import ParamsT

from tuner.core.errors import InvalidInput
from tuner.core.import_path import load, said

NAME = "parameter_groups"


def group_parameters(model: nn.Module, groups: str, *, lr: float) -> ParamsT:
    """The model's parameters as an optimizer takes them: tensors, or groups as dicts with ``params`` and settings.

    ``lr`` is the peak of the learning rate.  Raises :class:`InvalidInput` for text that is none of the forms, for an
    expression that is not found in any parameter's name, and with a function's own error.
    """
    if groups == "all":
        return list(model.parameters())
    if groups == "no-decay-1d":
        parameters = list(model.parameters())
        return _without_empty(
            [
                {"params": [parameter for parameter in parameters if parameter.ndim >= 2]},
                {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
            ]
        )
    if groups.lstrip().startswith("{"):
        return _by_name(model, _parsed(groups))
    if ":" in groups:
        return _by_function(model, groups, lr)
    raise InvalidInput(
        f"{NAME} = {groups}: must be all, no-decay-1d, package.module:function or JSON "
        '{"regular expression": {"weight_decay": 0}}'
    )


def _parsed(text: str) -> Mapping[str, Mapping[str, Any]]:
    try:
        parsed = json.loads(text)
        if not isinstance(parsed, dict) or not all(isinstance(settings, dict) for settings in parsed.values()):
            raise ValueError("must map each expression to settings")
        for expression in parsed:
            re.compile(expression)
    except (ValueError, re.error) as error:
        raise InvalidInput(f"{NAME} = {text}: cannot be read: {error}") from None
    return parsed


def _by_name(model: nn.Module, groups: Mapping[str, Mapping[str, Any]]) -> ParamsT:
    members: dict[str | None, list[nn.Parameter]] = {expression: [] for expression in groups}
    members[None] = []
    for name, parameter in model.named_parameters():
        members[next((found for found in groups if re.search(found, name)), None)].append(parameter)
    for expression in groups:
        if not members[expression]:
            raise InvalidInput(f"{NAME}: {expression!r} is the first match of no parameter's name")
    return _without_empty(
        [
            {"params": found, **(groups[expression] if expression is not None else {})}
            for expression, found in members.items()
        ]
    )


def _by_function(model: nn.Module, path: str, lr: float) -> ParamsT:
    function = load(path)
    try:
        taken = inspect.signature(function).parameters
        groups = function(model, lr) if len(taken) > 1 else function(model)
        return groups if isinstance(groups, list) else list(groups)
    except Exception as error:  # a user's function may fail in any way
        raise InvalidInput(f"{NAME} = {path}: {said(error)}") from None


def _without_empty(groups: list[dict[str, Any]]) -> ParamsT:
    return [group for group in groups if group["params"]]
