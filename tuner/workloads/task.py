"""What a model's outputs are held against: the loss that is trained, and the score that is called accuracy.

Sums are over samples, so that replicas and batches add up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


class Task(Protocol):
    """Loss and score of outputs (B, ...) for labels (B,)."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean over the samples, with a gradient."""

    def loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor: ...

    def score_sum(self, outputs: Tensor, labels: Tensor) -> Tensor: ...

    def score(self, total: float, num_samples: int) -> float:
        """In [0, 1], from the sum of ``score_sum`` over that many samples."""


@dataclass(frozen=True, slots=True)
class Classification:
    """Logits (B, num_classes) for labels int64: cross-entropy, and the share that is right."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(outputs, labels)

    def loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(outputs, labels, reduction="sum")

    def score_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.argmax(1) == labels).sum()

    def score(self, total: float, num_samples: int) -> float:
        return total / num_samples


@dataclass(frozen=True, slots=True)
class Regression:
    """Predictions (B,) for labels of any float type, with r their difference::

        loss = mean of r^2/2,   score = R^2 = 1 - (mean of r^2) / E y^2,   0 where that is negative

    Labels of mean 0 are meant, of which E y^2 is the variance.  ValueError where the two have not one shape.
    """

    label_square: float
    """E y^2 over the population, not over what is scored; above 0."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return _residuals(outputs, labels).square().mean() / 2

    def loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return _residuals(outputs, labels).double().square().sum() / 2

    def score_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return len(labels) - _residuals(outputs, labels).double().square().sum() / self.label_square

    def score(self, total: float, num_samples: int) -> float:
        # In this order: of NaN, where a training has diverged, max() hands on the first.
        return max(0.0, total / num_samples)


CLASSIFICATION = Classification()


def _residuals(outputs: Tensor, labels: Tensor) -> Tensor:
    if outputs.shape != labels.shape:
        # (B, 1) less (B,) would be (B, B), and trained on without a word.
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} for labels of shape {tuple(labels.shape)}")
    # Autocast's half precision has no digits left for a difference.
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return outputs - labels.to(outputs.dtype)
