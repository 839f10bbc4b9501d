"""The training loop: resumed bit for bit, ended by a divergence, the same as a loop written by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from search_spaces import SPACES
from tuner.core.damping import damping_ratio
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics, is_finished
from tuner.core.serialization import Setting, digest, with_settings
from tuner.core.store import Store
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.optimizers.hyperparameters import hyperparameters_at
from tuner.order import Batch, shuffled_batches
from tuner.train import train
from tuner.train.__main__ import main
from tuner.train.checkpoints import Checkpoints
from tuner.train.trainer import Trainer
from tuner.workloads.data import load_data
from tuner.workloads.models import build_model

CPU = torch.device("cpu")
TIMES = {
    "curvature_seconds",
    "seconds",
    "evaluation_seconds",
    "loading_seconds",
    "images_per_second",
    "finished_at",
    "compile_seconds",
}


pytestmark = pytest.mark.usefixtures("one_thread")


def small(variant: str = "sgdm", **changes: object) -> TrialSpec:
    optimizer = with_settings(OptimizerSpec(), SPACES[variant].default_settings())
    return dataclasses.replace(TrialSpec(optimizer=optimizer, epochs=3), **changes)  # type: ignore[arg-type]


def numbers(history: list[EpochMetrics]) -> list[dict[str, object]]:
    return [{k: v for k, v in dataclasses.asdict(metrics).items() if k not in TIMES} for metrics in history]


def kept(spec: TrialSpec, store: Store) -> Iterator[EpochMetrics]:
    """Trains on the CPU with a checkpoint every epoch."""
    return train(spec, store=store, checkpoint_seconds=0, device=CPU)


def newest(spec: TrialSpec, folder: Path) -> dict[str, Any]:
    content = Checkpoints(Store(folder), spec_digest=digest(spec)).newest()
    assert content is not None
    return content


@pytest.mark.parametrize("variant", sorted(SPACES))
def test_a_training_resumed_after_each_epoch_is_bit_for_bit_the_uninterrupted_one(variant: str, tmp_path: Path) -> None:
    spec = small(variant)
    whole = Trainer(spec, CPU)
    while not is_finished(spec, whole.history):
        whole.train_to_evaluation()
    for num_epochs in range(1, len(whole.history) + 1):
        torch.manual_seed(num_epochs)  # a resumed training owes nothing to the process it runs in
        history = list(itertools.islice(kept(spec, Store(tmp_path)), num_epochs))
    assert numbers(history) == numbers(whole.history)
    assert history[-1].gradient_evaluations == history[-1].budget
    resumed = Trainer(spec, CPU)
    resumed.restore(newest(spec, tmp_path))
    for name, tensor in whole.network.model.state_dict().items():
        assert torch.equal(tensor, resumed.network.model.state_dict()[name]), name


class Linear(nn.Module):
    """Softmax regression: its cross-entropy is convex in the weights."""

    def __init__(self, num_pixels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_pixels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.layer(images.flatten(1))
        return logits


def linear(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    return Linear(channels * image_size**2, num_classes)


@pytest.mark.parametrize("variant", sorted(SPACES))
def test_every_variant_descends_on_a_convex_problem(variant: str) -> None:
    workload = WorkloadSpec(model="tests.train.test_trainer:linear", augment=False)
    training = Trainer(small(variant, workload=workload, epochs=4), CPU)
    losses = [training.network.evaluate("train", training._batches(range(16)))[0]]
    while not is_finished(training.spec, training.history):
        training.train_to_evaluation()
        losses.append(training.network.evaluate("train", training._batches(range(16)))[0])
    assert losses[-1] < losses[1] < losses[0] if len(losses) > 2 else losses[-1] < losses[0]


def test_seconds_go_on_counting_over_a_resumption(tmp_path: Path) -> None:
    first = next(kept(small(), Store(tmp_path)))
    replayed, second, *_ = kept(small(), Store(tmp_path))
    assert replayed == first
    assert second.seconds > first.seconds and second.evaluation_seconds > first.evaluation_seconds


def test_a_checkpoint_cut_short_is_as_none(tmp_path: Path) -> None:
    first = next(kept(small(), Store(tmp_path)))
    (checkpoint,) = tmp_path.iterdir()
    content = checkpoint.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 1):
        checkpoint.write_bytes(content[:length])
        again = next(kept(small(), Store(tmp_path)))
        assert numbers([again]) == numbers([first])
        assert again.finished_at > first.finished_at, "trained again, not replayed"
    assert list(tmp_path.iterdir()) == [checkpoint]


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    next(kept(small(), Store(tmp_path)))
    with pytest.raises(InvalidInput, match="another training"):
        next(kept(small(seed=1), Store(tmp_path)))


def test_same_seed_same_numbers_other_seed_others() -> None:
    first, again, other = (next(train(small(seed=seed), device=CPU)) for seed in (5, 5, 6))
    assert numbers([first]) == numbers([again])
    assert first.train_loss != other.train_loss


def test_the_loop_is_a_plain_loop_over_the_same_batches() -> None:
    """Against torch's own optimizer and a loop of the fewest lines, in float64."""
    spec = small("sgdm", epochs=2, precision="float64")
    training = Trainer(spec, CPU)
    measured = [training.train_to_evaluation(), training.train_to_evaluation()]

    data = load_data(spec.workload, CPU)
    torch.manual_seed(spec.seed)
    model = build_model(spec.workload, num_classes=10, channels=1, image_size=8).double()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=5e-4)
    step, num_steps = 0, 2 * (data.sizes["train"] // 64)
    for epoch in range(2):
        losses = []
        num_correct = 0
        model.train()
        batches = shuffled_batches(data.sizes["train"], 64, seed=spec.seed, epoch=epoch)
        for images, labels in data.train_batches(batches):
            optimizer.param_groups[0]["lr"] = hyperparameters_at(spec.optimizer, step, num_steps, num_steps // 2).lr
            optimizer.zero_grad()
            logits = model(images.double())
            loss = cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            num_correct += int((logits.argmax(1) == labels).sum())
            step += 1
        assert measured[epoch].train_accuracy == num_correct / (64 * len(losses))
        assert measured[epoch].train_loss == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    for ours, theirs in zip(training.network.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_divergence_ends_the_training_at_once() -> None:
    optimizer = with_settings(OptimizerSpec(), {"lr.peak": 1e8, "decay.weight": 1.0, "lr.schedule": "constant"})
    history = list(train(small(optimizer=optimizer), device=CPU))
    assert [metrics.diverged for metrics in history] == [True]
    assert history[0].gradient_evaluations < 16, "in the middle of the epoch"
    assert history[0].train_loss == float("inf")


def test_a_loss_above_the_bound_is_a_divergence() -> None:
    history = list(train(small(max_loss=1.5), device=CPU))
    assert len(history) == 1 and history[0].diverged


def test_it_stops_at_the_target_only_if_asked() -> None:
    should_continue = list(train(small(targets=(0.11, 0.12)), device=CPU))
    stops = list(train(small(targets=(0.11, 0.12), stop_at_target=True), device=CPU))
    reached = next(metrics.epoch for metrics in should_continue if metrics.validation_accuracy >= 0.12)
    assert len(should_continue) == 3
    assert len(stops) == reached < 3


def test_budget_and_counts() -> None:
    metrics = list(train(small(), device=CPU))
    steps = load_data(WorkloadSpec(), CPU).sizes["train"] // 64
    assert [m.gradient_evaluations for m in metrics] == [steps, 2 * steps, 3 * steps]
    assert {m.budget for m in metrics} == {3 * steps}


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--batch-size 5000: must be at most"):
        next(train(small(workload=WorkloadSpec(batch_size=5000)), device=CPU))


BACKWARD: dict[str, Setting] = {"order.composition": "backward", "lr.schedule": "constant", "lr.peak": 0.05}


def reversed_by_hand(spec: TrialSpec, start: dict[str, Any], numbers: Sequence[int]) -> Trainer:
    """A training put at a state and then through the steps of these numbers, in their order."""
    training = Trainer(spec, CPU)
    training.network.load(start)
    for number in numbers:
        (batch,) = training._batches(range(number, number + 1))
        for images, labels in training.data.train_batches([batch]):
            hyperparameters = hyperparameters_at(spec.optimizer, number, training.num_steps, training.steps_per_epoch)
            training.network.step(number, batch, images, labels, hyperparameters)
    return training


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("sgd", {"momentum.value": 0.9}),
        ("sgd", {"momentum.value": 0.0, "scaling.law": "exponential"}),
        ("lpsgd", {"norm.p_max": 5.0, "average.decay": 0.9}),
    ],
)
def test_each_evaluation_of_a_backward_training_is_a_replay_from_the_start(
    rule: str, settings: dict[str, Setting]
) -> None:
    """Newest batch first, oldest last, buffers and BatchNorm's statistics too; each replay is paid for."""
    spec = small(optimizer=with_settings(OptimizerSpec(), {**BACKWARD, "rule": rule, **settings}), epochs=6)
    training = Trainer(spec, CPU)
    start = training.network.frozen_state()
    num_spent = 0
    for steps in (16, 32, 48):
        metrics = training.train_to_evaluation()
        num_spent += steps
        assert (metrics.steps, metrics.gradient_evaluations) == (steps, num_spent)
        by_hand = reversed_by_hand(spec, start, range(steps - 1, -1, -1))
        for name, tensor in by_hand.network.model.state_dict().items():
            assert torch.equal(tensor, training.network.model.state_dict()[name]), name
    assert num_spent == metrics.budget == 6 * 16 and is_finished(spec, training.history)
    assert training.num_steps == 48, "the length of its schedules"


def test_a_backward_phase_starts_from_the_forward_part_and_its_anchor_moves_with_the_window() -> None:
    optimizer = with_settings(OptimizerSpec(), {**BACKWARD, "order.start": 0.5, "order.window": 24})
    spec = small(optimizer=optimizer, epochs=8)
    training = Trainer(spec, CPU)
    while not is_finished(spec, training.history):
        training.train_to_evaluation()
    done = training.history
    assert [m.gradient_evaluations for m in done] == [16, 32, 48, 64, 80, 128]
    assert [m.steps for m in done] == [16, 32, 48, 64, 80, 112]
    order = [*range(64), *range(87, 63, -1), *range(111, 87, -1)]
    by_hand = reversed_by_hand(spec, Trainer(spec, CPU).network.frozen_state(), order)
    for name, tensor in by_hand.network.model.state_dict().items():
        assert torch.equal(tensor, training.network.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("order", "num_copies"),
    [
        ({"order.composition": "forward"}, 0),
        ({"order.window": 8}, 0),  # two windows an epoch: evaluated at anchors alone
        ({}, 1),
        ({"order.window": 24}, 2),  # iterates inside a block are wanted in two blocks
    ],
)
def test_the_anchor_is_copied_only_where_a_replay_needs_it_again(
    order: dict[str, Setting], num_copies: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory: the network and one copy of its state; the copy of a block that is left behind is let go."""
    spec = small(optimizer=with_settings(OptimizerSpec(), {**BACKWARD, **order}), epochs=6)
    training = Trainer(spec, CPU)
    made: list[weakref.ref[Copy]] = []
    original = training.network.frozen_state

    def counted() -> Copy:
        assert all(copy() is None for copy in made), "two copies at a time"
        copy = Copy(original())
        made.append(weakref.ref(copy))
        return copy

    monkeypatch.setattr(training.network, "frozen_state", counted)
    while not is_finished(spec, training.history):
        training.train_to_evaluation()
    assert len(made) == num_copies


class Copy(dict[str, Any]):
    """A dict that can be referred to weakly."""


ALL_KNOBS: dict[str, Setting] = {
    "rule": "lpsgd",
    "norm.p_max": 6.0,
    "norm.shape": "cosine",
    "momentum.schedule": "hybrid",
    "momentum.rescale": "lr",
    "scaling.law": "gamma",
    "scaling.active": 0.8,
    "average.decay": 0.9,
    "order.composition": "backward",
}


@pytest.mark.parametrize("order", [{"order.window": 24, "order.start": 0.17}, {"order.interval": 2}])
def test_all_knobs_at_once_are_resumed_bit_for_bit_in_the_middle_of_blocks(
    order: dict[str, Setting], tmp_path: Path
) -> None:
    spec = small(optimizer=with_settings(OptimizerSpec(), {**ALL_KNOBS, **order}), epochs=6)
    whole = list(train(spec, device=CPU))
    for num_epochs in range(1, len(whole) + 1):
        torch.manual_seed(num_epochs)
        history = list(itertools.islice(kept(spec, Store(tmp_path / "c")), num_epochs))
    assert numbers(history) == numbers(whole)
    assert newest(spec, tmp_path / "c")["anchor"] is not None
    assert history[-1].lr < 0.02 and history[-1].p == 2.0, "schedules end with the last iterate"


def test_a_divergence_between_anchors_is_of_the_evaluation_it_prevents() -> None:
    optimizer = with_settings(OptimizerSpec(), {**BACKWARD, "order.window": 4})
    training = Trainer(small(optimizer=optimizer), CPU)
    training.train_to_evaluation()
    for group in training.network.optimizer.param_groups:
        for parameter in group["params"]:
            parameter.data.fill_(math.nan)
    metrics = training.train_to_evaluation()
    assert (metrics.epoch, metrics.diverged, metrics.gradient_evaluations, metrics.steps) == (2, True, 17, 17)


def test_a_divergence_in_a_replay_ends_the_training_and_counts_what_was_spent() -> None:
    optimizer = with_settings(OptimizerSpec(), {**BACKWARD, "lr.peak": 1e9, "order.start": 0.0})
    history = list(train(small(optimizer=optimizer), device=CPU))
    assert [m.diverged for m in history] == [True]
    assert history[0].steps == history[0].gradient_evaluations < 16


def test_the_hybrid_switches_at_the_accuracy_and_stays_over_a_resumption(tmp_path: Path) -> None:
    settings: dict[str, Setting] = {
        **SPACES["hybrid"].default_settings(),
        "momentum.switch": "accuracy",
        "momentum.switch_accuracy": 0.12,
        "momentum.value": 0.77,
    }
    spec = small(optimizer=with_settings(OptimizerSpec(), settings), epochs=6)
    history = list(kept(spec, Store(tmp_path / "whole")))
    reached = next(m.epoch for m in history if m.validation_accuracy >= 0.12)
    assert 1 <= reached < 6
    assert [m.epoch for m in history if m.momentum == 0.77] == list(range(reached + 1, 7))
    for _ in range(2):
        resumed = list(itertools.islice(kept(spec, Store(tmp_path / "c")), reached + 1))
    assert numbers(resumed) == numbers(history)[: reached + 1]


def test_curvature_is_estimated_every_few_epochs_and_only_if_asked() -> None:
    spec = small("critical", curvature=2)
    history = list(train(spec, device=CPU))
    tops = [m.curvature_top for m in history]
    assert tops[0] is not None and tops[0] == tops[1] != tops[2]
    for m in history:
        assert m.curvature_top is not None and m.curvature_seconds > 0
        assert m.damping_ratio == damping_ratio(m.lr, m.momentum, m.curvature_top + spec.optimizer.decay.weight)
    without = list(train(small("critical"), device=CPU))
    assert {getattr(m, name) for m in without for name in NEWEST} == {None}
    measured = [{k: v for k, v in line.items() if k not in NEWEST} for line in numbers(history)]
    assert measured == [{k: v for k, v in line.items() if k not in NEWEST} for line in numbers(without)]


NEWEST = ("curvature_top", "curvature_mean", "damping_ratio")


def test_damping_is_told_of_heavy_balls_only() -> None:
    for variant in ("adamw", "lpsgdm", "nesterov"):
        metrics = next(train(small(variant, curvature=1), device=CPU))
        assert metrics.curvature_top is not None and metrics.damping_ratio is None


def test_compiled_agrees_with_eager() -> None:
    eager = next(train(small(precision="float64"), device=CPU))
    compiled, later = itertools.islice(train(small(precision="float64", compile=True), device=CPU), 2)
    assert compiled.train_loss == pytest.approx(eager.train_loss, rel=1e-9)
    assert compiled.validation_loss == pytest.approx(eager.validation_loss, rel=1e-9)
    assert later.compile_seconds == compiled.compile_seconds > 0 and eager.compile_seconds == 0


def test_bfloat16_trains() -> None:
    metrics = list(train(small(precision="bfloat16", epochs=2), device=CPU))
    assert not any(m.diverged for m in metrics)
    exact = list(train(small(epochs=2), device=CPU))
    assert metrics[0].train_loss == pytest.approx(exact[0].train_loss, rel=0.1)
    assert metrics[0].train_loss != exact[0].train_loss


def test_training_needs_neither_ray_nor_optuna_nor_mlflow(tmp_path: Path) -> None:
    """In a Python that refuses to import them, from a spec in a file, as on a machine that has only torch."""
    spec_file = tmp_path / "spec.json"
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "tuner.train",
            "--variant",
            "lpsgdm",
            "--set",
            "epochs=1",
            "lr.peak=0.003",
            "--print-spec",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    spec_file.write_text(made.stdout)
    program = (
        "import sys\n"
        "for name in ('ray', 'optuna', 'mlflow', 'search_spaces', 'tyro', 'rich', 'matplotlib', 'sqlalchemy'):\n"
        "    sys.modules[name] = None\n"
        "from tuner.train.__main__ import main\n"
        f"sys.exit(main(['--spec', {str(spec_file)!r}]))\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "epoch 1  gradient evaluations 16" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variant", "sgdx"], "unknown variant 'sgdx': did you mean 'sgd'?"),
        (["--set", "lr.paek=1"], "unknown parameter 'lr.paek': did you mean 'lr.peak'?"),
        (["--set", "lr.peak=-1"], "lr.peak = -1.0: must be above 0"),
        (["--set", "epochs"], "--set epochs: must be NAME=VALUE"),
        (["--set", "workload.data=digit"], "did you mean 'digits'?"),
        (["--set", "workload.model=resnet9"], "resnet8"),
        (["--spec", "/nowhere.json"], "--spec /nowhere.json"),
        (["--threads", "0"], "--threads 0: must be at least 1"),
        (["--checkpoints", "/dev/null/c"], "--checkpoints /dev/null/c: cannot be written to"),
        (["--checkpoints", "nowhere://c"], "--checkpoints nowhere://c: cannot be written to"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_metrics_are_those_of_the_newest_step_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = with_settings(OptimizerSpec(), {**SPACES["sgdm"].default_settings(), "average.decay": 0.9})
    spec = small(optimizer=optimizer)
    training = Trainer(spec, CPU)
    evaluate, seen = training.network.evaluate, []

    def spy(split: str, newest: Iterable[Batch] = ()) -> tuple[float, float]:
        batches = list(newest)
        seen.append([batch.seed for batch in batches])
        return evaluate(split, batches)

    monkeypatch.setattr(training.network, "evaluate", spy)
    for epoch in range(3):
        metrics = training.train_to_evaluation()
        assert metrics.lr == hyperparameters_at(spec.optimizer, 16 * epoch + 15, 48, 16).lr
    assert seen[-1] == [batch.seed for batch in training._batches(range(16, 48))], "the last 32"


def test_a_validation_loss_that_is_not_finite_is_a_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Trainer(small(curvature=1), CPU)
    monkeypatch.setattr(training.network, "evaluate", lambda *_: (math.inf, 0.1))
    metrics = training.train_to_evaluation()
    assert metrics.diverged and metrics.curvature_seconds == 0 and metrics.curvature_top is None


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    next(kept(small(), Store(tmp_path)))
    (checkpoint,) = tmp_path.iterdir()
    torch.save({**torch.load(checkpoint, weights_only=True), "format": 1}, checkpoint)
    with pytest.raises(InvalidInput, match="another training"):
        next(kept(small(), Store(tmp_path)))
