"""Loss and score of a model's outputs: the loss is minimized, the score is reported as accuracy.

Sums are over samples, so the sums of replicas and of batches add up.
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
        """The score in [0, 1], from the total of ``score_sum`` over ``num_samples`` samples."""


@dataclass(frozen=True, slots=True)
class Classification:
    """Logits (B, num_classes) and int64 labels: the loss is the cross-entropy, the score the share that is correct."""

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
    """Predictions (B,) and labels y (B,) of any float type; r is their difference::

        loss = mean of r^2/2,   score = R^2 = 1 - (mean of r^2) / E y^2, or 0 if that is negative

    The labels are assumed to have mean 0, so E y^2 is their variance.  Raises ValueError if the shapes differ.
    """

    label_square: float
    """E y^2 over the population, not over the scored samples; above 0."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return _residuals(outputs, labels).square().mean() / 2

    def loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return _residuals(outputs, labels).double().square().sum() / 2

    def score_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return len(labels) - _residuals(outputs, labels).double().square().sum() / self.label_square

    def score(self, total: float, num_samples: int) -> float:
        # In this order, since max() returns its first argument if the second is NaN, as in a diverged training.
        return max(0.0, total / num_samples)


CLASSIFICATION = Classification()


def _residuals(outputs: Tensor, labels: Tensor) -> Tensor:
    if outputs.shape != labels.shape:
        # (B, 1) - (B,) would be (B, B) without an error.
        raise ValueError(f"outputs of shape {tuple(outputs.shape)} for labels of shape {tuple(labels.shape)}")
    # Autocast's half precision has too few digits for a difference.
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return outputs - labels.to(outputs.dtype)
