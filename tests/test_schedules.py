from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tuner.schedules import critical_momentum, learning_rate, norm_exponent

FORMS = ["linear", "square", "exponential"]
SHAPES = ["constant", "cosine", "linear", "step", "exponential"]
UNKNOWN: Any = "unknown"
SCHEDULES = ["constant", "cosine", "linear", "step", "one-cycle"]


@pytest.mark.parametrize(
    ("lr", "momentum"),
    [(0.1, 0.367544), (0.05, 0.552786), (0.01, 0.8), (0.0025, 0.9), (0.001, 0.936754), (0.25, 0.0), (3.0, 0.0)],
)
def test_momentum_of_the_paper(lr: float, momentum: float) -> None:
    assert critical_momentum(lr) == pytest.approx(momentum, abs=5e-7)


@pytest.mark.parametrize("curvature", [0.01, 0.5, 1.0])
@pytest.mark.parametrize("lr", [1e-4, 0.01, 0.2, 0.9])
def test_square_form_puts_the_oscillator_on_its_double_root(lr: float, curvature: float) -> None:
    """The characteristic polynomial z^2 - (1 + mu - lr lambda) z + mu has discriminant 0."""
    mu = critical_momentum(lr, zeta=math.sqrt(curvature), form="square")
    assert (1 + mu - lr * curvature) ** 2 - 4 * mu == pytest.approx(0, abs=1e-14)
    # the paper's formula stays on the overdamped side
    linear = critical_momentum(lr, zeta=math.sqrt(curvature), form="linear")
    assert (1 + linear - lr * curvature) ** 2 - 4 * linear >= 0


@pytest.mark.parametrize(
    ("momentum", "num_steps", "lowest"),
    [
        (0.0, 1375, None),
        (0.6, 526, None),
        (critical_momentum(0.01), 192, None),
        (critical_momentum(0.01, form="square"), 158, None),
        (0.9, 262, -0.153),
        (0.95, 524, -0.440),
    ],
)
def test_oscillator_of_curvature_one(momentum: float, num_steps: int, lowest: float | None) -> None:
    """Steps until |x| stays below 1e-6 from x = 1 with SGD at lr = .01; ``lowest`` is the overshoot, if any."""
    x = torch.ones(1, dtype=torch.float64)
    optimizer = torch.optim.SGD([x], lr=0.01, momentum=momentum)
    path = [1.0]
    for _ in range(1500):
        x.grad = x.clone()
        optimizer.step()
        path.append(x.item())
    assert max(step for step, value in enumerate(path) if abs(value) >= 1e-6) + 1 == num_steps
    if lowest is None:
        assert min(path) > 0
    else:
        assert min(path) == pytest.approx(lowest, abs=5e-4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zeta", [0.25, 1.0, 2.0])
def test_momentum_falls_with_the_learning_rate_between_its_bounds(form: Any, zeta: float) -> None:
    lrs = [0.0, *torch.logspace(-6, 2, 200, dtype=torch.float64).tolist()]
    momenta = [critical_momentum(lr, form=form, zeta=zeta) for lr in lrs]
    assert momenta[0] == 1 and momenta[-1] < 1e-2
    assert all(a >= b for a, b in pairwise(momenta))
    clipped = [critical_momentum(lr, form=form, zeta=zeta, floor=0.2, cap=0.95) for lr in lrs]
    assert clipped == [min(max(momentum, 0.2), 0.95) for momentum in momenta]


@pytest.mark.parametrize("form", FORMS)
def test_forms_agree_to_first_order_in_the_root_of_the_learning_rate(form: Any) -> None:
    for lr in (1e-4, 1e-6, 1e-8):
        assert abs(critical_momentum(lr, form=form, zeta=0.7) - (1 - 1.4 * math.sqrt(lr))) <= 2 * 0.49 * lr


def test_norm_exponent_of_the_paper() -> None:
    exponents = [norm_exponent(step, 10, p_max=6) for step in range(10)]
    assert exponents[0] == 6 and exponents[9] == 2 and all(type(p) is float for p in exponents)
    for s, p in enumerate(exponents, start=1):
        assert p == pytest.approx(2 + 4 * (1 + math.cos(math.pi * (s - 1) / 9)) / 2)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variable", ["p", "alpha"])
@pytest.mark.parametrize(("p_max", "p_end"), [(6.0, 2.0), (9.0, 7.9), (100.0, 3.0), (math.inf, 2.5), (4.0, 4.0)])
@pytest.mark.parametrize("hold", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 97])
def test_norm_exponent_falls_from_p_max_to_p_end(
    shape: Any, variable: Any, p_max: float, p_end: float, hold: float, num_steps: int
) -> None:
    settings: dict[str, Any] = {"p_max": p_max, "p_end": p_end, "shape": shape, "hold": hold, "variable": variable}
    exponents = [norm_exponent(step, num_steps, **settings) for step in range(num_steps)]
    assert exponents[0] == p_max
    assert exponents[-1] == (p_max if shape == "constant" or num_steps == 1 else p_end)
    assert all(p_max >= a >= b >= p_end for a, b in pairwise(exponents))
    held = [p for step, p in enumerate(exponents) if step < hold * (num_steps - 1)]
    assert held == [p_max] * len(held)
    if shape not in ("constant", "step") and num_steps == 97 and hold < 0.9 and p_max > p_end:
        # it anneals, rather than jumping from one end to the other
        assert len(set(exponents)) > 60


