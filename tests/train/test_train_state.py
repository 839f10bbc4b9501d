"""A training's state and its maps: taken again from the same state, they lead to the same state, bit for bit."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.optimizers import RandomScaling
from tuner.optimizers.hyperparameters import Hyperparameters
from tuner.order import Batch, shuffled_batches
from tuner.train.train_state import TrainState
from tuner.workloads.data import load_data

CPU = torch.device("cpu")
DATA = load_data(WorkloadSpec(), CPU)
BATCHES = shuffled_batches(DATA.sizes["train"], 64, seed=3, epoch=0)
HYPERPARAMETERS = Hyperparameters(lr=0.005, momentum=0.9, p=2.0)


pytestmark = pytest.mark.usefixtures("one_thread")


def network(**settings: Any) -> TrainState:
    optimizer = with_settings(OptimizerSpec(), {name.replace("__", "."): value for name, value in settings.items()})
    return TrainState(TrialSpec(optimizer=optimizer, precision="float64"), DATA, CPU, num_steps=10)


def go(
    net: TrainState, numbers: Iterator[int] | range, hyperparameters: Hyperparameters = HYPERPARAMETERS
) -> list[float]:
    losses = []
    for number in numbers:
        batch = BATCHES[number]
        for images, labels in DATA.train_batches([batch]):
            losses.append(float(net.step(number, batch, images, labels, hyperparameters)[0]))
    return losses


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        # torch adds this default to the groups of an optimizer that has none when it loads them
        keys = (a.keys() | b.keys()) - {"differentiable"}
        return all(key in a and key in b and same(a[key], b[key]) for key in keys)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


VARIED: list[dict[str, Any]] = [
    {},
    {"rule": "adamw"},
    {"rule": "lion"},
    {"rule": "lpsgd", "norm__p_max": 6.0, "average__decay": 0.5},
    {"scaling__law": "exponential", "average__decay": 0.9},
]


@pytest.mark.parametrize("settings", VARIED)
def test_steps_from_a_state_taken_up_again_are_the_same_steps(settings: dict[str, Any]) -> None:
    net = network(**settings)
    go(net, range(3))
    anchor = net.frozen_state()
    kept = copy.deepcopy(anchor)
    first, state = go(net, range(3, 6)), net.frozen_state()
    assert not same(state, anchor)
    for _ in range(2):
        torch.manual_seed(99)  # nothing is owed to the global generators
        net.load(anchor)
        assert same(net.frozen_state(), anchor)
        assert go(net, range(3, 6)) == first and same(net.frozen_state(), state)
        assert same(anchor, kept), "steps changed the anchor"


def test_a_state_from_before_the_first_step_takes_the_buffers_away_again() -> None:
    net = network()
    start = net.frozen_state()
    first = go(net, range(2))
    net.load(start)
    assert go(net, range(2)) == first


def test_the_random_scale_belongs_to_the_batch_not_to_the_position_in_a_replay() -> None:
    net = network(scaling__law="exponential")
    assert isinstance(net.optimizer, RandomScaling)
    scales = []
    for order in (range(4), range(3, -1, -1)):
        drawn = {}
        for number in order:
            go(net, range(number, number + 1))
            drawn[number] = net.optimizer.last_scale
        scales.append(drawn)
    assert scales[0] == scales[1] and len(set(scales[0].values())) == 4


def test_the_random_scale_ends_with_its_part_of_the_training() -> None:
    net = network(scaling__law="exponential", scaling__active=0.35)  # of ten steps: the first four
    assert isinstance(net.optimizer, RandomScaling)
    scales = []
    for number in (6, 5, 4, 3, 2):
        go(net, range(number, number + 1))
        scales.append(net.optimizer.last_scale)
    assert scales[:3] == [1.0] * 3 and 1.0 not in scales[3:]


def test_rescaling_follows_the_learning_rates_in_the_order_they_are_used() -> None:
    """Batches backwards from an anchor: the buffer of each step is that of the step before in the replay."""
    by_step = {3: 0.004, 2: 0.005, 1: 0.008}
    ours = network(momentum__rescale="sqrt-lr")
    go(ours, range(1))
    anchor = ours.frozen_state()
    go(ours, range(4, 6), HYPERPARAMETERS._replace(lr=0.3))  # a replay leaves nothing behind
    ours.load(anchor)
    by_hand = network()
    go(by_hand, range(1))
    before = HYPERPARAMETERS.lr
    for number, lr in by_step.items():
        go(ours, range(number, number + 1), HYPERPARAMETERS._replace(lr=lr))
        for state in by_hand.optimizer.state.values():
            state["momentum_buffer"] *= (before / lr) ** 0.5
        go(by_hand, range(number, number + 1), HYPERPARAMETERS._replace(lr=lr))
        before = lr
    for a, b in zip(ours.model.parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_the_average_is_the_recursion_over_the_steps() -> None:
    net = network(average__decay=0.75)
    expected: list[Tensor] = []
    for number in range(5):
        go(net, range(number, number + 1))
        weights = [p.detach().clone() for p in net.model.parameters()]
        expected = [0.75 * e + 0.25 * w for e, w in zip(expected, weights, strict=True)] if expected else weights
    assert net.average is not None
    for ours, by_hand in zip(net.average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(ours.detach(), by_hand, rtol=1e-12, atol=1e-14)


def test_averaged_weights_are_evaluated_with_batch_norm_statistics_of_their_own() -> None:
    """Statistics of each normalization: mean over the newest batches of what these weights make of them."""
    net = network(average__decay=0.9)
    go(net, range(6))
    before = net.frozen_state()
    measured = net.evaluate("validation", BATCHES[2:6])
    assert net.average is not None
    assert same(net.state()["model"], before["model"]), "the trained weights and their statistics are left alone"
    weights = {f"module.{name}" for name, _ in net.model.named_parameters()}
    assert all(torch.equal(net.average.state_dict()[name], before["average"][name]) for name in weights)

    by_hand = network()
    by_hand.model.load_state_dict(
        {k.removeprefix("module."): v for k, v in before["average"].items() if k.startswith("module.")}
    )
    norms = [m for m in by_hand.model.modules() if isinstance(m, nn.BatchNorm2d)]
    inputs: dict[nn.Module, list[Tensor]] = {norm: [] for norm in norms}
    for norm in norms:
        norm.register_forward_pre_hook(lambda module, args: inputs[module].append(args[0].detach()))
    by_hand.model.train()
    for images, _ in DATA.train_batches(BATCHES[2:6]):
        by_hand.model(images.double())
    for norm in norms:
        norm.running_mean = torch.stack([x.mean((0, 2, 3)) for x in inputs[norm]]).mean(0)
        norm.running_var = torch.stack([x.var((0, 2, 3)) for x in inputs[norm]]).mean(0)
        inputs[norm] = []
    assert by_hand.evaluate("validation") == pytest.approx(measured, rel=1e-10)
    wrong = network()
    wrong.model.load_state_dict(
        {k.removeprefix("module."): v for k, v in before["average"].items() if k.startswith("module.")}
    )
    assert wrong.evaluate("validation")[0] != pytest.approx(measured[0], rel=1e-3), "with those of the last weights"


def test_an_evaluation_of_the_average_is_the_same_each_time() -> None:
    net = network(average__decay=0.9)
    go(net, range(4))
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(net.evaluate("validation", BATCHES[:4]))
    assert results[0] == results[1]


def test_estimating_curvature_changes_nothing() -> None:
    net = network(average__decay=0.9)
    go(net, range(3))
    before = net.frozen_state()
    estimates = [net.curvature() for _ in range(2)]
    assert same(net.state(), before) and net.model.training
    assert estimates[0] is not None and estimates[0] == estimates[1]


def test_the_loss_bends_along_no_direction_more_than_the_top_curvature() -> None:
    """By second differences of the fixed batch's loss in training mode; along its gradient it bends nearly as much."""
    net = network()
    go(net, range(6))
    estimate = net.curvature()
    assert estimate is not None
    indices = torch.randperm(DATA.sizes["train"], generator=torch.Generator().manual_seed(net.spec.seed))[:256]
    (images, labels), *_ = DATA.train_batches([Batch(indices, net.spec.seed)])
    weights = [p.detach().clone() for p in net.model.parameters()]

    def loss(step: float, direction: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            for p, w, d in zip(net.model.parameters(), weights, direction, strict=True):
                p.copy_(w + step * d)
        return cross_entropy(net.model(images.double()), labels)

    generator = torch.Generator().manual_seed(0)
    drawn = [[torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights] for _ in range(5)]
    gradient = torch.autograd.grad(loss(0.0, weights), list(net.model.parameters()))
    bends = []
    for direction in [gradient, *drawn]:
        step = 1e-3 / sum(float(d.square().sum()) for d in direction) ** 0.5
        low, middle, high = (loss(sign * step, direction).item() for sign in (-1, 0, 1))
        bends.append((low - 2 * middle + high) / 1e-6)
    assert max(bends) <= 1.02 * estimate.top
    assert bends[0] > 0.1 * estimate.top


def test_curvature_goes_through_attention() -> None:
    """Whose fused form has no second derivative."""
    spec = TrialSpec(workload=WorkloadSpec(model="tests.train.test_train_state:attending"))
    assert TrainState(spec, DATA, CPU, num_steps=10).curvature() is not None


class Attending(nn.Module):
    def __init__(self, num_classes: int, image_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(image_size, image_size)
        self.linear = nn.Linear(image_size, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        rows = self.query(images)
        logits: Tensor = self.linear(scaled_dot_product_attention(rows, rows, rows).mean((1, 2)))
        return logits


def attending(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    return Attending(num_classes, image_size)


def test_warming_up_leaves_the_state_as_it_was() -> None:
    net = network(average__decay=0.9, scaling__law="uniform")
    before = net.frozen_state()
    net.warm_up(BATCHES[0])
    assert same(net.state()["model"], before["model"]) and same(net.state()["optimizer"], before["optimizer"])
    assert all(p.grad is None for p in net.model.parameters())


def test_scales_of_a_batch_are_not_drawn_from_its_own_seed() -> None:
    """Augmentation and dropout have that seed, and the same draws."""
    net = network(scaling__law="uniform")
    assert isinstance(net.optimizer, RandomScaling)
    alone = RandomScaling(torch.optim.SGD([torch.zeros(1, requires_grad=True)]), "uniform")
    for number in range(4):
        go(net, range(number, number + 1))
        alone.seek(number, BATCHES[number].seed)
        alone.step()
        assert net.optimizer.last_scale != alone.last_scale
