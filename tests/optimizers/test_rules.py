"""Any optimizer by import path: how it is made, and what is refused in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.own_module import own_module
from tuner.core.errors import InvalidInput
from tuner.core.serialization import from_dict, with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.optimizers.hyperparameters import hyperparameters_at
from tuner.optimizers.parameter_groups import group_parameters
from tuner.optimizers.rules import (
    averages_weights,
    current_momentum,
    make_optimizer,
    needs_closure,
    set_hyperparameters,
)

OWN = """
import torch

def by_model(model, lr, decay=0.0):
    return torch.optim.SGD([
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "lr": 2 * lr},
    ], lr=lr)

def raises(parameters, lr):
    raise ValueError("no luck")

def nothing(parameters, lr):
    pass

def without_rate(parameters):
    return torch.optim.SGD(parameters, lr=0.1)

def strangers(parameters, lr):
    return torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=lr)

def half(model, lr):
    return torch.optim.SGD([model[0].weight], lr=lr)

def groups(model, lr):
    others = [parameter for name, parameter in model.named_parameters() if name != "0.weight"]
    return [{"params": [model[0].weight], "lr": lr / 4}, {"params": others}]

def wrong_groups(model):
    return model.nothing

def falls(step, num_steps):
    return 1 - step / num_steps

def negative(step, num_steps):
    return -1.0

def stumbles(step, num_steps):
    return 1 / (step - 3)

class Demands(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)

class Declares(torch.optim.SGD):
    requires_closure = True

NUMBER = 3
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a module of the user's own."""
    with own_module(tmp_path_factory.mktemp("own"), "own_rules", OWN) as name:
        yield name


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def spec(rule: str, **settings: Any) -> OptimizerSpec:
    own = {"momentum.schedule": "own"} if ":" in rule else {}
    return with_settings(OptimizerSpec(), {"rule": rule, **own, **settings})


def refused(spec: OptimizerSpec) -> str:
    with pytest.raises(InvalidInput) as caught:
        make_optimizer(network(), spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_four_rules_are_the_same_mechanism() -> None:
    """SGD by name and SGD by path take the same step."""
    ours, theirs = network(), network()
    named = make_optimizer(ours, spec("sgd", **{"lr.peak": 0.1, "momentum.value": 0.5, "decay.weight": 0.01}))
    by_path = make_optimizer(
        theirs,
        spec("torch.optim:SGD", **{"lr.peak": 0.1, "arguments.momentum": 0.5, "arguments.weight_decay": 0.01}),
    )
    for model, optimizer in ((ours, named), (theirs, by_path)):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(5, 3)).square().sum().backward()
            optimizer.step()
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_arguments_are_passed_and_text_in_brackets_is_a_tuple() -> None:
    made = make_optimizer(
        network(), spec("torch.optim:NAdam", **{"arguments.betas": "(0.8, 0.9)", "arguments.eps": "1e-5"})
    )
    assert made.defaults["betas"] == (0.8, 0.9) and made.defaults["eps"] == 1e-5


def test_a_spec_with_arguments_survives_its_file() -> None:
    asked = spec("torch.optim:NAdam", **{"arguments.eps": 1e-5, "arguments.decoupled_weight_decay": "true"})
    assert asked.arguments == {"eps": 1e-5, "decoupled_weight_decay": True}
    import dataclasses
    import json

    back = from_dict(OptimizerSpec, json.loads(json.dumps(dataclasses.asdict(asked))))
    assert back == asked and hash(back) == hash(asked)


def test_momentum_schedules_reach_momentum_and_betas() -> None:
    for rule in ("torch.optim:RMSprop", "torch.optim:RAdam", "torch.optim:SGD"):
        made = make_optimizer(network(), spec(rule, **{"momentum.schedule": "critical"}))
        set_hyperparameters(made, lr=0.1, momentum=0.25, p=2.0)
        assert current_momentum(made) == 0.25, rule
    left = make_optimizer(network(), spec("torch.optim:SGD", **{"arguments.momentum": 0.7}))
    set_hyperparameters(left, lr=0.1, momentum=None, p=2.0)
    assert current_momentum(left) == 0.7
    assert "must be own for torch.optim:Adagrad" in refused(
        spec("torch.optim:Adagrad", **{"momentum.schedule": "cycle"})
    )


