"""One table of cases that every update rule passes."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from search_spaces import SPACES
from tuner.core.errors import InvalidInput
from tuner.core.optimizer_spec import KnownRule, Rescale
from tuner.core.serialization import Setting, from_dict, with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.optimizers import LPSGD, Lion
from tuner.optimizers.hyperparameters import hyperparameters_at
from tuner.optimizers.rules import RULES, make_optimizer, set_hyperparameters


def case(rule: str, **settings: Any) -> OptimizerSpec:
    return from_dict(OptimizerSpec, {"rule": rule, **settings})


RULE_CASES: dict[str, OptimizerSpec] = {
    "sgd": case("sgd", lr={"peak": 0.02}, momentum={"value": 0.0}),
    "sgd-momentum": case("sgd", lr={"peak": 0.02}, momentum={"value": 0.9}, decay={"weight": 1e-3}),
    "adamw": case("adamw", lr={"peak": 0.02}, decay={"weight": 1e-2}),
    "lpsgd": case("lpsgd", lr={"peak": 0.01}, momentum={"value": 0.0}, norm={"p_max": 6.0}),
    "lpsgdm": case("lpsgd", lr={"peak": 0.01}, norm={"p_max": 6.0}, decay={"weight": 1e-2}),
    "lpsgdm-dual": case("lpsgd", lr={"peak": 0.001}, norm={"p_max": 3.0, "scale": "dual"}),
    "lpsgdm-rms": case("lpsgd", lr={"peak": 0.01}, norm={"p_max": math.inf, "scale": "rms"}),
    "lpsgdm-rms-global": case("lpsgd", lr={"peak": 0.01}, norm={"p_max": 8.0, "scale": "rms", "scope": "global"}),
    "lpsgdm-dual-global": case("lpsgd", lr={"peak": 0.001}, norm={"p_max": 3.0, "scale": "dual", "scope": "global"}),
    "sgd-nesterov": case("sgd", lr={"peak": 0.02}, momentum={"nesterov": True}),
    "lpsgd-nesterov": case("lpsgd", lr={"peak": 0.01}, momentum={"nesterov": True}, norm={"p_max": 4.0}),
    "lion": case("lion", lr={"peak": 0.01}, second_moment=0.99, decay={"weight": 1e-2}),
    "sgd-exponential": case("sgd", lr={"peak": 0.01}, scaling={"law": "exponential"}, decay={"weight": 1e-3}),
    "sgd-uniform": case("sgd", lr={"peak": 0.01}, scaling={"law": "uniform", "active": 0.5}),
    "lpsgd-gamma": case("lpsgd", lr={"peak": 0.01}, norm={"p_max": 6.0}, scaling={"law": "gamma", "shape": 4.0}),
    "adamw-exponential": case(
        "adamw", lr={"peak": 0.02}, scaling={"law": "exponential", "decay": False}, decay={"weight": 1e-2}
    ),
}

CASES: dict[str, OptimizerSpec] = RULE_CASES | {
    f"variant {name}": with_settings(OptimizerSpec(), variant.default_settings())
    for name, variant in SPACES.items()
    if variant.optimizer is None
}
"""Orders of composition are not an optimizer's: tests/train/test_trainer.py has every variant in the training loop."""

STEPS = 120

Factory = Callable[[list[Tensor]], Optimizer]

