from __future__ import annotations

import math

import pytest

from tuner.core.damping import CRITICAL_BAND, DAMPING_CODES, damping_class, damping_ratio

MOMENTA = [0.0, 0.05, 0.3, 0.6, 0.9, 0.99]
RATIOS = [0.2, 0.6, 0.94, 0.999, 1 - 1e-6, 1 + 1e-6, 1.001, 1.06, 2.0, 10.0]


@pytest.mark.parametrize("momentum", MOMENTA)
def test_ratio_is_above_one_just_where_the_discriminant_is_positive(momentum: float) -> None:
    for ratio in RATIOS:
        step = ((1 - math.sqrt(momentum)) / ratio) ** 2
        if step < (1 + math.sqrt(momentum)) ** 2:
            assert damping_ratio(step / 7, momentum, 7) == pytest.approx(ratio, rel=1e-12)
            assert ((1 + momentum - step) ** 2 - 4 * momentum > 0) == (ratio > 1)


def test_ratio_of_continuous_time_errs_where_ours_does_not() -> None:
    step, momentum = 0.16, 0.35
    assert (1 + momentum - step) ** 2 > 4 * momentum
    ratio = damping_ratio(step, momentum, 1.0)
    assert ratio is not None and (1 - momentum) / (2 * math.sqrt(step)) < 1 < ratio


@pytest.mark.parametrize("step", [1e-3, 0.03, 0.5, 0.9, 1.1, 2.0, 3.5])
@pytest.mark.parametrize("momentum", MOMENTA)
def test_the_iterate_overshoots_just_where_the_ratio_is_below_one(momentum: float, step: float) -> None:
    """From rest at x = 1, at curvature 1; steps above (1 + sqrt(mu))^2 too."""
    ratio = damping_ratio(step, momentum, 1.0)
    assert ratio is not None and ratio != 1
    x, v, overshoots = 1.0, 0.0, False
    for _ in range(300):
        v = momentum * v + x
        x -= step * v
        overshoots = overshoots or x < 0
    assert overshoots == (ratio < 1)


@pytest.mark.parametrize(
    ("momentum", "damping"),
    [(0.0, "over"), (0.6, "over"), (0.8, "over"), (0.81, "critical"), (0.9, "under"), (0.95, "under")],
)
def test_class_at_a_learning_rate_of_one_hundredth(momentum: float, damping: str) -> None:
    ratio = damping_ratio(0.01, momentum, 1.0)
    assert ratio is not None and damping_class(ratio) == damping


def test_a_curvature_ten_percent_off_is_still_critical() -> None:
    for curvature, damping in ((0.8, "over"), (0.92, "critical"), (1.1, "critical"), (1.2, "under")):
        ratio = damping_ratio(0.01, 0.81, curvature)
        assert ratio is not None and damping_class(ratio) == damping
    assert DAMPING_CODES[damping_class(1 - CRITICAL_BAND / 2)] == 0
    assert DAMPING_CODES[damping_class(0.0)] < 0 < DAMPING_CODES[damping_class(math.inf)]


@pytest.mark.parametrize(
    ("lr", "curvature"),
    [(0.0, 1.0), (-0.1, 1.0), (0.1, 0.0), (0.1, -1.0), (0.1, math.nan), (math.nan, 1.0), (0.1, math.inf)],
)
def test_no_ratio_without_an_oscillator(lr: float, curvature: float) -> None:
    assert damping_ratio(lr, 0.9, curvature) is None


@pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan])
def test_a_momentum_out_of_range_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match=rf"momentum = {momentum}: must be in \[0, 1\]"):
        damping_ratio(0.1, momentum, 1.0)
