"""Retraining groups: what is frozen stays, bit for bit; what is counted; a planted fault is repaired."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torchvision.models import VisionTransformer

from benchmarks.planted_faults import plant_fault
from tests.trained_digits import CPU, SPEC, trained, trained_state
from tuner.core.errors import InvalidInput
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.diagnose.layer_groups import LayerGroup, layer_groups
from tuner.diagnose.repair import (
    FULL,
    LOWEST,
    RANDOM,
    Outcome,
    RepairSettings,
    compare,
    compute_share,
    freeze_all_but,
    repairs,
    retrain,
    selections,
)
from tuner.train.final_weights import trained_network, unsealed_data
from tuner.train.trainer import Trainer
from tuner.workloads.models import RepeatGrey

pytestmark = pytest.mark.usefixtures("one_thread")
GROUPS = layer_groups(trained().model)


def belongs(name: str, groups: tuple[LayerGroup, ...]) -> bool:
    """Whether a weight or buffer is in some groups."""
    return any(name in g.parameters or any(name.startswith(f"{m}.") for m in g.modules) for g in groups)


@pytest.mark.parametrize("places", [(0,), (1, 2), (3,), (4,)])
@pytest.mark.parametrize("rule", ["sgd", "adamw", "lpsgd", "lion"])
def test_frozen_means_frozen(places: tuple[int, ...], rule: str) -> None:
    """Weights and BatchNorm's statistics, whatever the rule and its weight decay; the others move."""
    optimizer = with_settings(OptimizerSpec(), {"rule": rule, "lr.peak": 0.01, "decay.weight": 0.1})
    training = Trainer(dataclasses.replace(SPEC, optimizer=optimizer, epochs=2), CPU)
    training.network.model.load_state_dict(trained_state())
    groups = tuple(GROUPS[place] for place in places)
    freeze_all_but(training.network, groups)
    for _ in range(2):
        training.train_to_evaluation()
    for name, tensor in training.network.model.state_dict().items():
        assert torch.equal(tensor, trained_state()[name]) != belongs(name, groups), name


def test_only_frozen_modules_are_in_evaluation_mode_while_the_others_train() -> None:
    network = trained()
    freeze_all_but(network, GROUPS[:1])
    for _ in range(2):
        modes = {name: module.training for name, module in network.model.named_modules()}
        assert {name for name, training in modes.items() if training} == {"conv", "norm"}
        network.evaluate("validation")


def test_the_control_that_trains_everything_freezes_nothing() -> None:
    """Dropout and statistics without a scale have no parameters, and train with their group."""
    network = trained()
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4, affine=False), torch.nn.Dropout())
    network.model = torch.nn.Sequential(model, torch.nn.Flatten(), torch.nn.Linear(4 * 36, 10), torch.nn.Dropout())
    freeze_all_but(network, layer_groups(network.model))
    layers = [module for module in network.model.modules() if not list(module.children())]
    assert all(module.training for module in layers)


def test_operations_of_attention_are_counted_where_it_is_frozen_too() -> None:
    network = trained()
    network.dtype = torch.float32
    network.model = torch.nn.Sequential(
        RepeatGrey(),
        VisionTransformer(
            image_size=8, patch_size=2, num_layers=4, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=10
        ),
    )
    *_, head = layer_groups(network.model)
    assert compute_share(network, [head]) == pytest.approx(1 / 3, abs=0.02)


def test_averaged_weights_cannot_be_frozen() -> None:
    averaged = dataclasses.replace(SPEC, optimizer=with_settings(SPEC.optimizer, {"average.decay": 0.9}))
    with pytest.raises(ValueError, match="average"):
        freeze_all_but(Trainer(averaged, CPU).network, GROUPS[:1])


def test_the_kept_state_is_that_of_the_best_epoch_on_validation() -> None:
    state = planted(3)
    settings = RepairSettings(lr=0.05, epochs=4)
    found = retrain(SPEC, state, "repair", GROUPS[3:4], settings, CPU)
    training = Trainer(settings.spec(SPEC), CPU)
    training.network.model.load_state_dict(state)
    freeze_all_but(training.network, GROUPS[3:4])
    epochs = [training.train_to_evaluation() for _ in range(4)]
    best = max(epochs, key=lambda metrics: (metrics.validation_accuracy, -metrics.validation_loss))
    assert (found.epoch, found.validation_accuracy) == (best.epoch, best.validation_accuracy)
    network = trained()
    network.model.load_state_dict(found.state)
    assert network.evaluate("validation")[1] == best.validation_accuracy
    assert found.epochs == 4


def test_the_network_as_it_was_is_kept_where_nothing_is_better() -> None:
    found = retrain(SPEC, trained_state(), "repair", GROUPS[2:4], RepairSettings(lr=1e4, epochs=1), CPU)
    assert found.epoch == 0
    assert all(torch.equal(tensor, trained_state()[name]) for name, tensor in found.state.items())


def test_momentum_is_critical_at_each_steps_learning_rate() -> None:
    training = Trainer(RepairSettings(lr=0.01, epochs=1).spec(SPEC), CPU)
    assert training._hyperparameters(0, None).momentum == pytest.approx(0.8)