LIMITS: dict[str, tuple[OptimizerSpec, Factory]] = {
    "sgd decays within the gradient": (
        case("sgd", lr={"peak": 0.02}, momentum={"value": 0.5}, decay={"weight": 0.1}),
        lambda params: torch.optim.SGD(params, 0.02, momentum=0.5, weight_decay=0.1),
    ),
    "adamw without memory takes the sign": (
        case("adamw", lr={"peak": 0.02}, momentum={"value": 0.0}, second_moment=0.0, decay={"weight": 0.1}),
        lambda params: LPSGD(params, 0.02, p=math.inf, weight_decay=0.1),
    ),
    "lpsgd at p = 2 is sgd": (
        case("lpsgd", lr={"peak": 0.2}, momentum={"value": 0.9}),
        lambda params: torch.optim.SGD(params, 0.2 * (1 - 0.9), momentum=0.9),
    ),
    "lpsgd hands its scale on": (
        case("lpsgd", lr={"peak": 0.02}, norm={"p_max": 5.0, "scale": "dual"}),
        lambda params: LPSGD(params, 0.02, p=5.0, momentum=0.9, scale="dual", foreach=True),
    ),
    "lion with one beta is lpsgd at p = inf": (
        case("lion", lr={"peak": 0.02}, momentum={"value": 0.7}, second_moment=0.7, decay={"weight": 0.1}),
        lambda params: LPSGD(params, 0.02, p=math.inf, momentum=0.7, weight_decay=0.1, eps=1e-30),
    ),
    "lion hands its betas on": (
        case("lion", lr={"peak": 0.02}, momentum={"value": 0.8}, second_moment=0.95),
        lambda params: Lion(params, 0.02, betas=(0.8, 0.95)),
    ),
    "lpsgd hands its scope on": (
        case("lpsgd", lr={"peak": 0.02}, norm={"p_max": 5.0, "scale": "rms", "scope": "global"}),
        lambda params: LPSGD(params, 0.02, p=5.0, momentum=0.9, scale="rms", scope="global"),
    ),
    "lpsgd at p = 2 with nesterov is sgd with nesterov": (
        case("lpsgd", lr={"peak": 0.2}, momentum={"value": 0.9, "nesterov": True}),
        lambda params: torch.optim.SGD(params, 0.2 * (1 - 0.9), momentum=0.9, nesterov=True),
    ),
    "sgd hands nesterov on": (
        case("sgd", lr={"peak": 0.02}, momentum={"nesterov": True}),
        lambda params: torch.optim.SGD(params, 0.02, momentum=0.9, nesterov=True),
    ),
    "a gamma law of large shape is no scaling": (
        case("sgd", lr={"peak": 0.02}, scaling={"law": "gamma", "shape": 1e26}),
        lambda params: torch.optim.SGD(params, 0.02, momentum=0.9),
    ),
    "lpsgd at p = inf is adamw without memory": (
        case("lpsgd", lr={"peak": 0.02}, momentum={"value": 0.0}, norm={"p_max": math.inf}, decay={"weight": 0.1}),
        lambda params: torch.optim.AdamW(params, 0.02, betas=(0.0, 0.0), weight_decay=0.1),
    ),
}


