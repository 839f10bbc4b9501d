"""Optimizers given by import path in the training loop: resumed bit for bit, charged for every gradient, tried."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from search_spaces import GROUPS, SPACES
from search_spaces.own import optimizer_variant
from tests.own_module import own_module
from tests.train.test_trainer import kept, numbers
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics
from tuner.core.serialization import with_settings
from tuner.core.store import Store
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.optimizers.hyperparameters import Hyperparameters
from tuner.order import shuffled_batches
from tuner.train import train
from tuner.train.final_weights import trained_network
from tuner.train.train_state import TrainState
from tuner.train.tryout import try_all, try_out
from tuner.workloads.data import load_data

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
OWN = """
import torch

class Forgets(torch.optim.SGD):
    number = 0
    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.number = 0
    def step(self, closure=None):
        self.number += 1
        self.param_groups[0]["weight_decay"] = 0.1 * self.number
        super().step()

class Hidden(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.state[self.param_groups[0]["params"][0]]["hidden"] = Forgets

class Idle(torch.optim.SGD):
    def step(self, closure=None):
        pass

class Breaks(torch.optim.SGD):
    def step(self, closure=None):
        raise KeyError("nothing here")

class Asks(torch.optim.SGD):
    def step(self, closure=None):
        return closure()

class Ema(torch.optim.SGD):
    def __init__(self, params, lr):
        super().__init__(params, lr)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["mean"] = p.detach().clone()
                self.state[p]["kept"] = p.detach().clone()

    def step(self, closure=None):
        super().step()
        for p, state in self.state.items():
            state["mean"].lerp_(p.detach(), 0.2)

    def train(self):
        with torch.no_grad():
            for p, state in self.state.items():
                p.copy_(state["kept"])

    def eval(self):
        with torch.no_grad():
            for p, state in self.state.items():
                state["kept"].copy_(p)
                p.copy_(state["mean"])

class Leaves(torch.optim.SGD):
    def step(self, closure=None):
        raise SystemExit(0)

def changes(model, lr):
    with torch.no_grad():
        next(model.parameters()).zero_()
    return torch.optim.SGD(model.parameters(), lr=lr)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with own_module(tmp_path_factory.mktemp("own"), "own_training", OWN) as name:
        yield name


def spec(path: str, **settings: Any) -> TrialSpec:
    variant = optimizer_variant(path, path.rpartition(":")[2])
    optimizer = with_settings(OptimizerSpec(), {**variant.default_settings(), **settings})
    return TrialSpec(optimizer=optimizer, epochs=3)


def refused(spec: TrialSpec) -> str:
    with pytest.raises(InvalidInput) as caught:
        try_out(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_lbfgs_is_charged_for_every_gradient_and_resumes(tmp_path: Path) -> None:
    """Four gradients per step: 16 per epoch are spent after four steps."""
    asked = spec("torch.optim:LBFGS", **{"lr.peak": 0.01, "arguments.max_iter": 4})
    whole = list(train(asked))
    assert [m.gradient_evaluations for m in whole] == [16, 32, 48] and [m.steps for m in whole] == [4, 8, 12]
    assert [m.epoch for m in whole] == [1, 2, 3]
    store = Store(str(tmp_path))
    store.make()
    resumed: list[EpochMetrics] = []
    for num_epochs in (1, 2, 3):  # each goes on from the checkpoint of the one before
        resumed = list(itertools.islice(kept(asked, store), num_epochs))
    assert numbers(resumed) == numbers(whole)


def test_sam_is_charged_twice_and_its_schedule_ends_with_its_budget() -> None:
    settings = SPACES["sam"].default_settings()
    asked = TrialSpec(optimizer=with_settings(OptimizerSpec(), settings), epochs=2)
    whole = list(train(asked))
    assert [(m.gradient_evaluations, m.steps) for m in whole] == [(16, 8), (32, 16)]
    assert whole[-1].lr < 0.1 * whole[0].lr


def test_a_first_gradient_that_a_closure_finds_unchanged_is_not_computed_again() -> None:
    """LBFGS asks for it at the weights that it has already; one iteration then costs one gradient."""
    whole = list(train(dataclasses.replace(spec("torch.optim:LBFGS", **{"arguments.max_iter": 1}), epochs=1)))
    assert (whole[0].gradient_evaluations, whole[0].steps) == (16, 16)


def test_an_optimizer_that_averages_is_evaluated_at_its_average_and_trains_on() -> None:
    data = load_data(WorkloadSpec(), CPU)
    asked = spec("schedulefree:SGDScheduleFree")
    batches = shuffled_batches(data.sizes["train"], 64, seed=3, epoch=0)

    def trained(*, evaluates: bool) -> tuple[TrainState, list[float]]:
        network = TrainState(asked, data, CPU, num_steps=10)
        accuracies = []
        for number, batch in enumerate(batches[:10]):
            [(inputs, labels)] = network.train_batches([batch])
            network.step(number, batch, inputs, labels, Hyperparameters(lr=1.0, momentum=0.0, p=2.0))
            if evaluates:
                accuracies.append(network.evaluate("validation", batches[: number + 1])[0])
        return network, accuracies

    (quiet, _), (watched, losses) = trained(evaluates=False), trained(evaluates=True)
    assert all(map(torch.equal, quiet.model.parameters(), watched.model.parameters()))
    average = watched.evaluated_state()
    assert any(not torch.equal(average[name], p) for name, p in watched.model.named_parameters())
    again = trained_network(asked, average, data, CPU).evaluate("validation")[0]
    assert again == pytest.approx(losses[-1], rel=1e-6)


@pytest.mark.parametrize("name", GROUPS["modern"])
def test_modern_variants_train_and_resume(name: str) -> None:
    try_out(TrialSpec(optimizer=with_settings(OptimizerSpec(), SPACES[name].default_settings())), num_steps=12)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Forgets", "cut and resumed goes on differently"),
        ("Hidden", "holds more than tensors and plain data"),
        ("Idle", "steps change no parameter"),
        ("Breaks", "step 1 fails: KeyError: 'nothing here' (own_training.py, line"),
        ("Leaves", "step 1 fails: SystemExit"),
        ("Asks", "give its class an attribute requires_closure = True"),
        ("changes", "making the optimizer changes the model: conv.weight"),
    ],
)
def test_what_is_wrong_is_said_before_the_start(own: str, name: str, said: str) -> None:
    assert said in refused(spec(f"{own}:{name}"))


