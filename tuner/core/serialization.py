"""Specs by dotted field names, as text and as plain data: for search spaces, command lines and files."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args, get_origin, get_type_hints

from tuner.core.errors import InvalidInput, unknown

Setting: TypeAlias = bool | int | float | str | None
"""A leaf of a spec, as search spaces and command lines give it."""

Spec = TypeVar("Spec")


def flatten(spec: Any) -> dict[str, Setting | tuple[Setting, ...]]:
    """Dotted name -> value for every leaf of a spec."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(spec):
        value = getattr(spec, item.name)
        if dataclasses.is_dataclass(value):
            flat.update({f"{item.name}.{name}": leaf for name, leaf in flatten(value).items()})
        else:
            flat[item.name] = value
    return flat


def with_settings(spec: Spec, settings: Mapping[str, Setting], *, within: str = "") -> Spec:
    """The spec with some leaves replaced, which are given by dotted name.

    Text is read as the field's own type, so that values may come from a command line.  Messages put ``within`` before
    the names.
    Raises :class:`InvalidInput` for a name that is no leaf and for a value that is refused.
    """
    known = flatten(spec)
    nested: dict[str, dict[str, Setting]] = {}
    for name, value in settings.items():
        if name not in known:
            raise unknown("parameter", within + name, [within + other for other in known])
        head, _, rest = name.partition(".")
        nested.setdefault(head, {})[rest] = value
    hints = _hints(type(spec))  # type: ignore[arg-type]
    changes = {
        head: with_settings(getattr(spec, head), leaves, within=f"{within}{head}.")
        if "" not in leaves
        else _parse(hints[head], within + head, leaves[""])
        for head, leaves in nested.items()
    }
    return dataclasses.replace(spec, **changes)  # type: ignore[type-var]


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _parse(hint: Any, name: str, value: Setting) -> Any:
    if not isinstance(value, str) or str in get_args(hint) or hint is str or get_origin(hint) is Literal:
        return _checked(hint, name, value)
    try:
        parsers: dict[Any, Callable[[str], Any]] = {
            bool: {"true": True, "false": False}.__getitem__,
            int: int,
            float: float,
        }
        return parsers[hint](value)
    except (KeyError, ValueError):
        raise InvalidInput(f"{name} = {value}: must be {getattr(hint, '__name__', hint)}") from None


def to_json(spec: Any) -> str:
    """The spec as JSON text; equal specs give equal text."""
    return json.dumps(dataclasses.asdict(spec), sort_keys=True)


def from_dict(kind: type[Spec], values: Mapping[str, Any], *, within: str = "") -> Spec:
    """The spec of the given class from nested plain data; absent fields take their defaults.

    Raises :class:`InvalidInput` for a name that is no field and for a value of another type than the field's.
    """
    hints = _hints(kind)  # type: ignore[arg-type]
    built: dict[str, Any] = {}
    for name, value in values.items():
        if name not in hints:
            raise unknown("parameter", within + name, [within + other for other in hints])
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise InvalidInput(f"{within}{name} = {value}: must hold settings by name")
            built[name] = from_dict(cast(Any, hints[name]), value, within=f"{within}{name}.")
        else:
            built[name] = _checked(hints[name], within + name, value)
    return kind(**built)


def _checked(hint: Any, name: str, value: Any) -> Any:
    """The value as the field's type: an int may be a float, a list a tuple; raises InvalidInput otherwise."""
    if get_origin(hint) is tuple:
        if isinstance(value, list | tuple):
            return tuple(_checked(get_args(hint)[0], name, item) for item in value)
    elif get_origin(hint) is Literal:
        return value  # the class itself refuses it, with the nearest right one
    elif any(type(value) is kind for kind in get_args(hint) or (hint,)):
        return value
    elif isinstance(value, list | tuple) and (kinds := [k for k in get_args(hint) if get_origin(k) is tuple]):
        return _checked(kinds[0], name, value)
    elif any(get_origin(kind) is Literal and value in get_args(kind) for kind in get_args(hint)):
        return value
    elif type(value) is int and float in (get_args(hint) or (hint,)):
        return float(value)
    raise InvalidInput(f"{name} = {value}: must be {getattr(hint, '__name__', hint)}")


def digest(spec: Any) -> str:
    """A short name for the spec's content, 16 hexadecimal digits, the same in every process."""
    return hashlib.sha256(to_json(spec).encode()).hexdigest()[:16]