class Problem:
    """Least squares in two parameters, a matrix and a vector, with a noisy batch a step."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.weight = torch.nn.Parameter(torch.randn(3, 5, generator=self.generator, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.ones(3, dtype=dtype))

    @property
    def parameters(self) -> list[Tensor]:
        return [self.weight, self.bias]

    def loss(self, x: Tensor) -> Tensor:
        target = x[:, :3].flip(1) - 0.5
        return (x @ self.weight.T + self.bias - target).square().mean()

    def train(self, optimizer: Optimizer, num_steps: int, spec: OptimizerSpec | None = None, start: int = 0) -> None:
        """With a spec, its schedules over :data:`STEPS` steps are followed."""
        for step in range(start, start + num_steps):
            if spec is not None:
                set_hyperparameters(
                    optimizer, **hyperparameters_at(spec, step, STEPS, 12)._asdict(), rescale=spec.momentum.rescale
                )
            optimizer.zero_grad()
            self.loss(torch.randn(16, 5, generator=self.generator, dtype=self.weight.dtype)).backward()
            optimizer.step()

    @torch.no_grad()
    def full_loss(self) -> float:
        x = torch.randn(4096, 5, generator=torch.Generator().manual_seed(99), dtype=self.weight.dtype)
        return self.loss(x).item()


def same_bits(a: Problem, b: Problem) -> bool:
    return torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


each = pytest.mark.parametrize("spec", CASES.values(), ids=CASES)


def test_every_rule_of_the_spec_is_registered_and_has_a_case() -> None:
    assert set(RULES) == set(get_args(KnownRule)) == {spec.rule for spec in RULE_CASES.values()}


@each
def test_descends_on_a_convex_problem(spec: OptimizerSpec) -> None:
    problem = Problem()
    optimizer = make_optimizer(problem.parameters, spec, num_steps=STEPS)
    losses = [problem.full_loss()]
    for start in range(0, STEPS, 40):
        problem.train(optimizer, 40, spec, start)
        losses.append(problem.full_loss())
    assert max(losses[1:]) < losses[0] and losses[-1] < losses[1]


@each
def test_same_seed_same_bits(spec: OptimizerSpec) -> None:
    runs = [Problem(seed) for seed in (1, 1, 2)]
    for problem in runs:
        problem.train(make_optimizer(problem.parameters, spec, num_steps=STEPS), 20, spec)
    assert same_bits(runs[0], runs[1]) and not same_bits(runs[0], runs[2])


@each
def test_a_run_saved_and_loaded_goes_on_with_the_same_bits(spec: OptimizerSpec) -> None:
    whole = Problem()
    optimizer = make_optimizer(whole.parameters, spec, num_steps=STEPS)
    whole.train(optimizer, 10, spec)
    file = io.BytesIO()
    torch.save(
        {
            "optimizer": optimizer.state_dict(),
            "parameters": [parameter.detach() for parameter in whole.parameters],
            "generator": whole.generator.get_state(),
        },
        file,
    )
    whole.train(optimizer, 10, spec, 10)

    file.seek(0)
    state = torch.load(file, weights_only=True)
    resumed = Problem(seed=7)
    other = make_optimizer(resumed.parameters, spec, num_steps=STEPS)
    with torch.no_grad():
        for parameter, value in zip(resumed.parameters, state["parameters"], strict=True):
            parameter.copy_(value)
    resumed.generator.set_state(state["generator"])
    other.load_state_dict(state["optimizer"])
    resumed.train(other, 10, spec, 10)
    assert same_bits(resumed, whole)


@each
def test_the_readable_and_the_fast_form_agree(spec: OptimizerSpec) -> None:
    readable, fast = Problem(dtype=torch.float64), Problem(dtype=torch.float64)
    optimizers = [make_optimizer(problem.parameters, spec, num_steps=STEPS) for problem in (readable, fast)]
    for optimizer, foreach in zip(optimizers, (False, True), strict=True):
        for group in optimizer.param_groups:
            assert "foreach" in group
            group["foreach"] = foreach
    for start in range(30):
        readable.train(optimizers[0], 1, spec, start)
        fast.train(optimizers[1], 1, spec, start)
        torch.testing.assert_close(readable.parameters, fast.parameters, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr.peak": -0.1}, r"lr\.peak = -0\.1: must be above 0"),
        ({"lr.peak": math.nan}, r"lr\.peak = nan"),
        ({"momentum.value": 1.0}, r"momentum\.value = 1\.0: must be in \[0, 1\)"),
        ({"momentum.nesterov": True, "momentum.value": 0.0}, r"momentum\.nesterov"),
        ({"momentum.nesterov": True, "rule": "lion"}, r"momentum\.nesterov .* rule lion"),
        ({"momentum.rescale": "lr", "rule": "adamw"}, r"momentum\.rescale .* rule adamw"),
        ({"momentum.schedule": "matched", "rule": "lpsgd"}, r"momentum\.schedule .* rule lpsgd"),
        ({"order.window": 1.5}, r"order\.window = 1\.5: must be int"),
        ({"momentum.schedule": "cycle", "momentum.low": 0.95}, r"momentum\.low"),
        ({"momentum.schedule": "hybird"}, "did you mean 'hybrid'"),
        ({"momentum.switch": "acuracy"}, "did you mean 'accuracy'"),
        ({"momentum.switch_fraction": 1.0}, r"momentum\.switch_fraction"),
        ({"momentum.switch_accuracy": 0.0}, r"momentum\.switch_accuracy"),
        ({"norm.p_max": 1.5}, r"norm\.p_max = 1\.5: must be in \[2, inf\]"),
        ({"norm.scope": "locale"}, "global"),
        ({"decay.weight": -1.0}, r"decay\.weight"),
        ({"second_moment": 1.0}, "second_moment"),
        ({"scaling.law": "exponental"}, "did you mean 'exponential'"),
        ({"scaling.shape": 0.0}, r"scaling\.shape = 0\.0: must be above 0"),
        ({"scaling.active": 0.0}, r"scaling\.active"),
        ({"scaling.law": "uniform", "scaling.decay": False, "decay.weight": 0.1}, r"scaling\.decay"),
        ({"order.composition": "backwards"}, "did you mean 'backward'"),
        ({"order.start": 1.0}, r"order\.start"),
        ({"order.window": -1}, r"order\.window"),
        ({"order.interval": 0}, r"order\.interval"),
        ({"average.decay": 1.0}, r"average\.decay"),
    ],
)
def test_bad_hyperparameters_are_refused_by_message(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        with_settings(OptimizerSpec(), settings)


@pytest.mark.parametrize(("spec", "reference"), LIMITS.values(), ids=LIMITS)
def test_equals_a_known_optimizer_in_its_limit_case(spec: OptimizerSpec, reference: Factory) -> None:
    ours, theirs = Problem(dtype=torch.float64), Problem(dtype=torch.float64)
    optimizers = make_optimizer(ours.parameters, spec), reference(theirs.parameters)
    for _ in range(30):
        ours.train(optimizers[0], 1)
        theirs.train(optimizers[1], 1)
        torch.testing.assert_close(ours.parameters, theirs.parameters, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("spec", RULE_CASES.values(), ids=RULE_CASES)
def test_groups_keep_settings_of_their_own(spec: OptimizerSpec) -> None:
    """One optimizer with two groups moves as two optimizers do."""
    own: dict[str, Any] = {"lr": 0.004, **({"p": 9.0} if spec.rule == "lpsgd" else {})}
    together, apart = Problem(), Problem()
    one = make_optimizer([{"params": [together.weight]}, {"params": [together.bias], **own}], spec)
    two = [make_optimizer([apart.weight], spec), make_optimizer([{"params": [apart.bias], **own}], spec)]
    for _ in range(10):
        together.train(one, 1)
        for optimizer in two:
            optimizer.zero_grad()
        apart.loss(torch.randn(16, 5, generator=apart.generator)).backward()
        for optimizer in two:
            optimizer.step()
    assert same_bits(together, apart)


@pytest.mark.parametrize("spec", RULE_CASES.values(), ids=RULE_CASES)
def test_set_knobs_is_the_same_as_making_the_optimizer_with_those_values(spec: OptimizerSpec) -> None:
    fresh, turned = Problem(), Problem()
    changes: dict[str, Setting] = {"lr.peak": 0.003, "momentum.value": 0.6, "norm.p_max": 4.5}
    wanted = with_settings(spec, changes)
    fresh.train(make_optimizer([{"params": [p]} for p in fresh.parameters], wanted), 5)
    optimizer = make_optimizer([{"params": [p]} for p in turned.parameters], spec)
    set_hyperparameters(optimizer, lr=0.003, momentum=0.6, p=4.5)
    turned.train(optimizer, 5)
    assert same_bits(fresh, turned)


@pytest.mark.parametrize(("rule", "weight"), [("sgd", 1.0), ("lpsgd", 0.5)])
def test_the_buffer_forgets_at_momentum_zero(rule: str, weight: float) -> None:
    """v = mu v + g (for lpsgd m = mu m + (1 - mu) g) must hold across a step whose mu is 0."""
    x = torch.zeros(1, dtype=torch.float64)
    optimizer = make_optimizer([x], case(rule, momentum={"schedule": "critical"}))
    for momentum, gradient in ((0.9, 100.0), (0.0, 1.0), (0.5, 2.0)):
        set_hyperparameters(optimizer, lr=0.1, momentum=momentum, p=2.0)
        x.grad = torch.tensor([gradient], dtype=torch.float64)
        before = x.item()
        optimizer.step()
    assert (before - x.item()) / 0.1 == pytest.approx(0.5 * 1.0 + weight * 2.0)


@pytest.mark.parametrize(("rescale", "factor"), [("none", 1.0), ("lr", 4.0), ("sqrt-lr", 2.0)])
def test_a_change_of_the_learning_rate_rescales_the_buffer(rescale: Rescale, factor: float) -> None:
    """Each group by its own rates, which keep their ratio; v = mu factor v + g."""
    xs = [torch.zeros(1, dtype=torch.float64) for _ in range(2)]
    groups: list[dict[str, Any]] = [{"params": [xs[0]]}, {"params": [xs[1]], "lr": 0.1}]
    optimizer = make_optimizer(groups, case("sgd", lr={"peak": 0.4}))
    for lr in (None, 0.1):
        if lr is not None:
            set_hyperparameters(optimizer, lr=lr, momentum=0.5, p=2.0, rescale=rescale)
        for x in xs:
            x.grad = torch.ones(1, dtype=torch.float64)
        before = [x.item() for x in xs]
        optimizer.step()
    assert (before[0] - xs[0].item()) / 0.1 == pytest.approx(1 + 0.5 * factor)
    assert (before[1] - xs[1].item()) / 0.025 == pytest.approx(1 + 0.5 * factor)


def test_momentum_of_zero_costs_no_buffer() -> None:
    for rule in ("sgd", "lpsgd"):
        problem = Problem()
        optimizer = make_optimizer(problem.parameters, case(rule, momentum={"value": 0.0}))
        set_hyperparameters(optimizer, lr=0.1, momentum=0.0, p=3.0)
        problem.train(optimizer, 1)
        held = [value for state in optimizer.state.values() for value in state.values() if value is not None]
        assert held == []


def test_biases_decay_like_weights() -> None:
    for rule in get_args(KnownRule):
        bias = torch.nn.Parameter(torch.ones(3))
        optimizer = make_optimizer([bias], case(rule, lr={"peak": 0.1}, decay={"weight": 0.5}))
        bias.grad = torch.zeros(3)
        optimizer.step()
        assert (bias < 1).all()


@pytest.mark.parametrize(("decay", "kept"), [(True, False), (False, True)])
def test_random_scaling_hands_on_whether_decay_is_scaled(decay: bool, kept: bool) -> None:
    """Without a gradient a step is the decay alone: 1 - lr weight where its factor is 1."""
    x = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    spec = case("lpsgd", lr={"peak": 0.1}, decay={"weight": 0.5}, scaling={"law": "uniform", "decay": decay})
    x.grad = torch.zeros_like(x)
    make_optimizer([x], spec).step()
    assert (x.item() == pytest.approx(0.95)) == kept
