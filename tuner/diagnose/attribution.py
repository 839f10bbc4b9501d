r"""A network's errors on a split, and how much each layer group would have to do with their loss.

With the mean cross-entropy E over the misclassified images, C over as many correctly classified ones, in evaluation
mode, and for a group of parameters w with rows w_r (slices of a tensor's first dimension: a filter, a neuron, a single
element of a vector)::

    raw          |dE/dw|                                the paper's, up to the normalization that it does not tell
    per-element  |dE/dw| / sqrt(number of elements)
    relative     |dE/dw| / |w|
    invariant    sqrt(sum_r |dE/dw_r|^2 |w_r|^2)
    ratio        |dE/dw| / |dC/dw|

A convolution before BatchNorm can be multiplied by any number, the statistics with it, and the network computes the
same; the gradient is then divided by it.  So ``raw``, ``per-element`` and ``relative`` say as much of the weights' size
as of the errors; ``invariant`` does not change, nor does ``ratio`` where all of a group's tensors are so multiplied.
Source: Pasichnyk (2026), arXiv 2603.28921, for gradients on errors alone by layer group; the forms are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from tuner.core.errors import InvalidInput
from tuner.diagnose.layer_groups import LayerGroup
from tuner.train.train_state import TrainState
from tuner.workloads.data import require_images

Score: TypeAlias = Literal["raw", "per-element", "relative", "invariant", "ratio"]
SCORES: tuple[Score, ...] = get_args(Score)
DEFAULT_SCORE: Score = "invariant"
NUM_EXAMPLES = 12
"""Misclassified images that are kept, those of the largest loss."""

Gradients: TypeAlias = dict[str, Tensor]
"""Parameter -> gradient of a sum of losses."""


@dataclass(frozen=True, slots=True)
class GroupScores:
    """One layer group."""

    group: LayerGroup
    num_parameters: int
    scores: Mapping[Score, float]
    """At least 0; a ratio is inf where nothing but errors moves the group."""


@dataclass(frozen=True, slots=True)
class Example:
    """A misclassified image."""

    image: Tensor
    """(C, S, S), normalized, on the CPU."""
    label: int
    predicted: int
    loss: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a network gets wrong on a split, and its layer groups."""

    split: str
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    """(K, K): images by class and by the class that they are taken for."""
    num_compared: int
    """Correctly classified images that the ratio is to; fewer than the errors where most images are errors."""
    groups: tuple[GroupScores, ...]
    """In the order of the model's definition."""
    examples: tuple[Example, ...]

    @property
    def num_errors(self) -> int:
        return int(self.confusion.sum() - np.trace(self.confusion))

    def ranking(self, score: Score = DEFAULT_SCORE) -> tuple[GroupScores, ...]:
        """The groups from the largest score to the smallest; of equals the first in the model."""
        return tuple(sorted(self.groups, key=lambda scores: -scores.scores[score]))

    def top(self, number: int, score: Score = DEFAULT_SCORE) -> tuple[LayerGroup, ...]:
        """The groups that rank first."""
        return tuple(scores.group for scores in self.ranking(score)[:number])


def diagnose(network: TrainState, groups: Sequence[LayerGroup], split: str = "validation") -> Diagnosis:
    """Classifies a split and sends the errors, and as many correctly classified images, through the network once more,
    forward and backward: linear in both.  Leaves weights, buffers and gradients as they were.

    The correct images are the first ones that come, no more at any time than there have been errors.
    Raises :class:`InvalidInput` for data without images, and where nothing is misclassified or a loss is not finite.
    """
    model, parameters = network.model, dict(network.model.named_parameters())
    data = require_images(network.data)
    num_classes = data.num_classes
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    wrong, right = ({name: torch.zeros_like(tensor) for name, tensor in parameters.items()} for _ in range(2))
    num_wrong = num_right = 0
    examples: list[Example] = []
    was_training = model.training
    model.eval()
    for images, labels in data.evaluation_batches(split):
        with torch.no_grad():
            predicted = network.logits(images).argmax(1)
        confusion.view(-1).index_add_(
            0, (labels * num_classes + predicted).cpu(), torch.ones(len(labels), dtype=torch.int64)
        )
        is_wrong = predicted != labels
        num_wrong += int(is_wrong.sum())
        losses = _add_gradients(wrong, network, images[is_wrong], labels[is_wrong])
        compared = (~is_wrong).nonzero()[: num_wrong - num_right, 0]
        num_right += len(compared)
        _add_gradients(right, network, images[compared], labels[compared])
        found = zip(images[is_wrong].cpu(), labels[is_wrong], predicted[is_wrong], losses, strict=True)
        examples += [Example(image, int(label), int(taken), float(loss)) for image, label, taken, loss in found]
        examples = sorted(examples, key=lambda example: -example.loss)[:NUM_EXAMPLES]
    model.train(was_training)
    if num_wrong == 0:
        raise InvalidInput(f"no image of the {split} split is misclassified: there is no error to diagnose")
    if not all(bool(torch.isfinite(gradient).all()) for gradient in wrong.values()):
        raise InvalidInput(f"the loss on the errors of the {split} split is not finite: the training diverged")
    scored = tuple(
        GroupScores(
            group,
            sum(parameters[name].numel() for name in group.parameters),
            _scores(group, parameters, wrong, right, num_wrong, max(num_right, 1)),
        )
        for group in groups
    )
    return Diagnosis(split, data.classes, confusion.numpy(), num_right, scored, tuple(examples))


def _add_gradients(total: Gradients, network: TrainState, images: Tensor, labels: Tensor) -> Tensor:
    """Adds the gradient of the sum of the images' losses, and returns the losses."""
    if len(images) == 0:
        return torch.zeros(0)
    parameters = dict(network.model.named_parameters())
    with torch.enable_grad():
        losses = cross_entropy(network.logits(images), labels, reduction="none")
        # Unused: a model may have parameters that its logits do not depend on.
        gradients = torch.autograd.grad(losses.sum(), list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            total[name] += gradient
    return losses.detach()


def _scores(
    group: LayerGroup,
    parameters: Mapping[str, Tensor],
    wrong: Gradients,
    right: Gradients,
    num_wrong: int,
    num_right: int,
) -> dict[Score, float]:
    errors = _norm(wrong[name] / num_wrong for name in group.parameters)
    correct = _norm(right[name] / num_right for name in group.parameters)
    weights = _norm(parameters[name].detach() for name in group.parameters)
    num_elements = sum(parameters[name].numel() for name in group.parameters)
    invariant = _norm(_rows(wrong[name] / num_wrong) * _rows(parameters[name].detach()) for name in group.parameters)
    return {
        "raw": errors,
        "per-element": errors / math.sqrt(num_elements),
        "relative": _over(errors, weights),
        "invariant": invariant,
        "ratio": _over(errors, correct),
    }


def _over(numerator: float, denominator: float) -> float:
    """0 of 0: what nothing moves has no part in the errors."""
    return numerator / denominator if denominator > 0 else math.inf if numerator > 0 else 0.0


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _rows(tensor: Tensor) -> Tensor:
    """Norms of the slices of the first dimension: (R, ...) -> (R,)."""
    tensor = torch.atleast_1d(tensor)
    return tensor.double().reshape(len(tensor), -1).square().sum(dim=1).sqrt()
