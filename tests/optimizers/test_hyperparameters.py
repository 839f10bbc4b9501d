"""Every step's learning rate, momentum and p; when the hybrid switches, and that it stays switched."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from search_spaces import SPACES
from tuner.core.metrics import EpochMetrics
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.optimizers.hyperparameters import Hyperparameters, hyperparameters_at, longest_step, switch_step
from tuner.schedules import critical_momentum

STEPS, STEPS_PER_EPOCH = 100, 10
Epoch = Callable[..., EpochMetrics]


def spec(**settings: Any) -> OptimizerSpec:
    names = {name.replace("__", "."): value for name, value in settings.items()}
    return with_settings(OptimizerSpec(), {"lr.peak": 0.2, "lr.warmup": 0.1, **names})


def path(of: OptimizerSpec, switch: int | None = None) -> list[Hyperparameters]:
    return [hyperparameters_at(of, step, STEPS, STEPS_PER_EPOCH, switch) for step in range(STEPS)]


def test_constant_momentum_and_a_learning_rate_of_its_own() -> None:
    hyperparameters = path(spec(momentum__value=0.7))
    assert {k.momentum for k in hyperparameters} == {0.7} and {k.p for k in hyperparameters} == {2.0}
    assert max(k.lr for k in hyperparameters) == 0.2


@pytest.mark.parametrize("form", ["linear", "square", "exponential"])
def test_critical_momentum_follows_each_steps_learning_rate(form: Any) -> None:
    hyperparameters = path(
        spec(momentum__schedule="critical", momentum__form=form, momentum__cap=0.95, momentum__zeta=0.7)
    )
    for k in hyperparameters:
        assert k.momentum == critical_momentum(k.lr, zeta=0.7, form=form, cap=0.95)


def test_the_cycle_falls_as_the_learning_rate_rises() -> None:
    of = spec(
        lr__schedule="one-cycle", lr__warmup=0.3, momentum__schedule="cycle", momentum__value=0.95, momentum__low=0.8
    )
    hyperparameters = path(of)
    lowest = min(hyperparameters, key=lambda k: k.momentum)
    assert lowest.lr == 0.2 and lowest.momentum == pytest.approx(0.8)
    assert hyperparameters[-1].momentum == pytest.approx(0.95, abs=1e-3)
    for k in hyperparameters:  # on the line between (0, .95) and (peak, .8)
        assert k.momentum == pytest.approx(0.95 - 0.15 * k.lr / 0.2)


def test_the_matched_control_has_the_critical_schedules_effective_step_at_constant_momentum() -> None:
    settings: dict[str, Any] = {"momentum__form": "square", "momentum__zeta": 1.3, "momentum__cap": 0.98}
    critical = path(spec(momentum__schedule="critical", **settings))
    matched = path(spec(momentum__schedule="matched", momentum__value=0.9, **settings))
    assert {k.momentum for k in matched} == {0.9}
    for ours, theirs in zip(matched, critical, strict=True):
        assert ours.lr / (1 - ours.momentum) == pytest.approx(theirs.lr / (1 - theirs.momentum), rel=1e-12)
        assert theirs.momentum == 0.9 or ours.lr != theirs.lr


def test_the_hybrid_is_critical_before_its_switch_and_constant_after_it() -> None:
    critical = path(spec(momentum__schedule="critical"))
    hybrid = path(spec(momentum__schedule="hybrid", momentum__value=0.88), switch=37)
    assert hybrid[:37] == critical[:37]
    assert {k.momentum for k in hybrid[37:]} == {0.88}
    assert [k.lr for k in hybrid] == [k.lr for k in critical]
    assert path(spec(momentum__schedule="hybrid", momentum__value=0.88), switch=None) == critical


@pytest.mark.parametrize(("fraction", "step"), [(0.3, 30), (0.55, 55), (0.999, 100)])
def test_the_switch_by_fraction_comes_at_that_fraction(fraction: float, step: int) -> None:
    of = spec(momentum__schedule="hybrid", momentum__switch="fraction", momentum__switch_fraction=fraction)
    assert switch_step(of, STEPS, []) == step


def test_the_switch_by_accuracy_is_known_when_it_is_reached_and_stays(epoch: Epoch) -> None:
    of = spec(momentum__schedule="hybrid", momentum__switch="accuracy", momentum__switch_accuracy=0.8)
    history = [epoch(1, 0.5), epoch(2, 0.8), epoch(3, 0.4), epoch(4, 0.9)]
    assert [switch_step(of, STEPS, history[:n]) for n in range(5)] == [None, None, 20, 20, 20]


def test_the_switch_by_accuracy_counts_steps_not_gradient_evaluations(epoch: Epoch) -> None:
    of = spec(momentum__schedule="hybrid", momentum__switch="accuracy", momentum__switch_accuracy=0.8)
    assert switch_step(of, STEPS, [dataclasses.replace(epoch(1, 0.9), gradient_evaluations=55)]) == 10


def test_the_switch_by_crossing_waits_for_the_warm_up_to_end() -> None:
    """In the warm-up the learning rate is small too, and the critical momentum large."""
    of = spec(momentum__schedule="hybrid", momentum__switch="crossing", momentum__value=0.8)
    critical = [k.momentum for k in path(spec(momentum__schedule="critical"))]
    switch = switch_step(of, STEPS, [])
    assert switch is not None and critical[0] < 0.8 < critical[switch] and critical[switch - 1] < 0.8
    early = spec(momentum__schedule="hybrid", momentum__switch="crossing", momentum__value=0.5)
    assert critical[0] > 0.5, "above the crossing's value before the peak"
    late = switch_step(early, STEPS, [])
    assert late is not None and late > 10 and critical[late] >= 0.5 > critical[late - 1]


def test_a_crossing_that_never_comes_leaves_the_hybrid_critical() -> None:
    of = spec(momentum__schedule="hybrid", momentum__switch="crossing", lr__schedule="constant")
    assert switch_step(of, STEPS, []) is None


def test_only_the_hybrid_switches(epoch: Epoch) -> None:
    assert switch_step(spec(momentum__schedule="critical"), STEPS, [epoch(1, 0.99)]) is None


def test_the_crossing_is_found_above_the_cap_too() -> None:
    """The momentum itself would stay below what it is to cross."""
    settings: dict[str, Any] = {"momentum__switch": "crossing", "momentum__value": 0.8}
    free = spec(momentum__schedule="hybrid", **settings)
    capped = spec(momentum__schedule="hybrid", momentum__cap=0.7, **settings)
    assert switch_step(capped, STEPS, []) == switch_step(free, STEPS, []) is not None


def test_p_changes_once_an_epoch_or_at_each_step() -> None:
    annealed: dict[str, Any] = {"rule": "lpsgd", "norm__p_max": 6.0, "norm__shape": "cosine"}
    ps = [k.p for k in path(spec(**annealed))]
    assert ps[:10] == [6.0] * 10 and ps[90:] == [2.0] * 10 and len(set(ps)) == 10
    assert len({k.p for k in path(spec(**annealed, norm__interval="step"))}) == STEPS


def test_p_comes_to_its_end_in_a_part_of_an_epoch_too() -> None:
    """With replays the last iterate need not be at an epoch's end."""
    of = spec(rule="lpsgd", norm__p_max=6.0, norm__shape="cosine")
    ps = [hyperparameters_at(of, step, 25, 10).p for step in range(25)]
    assert ps[0] == ps[9] == 6.0 and ps[20] == ps[24] == 2.0 and 2 < ps[10] < 6


