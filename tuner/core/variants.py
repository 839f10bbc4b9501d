"""Turns names on the command line into variants: known ones, groups, a user's own, with ranges changed by --space."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import GROUPS, SPACES, Variant, expand
from search_spaces.own import optimizer_variant
from tuner.core.errors import InvalidInput, unknown
from tuner.core.import_path import Described, describe, load
from tuner.core.serialization import Setting, flatten, literal, number_or_text, with_settings
from tuner.core.trial_spec import OptimizerSpec

NUM_PROBES = 64
"""Random points of each space whose spec is built before a search starts, so that none is refused during it."""


def resolve_variants(names: Sequence[str], overrides: Sequence[str]) -> tuple[Variant, ...]:
    """The variants of these names with the overrides (``--space``) applied, all checked against the spec's fields.

    A name is a known variant's, a group's, or ``package.module:attribute``, which is a :class:`Variant` or an
    optimizer; ``NAME=package.module:attribute`` gives it another name.  A group is replaced by its variants.  A variant
    that occurs several times is kept once, at its first place.
    Raises :class:`InvalidInput` for a name or an override that is refused.
    """
    asked = expand(names)
    described = describe([_path(name).partition("@")[0] for name in asked if ":" in name])
    variants = [_find(name, described) for name in asked]
    if len({variant.name for variant in variants}) < len(variants):
        raise InvalidInput(f"--variants {' '.join(names)}: two variants have the same name")
    paths = {variant.name: _path(name).partition("@")[0] for name, variant in zip(asked, variants, strict=True)}
    for text in overrides:
        try:
            variants = _override(variants, text, paths, described)
        except InvalidInput:
            raise
        except ValueError as error:  # a variant refuses what contradicts its own parts
            raise InvalidInput(f"--space {text}: {error}") from None
    for variant in variants:
        _check(variant)
    return tuple(variants)


def override_ranges(variants: Sequence[Variant], override: str) -> tuple[Variant, ...]:
    """The variants with one override applied and checked, as :func:`resolve_variants` does it."""
    changed = _override(list(variants), override, {variant.name: variant.name for variant in variants}, {})
    for variant in changed:
        _check(variant)
    return tuple(changed)


def resolve_variant(name: str) -> Variant:
    """The variant of a name; raises :class:`InvalidInput` for a group and for an unknown name."""
    if name in GROUPS:
        raise InvalidInput(f"--variant {name}: is a group; name one of {', '.join(GROUPS[name])}")
    return resolve_variants([name], [])[0]


def _path(name: str) -> str:
    """The import path, or the name, without a name that is given before it."""
    given, separator, path = name.partition("=")
    return path if separator else given


def _find(name: str, described: Mapping[str, Described]) -> Variant:
    given, separator, _ = name.partition("=")
    path, at, point = _path(name).partition("@")
    variant = _own(_path(name), described) if ":" in path else SPACES.get(path)
    if variant is None:
        raise unknown("variant", path, [*SPACES, *(() if at else GROUPS)])
    if at and not variant.points:
        raise InvalidInput(f"--variants {path}@{point}: {path} has no named points")
    if at and point not in variant.points:
        raise unknown(f"point of {path}", point, variant.points)
    found = variant.at(point) if at else variant
    if separator:
        found = dataclasses.replace(found, name=given)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", found.name):
        raise InvalidInput(f"--variants {name}: its name {found.name!r} must be letters, digits and dashes")
    return found


def _own(path: str, described: Mapping[str, Described]) -> Variant:
    path = path.partition("@")[0]
    found = described[path]
    if found.kind == "refused":
        raise InvalidInput(f"--variants {found.name}")
    if found.kind == "variant":
        variant: Variant = load(path)
        return variant
    lr: Any = (found.defaults or {}).get("lr")
    is_number = isinstance(lr, int | float) and not isinstance(lr, bool)
    return optimizer_variant(path, found.name, lr=lr if is_number else None)


def _override(
    variants: list[Variant], text: str, paths: Mapping[str, str], described: Mapping[str, Described]
) -> list[Variant]:
    head, separator, given = text.partition("=")
    owner, _, name = head.rpartition(":")
    if not separator or not name or not given:
        raise InvalidInput(f"--space {text}: must be [variant:]name=low:high[:log], name=a,b,c or name=value")
    chosen = [variant for variant in variants if owner in ("", variant.name, paths[variant.name])]
    if not chosen:
        raise unknown("variant in --space", owner, [variant.name for variant in variants])
    if name not in _SETTINGS and not name.startswith("arguments."):
        raise unknown("parameter in --space", name, _SETTINGS)
    # Without an owner, the variants that have the setting are meant.
    searching = [variant for variant in chosen if owner or name in variant.searched]
    if not searching:
        names = sorted({known for variant in variants for known in variant.searched})
        raise InvalidInput(f"--space {text}: no variant searches {name}; searched are {', '.join(names)}")
    changed: dict[str, Variant] = {}
    for variant in searching:
        found = described.get(paths[variant.name])
        signature = (found.defaults if found else None) or {}
        default = variant.default.get(name, _SETTINGS.get(name, signature.get(name.partition(".")[2])))
        changed[variant.name] = _with_setting(variant, name, given, default)
    return [changed.get(variant.name, variant) for variant in variants]


_SETTINGS = flatten(OptimizerSpec())


def _with_setting(variant: Variant, name: str, given: str, default: Any) -> Variant:
    """The variant with a value, choices or a range for a setting, whether it searches it already or not.

    The default stays the default if the range holds it.  Otherwise it is the nearest number, or the first choice.
    """
    old = variant.searched.get(name)
    default = str(tuple(default)) if isinstance(default, tuple | list) else default
    choices = _choices(given)
    if given[0] == "{" or _is_import_path(name, given) or (":" not in given and len(choices) < 2):
        return variant.but(fixed={name: _value(old, given)})
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    if old is None:
        now = f"{variant.name} does not search it yet"
        ends = [literal(end) for end in given.split(":")[:2]]
        whole = is_number and all(isinstance(value, int) for value in (default, *ends))
        distribution = _distribution(old, name, given, now, whole=whole)
    else:
        distribution = _distribution(old, name, given, f"the range of {variant.name} now is {shown(old)}")
    if isinstance(distribution, CategoricalDistribution):
        default = default if default in distribution.choices else distribution.choices[0]
    elif isinstance(distribution, FloatDistribution | IntDistribution):
        low, high = distribution.low, distribution.high
        default = min(max(default, low), high) if is_number else low
    return variant.but(searched={name: distribution}, default={name: default})


def _choices(given: str) -> list[str]:
    """The text cut at its commas, but for those in brackets."""
    return re.findall(r"(?:\([^)]*\)|\[[^\]]*\]|[^,(\[])+", given)


def _is_import_path(name: str, given: str) -> bool:
    return name in ("lr.schedule", "parameter_groups", "rule") and bool(
        re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", given)
    )


def _distribution(
    old: BaseDistribution | None, name: str, given: str, now: str, *, whole: bool = False
) -> BaseDistribution:
    """What is given as a distribution of the old one's kind; ``now`` ends the message of the error.

    Without an old one, a range is of integers if ``whole`` says so.
    """
    try:
        if len(choices := _choices(given)) > 1:
            return CategoricalDistribution(tuple(_value(old, choice) for choice in choices))
        low, high, *scale = given.split(":")
        numbers = {type(choice) for choice in old.choices} if isinstance(old, CategoricalDistribution) else {int, float}
        if not numbers <= {int, float} or scale not in ([], ["log"], ["linear"]):
            raise ValueError
        log = getattr(old, "log", False) if not scale else scale == ["log"]
        if whole or isinstance(old, IntDistribution) or numbers == {int}:
            return IntDistribution(int(low), int(high), log=log)
        if math.isnan(float(low)) or math.isnan(float(high)):
            raise ValueError
        return FloatDistribution(float(low), float(high), log=log)
    except (ValueError, TypeError):
        raise InvalidInput(
            f"--space {name}={given}: must be low:high, low:high:log (above 0) with low at most high, "
            f"or choices a,b,c; {now}"
        ) from None


def _value(old: BaseDistribution | None, text: str) -> Setting:
    """The text as a value: one of the old choices, or a number; of a setting that was not searched, any literal."""
    if old is None:
        return literal(text)
    if isinstance(old, CategoricalDistribution):
        by_text: dict[str, Setting] = {str(choice): choice for choice in old.choices}
        if text in by_text:
            return by_text[text]
    return number_or_text(text)


def shown(distribution: BaseDistribution) -> str:
    """A range as it is typed for ``--space``."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(str, distribution.choices))
    return f"{distribution.low:g}:{distribution.high:g}{':log' if distribution.log else ''}"  # type: ignore[attr-defined]


