"""Variants as plain data, which a search keeps in its folder: a report then needs no code of the user's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import distribution_to_json, json_to_distribution

from search_spaces import Variant


def as_data(variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """One dict per variant, which JSON can hold; ranges are as Optuna writes them."""
    return [
        {
            **{item.name: getattr(variant, item.name) for item in dataclasses.fields(variant)},
            "searched": {name: distribution_to_json(range_) for name, range_ in variant.searched.items()},
        }
        for variant in variants
    ]


def from_data(saved: Sequence[Mapping[str, Any]]) -> tuple[Variant, ...]:
    """The variants that :func:`as_data` was given.  Raises ValueError, TypeError or KeyError for other data."""
    return tuple(
        Variant(
            **{
                **values,
                "searched": {name: json_to_distribution(text) for name, text in values["searched"].items()},
                "when": {name: (parent, tuple(allowed)) for name, (parent, allowed) in values["when"].items()},
            }
        )
        for values in saved
    )
