"""Loss and score: sums over samples that add up to the mean, of classes and of numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from tuner.workloads.task import CLASSIFICATION, Regression

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
    with pytest.raises(ValueError, match=r"outputs of shape \(12, 1\) for labels of shape \(12,\)"):
        Regression(1.0).loss(OUTPUTS[:, None], LABELS)