def _check(variant: Variant) -> None:
    """Builds specs at the default point and all over the space; raises InvalidInput for one that is refused."""
    try:
        with_settings(OptimizerSpec(), variant.default_settings())
        points = np.random.default_rng(0).random((NUM_PROBES, len(variant.searched)))
        # Each setting's two ends: a range that leaves what the spec allows does so there.
        ends = np.concatenate([np.eye(len(variant.searched)), 1 - np.eye(len(variant.searched))])
        for point in np.concatenate([ends, points]):
            with_settings(OptimizerSpec(), settings_at(variant, point))
    except InvalidInput as error:
        raise InvalidInput(f"variant {variant.name}: {error}") from None


def settings_at(variant: Variant, point: np.ndarray) -> Mapping[str, Setting]:
    """The settings at a point of the unit cube, one coordinate for each searched setting in order."""
    drawn = {
        name: from_unit(distribution, float(u))
        for (name, distribution), u in zip(variant.searched.items(), point, strict=True)
    }
    return variant.point(drawn)


def from_unit(distribution: BaseDistribution, u: float) -> Any:
    """The value of a distribution at quantile u in [0, 1]; ours, so that one point serves settings of any kind."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[min(int(u * len(distribution.choices)), len(distribution.choices) - 1)]
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    low, high = float(distribution.low), float(distribution.high)
    if isinstance(distribution, IntDistribution) or distribution.step is not None:
        step = distribution.step or 1
        num_values = round((high - low) / step) + 1
        if not distribution.log:
            value = low + step * min(int(u * num_values), num_values - 1)
            return int(value) if isinstance(distribution, IntDistribution) else min(value, high)
        # On a log scale, each integer has the interval from half below to half above it.
        low, high = low - 0.5, high + 0.5
    value = (
        math.exp(math.log(low) + u * (math.log(high) - math.log(low))) if distribution.log else low + u * (high - low)
    )
    value = min(max(value, distribution.low), distribution.high)
    return round(value) if isinstance(distribution, IntDistribution) else value
