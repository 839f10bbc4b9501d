"""What the limit says of a training by the real loop, and of which it says nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from search_spaces import SPACES
from tuner.core.errors import InvalidInput
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.order import last_iterate
from tuner.theory.coverage import limit_of, not_covered
from tuner.theory.prediction import solve_limit
from tuner.theory.problem import standard_problem
from tuner.theory.steps import EffectiveSgd, at
from tuner.train import train
from tuner.workloads.population import DIMENSION, NUM_TRAIN

pytestmark = pytest.mark.usefixtures("one_thread")
EPOCHS, BATCH, SEEDS = 2, 64, 4
STEPS = NUM_TRAIN // BATCH


def settings(**changes: Any) -> OptimizerSpec:
    plain: dict[str, Any] = {"rule": "sgd", "lr.peak": 4.0, "lr.schedule": "constant", "momentum.value": 0.0}
    return with_settings(OptimizerSpec(), {**plain, **{name.replace("__", "."): v for name, v in changes.items()}})


def limit(optimizer: OptimizerSpec, *, squares: bool = False, epochs: int = EPOCHS) -> EffectiveSgd:
    num_steps = last_iterate(optimizer.order, num_epochs=epochs, steps_per_epoch=STEPS)
    return limit_of(
        optimizer, dimension=DIMENSION, batch=BATCH, num_steps=num_steps, steps_per_epoch=STEPS, squares=squares
    )


def predicted_and_measured(optimizer: OptimizerSpec, model: str) -> tuple[np.ndarray, np.ndarray]:
    """Risks at the evaluations: the limit's, and the mean over trainings by the real loop."""
    workload = WorkloadSpec(data="diagonal", model=model, batch_size=BATCH)
    runs = [
        list(train(TrialSpec(workload=workload, optimizer=optimizer, epochs=EPOCHS, seed=seed), device=CPU))
        for seed in range(SEEDS)
    ]
    times = np.array([metrics.steps for metrics in runs[0]]) / DIMENSION
    foretold = solve_limit(standard_problem(), limit(optimizer, squares=model == "diagonal-squares"), times).risk[0]
    return foretold, np.mean([[metrics.validation_loss for metrics in run] for run in runs], axis=0)


CPU = torch.device("cpu")
FOLLOWED: dict[str, dict[str, Any]] = {
    "constant": {},
    "cosine": {"lr__peak": 7.0, "lr__schedule": "cosine"},
    "warm-up": {"lr__peak": 7.0, "lr__schedule": "linear", "lr__warmup": 0.3},
    "momentum": {"lr__peak": 0.8, "momentum__value": 0.8},
    "nesterov": {"lr__peak": 0.8, "momentum__value": 0.8, "momentum__nesterov": True},
    "critical": {"lr__peak": 1.0, "lr__schedule": "linear", "momentum__schedule": "critical", "momentum__cap": 0.7},
    "hybrid by fraction": {
        "lr__peak": 1.0,
        "momentum__schedule": "hybrid",
        "momentum__switch_fraction": 0.4,
        "momentum__value": 0.6,
    },
    "hybrid by crossing": {
        "lr__peak": 2.0,
        "lr__schedule": "linear",
        "momentum__schedule": "hybrid",
        "momentum__switch": "crossing",
        "momentum__value": 0.3,
    },
    "cycle": {
        "lr__peak": 1.5,
        "lr__schedule": "linear",
        "momentum__schedule": "cycle",
        "momentum__value": 0.85,
        "momentum__low": 0.5,
    },
    "matched": {"lr__peak": 2.0, "lr__schedule": "cosine", "momentum__schedule": "matched", "momentum__value": 0.6},
    "scaling, half the way": {"lr__peak": 1.5, "scaling__law": "exponential", "scaling__active": 0.5},
    "decay": {"decay__weight": 1e-3},
    "backward": {"lr__peak": 2.0, "order__composition": "backward", "order__window": 50, "scaling__law": "uniform"},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLLOWED)
def test_a_training_follows_its_limit(name: str) -> None:
    """At d = 400 the risk of one training is off by about 5%, the mean of four by half as much; random factors add
    the part 1/sqrt(n) of its logarithm, n the number of steps, and momentum its few steps of memory."""
    predicted, measured = predicted_and_measured(settings(**FOLLOWED[name]), "diagonal")
    assert predicted[-1] < 0.5 * standard_problem().first_risk, "what is followed is no standing still"
    np.testing.assert_allclose(measured, predicted, rtol=0.08)
    plain = solve_limit(standard_problem(), limit(settings()), np.arange(1, EPOCHS + 1) * STEPS / DIMENSION).risk[0]
    if name not in ("constant", "momentum", "nesterov"):
        assert np.abs(plain / measured - 1).max() > 0.1, "the limit of another training would not do"


