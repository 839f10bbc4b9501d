"""What a name of the form ``package.module:attribute`` stands for: a user's variant, optimizer, schedule or groups.

:func:`load` imports it.  :func:`describe` asks a process of its own, so that a driver does not import torch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tuner.core.errors import InvalidInput, first_line, unknown
from tuner.core.separate_process import answer, ask

Plain: TypeAlias = bool | int | float | str | tuple["Plain", ...] | None


BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
"""Kinds of parameters that can be given by name."""


@dataclass(frozen=True, slots=True)
class Described:
    """What an import path stands for."""

    kind: Literal["variant", "callable", "refused"]
    name: str = ""
    """``__name__`` of a class or function; for ``refused``, what is wrong."""
    defaults: Mapping[str, Plain] | None = None
    """Argument -> its default, for a callable whose signature can be read.  Arguments without a default and defaults
    that are not plain data are left out."""


def load(path: str, flag: str = "") -> Any:
    """The object that an import path names.

    Raises :class:`InvalidInput`, in a sentence that begins with the flag and the path, for half a path, for a module
    that cannot be imported, with the module's own error, and for a name that is not in it, with the nearest one.
    """
    place = f"{flag} {path}".strip()
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise InvalidInput(f"{place}: must be package.module:name")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        raise InvalidInput(f"{place}: cannot be imported: {said(error)}{install_hint(error)}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(found).items() if key[0] != "_" and not inspect.ismodule(value)]
            if not known:
                raise InvalidInput(f"{place}: {module_name} has no {attribute}")
            raise InvalidInput(f"{place}: {unknown(f'name in {module_name}', part, known)}")
        found = getattr(found, part)
    return found


OPTIMIZER_LIBRARIES = ("timm", "schedulefree", "heavyball", "pytorch_optimizer", "prodigyopt")
"""Packages of the extra ``optimizers``."""


def install_hint(error: BaseException) -> str:
    """What to install, if the error is that an optional library is missing; else nothing."""
    if isinstance(error, ModuleNotFoundError) and error.name in OPTIMIZER_LIBRARIES:
        return "; install it with: pip install 'sgd-tuner[optimizers]'"
    return ""


def said(error: BaseException, function: object = None) -> str:
    """Type and first line of an error of a user's code, with the last line of that code that led to it.

    That is the last line of the function's module, or without a function the last one outside of libraries.
    """
    try:
        text = first_line(error)
    except Exception:  # its __str__ is a user's code too
        text = type(error).__name__
    text = text if text == type(error).__name__ else f"{type(error).__name__}: {text}"
    if isinstance(error, SyntaxError):  # names its line itself
        return text
    frames = traceback.extract_tb(error.__traceback__)
    if function is not None:
        module = sys.modules.get(getattr(function, "__module__", None) or "")
        frames = [frame for frame in frames if frame.filename == getattr(module, "__file__", None)]  # type: ignore[assignment]
    else:
        frames = [frame for frame in frames if not _is_library(frame.filename)]  # type: ignore[assignment]
    return f"{text} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else text


def _is_library(filename: str) -> bool:
    here = str(Path(__file__).resolve().parents[1])
    return filename.startswith(("<", here, sys.prefix, sys.base_prefix)) or "site-packages" in filename


def describe(paths: Sequence[str]) -> dict[str, Described]:
    """Path -> what it stands for.  A process of its own imports the modules, unless torch is loaded here already."""
    if not paths:
        return {}
    if "torch" in sys.modules:
        return {path: Described(**describe_here(path)) for path in paths}
    return _described(tuple(paths))


@functools.lru_cache(maxsize=8)  # a report asks several times
def _described(paths: tuple[str, ...]) -> dict[str, Described]:
    with ask("tuner.core.import_path:description", *paths) as process:
        found = json.loads(answer(process, f"--variants {' '.join(paths)}:"))
    return {path: Described(**values) for path, values in found.items()}


def description(*paths: str) -> str:
    """:func:`describe_here` of each path, in JSON."""
    return json.dumps({path: describe_here(path) for path in paths})


def describe_here(path: str) -> dict[str, Any]:
    """What a path stands for, as the fields of :class:`Described`; imports its module into this process."""
    try:
        found = load(path)
    except InvalidInput as error:
        return asdict(Described("refused", str(error)))
    if _is_variant(found):
        return asdict(Described("variant", found.name))
    if not callable(found):
        kind = type(found).__name__
        return asdict(Described("refused", f"{path}: is a {kind}, must be a search_spaces.Variant or an optimizer"))
    name = str(getattr(found, "__name__", path.rpartition(":")[2]))
    parameters = parameters_of(found)
    if parameters is None:
        return asdict(Described("callable", name))
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty and _is_plain(p.default)}
    return asdict(Described("callable", name, defaults))


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    """The parameters of a function or class; None if it has no signature, as some that are written in C."""
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _is_variant(found: object) -> bool:
    # A training imports this module without Optuna, which the variants need.
    variants = sys.modules.get("search_spaces")
    return variants is not None and isinstance(found, variants.Variant)


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
