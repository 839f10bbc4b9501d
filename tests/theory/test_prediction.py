"""What is said before a training: each number is the trajectory's, or the closed form's, and of the settings as set."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tuner.core.errors import InvalidInput
from tuner.theory import critical_lr_of, make_problem, plateau, standard_problem
from tuner.theory import prediction as module
from tuner.theory.closure import solve_closure
from tuner.theory.pde import solve_pde
from tuner.theory.prediction import MODERATE, Prediction, predict, solve_limit
from tuner.theory.steps import EffectiveSgd, Sgd

pytestmark = pytest.mark.usefixtures("one_thread")
TIMES = np.linspace(0, 6, 61)


def foretold(goal: float = 0.1, horizon: float | None = 6.0, dimension: int = 400, **sgd: Any) -> Prediction:
    return predict(standard_problem(), Sgd(**{"lr": 0.4, **sgd}), dimension=dimension, goal=goal, horizon=horizon)


def test_time_to_the_goal_is_where_the_trajectory_crosses_it() -> None:
    found = foretold()
    risk, times = found.trajectory.risk[0], found.trajectory.times
    after = int(np.flatnonzero(risk <= 0.1)[0])
    assert times[after - 1] < found.time_to_goal <= times[after]
    finer = solve_pde(standard_problem(), EffectiveSgd(lr=0.4), [0.0, found.time_to_goal], cell=0.05)
    assert finer.risk[0, -1] == pytest.approx(0.1, rel=2e-3)


def test_the_rate_is_the_late_slope() -> None:
    """It is said after 6 units of time, and holds in the last of 40."""
    problem = make_problem([1.0, 0.7], [1.0, -1.5])
    found = predict(problem, Sgd(lr=0.2), dimension=400, goal=0.1, horizon=6.0)
    assert found.rate is not None
    late = solve_pde(problem, EffectiveSgd(lr=0.2), np.linspace(0, 30, 61), cell=0.2)
    slope = -np.polyfit(late.times[40:], np.log(late.risk[0, 40:]), 1)[0]
    assert found.rate == pytest.approx(slope, rel=0.03)


@pytest.mark.parametrize(
    ("sgd", "nu"),
    [
        ({}, 1.0),
        ({"batch": 4, "lr": 1.6}, 0.25),
        ({"law": "exponential", "lr": 0.2}, 2.0),
        ({"momentum": 0.5, "lr": 0.2, "law": "exponential", "batch": 2}, (1 + 0.5 / 1.5) / 2),
    ],
)
def test_the_critical_rate_is_of_the_rate_that_is_set(sgd: dict[str, Any], nu: float) -> None:
    found = foretold(horizon=0.5, **sgd)
    memory = 1 - sgd.get("momentum", 0.0)
    assert found.nu == pytest.approx(nu)
    assert found.critical_lr == pytest.approx(4 / 3 / nu * memory)
    assert found.effective_lr == pytest.approx(sgd.get("lr", 0.4) / memory)
    assert found.plateau == plateau(standard_problem(), found.effective_lr, nu=nu) == 0
    above = foretold(horizon=0.1, **{**sgd, "lr": 1.2 * found.critical_lr})
    assert above.plateau > 0 and above.rate is None


def test_what_is_linearised_is_below_the_limits_and_comes_near_it_as_d_grows() -> None:
    """The limit's own rate in the end is 2/(nu avg lambda S), of the final S, which is above 2 |beta*|."""
    rates = [foretold(dimension=d).linearised_critical_lr for d in (40, 400, 4000, 400_000)]
    assert rates == sorted(rates)
    assert rates[-1] < critical_lr_of(standard_problem()) * 1.001
    assert rates[-1] / rates[-2] - 1 < 0.01 < rates[-1] / rates[0] - 1


def test_overdamped_is_h_below_the_square_of_one_minus_the_root_of_momentum() -> None:
    """h = gamma lambda S/d: at a d above the border, and below it."""
    momentum, problem = 0.64, make_problem([1.0], [1.0])
    gamma = 0.3 * (1 - momentum)

    def at(dimension: int) -> bool:
        return predict(problem, Sgd(lr=gamma, momentum=momentum), dimension=dimension, goal=0.1, horizon=20).overdamped

    size = 2.0  # sqrt(q^2 + 4), and a q of at most 1
    border = gamma * size / (1 - math.sqrt(momentum)) ** 2
    assert not at(math.floor(border)) and at(math.ceil(border * math.sqrt(5) / 2))


