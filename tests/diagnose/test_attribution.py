"""Scores of layer groups: what they are, and what they do not depend on."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from benchmarks.planted_faults import plant_fault
from tests.trained_digits import trained
from tuner.core.errors import InvalidInput
from tuner.diagnose.attribution import SCORES, Diagnosis, diagnose
from tuner.diagnose.layer_groups import LayerGroup, layer_groups
from tuner.train.train_state import TrainState

pytestmark = pytest.mark.usefixtures("one_thread")


def diagnosed(network: TrainState) -> Diagnosis:
    return diagnose(network, layer_groups(network.model))


def test_scores_are_those_of_the_definitions() -> None:
    """All errors, and as many correct images, at once and by autograd's own backward."""
    network = trained()
    model = network.model.eval()
    batches = list(network.data.evaluation_batches("validation"))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    images = images.to(torch.float64)
    wrong = model(images).argmax(1) != labels
    # The correct ones as they come, never more than there have been errors.
    compared: list[int] = []
    errors = 0
    for start in range(0, len(labels), 256):
        part = range(start, min(start + 256, len(labels)))
        errors += sum(bool(wrong[k]) for k in part)
        compared += [k for k in part if not wrong[k]][: errors - len(compared)]
    gradients = []
    for chosen in (wrong, torch.tensor(compared)):
        model.zero_grad()
        cross_entropy(model(images[chosen]), labels[chosen]).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    of_errors, of_correct = gradients
    found = diagnosed(network)
    assert found.num_errors == int(wrong.sum()) and found.num_compared == len(compared) == found.num_errors
    parameters = dict(model.named_parameters())
    for scores in found.groups:
        flat = torch.cat([of_errors[name].flatten() for name in scores.group.parameters])
        weights = torch.cat([parameters[name].detach().flatten() for name in scores.group.parameters])
        correct = torch.cat([of_correct[name].flatten() for name in scores.group.parameters])
        rows = [
            float(gradient.norm() * weight.norm())
            for name in scores.group.parameters
            for gradient, weight in zip(of_errors[name], parameters[name].detach(), strict=True)
        ]
        norm = float(flat.norm())
        assert scores.num_parameters == len(flat)
        assert scores.scores == pytest.approx(
            {
                "raw": norm,
                "per-element": norm / math.sqrt(len(flat)),
                "relative": norm / float(weights.norm()),
                "invariant": math.hypot(*rows),
                "ratio": norm / float(correct.norm()),
            },
            rel=1e-9,
        )


@pytest.mark.parametrize("scale", [0.2, 5.0])
def test_rescaling_a_convolution_before_batch_norm_changes_no_invariant_score(scale: float) -> None:
    network = trained()
    before = diagnosed(network)
    state = network.model.state_dict()
    state["blocks.1.conv1.weight"].mul_(scale)
    state["blocks.1.norm1.running_mean"].mul_(scale)
    # With BatchNorm's epsilon, so that the network computes exactly what it did.
    state["blocks.1.norm1.running_var"].add_(1e-5).mul_(scale**2).sub_(1e-5)
    after = diagnosed(network)
    for old, new in zip(before.groups, after.groups, strict=True):
        assert new.scores["invariant"] == pytest.approx(old.scores["invariant"], rel=1e-5)
        moved = old.group.name == "blocks.1"
        assert (new.scores["raw"] == pytest.approx(old.scores["raw"], rel=1e-2)) != moved
        assert (new.scores["relative"] == pytest.approx(old.scores["relative"], rel=1e-2)) != moved


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_fault_planted_in_a_block_ranks_first(place: int) -> None:
    """Noise as large as the weights; in the stem and in the head it does not (benchmarks/planted_faults.py)."""
    network = trained()
    group = layer_groups(network.model)[place]
    plant_fault(network.model, group, noise=1.0, seed=0)
    assert diagnosed(network).top(1) == (group,)


def test_what_the_errors_do_not_depend_on_scores_nothing() -> None:
    network = trained()
    network.model.state_dict()["blocks.1.norm2.weight"].zero_()
    conv = LayerGroup("conv", (), ("blocks.1.conv2.weight",))
    found = diagnose(network, [conv])
    assert set(found.groups[0].scores.values()) == {0.0}


def test_nothing_is_changed_by_looking() -> None:
    network = trained()
    network.model.train()
    before = copy.deepcopy(network.model.state_dict())
    diagnosed(network)
    assert network.model.training and all(p.grad is None for p in network.model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.model.state_dict().items())


def test_confusions_count_every_image_once() -> None:
    network = trained()
    found = diagnosed(network)
    _, accuracy = network.evaluate("validation")
    assert found.confusion.sum() == network.data.sizes["validation"]
    assert found.num_errors == round((1 - accuracy) * network.data.sizes["validation"])
    wrong = [(example.label, example.predicted) for example in found.examples]
    assert all(label != predicted and found.confusion[label, predicted] for label, predicted in wrong)
    losses = [example.loss for example in found.examples]
    assert losses == sorted(losses, reverse=True) and len(losses) == min(12, found.num_errors)


def test_rankings_are_by_each_score() -> None:
    found = diagnosed(trained())
    for score in SCORES:
        values = [scores.scores[score] for scores in found.ranking(score)]
        assert values == sorted(values, reverse=True)
        assert [group.name for group in found.top(2, score)] == [s.group.name for s in found.ranking(score)[:2]]


def test_a_perfect_classifier_has_nothing_to_diagnose(monkeypatch: pytest.MonkeyPatch) -> None:
    network = trained()
    batches = [
        (images, network.model.eval()(images.double()).argmax(1))
        for images, _ in network.data.evaluation_batches("validation")
    ]
    monkeypatch.setattr(network.data, "evaluation_batches", lambda split: iter(batches))
    with pytest.raises(InvalidInput, match="no image of the validation split is misclassified"):
        diagnosed(network)


def test_weights_that_are_not_finite_are_told_apart_from_errors() -> None:
    network = trained()
    network.model.state_dict()["linear.weight"].fill_(math.nan)
    with pytest.raises(InvalidInput, match="not finite"):
        diagnosed(network)


def test_where_most_images_are_errors_fewer_are_compared() -> None:
    network = trained()
    network.model.state_dict()["linear.weight"].neg_()
    found = diagnosed(network)
    assert found.num_compared < found.num_errors
    assert found.num_compared == int(found.confusion.sum()) - found.num_errors
