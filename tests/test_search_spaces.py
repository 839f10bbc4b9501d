"""The search spaces are data: every point of each is a spec, and a variant that contradicts itself is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from search_spaces import SPACES, Variant
from tuner.settings import flatten, with_settings
from tuner.spec import OptimizerSpec
from tuner.variants import settings_at

Toy = Callable[..., Variant]
each = pytest.mark.parametrize("variant", SPACES.values(), ids=list(SPACES))


@each
def test_a_space_is_known_by_its_variants_name_and_says_what_it_is(variant: Variant) -> None:
    assert SPACES[variant.name] is variant
    assert re.fullmatch(r"[a-z0-9-]+", variant.name)
    assert variant.idea and "\n" not in variant.idea
    assert variant.source == "ours" or re.search(r"\d{4}", variant.source)
    assert variant.controls is None or variant.controls in SPACES


@each
def test_settings_are_leaves_of_the_spec_and_the_default_is_in_the_space(variant: Variant) -> None:
    assert {*variant.fixed, *variant.searched} <= set(flatten(OptimizerSpec()))
    built = flatten(with_settings(OptimizerSpec(), variant.default_settings()))
    assert variant.default_settings().items() <= built.items()


@each
def test_every_corner_and_a_thousand_points_are_specs(variant: Variant) -> None:
    dimension = len(variant.searched)
    corners = np.array(np.meshgrid(*[[0.0, 1.0]] * dimension)).reshape(dimension, -1).T
    points = np.random.default_rng(0).random((1000, dimension))
    for point in np.concatenate([corners, points]):
        with_settings(OptimizerSpec(), settings_at(variant, point))


@each
def test_what_is_searched_is_what_the_variant_is_about(variant: Variant) -> None:
    """No space searches a setting that its fixed settings put out of force."""
    searched, fixed = set(variant.searched), variant.fixed
    critical = {"momentum.form", "momentum.zeta", "momentum.floor", "momentum.cap"}
    assert not searched & (critical if fixed["momentum.schedule"] == "constant" else {"momentum.value"})
    if fixed["rule"] != "lpsgd":
        assert not {name for name in searched if name.startswith("norm.")}
    if fixed["rule"] != "adamw":
        assert "second_moment" not in searched


def test_variants_that_are_compared_search_the_same_schedules() -> None:
    for name in ("lr.schedule", "lr.warmup"):
        assert len({str(variant.searched[name]) for variant in SPACES.values()}) == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"default": {"lr.peak": 0.1}}, "momentum.value"),
        ({"default": {"lr.peak": 0.1, "momentum.value": 0.5, "lr.end": 0.0}}, "lr.end"),
        ({"default": {"lr.peak": 5.0, "momentum.value": 0.5}}, "lr.peak = 5.0"),
        ({"default": {"lr.peak": "much", "momentum.value": 0.5}}, "much"),
        ({"fixed": {"rule": "sgd", "lr.peak": 0.1}}, "lr.peak"),
        ({"when": {"lr.end": ("lr.peak", (0.1,))}}, "lr.end"),
        ({"when": {"momentum.value": ("lr.schedule", ("cosine",))}}, "lr.schedule"),
    ],
)
def test_a_variant_that_contradicts_itself_is_refused(toy: Toy, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        toy(**changes)


@pytest.fixture
def nested(toy: Toy) -> Variant:
    """c exists where b = 1, which exists where a = x."""
    return toy(
        searched={
            "lr.schedule": CategoricalDistribution(("cosine", "linear")),
            "momentum.form": CategoricalDistribution(("linear", "square")),
            "momentum.zeta": FloatDistribution(0.5, 2.0),
        },
        default={"lr.schedule": "linear", "momentum.form": "square", "momentum.zeta": 1.0},
        when={"momentum.form": ("lr.schedule", ("cosine",)), "momentum.zeta": ("momentum.form", ("square",))},
    )


def test_conditions_reach_through_their_parents(nested: Variant) -> None:
    assert nested.active("momentum.zeta", {"lr.schedule": "cosine", "momentum.form": "square"})
    assert not nested.active("momentum.zeta", {"lr.schedule": "cosine", "momentum.form": "linear"})
    assert not nested.active("momentum.zeta", {"lr.schedule": "linear", "momentum.form": "square"})
    assert not nested.active("momentum.form", {})
    assert nested.active("lr.schedule", {})


def test_the_default_point_leaves_out_what_does_not_exist_there(nested: Variant) -> None:
    assert nested.default_settings() == {"rule": "sgd", "lr.schedule": "linear"}


SCHEDULED: dict[str, Any] = {
    "searched": {
        "momentum.value": FloatDistribution(0.0, 0.9),
        "lr.schedule": CategoricalDistribution(("cosine", "linear")),
    },
    "default": {"momentum.value": 0.5, "lr.schedule": "cosine"},
}


def test_a_condition_on_a_setting_that_is_drawn_later_is_refused(toy: Toy) -> None:
    """Settings are drawn in order: the first would never exist."""
    with pytest.raises(ValueError, match=r"momentum\.value"):
        toy(**SCHEDULED, when={"momentum.value": ("lr.schedule", ("cosine",))})


def test_conditions_in_a_circle_are_refused(toy: Toy) -> None:
    when = {"momentum.value": ("lr.schedule", ("cosine",)), "lr.schedule": ("momentum.value", (0.5,))}
    with pytest.raises(ValueError, match=r"momentum\.value|lr\.schedule"):
        toy(**SCHEDULED, when=when)


def test_a_condition_on_a_value_that_the_parent_cannot_have_is_refused(toy: Toy) -> None:
    ordered = {name: dict(reversed(values.items())) for name, values in SCHEDULED.items()}
    with pytest.raises(ValueError, match="cosin"):
        toy(**ordered, when={"momentum.value": ("lr.schedule", ("cosin",))})