@pytest.mark.parametrize(
    ("shape", "variable", "p_max", "middle"),
    [
        ("linear", "p", 6.0, 4.0),
        ("cosine", "p", 6.0, 4.0),
        ("exponential", "p", 8.0, 4.0),
        ("linear", "alpha", 6.0, 1 + 1 / 0.6),
        ("cosine", "alpha", 6.0, 1 + 1 / 0.6),
        ("exponential", "alpha", 5.0, 3.0),
        ("linear", "p", math.inf, 3.0),
        ("cosine", "alpha", math.inf, 3.0),
        ("exponential", "p", math.inf, 1 + 1 / (math.sqrt(2) - 1)),
        ("step", "p", 6.0, 2.0),
    ],
)
def test_middle_of_the_annealing(shape: Any, variable: Any, p_max: float, middle: float) -> None:
    assert norm_exponent(5, 11, p_max=p_max, shape=shape, variable=variable) == pytest.approx(middle)
    # holding the first half moves the middle to three quarters
    assert norm_exponent(15, 21, p_max=p_max, shape=shape, variable=variable, hold=0.5) == pytest.approx(middle)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("end", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 10, 200])
def test_learning_rate_rises_to_its_peak_and_falls(schedule: Any, warmup: float, end: float, num_steps: int) -> None:
    settings: dict[str, Any] = {"peak": 0.3, "schedule": schedule, "warmup": warmup, "end": end}
    rates = [learning_rate(step, num_steps, **settings) for step in range(num_steps)]
    top = rates.index(max(rates))
    rising = 0.3 if schedule == "one-cycle" and warmup == 0 else warmup
    assert rates[top] == 0.3 and top == min(round(rising * num_steps), num_steps - 1)
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b for a, b in pairwise(rates[top:]))
    # every step moves the weights, the first and the last too
    assert min(rates) > 0
    if schedule in ("cosine", "linear", "one-cycle"):
        assert min(rates[top:]) >= end * 0.3


def test_learning_rate_of_each_schedule() -> None:
    def rates(schedule: Any, **settings: float) -> list[float]:
        return [learning_rate(step, 8, peak=1.0, schedule=schedule, **settings) for step in range(8)]

    assert rates("constant", end=0.5) == [1.0] * 8
    assert rates("linear", end=0.5) == pytest.approx([1 - step / 16 for step in range(8)])
    assert rates("cosine") == pytest.approx([(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)])
    assert rates("step") == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] * 2)
    assert rates("constant", warmup=0.375) == pytest.approx([0.25, 0.5, 0.75, *[1.0] * 5])
    cosine = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert rates("one-cycle", warmup=0.5) == pytest.approx([0.04 + 0.24 * step for step in range(4)] + cosine)


def test_the_step_shape_stays_at_infinity_for_its_first_half() -> None:
    exponents = [norm_exponent(step, 9, p_max=math.inf, shape="step") for step in range(9)]
    assert exponents == [math.inf] * 4 + [2.0] * 5


def test_fractional_steps_lie_between_whole_ones() -> None:
    rates = [learning_rate(step, 10, peak=0.1) for step in (3, 3.5, 4)]
    exponents = [norm_exponent(step, 10, p_max=6.0) for step in (3, 3.5, 4)]
    for values in (rates, exponents):
        assert values[0] > values[1] > values[2]


