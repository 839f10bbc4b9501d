r"""A network's errors on a split, and scores of how much each layer group contributes to their loss.

E is the mean cross-entropy over the misclassified images, and C that over as many correctly classified images, both in
evaluation mode.  The scores of a group with the parameters w and their rows w_r (slices of a tensor's first dimension:
a filter, a neuron, a single element of a vector) are::

    raw          |dE/dw|                                the paper's, up to a normalization that it does not state
    per-element  |dE/dw| / sqrt(number of elements)
    relative     |dE/dw| / |w|
    invariant    sqrt(sum_r |dE/dw_r|^2 |w_r|^2)
    ratio        |dE/dw| / |dC/dw|

If a convolution before BatchNorm and BatchNorm's statistics are multiplied by a number, the network computes the same,
and the gradient is divided by that number.  So ``raw``, ``per-element`` and ``relative`` depend on the size of the
weights as much as on the errors.  ``invariant`` does not change.  ``ratio`` does not change either if all tensors of a
group are multiplied by the same number.

Source: Pasichnyk (2026), arXiv 2603.28921, for gradients on errors alone by layer group.  The forms are ours.
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
"""Number of misclassified images that are kept: those with the largest loss."""

Gradients: TypeAlias = dict[str, Tensor]
"""Name of a parameter -> gradient of a sum of losses."""


@dataclass(frozen=True, slots=True)
class GroupScores:
    """The scores of one layer group."""

    group: LayerGroup
    num_parameters: int
    scores: Mapping[Score, float]
    """Score -> value, at least 0; a ratio is inf if only the errors have a gradient in the group."""


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
    """A network's errors on a split, and the scores of its layer groups."""

    split: str
    classes: tuple[str, ...]
    confusion: NDArray[np.int64]
    """(K, K): number of images by true class (row) and predicted class (column)."""
    num_compared: int
    """Number of correctly classified images in ``ratio``; below the number of errors if most images are errors."""
    groups: tuple[GroupScores, ...]
    """The groups' scores, in the order of the model's definition."""
    examples: tuple[Example, ...]
    """Misclassified images, the largest loss first, at most :data:`NUM_EXAMPLES`."""

    @property
    def num_errors(self) -> int:
        return int(self.confusion.sum() - np.trace(self.confusion))

    def ranking(self, score: Score = DEFAULT_SCORE) -> tuple[GroupScores, ...]:
        """The groups from the largest score to the smallest; equal scores keep the model's order."""
        return tuple(sorted(self.groups, key=lambda scores: -scores.scores[score]))

    def top(self, number: int, score: Score = DEFAULT_SCORE) -> tuple[LayerGroup, ...]:
        """The first ``number`` groups of the ranking."""
        return tuple(scores.group for scores in self.ranking(score)[:number])


def diagnose(network: TrainState, groups: Sequence[LayerGroup], split: str = "validation") -> Diagnosis:
    """Classifies a split and scores the layer groups by the gradients on its errors.

    The errors, and as many correctly classified images, pass through the network once more, forward and backward.  The
    cost is linear in the size of the split and in the number of errors.  Weights, buffers and gradients stay as they
    were.  The correct images are the first of the split; at no time are there more of them than errors so far.

    Raises :class:`InvalidInput` for data without images, if nothing is misclassified, and if the loss on the errors is
    not finite.
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
        # A model may have parameters on which its logits do not depend.
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
    """The quotient; 0/0 is 0, because a group without any gradient has no part in the errors."""
    return numerator / denominator if denominator > 0 else math.inf if numerator > 0 else 0.0


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _rows(tensor: Tensor) -> Tensor:
    """The norm of each slice of the first dimension: (R, ...) -> (R,)."""
    tensor = torch.atleast_1d(tensor)
    return tensor.double().reshape(len(tensor), -1).square().sum(dim=1).sqrt()
