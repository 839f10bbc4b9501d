"""A user's own function, named ``package.module:function``: how it is found, and the arguments that it is called with.

Nothing here imports torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from tuner.core.errors import InvalidInput
from tuner.core.import_path import BY_NAME, load, parameters_of


def find_function(flag: str, name: str) -> Callable[..., Any]:
    """The function of this name.

    Raises :class:`InvalidInput`, in a sentence that begins with the flag, for what :func:`load` refuses and for what is
    not callable.
    """
    function = load(name, flag)
    if not callable(function):
        raise InvalidInput(f"{flag} {name}: is a {type(function).__name__}, not a function")
    found: Callable[..., Any] = function
    return found


def arguments_of(function: Callable[..., Any], offered: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Those of the ``offered`` arguments that the signature of the function names; all of them if it has ``**kwargs``.

    Raises :class:`InvalidInput`, in a sentence that begins with ``place``, for a parameter without a default that is
    not offered.
    """
    parameters = parameters_of(function)
    if parameters is None:
        return dict(offered)
    named = {p.name for p in parameters if p.kind in BY_NAME}
    for name in required(function):
        if name not in named or name not in offered:
            raise InvalidInput(f"{place}: needs {name!r}, and there is {', '.join(offered) or 'nothing to give it'}")
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return {name: value for name, value in offered.items() if takes_all or name in named}


def required(function: Callable[..., Any]) -> list[str]:
    """The parameters of a function that have no default."""
    single = (*BY_NAME, inspect.Parameter.POSITIONAL_ONLY)
    return [p.name for p in parameters_of(function) or () if p.kind in single and p.default is p.empty]