def test_resumption_need_not_be_checked(own: str) -> None:
    asked = dataclasses.asdict(spec(f"{own}:Forgets"))
    assert try_all(json.dumps(["mine", asked, False])) == "1"
    with pytest.raises(InvalidInput, match="variant mine: a training that is cut"):
        try_all(json.dumps(["mine", asked, True]))


def test_a_divergence_within_an_epoch_of_closures_is_reported(own: str) -> None:
    settings = {**SPACES["sam"].default_settings(), "lr.peak": 1e6}
    optimizer = with_settings(OptimizerSpec(), settings)
    *_, last = train(TrialSpec(optimizer=optimizer, epochs=4, max_loss=50.0))
    assert last.diverged
    calm = with_settings(OptimizerSpec(), SPACES["sam"].default_settings())
    epochs = [m.epoch for m in train(TrialSpec(optimizer=calm, epochs=3, max_loss=2.2))]
    assert epochs == sorted(set(epochs)), "no epoch is reported twice"


def test_weights_that_were_averaged_are_scored_as_they_are(own: str) -> None:
    """Its average begins with the initial weights, which a new optimizer would put in the place of the trained ones."""
    data = load_data(WorkloadSpec(), CPU)
    asked = spec(f"{own}:Ema")
    network = TrainState(asked, data, CPU, num_steps=20)
    batches = shuffled_batches(data.sizes["train"], 64, seed=3, epoch=0)
    for number, batch in enumerate(batches):
        [(inputs, labels)] = network.train_batches([batch])
        network.step(number, batch, inputs, labels, Hyperparameters(lr=0.1, momentum=0.0, p=2.0))
    known = network.evaluate("validation", batches)[0]
    scored = trained_network(asked, network.evaluated_state(), data, CPU).evaluate("validation")[0]
    assert scored == pytest.approx(known, rel=1e-6)


def test_what_does_not_compose_is_refused() -> None:
    averaged = refused(spec("schedulefree:SGDScheduleFree", **{"average.decay": 0.9}))
    assert (
        averaged == "average.decay = 0.9: must be 0 for schedulefree:SGDScheduleFree, which averages its weights itself"
    )
    ordered = refused(spec("torch.optim:LBFGS", **{"order.composition": "backward"}))
    assert "order.composition = backward: must be forward for torch.optim:LBFGS" in ordered


@pytest.mark.parametrize(
    "settings", [{"scaling.law": "exponential"}, {"order.composition": "backward"}, {"average.decay": 0.9}]
)
def test_ideas_compose_with_an_optimizer_of_ones_own(settings: dict[str, Any]) -> None:
    try_out(spec("torch.optim:NAdam", **settings))


def test_a_second_derivative_has_its_graph() -> None:
    assert "set create_graph=true" in refused(spec("pytorch_optimizer:SophiaH", create_graph=False))
    try_out(spec("pytorch_optimizer:SophiaH"), num_steps=12)


def step_of(**recipe: float) -> tuple[float, torch.Tensor]:
    """Loss and gradient of the first step under a recipe."""
    data = load_data(WorkloadSpec(), CPU)
    optimizer = with_settings(OptimizerSpec(), {f"recipe.{name}": value for name, value in recipe.items()})
    network = TrainState(TrialSpec(optimizer=optimizer), data, CPU, num_steps=10)
    batch = shuffled_batches(data.sizes["train"], 64, seed=3, epoch=0)[0]
    [(inputs, labels)] = network.train_batches([batch])
    loss, _, _ = network.step(0, batch, inputs, labels, Hyperparameters(lr=0.1, momentum=0.9, p=2.0))
    gradients = [parameter.grad.flatten() for parameter in network.model.parameters() if parameter.grad is not None]
    return float(loss), torch.cat(gradients)


def test_the_recipe_clips_smooths_and_mixes() -> None:
    loss, gradient = step_of()
    clipped_loss, clipped = step_of(clip_norm=0.25)
    assert clipped_loss == loss
    torch.testing.assert_close(clipped, gradient * 0.25 / gradient.norm(), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(step_of(clip_norm=1e6)[1], gradient)
    smoothed, mixed = step_of(label_smoothing=0.5)[0], step_of(mixup=1.0)
    assert smoothed != loss and mixed[0] != loss
    assert torch.equal(mixed[1], step_of(mixup=1.0)[1]), "mixup is drawn by the batch's seed"


def test_the_recipe_is_for_classes() -> None:
    regression = dataclasses.replace(
        spec("torch.optim:SGD", **{"recipe.mixup": 0.2}), workload=WorkloadSpec(data="diagonal")
    )
    assert refused(regression) == "recipe.mixup = 0.2: must be 0 for a task that is no classification"
