"""What a variant is: some settings fixed, some searched, and a default point."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from optuna.distributions import BaseDistribution

Value = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of running SGD.  Names of settings are dotted field names of ``tuner.core.trial_spec.OptimizerSpec``.

    Raises ValueError where the parts contradict each other.
    """

    name: str
    """Letters, digits and dashes."""
    idea: str = ""
    """One sentence, shown by ``--list``.  Default: the optimizer's import path."""
    source: str = ""
    """The paper, or "ours".  Default: "not given"."""
    optimizer: str | None = None
    """Import path ``package.module:callable`` of the optimizer, which is the same as ``rule`` in ``fixed``.  Unless
    settings of ``momentum`` are given, the momentum is left to the optimizer's own arguments."""
    fixed: Mapping[str, Value] = field(default_factory=dict)
    """Settings that every trial has.  A tuple is kept as text; a dict for ``parameter_groups`` is kept as JSON."""
    searched: Mapping[str, BaseDistribution]
    """Settings that the search draws, with their ranges."""
    default: Mapping[str, Value]
    """A value for every searched setting: the point to use without tuning."""
    when: Mapping[str, tuple[str, tuple[Value, ...]]] = field(default_factory=dict)
    """Conditions: a searched setting -> (another searched setting, the values of it under which the first exists)."""
    controls: str | None = None
    """The variant whose claim this control tests; None if this is no control."""
    points: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    """Other default points by name, each as its differences from ``default``; see :meth:`at`."""
    enqueued: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    """Complete points by name, in order: after the default point, a refinement tries as many as fit into half of it."""

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            self._take_optimizer(self.optimizer)
        object.__setattr__(self, "source", self.source or "not given")
        object.__setattr__(self, "fixed", {name: _as_setting(value) for name, value in self.fixed.items()})
        if set(self.default) != set(self.searched):
            odd = sorted(set(self.default) ^ set(self.searched))
            raise ValueError(f"variant {self.name}: default and searched settings differ in {', '.join(odd)}")
        if both := sorted(set(self.fixed) & set(self.searched)):
            raise ValueError(f"variant {self.name}: both fixed and searched: {', '.join(both)}")
        self._check_conditions()
        for kind, values in {"default": self.default, **self.points}.items():
            for name, value in values.items():
                if name not in self.searched or not _holds(self.searched[name], value):
                    raise ValueError(f"variant {self.name}: {kind} {name} = {value} is outside its range")
        for kind, settings in self.enqueued.items():
            if not self.contains(settings):
                raise ValueError(f"variant {self.name}: the enqueued point {kind} is not in the space")

    def _take_optimizer(self, path: str) -> None:
        settings = (*self.fixed, *self.searched)
        if self.fixed.get("rule", path) != path or "rule" in self.searched:
            raise ValueError(f"variant {self.name}: the optimizer {path} is its rule, so give no other")
        own = {} if any(name.startswith("momentum.") for name in settings) else {"momentum.schedule": "own"}
        object.__setattr__(self, "fixed", {"rule": path, **own, **self.fixed})
        object.__setattr__(self, "idea", self.idea or path)

    def _check_conditions(self) -> None:
        order = list(self.searched)
        for setting, (parent, values) in self.when.items():
            for name in (setting, parent):
                if name not in self.searched:
                    raise ValueError(f"variant {self.name}: a condition names {name}, which is not searched")
            if order.index(parent) >= order.index(setting):
                raise ValueError(
                    f"variant {self.name}: {setting} depends on {parent}, which must be searched before it"
                )
            for value in values:
                if not _holds(self.searched[parent], value):
                    raise ValueError(f"variant {self.name}: {setting} depends on {parent} = {value}, outside its range")

    def active(self, name: str, settings: Mapping[str, Value]) -> bool:
        """Whether a searched setting exists, given the settings it may depend on."""
        if name not in self.when:
            return True
        parent, values = self.when[name]
        return self.active(parent, settings) and settings.get(parent) in values

    def point(self, settings: Mapping[str, Value]) -> dict[str, Value]:
        """A complete point: the fixed settings, and those given ones that are searched and exist at the point."""
        return {**self.fixed, **{name: settings[name] for name in self.searched if self.active(name, settings)}}

    def default_settings(self) -> dict[str, Value]:
        """The complete default point, fixed settings included."""
        return self.point(self.default)

    def contains(self, settings: Mapping[str, Value]) -> bool:
        """Whether settings are a complete point of the space."""
        exist = {*self.fixed, *(name for name in self.searched if self.active(name, settings))}
        return set(settings) == exist and all(
            _holds(self.searched[name], value) if name in self.searched else value == self.fixed[name]
            for name, value in settings.items()
        )

    def but(
        self,
        *,
        fixed: Mapping[str, Value] | None = None,
        searched: Mapping[str, BaseDistribution] | None = None,
        default: Mapping[str, Value] | None = None,
    ) -> Variant:
        """The same variant with some settings fixed, searched over other ranges, or with another default.

        Searched settings that can no longer exist are left out.  So are all named points, and those enqueued points
        that the new space does not contain.
        """
        now_fixed, ranges = fixed or {}, {**self.searched, **(searched or {})}
        when: dict[str, tuple[str, tuple[Value, ...]]] = {}
        for name in [*ranges]:  # a setting comes after the one it depends on
            condition = self.when.get(name)
            while condition and condition[0] in now_fixed and now_fixed[condition[0]] in condition[1]:
                condition = self.when.get(condition[0])
            parent, values = condition or ("", ())
            left = tuple(value for value in values if parent in ranges and _holds(ranges[parent], value))
            if name in now_fixed or (condition and not left):
                del ranges[name]
            elif condition:
                when[name] = (parent, left)
        changed = dataclasses.replace(
            self,
            fixed={**{n: v for n, v in self.fixed.items() if n not in ranges}, **now_fixed},
            searched=ranges,
            default={n: v for n, v in {**self.default, **(default or {})}.items() if n in ranges},
            when=when,
            points={},
            enqueued={},
        )
        kept = {name: settings for name, settings in self.enqueued.items() if changed.contains(settings)}
        return dataclasses.replace(changed, enqueued=kept)

    def at(self, point: str) -> Variant:
        """The variant ``<name>-<point>``, with the named point as its default."""
        placed = dataclasses.replace(
            self, name=f"{self.name}-{point}", default={**self.default, **self.points[point]}, points={}
        )
        return dataclasses.replace(placed, enqueued={point: placed.default_settings(), **self.enqueued})


def _as_setting(value: object) -> Value:
    if isinstance(value, dict):
        return json.dumps(value)
    return str(tuple(value)) if isinstance(value, tuple | list) else value  # type: ignore[return-value]


def _holds(distribution: BaseDistribution, value: Value) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False
