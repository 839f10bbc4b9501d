"""A user's own data in a training: tensors on the device if they fit there, else on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tuner.order import Batch
from tuner.workloads.decoding import RESIDENT_FRACTION
from tuner.workloads.images import EVALUATION_BATCH, WHOLE, ModelArguments, image_arguments
from tuner.workloads.own_data import OwnData
from tuner.workloads.splits import refuse_sealed
from tuner.workloads.task import CLASSIFICATION


class OwnSamples:
    """The samples as the user's function returned them: without augmentation and normalization."""

    loading_seconds = 0.0
    num_skipped = 0

    def __init__(self, own: OwnData, *, splits_note: str, batch_size: int, device: torch.device, free: int) -> None:
        """``free`` is the number of free bytes on the device."""
        self.sealed = True
        self.sizes = {name: len(labels) for name, (_, labels) in own.splits.items()}
        self.splits_note = splits_note
        self.digest = own.digest
        self.task = own.task
        self.chance = 1 / own.num_classes if own.task is CLASSIFICATION and own.num_classes else 0.0
        self.model_arguments = _model_arguments(own)
        self._format = torch.channels_last if "image_size" in self.model_arguments else torch.contiguous_format
        self._device = device
        self._home = device if own.num_bytes <= RESIDENT_FRACTION * free else torch.device("cpu")
        self._splits = {name: (x.to(self._home), y.to(self._home)) for name, (x, y) in own.splits.items()}
        # A small training batch would waste a GPU, and many large samples would not fit.
        self._evaluation_batch = max(batch_size, min(EVALUATION_BATCH, own.rows_at_once))

    def train_batches(self, batches: Iterable[Batch], part: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (B, ...) and labels (B, ...) in the order of the batches, images in channels_last.

        A batch is its indices alone, so it has the same bits at every call, and a ``part`` those of the whole.
        """
        inputs, labels = self._splits["train"]
        for batch in batches:
            positions = batch.indices[part].to(self._home, non_blocking=True)
            yield self._placed(inputs[positions]), labels[positions].to(self._device)

    def evaluation_batches(self, split: str, part: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole split, or a ``part`` of it, in order; the last batch may be short.

        Raises :class:`SealedSplit` for the test split of sealed data.
        """
        refuse_sealed(split, self.sealed)
        inputs, labels = (values[part] for values in self._splits[split])
        for first in range(0, len(labels), self._evaluation_batch):
            rows = slice(first, first + self._evaluation_batch)
            # Copies: a model that works in place must not change the data.
            yield self._placed(inputs[rows].clone()), labels[rows].clone().to(self._device)

    def _placed(self, inputs: Tensor) -> Tensor:
        return inputs.to(self._device).contiguous(memory_format=self._format)


def _model_arguments(own: OwnData) -> ModelArguments:
    inputs, _ = own.splits["train"]
    shape = own.input_shape
    if len(shape) == 3 and shape[1] == shape[2] and inputs.is_floating_point():
        return image_arguments(own.num_classes, own.num_outputs, channels=shape[0], side=shape[1])
    known = {"num_classes": own.num_classes, "num_outputs": own.num_outputs, "input_shape": shape}
    return {name: value for name, value in known.items() if value is not None}
