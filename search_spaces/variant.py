"""What a variant is: some settings fixed, some searched, and a default point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from optuna.distributions import BaseDistribution

Value = bool | int | float | str | None


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of running SGD.  Names of settings are dotted field names of ``tuner.spec.OptimizerSpec``."""

    name: str
    """Letters, digits and dashes."""
    idea: str
    """One sentence, shown by ``--dry-run``."""
    source: str
    """The paper, or "ours"."""
    fixed: Mapping[str, Value]
    """Settings every trial has."""
    searched: Mapping[str, BaseDistribution]
    """Settings the search chooses."""
    default: Mapping[str, Value]
    """A value for every searched setting: the point to take where nothing is tuned."""
    when: Mapping[str, tuple[str, tuple[Value, ...]]] = field(default_factory=lambda: MappingProxyType({}))
    """Conditions: a searched setting -> (another searched setting, the values of it under which the first exists)."""
    controls: str | None = None
    """The variant whose claim this one tests, where it is a control."""

    def __post_init__(self) -> None:
        if set(self.default) != set(self.searched):
            odd = sorted(set(self.default) ^ set(self.searched))
            raise ValueError(f"variant {self.name}: default and searched settings differ in {', '.join(odd)}")
        if both := sorted(set(self.fixed) & set(self.searched)):
            raise ValueError(f"variant {self.name}: both fixed and searched: {', '.join(both)}")
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
                    raise ValueError(f"variant {self.name}: {setting} depends on {parent} = {value}, which never is")
        for name, distribution in self.searched.items():
            if not _holds(distribution, self.default[name]):
                raise ValueError(f"variant {self.name}: default {name} = {self.default[name]} is outside its range")

    def active(self, name: str, settings: Mapping[str, Value]) -> bool:
        """Whether a searched setting exists, given the settings it may depend on."""
        if name not in self.when:
            return True
        parent, values = self.when[name]
        return self.active(parent, settings) and settings.get(parent) in values

    def default_settings(self) -> dict[str, Value]:
        """The default point as a whole: fixed settings and the default of each searched one that exists there."""
        return {**self.fixed, **{name: v for name, v in self.default.items() if self.active(name, self.default)}}


def _holds(distribution: BaseDistribution, value: Value) -> bool:
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except ValueError:
        return False