TENSOR_CASES: list[tuple[Callable[[Any], Any], list[float]]] = [
    *[(lambda lr, form=form: critical_momentum(lr, form=form, cap=0.9), [0.0, 1e-3, 0.01, 0.2, 5.0]) for form in FORMS],
    *[
        (lambda step, shape=shape, p=p, v=v: norm_exponent(step, 9, p_max=p, shape=shape, hold=0.2, variable=v), STEPS)
        for STEPS in [[0.0, 1.0, 2.5, 4.0, 7.0, 8.0]]
        for shape in SHAPES
        for p in (5.0, math.inf)
        for v in ("p", "alpha")
    ],
    *[
        (lambda step, s=s, w=w: learning_rate(step, 9, peak=0.3, schedule=s, warmup=w), [0.0, 1.0, 3.0, 5.0, 7.0, 8.0])
        for s in SCHEDULES
        for w in (0.0, 0.25)
    ],
]


@pytest.mark.parametrize(("function", "values"), TENSOR_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_gives_what_its_floats_give(
    function: Callable[[Any], Any], values: list[float], dtype: torch.dtype
) -> None:
    floats = [function(value) for value in values]
    assert all(type(value) is float for value in floats)
    result = function(torch.tensor(values, dtype=dtype).reshape(1, -1))
    assert isinstance(result, Tensor) and result.dtype == dtype and result.shape == (1, len(values))
    torch.testing.assert_close(result[0], torch.tensor(floats, dtype=dtype))
    assert function(torch.tensor(values[0], dtype=dtype)).shape == ()


def test_whole_tensor_steps_and_exact_ends_in_float32() -> None:
    steps = torch.arange(7)
    exponents = norm_exponent(steps, 7, p_max=5.7, p_end=2.3, variable="alpha")
    assert exponents.dtype == torch.float32
    assert exponents[0] == torch.tensor(5.7) and exponents[-1] == torch.tensor(2.3)
    assert learning_rate(steps, 7, peak=0.1)[0] == torch.tensor(0.1)
    if torch.cuda.is_available():
        assert norm_exponent(steps.cuda(), 7, p_max=5.7).is_cuda


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: critical_momentum(-0.1), "lr = -0.1: must be at least 0"),
        (lambda: critical_momentum(math.nan), "lr = nan"),
        (lambda: critical_momentum(torch.tensor([0.1, -0.1])), "lr = "),
        (lambda: critical_momentum(0.1, zeta=0.0), "zeta = 0.0: must be above 0"),
        (lambda: critical_momentum(0.1, floor=0.9, cap=0.5), "floor = 0.9: must be at most cap = 0.5"),
        (lambda: critical_momentum(0.1, form=UNKNOWN), "form = 'unknown': must be one of linear, square, exponential"),
        (lambda: norm_exponent(-1, 10, p_max=6), r"step = -1: must be in \[0, num_steps - 1 = 9\]"),
        (lambda: norm_exponent(10, 10, p_max=6), r"step = 10: must be in \[0, num_steps - 1 = 9\]"),
        (lambda: norm_exponent(torch.tensor([0, 10]), 10, p_max=6), "step = "),
        (lambda: norm_exponent(0, 0, p_max=6), "num_steps = 0: must be at least 1"),
        (lambda: norm_exponent(0, 10, p_max=3, p_end=4), r"p_end = 4: must be in \[2, p_max = 3\]"),
        (lambda: norm_exponent(0, 10, p_max=1.5), r"p_max = 1.5: must be in \[2, inf\]"),
        (lambda: norm_exponent(0, 10, p_max=math.nan), r"p_max = nan: must be in \[2, inf\]"),
        (lambda: norm_exponent(0, 10, p_max=3, p_end=1.0), "p_end = 1.0"),
        (lambda: norm_exponent(0, 10, p_max=6, hold=1.0), r"hold = 1.0: must be in \[0, 1\)"),
        (lambda: norm_exponent(0, 10, p_max=6, shape=UNKNOWN), "shape = 'unknown': must be one of constant, cosine"),
        (lambda: norm_exponent(0, 10, p_max=6, variable=UNKNOWN), "variable = 'unknown': must be one of p, alpha"),
        (lambda: learning_rate(8, 8, peak=0.1), "step = 8"),
        (lambda: learning_rate(0, 0, peak=0.1), "num_steps = 0"),
        (lambda: learning_rate(0, 8, peak=-0.1), "peak = -0.1: must be at least 0"),
        (lambda: learning_rate(0, 8, peak=0.1, warmup=1.0), r"warmup = 1.0: must be in \[0, 1\)"),
        (lambda: learning_rate(0, 8, peak=0.1, end=2.0), r"end = 2.0: must be in \[0, 1\]"),
        (
            lambda: learning_rate(0, 8, peak=0.1, schedule=UNKNOWN),
            "schedule = 'unknown': must be one of constant, cosine",
        ),
    ],
)
def test_values_out_of_range_are_refused_by_message(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