def test_the_horizon_is_what_was_asked_or_what_the_goal_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = foretold(goal=0.02, horizon=2.0)
    assert asked.trajectory.times[-1] == 2 and asked.time_to_goal == math.inf
    assert foretold(goal=0.2, horizon=None).trajectory.times[-1] == 6
    needed = foretold(goal=0.011, horizon=None)
    end = needed.trajectory.times[-1]
    assert 6 < 1.25 * needed.time_to_goal <= end < 3 * needed.time_to_goal
    monkeypatch.setattr(module, "LONGEST", 12.0)
    never = foretold(goal=1e-9, horizon=None)
    assert never.time_to_goal == math.inf and never.trajectory.times[-1] == 12


def test_the_first_risk_may_be_the_goal() -> None:
    assert foretold(goal=1.0, horizon=0.1).time_to_goal == 0


@pytest.mark.parametrize(("noise", "decay"), [(0.1, 0.0), (0.0, 1e-4)])
def test_no_rate_where_the_risk_does_not_fall_to_zero(noise: float, decay: float) -> None:
    problem = standard_problem(noise=noise)
    found = predict(problem, Sgd(lr=0.2, decay=decay), dimension=400, goal=0.2, horizon=1.0)
    assert found.rate is None and (found.plateau > 0) == (noise > 0)


def test_tiny_rates_have_a_rate_too() -> None:
    """At 1e-13 of the critical rate no noise is left: the slowest type goes at 2 gamma lambda S."""
    for lr in (1e-13, 1e-300):
        found = foretold(horizon=1.0, lr=lr)
        assert found.rate == pytest.approx(2 * lr * 0.2 * 1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": lambda time: 0.1}, "constant"),
        ({"goal": 0.0}, "goal"),
        ({"goal": math.nan}, "goal"),
        ({"dimension": 0}, "too few"),
        ({"dimension": -400}, "too few"),
        ({"dimension": 12}, "too few"),
        ({"lr": 0.0}, "lr"),
        ({"lr": 1e300}, "lr"),
        ({"law": "gamma", "shape": 0.0}, "shape"),
        ({"law": "gamma", "shape": math.nan}, "shape"),
    ],
)
def test_bad_calls(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        foretold(**{"horizon": 0.5, **changes})


def test_what_is_too_long_to_solve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.theory.pde.MOST_STEPS", 50)
    with pytest.raises(InvalidInput, match=r"at t = .* of 6 the PDE has taken 50 steps"):
        foretold()


@pytest.mark.parametrize(("start", "words"), [((1.0, 1.0), "differ in size"), ((1e60, 0.0), "below")])
def test_bad_starts(start: tuple[float, float], words: str) -> None:
    problem = make_problem([1.0], [1.0], u=start[0], v=start[1])
    with pytest.raises(InvalidInput, match=words):
        predict(problem, Sgd(lr=0.1), dimension=10, goal=0.1, horizon=1.0)


def test_the_closure_stands_for_the_pde_up_to_a_rate_and_both_agree_there() -> None:
    problem = standard_problem()
    border = MODERATE * critical_lr_of(problem)
    below, above = EffectiveSgd(lr=0.999 * border), EffectiveSgd(lr=1.001 * border)
    first, second = solve_limit(problem, below, TIMES), solve_limit(problem, above, TIMES)
    assert np.array_equal(first.risk, solve_closure(problem, below, TIMES).risk)
    assert np.array_equal(second.risk, solve_pde(problem, above, TIMES, cell=0.2).risk)
    np.testing.assert_allclose(first.risk, second.risk, rtol=0.04)
    assert first.gap_to(second)[0] < 0.02


@pytest.mark.parametrize("time", [0.0, 3.0, 6.0])
def test_a_moment_of_strong_noise_asks_for_the_pde(time: float) -> None:
    """Whether it is the rate or the noise factor that is large, and whenever."""
    problem = standard_problem()
    strong = 2 * MODERATE * critical_lr_of(problem)

    def pulse(t: float) -> float:
        return strong if abs(t - time) < 0.1 else 0.1

    for sgd in (EffectiveSgd(lr=pulse), EffectiveSgd(lr=strong, nu=lambda t: pulse(t) / strong)):
        assert np.array_equal(solve_limit(problem, sgd, TIMES).risk, solve_pde(problem, sgd, TIMES, cell=0.2).risk)


def test_the_closure_never_gives_a_negative_risk() -> None:
    for lr in (0.1, 0.4):
        found = solve_closure(standard_problem(), EffectiveSgd(lr=lr), np.linspace(0, 300, 301))
        assert found.risk.min() >= 0 and found.distance.min() >= 0
        assert found.risk[0, -1] < 1e-9