def test_knobs_depend_on_the_step_alone() -> None:
    """So that a replayed step is the same step."""
    of = spec(momentum__schedule="hybrid", rule="lpsgd", norm__p_max=math.inf)
    forward = path(of, switch=50)
    assert [hyperparameters_at(of, step, STEPS, STEPS_PER_EPOCH, 50) for step in reversed(range(STEPS))] == forward[
        ::-1
    ]


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({"lr.schedule": "linear"}, {"lr.end": 0.5}),
        ({"momentum.schedule": "critical", "lr.peak": 0.24}, {"momentum.floor": 0.4}),
        ({"rule": "lpsgd", "norm.p_max": 6.0, "norm.shape": "cosine"}, {"norm.hold": 0.5}),
        ({"rule": "lpsgd", "norm.p_max": 6.0, "norm.shape": "cosine"}, {"norm.variable": "alpha"}),
        ({"rule": "lpsgd", "norm.p_max": 6.0, "norm.shape": "cosine"}, {"norm.p_end": 3.0}),
    ],
    ids=str,
)
def test_every_setting_of_a_schedule_reaches_it(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    assert path(spec(**settings)) != path(spec(**settings, **changes))


@pytest.mark.parametrize("changes", [{"lr.end": 0.5}, {"momentum.floor": 0.7}, {"momentum.zeta": 0.5}], ids=str)
def test_the_crossing_is_of_the_critical_momentum_that_is_in_force(changes: dict[str, Any]) -> None:
    of = spec(**{"momentum.schedule": "hybrid", "momentum.switch": "crossing", "momentum.value": 0.65, **changes})
    critical = path(spec(**{"momentum.schedule": "critical", **changes}))
    expected = next((step for step, k in enumerate(critical) if step >= 10 and k.momentum >= 0.65), None)
    assert switch_step(of, STEPS, []) == expected


def test_a_crossing_at_the_peak_itself_counts() -> None:
    """Momentum 1 - 2 sqrt(1/16) is 1/2 exactly, at the peak and, the learning rate being constant, ever after."""
    settings: dict[str, Any] = {"lr.peak": 0.0625, "lr.schedule": "constant", "momentum.value": 0.5}
    of = spec(**settings, momentum__schedule="hybrid", momentum__switch="crossing")
    assert switch_step(of, STEPS, []) == 10


@pytest.mark.parametrize("variant", sorted(SPACES))
@pytest.mark.parametrize("switch", [None, 0, 3, 40, STEPS])
def test_the_longest_step_is_that_of_the_largest_effective_rate(variant: str, switch: int | None) -> None:
    of = with_settings(OptimizerSpec(), SPACES[variant].default_settings())
    lengths = [k.lr if of.rule == "lpsgd" else k.lr / (1 - k.momentum) for k in path(of, switch)]
    number, lr, momentum = longest_step(of, STEPS, switch)
    assert lengths[number] == pytest.approx(max(lengths), rel=1e-12)
    hyperparameters = path(of, switch)[number]
    assert (lr, momentum) == pytest.approx((hyperparameters.lr, hyperparameters.momentum), rel=1e-12)
    assert not any(length > lengths[number] * (1 + 1e-12) for length in lengths[:number])
