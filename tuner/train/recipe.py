"""Recipe: label smoothing, mixup and gradient clipping, by torch's and torchvision's own functions.

Evaluations use none of them.  The reported training loss is the loss that is minimized, with smoothed and mixed labels;
the training score compares the outputs for mixed inputs with the labels of the unmixed ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tuner.core.errors import InvalidInput
from tuner.core.optimizer_spec import RecipeSpec
from tuner.workloads.data import Data
from tuner.workloads.task import Classification


class Recipe:
    """The recipe of a training.

    Raises :class:`InvalidInput` for label smoothing and mixup where the task is no classification.
    """

    def __init__(self, spec: RecipeSpec, data: Data) -> None:
        self.smoothing = spec.label_smoothing or 0.0
        self.clip_norm = spec.clip_norm or 0.0
        self._task = data.task
        self._mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
        for name, value in (("label_smoothing", self.smoothing), ("mixup", spec.mixup)):
            if value and not isinstance(data.task, Classification):
                raise InvalidInput(f"recipe.{name} = {value:g}: must be 0 for a task that is no classification")
        if spec.mixup:
            from torchvision.transforms.v2 import MixUp

            self._mix = MixUp(alpha=spec.mixup, num_classes=data.model_arguments["num_classes"])

    def mix(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels, mixed in pairs if the recipe says so; then the labels are shares of the classes.

        Mixup draws from torch's global generator: seed it first.
        """
        return self._mix(inputs, labels) if self._mix else (inputs, labels)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The mean loss that is minimized; ``labels`` come from :meth:`mix`."""
        if self.smoothing or self._mix:
            return cross_entropy(outputs, labels, label_smoothing=self.smoothing)
        return self._task.loss(outputs, labels)

    def clip(self, parameters: Iterable[nn.Parameter]) -> None:
        """Scales the gradients down to the largest norm."""
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
