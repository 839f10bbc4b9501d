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


class Arguments(dict[str, Setting]):
    """Keyword arguments by name, a leaf of a spec whose names are not fixed.  It is never changed after it is made."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items(), key=lambda item: item[0])))


def flatten(spec: Any) -> dict[str, Setting | tuple[Setting, ...]]:
    """Dotted name -> value for every leaf of a spec."""
    flat: dict[str, Any] = {}
    for item in dataclasses.fields(spec):
        value = getattr(spec, item.name)
        if dataclasses.is_dataclass(value):
            flat.update({f"{item.name}.{name}": leaf for name, leaf in flatten(value).items()})
        elif isinstance(value, Arguments):
            flat.update({f"{item.name}.{name}": value[name] for name in sorted(value)})
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
    hints = _hints(type(spec))  # type: ignore[arg-type]
    for name, value in settings.items():
        head, _, rest = name.partition(".")
        if name not in known and not (rest and _takes_any_name(hints.get(head), rest)):
            raise unknown("parameter", within + name, [within + other for other in known])
        nested.setdefault(head, {})[rest] = value
    changes = {
        head: _changed(hints[head], getattr(spec, head), leaves, within + head) for head, leaves in nested.items()
    }
    return dataclasses.replace(spec, **changes)  # type: ignore[type-var]


def _takes_any_name(hint: Any, rest: str) -> bool:
    """Whether a field of this type has a leaf of any such name."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        head, _, rest = rest.partition(".")
        return bool(rest) and _takes_any_name(_hints(hint).get(head), rest)
    return hint is Arguments


def _changed(hint: Any, old: Any, leaves: Mapping[str, Setting], name: str) -> Any:
    if "" in leaves:
        return _parse(hint, name, leaves[""])
    if isinstance(old, Arguments):
        return Arguments({**old, **{leaf: literal(value) for leaf, value in leaves.items()}})
    return with_settings(old, leaves, within=f"{name}.")


def literal(value: Setting) -> Setting:
    """The value; text that reads as true, false, none or a number is that."""
    if not isinstance(value, str):
        return value
    words: dict[str, Setting] = {"true": True, "false": False, "none": None}
    return words[value.lower()] if value.lower() in words else number_or_text(value)


def number_or_text(text: str) -> int | float | str:
    """The number that a text reads as, an int if it can be one; else the text."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _parse(hint: Any, name: str, value: Setting) -> Any:
    if not isinstance(value, str) or str in get_args(hint) or hint is str or get_origin(hint) is Literal:
        return _checked(hint, name, value)
    if type(None) in get_args(hint):
        if value.lower() == "none":
            return None
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
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
    if hint is Arguments:
        if isinstance(value, Mapping) and all(_is_setting(item) for item in value.values()):
            return Arguments(value)
    elif get_origin(hint) is tuple:
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


def _is_setting(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def digest(spec: Any) -> str:
    """A short name for the spec's content, 16 hexadecimal digits, the same in every process."""
    return hashlib.sha256(to_json(spec).encode()).hexdigest()[:16]