def test_shares_are_of_parameters_and_of_operations() -> None:
    network = trained()
    assert compute_share(network, GROUPS) == 1
    shares = [compute_share(network, GROUPS[place : place + 1]) for place in range(5)]
    # A step backward ends at the first layer that is trained: the head costs no more than a forward pass, a third.
    assert shares[1:] == sorted(shares[1:], reverse=True)
    assert shares[-1] == pytest.approx(1 / 3, abs=0.01) and all(share < 0.75 for share in shares)
    found = retrain(SPEC, trained_state(), "repair", GROUPS[4:], RepairSettings(epochs=1), CPU)
    whole = sum(parameter.numel() for parameter in network.model.parameters())
    assert found.parameter_share == 650 / whole


def test_controls_cost_what_the_repair_does() -> None:
    network = trained()
    made = [one for one, _ in repairs(network, GROUPS, GROUPS[3:], GROUPS[::-1], RepairSettings(epochs=4))]
    assert [one.name for one in made] == ["repair", FULL, RANDOM, LOWEST]
    for one in made:
        assert one.cost == pytest.approx(
            one.epochs * compute_share(network, [g for g in GROUPS if g.name in one.groups])
        )
        assert abs(one.cost - made[0].cost) <= one.compute_share / 2, "as near as whole epochs come"
    assert made[0].epochs == 4 > made[1].epochs
    assert all(torch.equal(tensor, trained_state()[name]) for name, tensor in network.model.state_dict().items())


def planted(place: int, noise: float = 1.0, seed: int = 0) -> Mapping[str, Tensor]:
    network = trained()
    plant_fault(network.model, GROUPS[place], noise=noise, seed=seed)
    return {name: tensor.clone() for name, tensor in network.model.state_dict().items()}


@pytest.mark.parametrize("place", range(5))
def test_a_planted_fault_is_repaired(place: int) -> None:
    """Nine tenths of the test accuracy that it took, by retraining its group alone."""
    state = planted(place)
    found = retrain(SPEC, state, "repair", GROUPS[place : place + 1], RepairSettings(lr=0.1, epochs=8), CPU)
    network = trained_network(SPEC, trained_state(), unsealed_data(SPEC, CPU), CPU)
    accuracies = []
    for weights in (trained_state(), state, found.state):
        network.model.load_state_dict(weights)
        accuracies.append(network.evaluate("test")[1])
    clean, broken, repaired = accuracies
    assert clean - broken > 0.03
    assert repaired - broken >= 0.9 * (clean - broken)


def test_outcomes_count_images_that_change_sides() -> None:
    network, state = trained(), planted(3)
    outcome = compare(network, state, trained_state(), "validation")
    size = network.data.sizes["validation"]
    accuracies = []
    for weights in (state, trained_state()):
        network.model.load_state_dict(weights)
        accuracies.append(network.evaluate("validation")[1])
    assert outcome.num_images == size
    assert outcome.net == round(size * (accuracies[1] - accuracies[0]))
    back = compare(network, trained_state(), state, "validation")
    assert (back.num_fixed, back.num_broken) == (outcome.num_broken, outcome.num_fixed)


@pytest.mark.parametrize(
    ("fixed", "broken", "low", "high"),
    # Clopper-Pearson for 6 of 6, 0 of 6, 3 of 6: lower ends .5407, 0, .1181.
    [(6, 0, 6 * (2 * 0.5407 - 1), 6), (0, 6, -6, -6 * (2 * 0.5407 - 1)), (3, 3, -4.58, 4.58), (0, 0, 0, 0)],
)
def test_the_interval_of_net_is_exact(fixed: int, broken: int, low: float, high: float) -> None:
    assert Outcome(100, fixed, broken).net_interval() == pytest.approx((low, high), abs=0.01)


def test_controls_are_everything_random_groups_and_the_lowest() -> None:
    chosen, ranking = GROUPS[1:3], [GROUPS[place] for place in (2, 1, 0, 4, 3)]
    made = dict(selections(GROUPS, chosen, ranking, seed=0))
    assert list(made) == ["repair", FULL, RANDOM, LOWEST]
    assert made["repair"] == chosen and made[FULL] == GROUPS
    assert set(made[LOWEST]) == {GROUPS[3], GROUPS[4]}
    lowest = dict(selections(GROUPS, GROUPS[3:], ranking, seed=0))[LOWEST]
    assert set(lowest) == {GROUPS[1], GROUPS[0]}, "of the others"
    drawn = {dict(selections(GROUPS, chosen, ranking, seed))[RANDOM] for seed in range(200)}
    assert len(drawn) == 9 and chosen not in drawn, "all ten pairs but the chosen one"


def test_a_repair_of_everything_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nothing would be frozen"):
        list(selections(GROUPS, GROUPS, GROUPS, seed=0))


@pytest.mark.parametrize("settings", [RepairSettings(lr=0), RepairSettings(lr=-1), RepairSettings(epochs=0)])
def test_settings_outside_their_range_are_refused(settings: RepairSettings) -> None:
    with pytest.raises(InvalidInput, match="must be"):
        settings.spec(SPEC)
