"""Random crops and flips of a whole batch on its device: a fixed number of tensor operations, no loop over images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Augmentation:
    """The random changes of a training image: "4 pixels are padded on each side, and a random crop is sampled from the
    padded image or its horizontal flip" (He et al., arXiv 1512.03385, section 4.2, for CIFAR).
    """

    padding: int = 0
    """Black pixels added on each side before a crop of the former size, at least 0."""
    flip: bool = False
    """Mirror left and right with probability 1/2."""


def draw(batch: int, augmentation: Augmentation, *, seed: int) -> Tensor:
    """Row offset, column offset and flip of each image: int64, shape (3, batch), on the CPU.

    Offsets are uniform in [0, 2 padding], flips in {0, 1}.  The draws depend only on the arguments.
    """
    # A generator on the CPU gives the same draws whatever the device, and needs no kernel launches.
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.randint(2 * augmentation.padding + 1, (2, batch), generator=generator)
    flips = torch.randint(1 + augmentation.flip, (1, batch), generator=generator)
    return torch.cat([offsets, flips])


def apply(images: Tensor, draws: Tensor, augmentation: Augmentation) -> Tensor:
    """The augmented batch: images (B, C, H, W) of any dtype, draws (3, B) on the same device -> (B, C, H, W)."""
    height, width = images.shape[2:]
    rows, columns, flips = draws
    if augmentation.padding > 0:
        padded = F.pad(images, (augmentation.padding,) * 4)
        # A view of every possible crop, (B, C, rows, columns, H, W): only the chosen crops are copied.
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        images = crops[torch.arange(len(images), device=images.device), :, rows, columns]
    if augmentation.flip:
        images = torch.where(flips.bool()[:, None, None, None], images.flip(3), images)
    return images
