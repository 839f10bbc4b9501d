"""Which batches are taken, and in which order.

A batch is named by its image indices and a seed, never by its pixels, so that taking it again gives the same images
with the same augmentation and the same dropout masks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """One gradient evaluation's data."""

    indices: Tensor
    """Positions in the training split, int64, shape (batch,), on the CPU."""
    seed: int
    """Seeds everything random about the batch: augmentation, dropout."""


def shuffled_batches(num_images: int, batch_size: int, *, seed: int, epoch: int) -> list[Batch]:
    """The batches of one epoch (counted from 0): a fresh permutation, cut; a short last batch is left out.

    They depend on nothing but the arguments, so a resumed training needs no generator state.
    """
    words = torch.Generator().manual_seed(seed)
    epoch_seed = int(torch.randint(2**62, (epoch + 1,), generator=words)[epoch])
    generator = torch.Generator().manual_seed(epoch_seed)
    permutation = torch.randperm(num_images, generator=generator)
    num_steps = num_images // batch_size
    seeds = torch.randint(2**62, (num_steps,), generator=generator).tolist()
    return [
        Batch(indices, batch_seed)
        for indices, batch_seed in zip(permutation[: num_steps * batch_size].split(batch_size), seeds, strict=True)
    ]
