"""Loss and score of a model's outputs: the loss is minimized, the score is reported under the task's name.

Sums are over samples, so the sums of replicas and of batches add up.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tuner.core.errors import InvalidInput
from tuner.core.metrics import ACCURACY, R_SQUARED

NAME = re.compile(r"[\w^@+%()/.-][\w ^@+%()/.-]{0,29}")
"""Names of scores, which head columns of tables and name axes: no character that markup or formulas use."""


class Task(Protocol):
    """Loss and score of outputs (B, ...) for labels (B, ...)."""

    @property
    def name(self) -> str:
        """Name of the score."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean over the samples, with a gradient."""

    def loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor: ...

    def score_sum(self, outputs: Tensor, labels: Tensor) -> Tensor: ...

    def score(self, total: float, num_samples: int) -> float:
        """The score in [0, 1], from the total of ``score_sum`` over ``num_samples`` samples."""


@dataclass(frozen=True, slots=True)
class Classification:
    """Logits (B, num_classes, ...) and int64 labels (B, ...), with any further dimensions, which are equal.

    The loss is the cross-entropy, the score the share of the labels that are predicted.  Both are means over all
    labels.  The order of dimensions is that of :func:`torch.nn.functional.cross_entropy`.  Raises
    :class:`InvalidInput` for other shapes.
    """

    name = ACCURACY

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(_require_logits(outputs, labels), labels)

    def loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(_require_logits(outputs, labels), labels, reduction="sum") / _num_components(labels)

    def score_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        correct = (_require_logits(outputs, labels).argmax(1) == labels).sum()
        return correct if labels.ndim == 1 else correct.double() / _num_components(labels)

    def score(self, total: float, num_samples: int) -> float:
        return total / num_samples


@dataclass(frozen=True, slots=True)
class Regression:
    """Predictions (B, ...) and labels y (B, ...) of any float type and of one shape; r is their difference::

        loss = mean of r^2/2,   score = R^2 = 1 - (mean of r^2) / variance, or 0 if that is negative

    The means are over samples and components.  Raises :class:`InvalidInput` if the shapes differ.
    """

    label_variance: float
    """Mean over samples and components of (y - mean of the component)^2, above 0.

    It is that of the population or of the training split, not of the scored samples.
    """

    name = R_SQUARED

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return _residuals(outputs, labels).square().mean() / 2

    def loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return _residuals(outputs, labels).double().square().sum() / (2 * _num_components(labels))

    def score_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        squares = _residuals(outputs, labels).double().square().sum()
        return len(labels) - squares / (self.label_variance * _num_components(labels))

    def score(self, total: float, num_samples: int) -> float:
        # In this order, since max() returns its first argument if the second is NaN, as in a diverged training.
        return max(0.0, total / num_samples)


class OwnTask(Protocol):
    """A task of the user's own."""

    @property
    def name(self) -> str:
        """Name of the score, which tables and pictures show."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Mean over the samples of a batch, with a gradient; a tensor without dimensions."""

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor | float:
        """Mean over the samples of a batch, in [0, 1]; larger is better.  Outputs are float32 at least."""


@dataclass(frozen=True, slots=True)
class AdaptedTask:
    """A user's own task as a training uses it: the means of batches, weighted by their sizes."""

    given: OwnTask

    @property
    def name(self) -> str:
        return self.given.name

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.given.loss(outputs, labels)

    def loss_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.given.loss(outputs, labels).double() * len(labels)

    def score_sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The batch's score times its size: inf if the score is outside [0, 1], NaN if an output is not finite."""
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        score = torch.as_tensor(self.given.score(outputs, labels), dtype=torch.float64, device=outputs.device)
        # Compared on the device, for which the host would have to wait at each step.
        outside = torch.where(torch.isfinite(outputs).all(), math.inf, math.nan).double()
        return torch.where((score >= 0) & (score <= 1), score, outside) * len(labels)

    def score(self, total: float, num_samples: int) -> float:
        """Raises :class:`InvalidInput` if the score of a batch with finite outputs was outside [0, 1]."""
        if math.isinf(total):
            raise InvalidInput(f"the score {self.name!r} of a batch is outside [0, 1]: it must be a mean in [0, 1]")
        return 0.0 if math.isnan(total) else total / num_samples


CLASSIFICATION = Classification()


def adapted(given: Any) -> AdaptedTask:
    """A user's own task.  Raises :class:`InvalidInput` if it lacks a part or its name cannot be shown."""
    for part in ("name", "loss", "score"):
        if not hasattr(given, part):
            shown = repr(given) if isinstance(given, str) else f"a {type(given).__name__} without {part!r}"
            raise InvalidInput(
                f"task is {shown}: must be 'classification', 'regression' or an object with name, loss and score"
            )
    name = given.name
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise InvalidInput(f"the task's name is {name!r}: must name its score in at most 30 plain characters")
    return AdaptedTask(given)


def _num_components(labels: Tensor) -> int:
    return math.prod(labels.shape[1:])


def _require_logits(outputs: Tensor, labels: Tensor) -> Tensor:
    if outputs.ndim != labels.ndim + 1 or (len(outputs), *outputs.shape[2:]) != labels.shape:
        raise InvalidInput(
            f"outputs of shape {tuple(outputs.shape)} for labels of shape {tuple(labels.shape)}: classification needs "
            "outputs (B, classes, ...) for labels (B, ...), so (B, T, classes) has to be transposed"
        )
    return outputs


def _residuals(outputs: Tensor, labels: Tensor) -> Tensor:
    if outputs.shape != labels.shape:
        # (B, 1) - (B,) would be (B, B) without an error.
        raise InvalidInput(
            f"outputs of shape {tuple(outputs.shape)} for labels of shape {tuple(labels.shape)}: regression needs one "
            "shape, as [:, None] and squeeze(1) make it"
        )
    # Autocast's half precision has too few digits for a difference.
    outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
    return outputs - labels.to(outputs.dtype)