@pytest.mark.slow
def test_squares_follow_the_limit_of_twice_the_rate() -> None:
    optimizer = settings(lr__peak=2.0, decay__weight=2e-3)
    predicted, measured = predicted_and_measured(optimizer, "diagonal-squares")
    np.testing.assert_allclose(measured, predicted, rtol=0.08)
    product, _ = predicted_and_measured(optimizer, "diagonal")
    assert np.abs(product / measured - 1).max() > 0.3


def test_a_factor_is_noise_while_it_is_active_and_no_longer() -> None:
    found = limit(settings(scaling__law="gamma", scaling__shape=4.0, scaling__active=0.5, momentum__value=0.6))
    early, late = (at(found.nu, part * EPOCHS * STEPS / DIMENSION) for part in (0.3, 0.8))
    assert early == pytest.approx((1 + 0.25 * 0.4 / 1.6) / BATCH) and late == pytest.approx(1 / BATCH)


def test_a_factor_is_more_noise_in_nesterovs_steps() -> None:
    found = limit(settings(scaling__law="exponential", momentum__value=0.4, momentum__nesterov=True))
    assert at(found.nu, 0.1) == pytest.approx((1 + 0.6 / 1.4 * (1 + 0.8 - 2 * 0.064)) / BATCH)


def test_momentum_divides_and_the_square_doubles() -> None:
    plain = settings(lr__schedule="cosine", momentum__value=0.75, decay__weight=1e-3)
    product, squares = limit(plain), limit(plain, squares=True)
    for step in (0, 50, 199):
        time = (step + 0.5) / DIMENSION
        expected = 4.0 * (1 + np.cos(np.pi * step / (EPOCHS * STEPS))) / 2 / 0.25
        assert at(product.lr, time) == pytest.approx(expected, rel=1e-3)
        assert at(squares.lr, time) == pytest.approx(2 * expected, rel=1e-3)
    assert product.decay == pytest.approx(0.4) and squares.decay == pytest.approx(0.2)


def test_the_switch_of_momentum_is_where_it_is_said_to_be() -> None:
    found = limit(settings(**FOLLOWED["hybrid by fraction"]))
    rates = [at(found.lr, (step + 0.5) / DIMENSION) for step in range(EPOCHS * STEPS)]
    jumps = [step for step, (one, other) in enumerate(itertools.pairwise(rates), 1) if abs(other / one - 1) > 0.1]
    assert jumps == [round(0.4 * EPOCHS * STEPS)] and rates[-1] == pytest.approx(1.0 / 0.4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rule": "adamw"}, "adamw"),
        ({"rule": "lion"}, "lion"),
        ({"rule": "lpsgd", "norm__p_max": 8.0}, "lpsgd"),
        ({"average__decay": 0.9}, "average of the weights"),
        ({"momentum__schedule": "hybrid", "momentum__switch": "accuracy"}, "waits for an accuracy"),
        ({"order__composition": "backward", "lr__schedule": "cosine"}, "backward"),
        ({"order__composition": "backward", "lr__warmup": 0.1}, "backward"),
        ({"order__composition": "backward", "momentum__schedule": "critical"}, "backward"),
        ({"order__composition": "backward", "scaling__law": "uniform", "scaling__active": 0.5}, "backward"),
    ],
)
def test_what_is_not_covered_has_a_reason(changes: dict[str, Any], words: str) -> None:
    optimizer = settings(**changes)
    reason = not_covered(optimizer)
    assert reason is not None and words in reason
    with pytest.raises(InvalidInput, match="does not cover it: .*" + words):
        limit(optimizer)


@pytest.mark.parametrize("variant", sorted(SPACES))
def test_every_variant_is_covered_or_is_said_not_to_be(variant: str) -> None:
    optimizer = with_settings(OptimizerSpec(), SPACES[variant].default_settings())
    if not_covered(optimizer) is None:
        found = limit(optimizer)
        times = np.linspace(0, EPOCHS * STEPS / DIMENSION, 50)
        assert all(0 <= at(found.lr, time) < np.inf and 0 < at(found.nu, time) <= 2 / BATCH for time in times)
    else:
        with pytest.raises(InvalidInput):
            limit(optimizer)
