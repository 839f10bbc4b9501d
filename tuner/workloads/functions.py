"""A user's own function, named ``package.module:function``: how it is found, and the arguments that it is called with.

Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tuner.core.errors import InvalidInput, first_line, unknown

BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
"""Kinds of parameters that can be given by name."""


def find_function(flag: str, name: str) -> Callable[..., Any]:
    """The function of this name.

    Raises :class:`InvalidInput`, in a sentence that begins with the flag, for a module that cannot be imported, for a
    function that is not in it, with the nearest name, and for what is not callable.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise InvalidInput(f"{flag} {name}: must be package.module:function")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InvalidInput(f"{flag} {name}: cannot import {module_name!r} ({first_line(error)})") from None
    except (Exception, SystemExit) as error:
        raise InvalidInput(f"{flag} {name}: cannot import {module_name!r}, it raised {raised(error)}") from None
    if not hasattr(module, function_name):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        if not known:
            raise InvalidInput(f"{flag} {name}: {module_name} has no function")
        raise InvalidInput(f"{flag} {name}: {unknown(f'function in {module_name}', function_name, known)}")
    function = getattr(module, function_name)
    if not callable(function):
        raise InvalidInput(f"{flag} {name}: is a {type(function).__name__}, not a function")
    found: Callable[..., Any] = function
    return found


def arguments_of(function: Callable[..., Any], offered: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Those of the ``offered`` arguments that the signature of the function names; all of them if it has ``**kwargs``.

    Raises :class:`InvalidInput`, in a sentence that begins with ``place``, for a parameter without a default that is
    not offered.
    """
    parameters = _parameters(function)
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
    return [p.name for p in _parameters(function) or () if p.kind in single and p.default is p.empty]


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """None for a function without a signature, as some that are written in C."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def raised(error: BaseException, function: Callable[..., Any] | None = None) -> str:
    """An error of a user's code in words, with the last line of the function's module that led to it.

    Without a function, that is the last line outside the import system.
    """
    said = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(error, SyntaxError):  # names its line itself
        return said
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_ours(frame.filename)]
    if function is not None:
        module = sys.modules.get(getattr(function, "__module__", None) or "")
        frames = [frame for frame in frames if frame.filename == getattr(module, "__file__", None)]
    return f"{said} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else said


def _is_ours(file: str) -> bool:
    return file.startswith("<frozen") or file == importlib.__file__ or Path(file).parent == Path(__file__).parent
