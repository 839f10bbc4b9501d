"""The search spaces are data: every point of each is a spec, and a variant that contradicts itself is refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from search_spaces import GROUPS, SPACES, Variant, expand
from search_spaces.composed import PARTS
from tuner.core.serialization import flatten, with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.core.variants import settings_at

Toy = Callable[..., Variant]
each = pytest.mark.parametrize("variant", SPACES.values(), ids=list(SPACES))
COMPOSED = SPACES["composed"]


def in_force(settings: Mapping[str, Any]) -> dict[str, object]:
    """The settings of a spec that change a training, by what their docstrings say."""
    spec = with_settings(OptimizerSpec(), settings)
    momentum, norm, order = spec.momentum, spec.norm, spec.order
    dead: set[str] = set()
    dead |= {"norm."} if spec.rule != "lpsgd" else {"norm.scope"} if norm.scale == "none" else set()
    if norm.shape == "constant":
        dead |= {"norm.p_end", "norm.variable", "norm.hold", "norm.interval"}
    dead |= set() if spec.rule in ("adamw", "lion") else {"second_moment"}
    dead |= set() if momentum.schedule == "cycle" else {"momentum.low"}
    dead |= {"momentum.value"} if momentum.schedule == "critical" else set()
    if momentum.schedule in ("constant", "cycle"):
        dead |= {"momentum.form", "momentum.zeta", "momentum.floor", "momentum.cap"}
    dead |= {"momentum.switch"} if momentum.schedule != "hybrid" else set()
    dead |= {f"momentum.switch_{other}" for other in ("fraction", "accuracy") if other != momentum.switch}
    dead |= {"lr.end"} if spec.lr.schedule in ("constant", "step") else set()
    dead |= {"scaling.active", "scaling.decay"} if spec.scaling.law == "none" else set()
    dead |= {"scaling.shape"} if spec.scaling.law != "gamma" else set()
    dead |= {"order.start", "order.window", "order.interval"} if order.composition == "forward" else set()
    return {name: value for name, value in flatten(spec).items() if not name.startswith(tuple(dead))}


@each
def test_a_space_is_known_by_its_variants_name_and_says_what_it_is(variant: Variant) -> None:
    assert SPACES[variant.name] is variant
    assert re.fullmatch(r"[a-z0-9-]+", variant.name)
    assert variant.idea and "\n" not in variant.idea
    assert variant.source == "ours" or re.search(r"\d{4}", variant.source)


def test_a_control_is_named_after_the_variant_that_it_controls() -> None:
    controls = [variant for variant in SPACES.values() if variant.controls is not None]
    assert tuple(variant.name for variant in controls) == GROUPS["controls"]
    for variant in controls:
        assert variant.controls in GROUPS["papers"] and variant.name.startswith(f"{variant.controls}-")


def test_a_group_names_variants_and_each_variant_is_in_one_group_besides_all() -> None:
    assert (*GROUPS["all"], *GROUPS["modern"]) == tuple(SPACES)
    grouped = [name for group, names in GROUPS.items() if group != "all" for name in names]
    assert sorted([*grouped, "composed"]) == sorted(SPACES)
    points = {f"{variant.name}-{point}" for variant in SPACES.values() for point in variant.points}
    assert not set(GROUPS) & set(SPACES) and not points & {*SPACES, *GROUPS}


def test_groups_stand_for_their_variants_in_place_each_once() -> None:
    assert expand(("critical", "controls", "x:Y", "papers")) == (
        "critical",
        *GROUPS["controls"],
        "x:Y",
        *(name for name in GROUPS["papers"] if name != "critical"),
    )


@each
def test_settings_are_leaves_of_the_spec_and_the_default_is_in_the_space(variant: Variant) -> None:
    settings = {name for name in {*variant.fixed, *variant.searched} if not name.startswith("arguments.")}
    assert settings <= set(flatten(OptimizerSpec()))
    built = flatten(with_settings(OptimizerSpec(), variant.default_settings()))
    assert variant.default_settings().items() <= built.items()


@each
def test_corners_and_points_all_over_the_space_are_specs(variant: Variant) -> None:
    rng, dimension = np.random.default_rng(0), len(variant.searched)
    for point in [*rng.integers(0, 2, (200, dimension)), *rng.random((200, dimension))]:
        settings = settings_at(variant, point)
        assert variant.contains(settings)
        with_settings(OptimizerSpec(), settings)


@each
def test_what_is_searched_is_what_the_variant_is_about(variant: Variant) -> None:
    """At every point what exists is in force, and nothing else that is searched but what composed leaves out."""
    left_out = {"decay.weight", "momentum.rescale"} if variant is COMPOSED else set()
    for point in np.random.default_rng(0).random((100, len(variant.searched))):
        settings = settings_at(variant, point)
        forced = in_force(settings).keys() & variant.searched.keys()
        exist = settings.keys() & variant.searched.keys()
        assert exist <= forced <= exist | left_out


def test_variants_that_are_compared_search_the_same_schedules() -> None:
    scheduled = [variant.searched for variant in SPACES.values() if "lr.schedule" in variant.searched]
    assert len(scheduled) > 10
    for name in ("lr.schedule", "lr.warmup"):
        # Prodigy warms up by itself.
        assert len({str(searched[name]) for searched in scheduled if name in searched}) == 1


def ends(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution)
    return [distribution.low, distribution.high]


def test_composed_has_all_papers_and_sgd_with_momentum_for_parts() -> None:
    assert {part.name for part in PARTS} == {"sgdm", *GROUPS["papers"]}
    assert list(COMPOSED.enqueued) == [part.name for part in PARTS]


@pytest.mark.parametrize("part", PARTS, ids=[part.name for part in PARTS])
def test_an_enqueued_point_of_composed_is_its_parts_default(part: Variant) -> None:
    point = COMPOSED.enqueued[part.name]
    assert COMPOSED.contains(point)
    assert in_force(point) == in_force(part.default_settings())


@pytest.mark.parametrize("part", PARTS, ids=[part.name for part in PARTS])
def test_composed_contains_the_ranges_of_its_parts(part: Variant) -> None:
    """Each end of each range is in composed's, where everything else is at the part's default."""
    values = {**{name: [value] for name, value in part.fixed.items()}, **{n: ends(d) for n, d in part.searched.items()}}
    for name, at_ends in values.items():
        if name in COMPOSED.searched:
            for value in at_ends:
                assert COMPOSED.contains(COMPOSED.point({**COMPOSED.default, name: value})), (name, value)


def test_a_named_point_is_a_default_of_its_own_and_the_first_that_is_enqueued() -> None:
    variant = SPACES["lpsgdm"].at("imagenet")
    assert variant.name == "lpsgdm-imagenet" and not variant.points
    changed = {name: value for name, value in variant.default.items() if value != SPACES["lpsgdm"].default[name]}
    assert changed == SPACES["lpsgdm"].points["imagenet"]
    assert variant.searched == SPACES["lpsgdm"].searched
    assert variant.enqueued == {"imagenet": variant.default_settings()}
    assert list(dataclasses.replace(COMPOSED, points={"x": {}}).at("x").enqueued) == ["x", *COMPOSED.enqueued]


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
        ({"points": {"big": {"lr.peak": 2.0}}}, "big lr.peak = 2.0"),
        ({"points": {"big": {"lr.end": 0.0}}}, "big lr.end = 0.0"),
        ({"enqueued": {"big": {"rule": "sgd", "lr.peak": 2.0, "momentum.value": 0.5}}}, "big"),
        ({"enqueued": {"part": {"rule": "sgd", "lr.peak": 0.1}}}, "part"),
        ({"enqueued": {"other": {"rule": "lpsgd", "lr.peak": 0.1, "momentum.value": 0.5}}}, "other"),
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


def test_a_point_as_a_whole_has_what_exists_and_nothing_else(nested: Variant) -> None:
    whole: dict[str, Any] = {"rule": "sgd", "lr.schedule": "cosine", "momentum.form": "square", "momentum.zeta": 1.0}
    assert nested.contains(whole)
    assert not nested.contains({**whole, "momentum.form": "linear"}), "zeta does not exist"
    assert not nested.contains({name: value for name, value in whole.items() if name != "momentum.zeta"})
    assert not nested.contains({**whole, "momentum.zeta": 3.0})
    assert not nested.contains({**whole, "rule": "lpsgd"})
    assert nested.point({**whole, "lr.schedule": "linear"}) == {"rule": "sgd", "lr.schedule": "linear"}


def test_a_changed_space_keeps_the_conditions_that_can_hold(nested: Variant) -> None:
    zeta = {"momentum.zeta": ("momentum.form", ("square",))}
    assert nested.but(fixed={"lr.schedule": "cosine"}).when == zeta
    assert list(nested.but(fixed={"lr.schedule": "linear"}).searched) == []
    assert nested.but(fixed={"momentum.form": "square"}).when == {"momentum.zeta": ("lr.schedule", ("cosine",))}
    assert list(nested.but(fixed={"momentum.form": "linear"}).searched) == ["lr.schedule"]
    narrow = nested.but(
        searched={"momentum.form": CategoricalDistribution(("linear",))}, default={"momentum.form": "linear"}
    )
    assert list(narrow.searched) == ["lr.schedule", "momentum.form"]


def test_a_changed_space_keeps_what_it_contains_of_the_enqueued_points(toy: Toy) -> None:
    points = {str(lr): {"rule": "sgd", "lr.peak": lr, "momentum.value": 0.5} for lr in (0.1, 0.5)}
    variant = toy(enqueued=points, points={"a": {"lr.peak": 0.2}})
    assert variant.but().enqueued == points and not variant.but().points
    assert list(variant.but(searched={"lr.peak": FloatDistribution(0.05, 0.2)}).enqueued) == ["0.1"]
    assert list(variant.but(fixed={"lr.peak": 0.5}).enqueued) == ["0.5"]


def test_what_was_fixed_can_be_searched(toy: Toy) -> None:
    variant = toy().but(searched={"rule": CategoricalDistribution(("sgd", "lpsgd"))}, default={"rule": "sgd"})
    assert not variant.fixed and list(variant.searched) == ["lr.peak", "momentum.value", "rule"]


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
