"""Turns names on the command line into variants: known ones, groups, a user's own, with ranges changed by --space."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from search_spaces import GROUPS, SPACES, Variant, expand
from tuner.core.errors import InvalidInput, first_line, unknown
from tuner.core.serialization import Setting, flatten, with_settings
from tuner.core.trial_spec import OptimizerSpec

NUM_PROBES = 64
"""Random points of each space whose spec is built before a search starts, so that none is refused during it."""


def resolve_variants(names: Sequence[str], overrides: Sequence[str]) -> tuple[Variant, ...]:
    """The variants of these names with the overrides (``--space``) applied, all checked against the spec's fields.

    A group is replaced by its variants; a variant that occurs several times is kept once, at its first place.
    Raises :class:`InvalidInput` for a name or an override that is refused.
    """
    variants = [_find(name) for name in expand(names)]
    if len({variant.name for variant in variants}) < len(variants):
        raise InvalidInput(f"--variants {' '.join(names)}: two variants have the same name")
    for text in overrides:
        variants = _override(variants, text)
    for variant in variants:
        _check(variant)
    return tuple(variants)


def resolve_variant(name: str) -> Variant:
    """The variant of a name; raises :class:`InvalidInput` for a group and for an unknown name."""
    if name in GROUPS:
        raise InvalidInput(f"--variant {name}: is a group; name one of {', '.join(GROUPS[name])}")
    return resolve_variants([name], [])[0]


def _find(name: str) -> Variant:
    name, at, point = name.partition("@")
    variant = _own(name) if ":" in name else SPACES.get(name)
    if variant is None:
        raise unknown("variant", name, [*SPACES, *(() if at else GROUPS)])
    if at and not variant.points:
        raise InvalidInput(f"--variants {name}@{point}: {name} has no named points")
    if at and point not in variant.points:
        raise unknown(f"point of {name}", point, variant.points)
    found = variant.at(point) if at else variant
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", found.name):
        raise InvalidInput(f"--variants {name}: its name {found.name!r} must be letters, digits and dashes")
    return found


def _own(name: str) -> Variant:
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # a user's module may fail in any way
        raise InvalidInput(f"--variants {name}: cannot be imported: {first_line(error)}") from None
    if not isinstance(found, Variant):
        raise InvalidInput(f"--variants {name}: is a {type(found).__name__}, must be a search_spaces.Variant")
    return found


def _override(variants: list[Variant], text: str) -> list[Variant]:
    head, separator, given = text.partition("=")
    owner, _, name = head.rpartition(":")
    if not separator or not name or not given:
        raise InvalidInput(f"--space {text}: must be [variant:]name=low:high[:log], name=a,b,c or name=value")
    if owner and owner not in (known := [variant.name for variant in variants]):
        raise unknown("variant in --space", owner, known)
    if name not in flatten(OptimizerSpec()):
        raise unknown("parameter in --space", name, flatten(OptimizerSpec()))
    chosen = [variant for variant in variants if owner in ("", variant.name) and name in variant.searched]
    if not chosen:
        searched = {known for variant in variants for known in variant.searched}
        raise InvalidInput(f"--space {text}: no variant searches {name}; searched are {', '.join(sorted(searched))}")
    return [_with_range(variant, name, given) if variant in chosen else variant for variant in variants]


def _with_range(variant: Variant, name: str, given: str) -> Variant:
    if ":" not in given and "," not in given:
        return variant.but(fixed={name: _value(variant.searched[name], given)})
    distribution = _distribution(variant, name, given)
    default = variant.default[name]
    if isinstance(distribution, CategoricalDistribution):
        default = default if default in distribution.choices else distribution.choices[0]
    elif isinstance(distribution, FloatDistribution | IntDistribution):
        default = min(max(default, distribution.low), distribution.high)  # type: ignore[type-var]
    return variant.but(searched={name: distribution}, default={name: default})


def _distribution(variant: Variant, name: str, given: str) -> BaseDistribution:
    old = variant.searched[name]
    try:
        if "," in given:
            return CategoricalDistribution(tuple(_value(old, choice) for choice in given.split(",")))
        low, high, *scale = given.split(":")
        numbers = {type(choice) for choice in old.choices} if isinstance(old, CategoricalDistribution) else {int, float}
        if not numbers <= {int, float} or scale not in ([], ["log"], ["linear"]):
            raise ValueError
        log = getattr(old, "log", False) if not scale else scale == ["log"]
        if isinstance(old, IntDistribution) or numbers == {int}:
            return IntDistribution(int(low), int(high), log=log)
        if math.isnan(float(low)) or math.isnan(float(high)):
            raise ValueError
        return FloatDistribution(float(low), float(high), log=log)
    except (ValueError, TypeError):
        raise InvalidInput(
            f"--space {name}={given}: must be low:high, low:high:log (above 0) with low at most high, "
            f"or choices a,b,c; the range of {variant.name} now is {shown(old)}"
        ) from None


def _value(old: BaseDistribution, text: str) -> Setting:
    if isinstance(old, CategoricalDistribution):
        by_text: dict[str, Setting] = {str(choice): choice for choice in old.choices}
        if text in by_text:
            return by_text[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


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
