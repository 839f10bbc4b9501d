"""Images that are held on the device as bytes: a batch costs a gather and no copy from the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tuner.order import Batch
from tuner.workloads.augmentation import Augmentation, apply, draw
from tuner.workloads.splits import Labels, Splits, refuse_sealed
from tuner.workloads.task import CLASSIFICATION

EVALUATION_BATCH = 256
"""Least number of images per forward pass in evaluation: a small training batch would waste a GPU."""

WHOLE = slice(None)
"""The ``part`` that selects a whole batch or split."""

ModelArguments: TypeAlias = Mapping[str, int | tuple[int, ...]]
"""What the builder of a model may ask for, by name: :func:`tuner.workloads.models.build_model` lists them."""

STATISTICS_CHUNK = 4096
"""Images that the statistics read at once; this bounds their memory to some tens of MB."""


class ResidentImages:
    """Images of one size on the device; over ``train``, each channel has mean 0 and standard deviation 1."""

    loading_seconds = 0.0
    """Always 0: the data is on the device."""
    task = CLASSIFICATION

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        labels: Labels,
        splits: Splits,
        *,
        classes: tuple[str, ...],
        splits_note: str,
        digest: str,
        augmentation: Augmentation,
        batch_size: int,
        device: torch.device,
        num_skipped: int = 0,
    ) -> None:
        """``pixels`` (N, S, S, C) and ``labels`` (N,) cover all images; ``splits`` assigns them to the splits.

        On the CPU the pixels are not copied, so processes that map one file share its memory.
        """
        self.sealed = True
        self.classes = classes
        self.num_classes = len(classes)
        self.image_size = pixels.shape[1]
        self.channels = pixels.shape[3]
        self.chance = 1 / self.num_classes
        self.model_arguments = image_arguments(
            self.num_classes, self.num_classes, channels=self.channels, side=self.image_size
        )
        self.sizes = {name: len(positions) for name, positions in splits.items()}
        self.splits_note = splits_note
        self.digest = digest
        self.num_skipped = num_skipped
        self._augmentation = augmentation
        self._evaluation_batch = max(batch_size, EVALUATION_BATCH)
        self._device = device
        self._pixels = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
        self._labels = torch.from_numpy(labels).to(device)
        self._positions = {name: torch.from_numpy(positions).to(device) for name, positions in splits.items()}
        mean, deviation = channel_statistics(
            self._pixels[part] for part in torch.split(self._positions["train"], STATISTICS_CHUNK)
        )
        self.mean, self.deviation = mean.to(device), deviation.to(device)

    def train_batches(self, batches: Iterable[Batch], part: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, C, S, S), float32, channels_last, and labels (B,), int64, in the order of the batches.

        The same batch gives the same bits at every call.  A ``part`` of a batch has the same bits as in the whole.
        """
        for batch in batches:
            draws = draw(len(batch.indices), self._augmentation, seed=batch.seed)
            # One small copy, for which the host does not wait.
            numbers = torch.cat([batch.indices[None], draws])[:, part].to(self._device, non_blocking=True)
            positions = self._positions["train"][numbers[0]]
            images = apply(self._pixels[positions], numbers[1:], self._augmentation)
            yield normalize(images, self.mean, self.deviation), self._labels[positions]

    def evaluation_batches(self, split: str, part: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole split, or a ``part`` of it, in order, without augmentation; the last batch may be short.

        Raises :class:`SealedSplit` for the test split of sealed data.
        """
        refuse_sealed(split, self.sealed)
        for positions in torch.split(self._positions[split][part], self._evaluation_batch):
            yield normalize(self._pixels[positions], self.mean, self.deviation), self._labels[positions]


def image_arguments(num_classes: int | None, num_outputs: int | None, *, channels: int, side: int) -> ModelArguments:
    """The arguments of models of images, without those that are not known."""
    counts = {"num_classes": num_classes, "num_outputs": num_outputs}
    known: dict[str, int | tuple[int, ...]] = {name: n for name, n in counts.items() if n is not None}
    return {**known, "input_shape": (channels, side, side), "channels": channels, "image_size": side}


def normalize(images: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """(images - mean) / deviation as float32 in channels_last: images uint8 (B, C, H, W), the others (C, 1, 1)."""
    return images.to(torch.float32, memory_format=torch.channels_last).sub_(mean).div_(deviation)


def channel_statistics(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over uint8 chunks (B, C, H, W): float32 (C, 1, 1), on the CPU.

    The values are counted, so every device gives the same bits.  A constant channel gets the deviation 1 in place
    of 0.
    """
    counts = torch.zeros((), dtype=torch.int64)
    for chunk in chunks:
        counts = counts + torch.stack([torch.bincount(part.flatten(), minlength=256) for part in chunk.unbind(1)]).cpu()
    values = torch.arange(256, dtype=torch.float64)
    weights = counts / counts.sum(dim=1, keepdim=True, dtype=torch.float64)
    mean = (weights * values).sum(dim=1)
    deviation = (weights * (values - mean[:, None]).square()).sum(dim=1).sqrt()
    deviation = torch.where(deviation == 0, 1.0, deviation)
    return mean.float()[:, None, None], deviation.float()[:, None, None]