def test_groups_keep_their_ratio_of_learning_rates(own: str) -> None:
    made = make_optimizer(network(), spec(f"{own}:by_model", **{"lr.peak": 0.1, "arguments.decay": 0.5}))
    set_hyperparameters(made, lr=0.03, momentum=None, p=2.0)
    assert [group["lr"] for group in made.param_groups] == pytest.approx([0.03, 0.06])
    assert made.param_groups[0]["weight_decay"] == 0.5
    again = make_optimizer(network(), spec(f"{own}:by_model", **{"lr.peak": 0.1, "arguments.decay": 0.5}))
    again.load_state_dict(made.state_dict())
    set_hyperparameters(again, lr=0.05, momentum=None, p=2.0)
    assert [group["lr"] for group in again.param_groups] == pytest.approx([0.05, 0.1])


def test_parameter_groups(own: str) -> None:
    def sizes(groups: str) -> list[tuple[int, float | None, float | None]]:
        return [
            (len(group["params"]), group.get("weight_decay"), group.get("lr_ratio"))
            for group in make_optimizer(
                network(), spec("torch.optim:SGD", parameter_groups=groups, **{"lr.peak": 0.4})
            ).param_groups
        ]

    assert sizes("all") == [(6, 0, None)]
    assert sizes("no-decay-1d") == [(2, 0, None), (4, 0.0, None)]
    assert sizes('{"bias$": {"weight_decay": 0.5}, "^1": {"lr_ratio": 0.1}}') == [
        (3, 0.5, None),
        (1, 0, 0.1),
        (2, 0, None),
    ]
    assert sizes(f"{own}:groups") == [(1, 0, 0.25), (5, 0, None)]
    decayed = make_optimizer(
        network(), spec("torch.optim:AdamW", parameter_groups="no-decay-1d", **{"arguments.weight_decay": 0.3})
    )
    assert [group["weight_decay"] for group in decayed.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("some", "must be all, no-decay-1d"),
        ("{'bias': {}}", "cannot be read"),
        ('{"(": {}}', "cannot be read"),
        ('{"bias": 0.1}', "must map each expression to settings"),
        ('{"": {"weight_decay": 1}, "bias": {}}', "'bias' is the first match of no parameter's name"),
        ('{"nothing": {}}', "'nothing' is the first match of no parameter's name"),
        (
            "own_rules:wrong_groups",
            "AttributeError: 'Sequential' object has no attribute 'nothing' (own_rules.py, line",
        ),
    ],
)
def test_wrong_groups_are_refused(own: str, groups: str, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        group_parameters(network(), groups, lr=0.1)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "settings", "said"),
    [
        ("torch.optim:NAdom", {}, "torch.optim:NAdom: unknown name in torch.optim 'NAdom': did you mean 'NAdam'?"),
        ("no_such_module:X", {}, "cannot be imported: ModuleNotFoundError: No module named 'no_such_module'"),
        ("own_rules:NUMBER", {}, "own_rules:NUMBER: is a int, must be an optimizer's class or a function"),
        ("own_rules:raises", {}, "own_rules:raises: ValueError: no luck (own_rules.py, line"),
        ("own_rules:nothing", {}, "own_rules:nothing: gave a NoneType, not a torch.optim.Optimizer"),
        ("own_rules:without_rate", {}, "own_rules:without_rate: takes no lr"),
        ("own_rules:strangers", {}, "holds parameters that are not the model's"),
        ("own_rules:half", {}, "leaves 0.bias and 4 more untrained"),
        (
            "torch.optim:NAdam",
            {"arguments.bets": 1},
            "unknown argument of torch.optim:NAdam 'bets': did you mean 'betas'?",
        ),
        ("torch.optim:SGD", {"parameter_groups": '{"bias": {"weigth_decay": 0}}'}, "did you mean 'weight_decay'?"),
        ("torch.optim:SGD", {"parameter_groups": '{"bias": {"lr_ratio": -1}}'}, "lr_ratio = -1: must be at least 0"),
        ("torch.optim:SGD", {"parameter_groups": '{"bias": {"lr_ratio": "x"}}'}, "lr_ratio = x: must be at least 0"),
        ("torch.optim:NAdam", {"arguments.lr": 1}, "arguments.lr: the rule torch.optim:NAdam has a setting of its own"),
        ("sgd", {"arguments.momentum": 0.5}, "arguments.momentum: the rule sgd has a setting of its own for it"),
        (
            "own_rules:by_model",
            {"parameter_groups": "no-decay-1d"},
            "parameter_groups = no-decay-1d: must be all for own_rules",
        ),
        (
            "torch.optim:Rprop",
            {"parameter_groups": "no-decay-1d"},
            "torch.optim:Rprop has no weight_decay to leave out",
        ),
    ],
)
def test_wrong_rules_are_refused(own: str, rule: str, settings: dict[str, Any], said: str) -> None:
    assert said in refused(spec(rule, **settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rule": "a:b", "decay.weight": 0.1}, "give arguments.weight_decay in place of it"),
        ({"rule": "a:b", "second_moment": 0.9}, "give arguments.betas in place of it"),
        ({"rule": "a:b", "norm.p_max": 4.0}, "left at its default for a:b"),
        ({"rule": "a:b", "momentum.nesterov": True}, "false for the rule a:b"),
        ({"rule": "sgd", "momentum.schedule": "own"}, "another schedule for the rule sgd"),
        ({"rule": "sdg"}, "did you mean 'sgd'?"),
        ({"arguments.not a name": 1}, "the name of a keyword argument"),
        ({"lr.schedule": "a:b", "lr.warmup": 0.1}, "lr.warmup = 0.1: must be 0 with the schedule a:b"),
        ({"recipe.label_smoothing": 1.0}, "in [0, 1)"),
        ({"recipe.clip_norm": -1.0}, "at least 0"),
    ],
)
def test_a_spec_refuses_what_contradicts_itself(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        with_settings(OptimizerSpec(), settings)
    assert said in str(caught.value)


def test_closures_are_found_out(own: str) -> None:
    for rule, needs in {
        "torch.optim:SGD": False,
        "torch.optim:LBFGS": True,
        f"{own}:Demands": True,
        f"{own}:Declares": True,
        "tuner.optimizers.sam:sam": True,
    }.items():
        assert needs_closure(make_optimizer(network(), spec(rule))) is needs, rule


def test_averaging_optimizers_are_found_out() -> None:
    assert averages_weights(make_optimizer(network(), spec("schedulefree:SGDScheduleFree")))
    assert not averages_weights(make_optimizer(network(), spec("torch.optim:SGD")))


def test_a_learning_rate_schedule_of_ones_own(own: str) -> None:
    asked = spec("sgd", **{"lr.peak": 0.5, "lr.schedule": f"{own}:falls"})
    rates = [hyperparameters_at(asked, step, 10, 5).lr for step in range(10)]
    assert rates == pytest.approx([0.5 * (1 - step / 10) for step in range(10)])
    for name, said in {
        "negative": "gave -1.0 at step 3 of 10, must be finite and at least 0",
        "stumbles": "step 3 of 10: ZeroDivisionError: division by zero (own_rules.py, line",
    }.items():
        with pytest.raises(InvalidInput) as caught:
            hyperparameters_at(spec("sgd", **{"lr.schedule": f"{own}:{name}"}), 3, 10, 5)
        assert said in str(caught.value) and math.isfinite(rates[0])
