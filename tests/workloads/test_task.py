"""Loss and score: sums over samples that add up to the mean, of classes and of numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from tests.own_workloads import Margin
from tuner.core.errors import InvalidInput
from tuner.workloads.task import CLASSIFICATION, Regression, adapted

GENERATOR = torch.Generator().manual_seed(0)
LOGITS, CLASSES = torch.randn(12, 5, generator=GENERATOR), torch.randint(5, (12,), generator=GENERATOR)
OUTPUTS, LABELS = torch.randn(2, 12, generator=GENERATOR, dtype=torch.float64)


def test_classes_are_scored_by_cross_entropy_and_the_share_that_is_right() -> None:
    assert torch.equal(CLASSIFICATION.loss(LOGITS, CLASSES), cross_entropy(LOGITS, CLASSES))
    assert torch.equal(CLASSIFICATION.loss_sum(LOGITS, CLASSES), cross_entropy(LOGITS, CLASSES, reduction="sum"))
    right = CLASSIFICATION.score_sum(LOGITS, CLASSES)
    assert right.dtype == torch.int64 and int(right) == sum(
        int(row.argmax()) == int(label) for row, label in zip(LOGITS, CLASSES, strict=True)
    )
    assert CLASSIFICATION.score(9.0, 12) == 0.75


def test_numbers_are_scored_by_half_the_square_and_r_squared() -> None:
    task, squares = Regression(2.5), (OUTPUTS - LABELS).square()
    assert float(task.loss(OUTPUTS, LABELS)) == pytest.approx(float(squares.mean()) / 2, rel=1e-14)
    assert float(task.loss_sum(OUTPUTS, LABELS)) == pytest.approx(float(squares.sum()) / 2, rel=1e-14)
    assert float(task.score_sum(OUTPUTS, LABELS)) == pytest.approx(12 - float(squares.sum()) / 2.5, rel=1e-14)
    parts = [task.score_sum(OUTPUTS[part], LABELS[part]) for part in (slice(0, 5), slice(5, 12))]
    assert float(sum(parts)) == pytest.approx(float(task.score_sum(OUTPUTS, LABELS)), rel=1e-14)


def test_the_mean_is_clipped_and_no_sample() -> None:
    task = Regression(1.0)
    bad, good = torch.tensor([2.0, 0.0]), torch.zeros(2)
    assert float(task.score_sum(bad, torch.zeros(2))) == -2, "one sample is worth -3, and is not taken for 0"
    assert task.score(-2.0, 2) == 0
    assert task.score(float(task.score_sum(good, torch.zeros(2))), 2) == 1
    assert task.score(math.nan, 2) == 0 and task.score(-math.inf, 2) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_labels_take_the_precision_of_the_outputs_and_of_half_precision_float32(dtype: torch.dtype) -> None:
    outputs = OUTPUTS.to(dtype)
    loss = Regression(1.0).loss(outputs, LABELS)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    tolerance = 1e-14 if dtype == torch.float64 else 1e-6
    assert float(loss) == pytest.approx(float((outputs.double() - LABELS).square().mean()) / 2, rel=tolerance)


def test_predictions_of_another_shape_than_the_labels_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"outputs of shape \(12, 1\) for labels of shape \(12,\)"):
        Regression(1.0).loss(OUTPUTS[:, None], LABELS)
    with pytest.raises(InvalidInput, match=r"outputs of shape \(12,\) for labels of shape \(12, 1\)"):
        Regression(1.0).score_sum(OUTPUTS, LABELS[:, None])


def test_vectors_count_as_the_mean_over_their_components() -> None:
    outputs, labels = torch.randn(2, 12, 3, generator=GENERATOR, dtype=torch.float64)
    task, squares = Regression(25.0), (outputs - labels).square()
    assert float(task.loss(outputs, labels)) == pytest.approx(float(squares.mean()) / 2, rel=1e-14)
    assert float(task.loss_sum(outputs, labels)) == pytest.approx(12 * float(squares.mean()) / 2, rel=1e-14)
    score = task.score(float(task.score_sum(outputs, labels)), 12)
    assert score == pytest.approx(1 - float(squares.mean()) / 25, rel=1e-14)


@pytest.mark.parametrize("shape", [(4,), (4, 2)])
def test_classes_of_several_positions_count_as_the_mean_over_them(shape: tuple[int, ...]) -> None:
    logits, classes = torch.randn(12, 5, *shape, generator=GENERATOR), torch.randint(5, (12, *shape))
    # As if each position were a sample.
    flat = logits.movedim(1, -1).reshape(-1, 5), classes.flatten()
    assert float(CLASSIFICATION.loss(logits, classes)) == pytest.approx(float(cross_entropy(*flat)), rel=1e-6)
    assert float(CLASSIFICATION.loss_sum(logits, classes)) == pytest.approx(12 * float(cross_entropy(*flat)), rel=1e-6)
    score = CLASSIFICATION.score(float(CLASSIFICATION.score_sum(logits, classes)), 12)
    assert score == pytest.approx(float((flat[0].argmax(1) == flat[1]).double().mean()), rel=1e-12)
    with pytest.raises(InvalidInput, match=r"needs outputs \(B, classes, ...\) for labels \(B, ...\)"):
        CLASSIFICATION.loss(logits.movedim(1, -1), classes)


def test_logits_beside_labels_of_another_rank_are_refused() -> None:
    for outputs, labels in ((LOGITS, CLASSES[:, None]), (LOGITS[:, 0], CLASSES), (LOGITS[:11], CLASSES)):
        with pytest.raises(InvalidInput, match="outputs of shape"):
            CLASSIFICATION.score_sum(outputs, labels)


SIGNS = LABELS.sign()


def test_a_task_of_ones_own_weights_batches_by_their_sizes() -> None:
    task = adapted(Margin())
    right = int((OUTPUTS * SIGNS > 0).sum())
    parts = [slice(0, 5), slice(5, 12)]
    assert task.name == "share on the right side"
    scores = [task.score_sum(OUTPUTS[part], SIGNS[part]) for part in parts]
    assert task.score(float(sum(scores)), 12) == pytest.approx(right / 12, rel=1e-6)
    losses = [float(task.loss_sum(OUTPUTS[part], SIGNS[part])) for part in parts]
    assert sum(losses) == pytest.approx(12 * float(task.loss(OUTPUTS, SIGNS)), rel=1e-12)


@pytest.mark.parametrize("wrong", [1.5, -0.1, math.nan, math.inf])
def test_a_score_outside_its_range_is_refused_and_a_divergence_is_none(wrong: float) -> None:
    class Wrong(Margin):
        def score(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return torch.tensor(wrong)

    task = adapted(Wrong())
    with pytest.raises(InvalidInput, match="'share on the right side' of a batch is outside"):
        task.score(float(task.score_sum(OUTPUTS, SIGNS) + 3), 24)
    assert task.score(float(task.score_sum(OUTPUTS * math.nan, SIGNS)), 12) == 0
