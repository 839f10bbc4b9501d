"""Crops and flips of a batch against the same done image by image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tuner.workloads.augmentation import Augmentation, apply, draw


def naive(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Each image put into a black frame, cut out at its offset, and mirrored where told."""
    batch, channels, height, width = images.shape
    result = torch.zeros_like(images)
    for image in range(batch):
        row, column, flip = draws[:, image].tolist()
        for channel in range(channels):
            for y in range(height):
                for x in range(width):
                    source_y = y + row - padding
                    source_x = (width - 1 - x if flip else x) + column - padding
                    if 0 <= source_y < height and 0 <= source_x < width:
                        result[image, channel, y, x] = images[image, channel, source_y, source_x]
    return result


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(padding=1), Augmentation(padding=2, flip=True)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_batch_is_what_its_images_are(
    augmentation: Augmentation, channels: int, memory_format: torch.memory_format
) -> None:
    images = torch.randint(1, 256, (6, channels, 5, 7), dtype=torch.uint8).to(memory_format=memory_format)
    draws = draw(6, augmentation, seed=3)
    assert torch.equal(apply(images, draws, augmentation), naive(images, draws, augmentation.padding))


def test_draws_are_a_function_of_the_seed() -> None:
    augmentation = Augmentation(padding=4, flip=True)
    first = draw(64, augmentation, seed=2**62 - 1)
    torch.rand(3)
    assert torch.equal(first, draw(64, augmentation, seed=2**62 - 1))
    assert not torch.equal(first, draw(64, augmentation, seed=2**62 - 2))


def test_draws_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draw(64, Augmentation(padding=4, flip=True), seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_all_offsets_and_both_sides_are_drawn_alike() -> None:
    count = 90_000
    rows, columns, flips = draw(count, Augmentation(padding=4, flip=True), seed=0)
    for values, kinds in ((rows, 9), (columns, 9), (flips, 2)):
        frequencies = torch.bincount(values, minlength=kinds) / count
        assert len(frequencies) == kinds
        # Five standard deviations of a binomial frequency.
        assert (frequencies - 1 / kinds).abs().max() < 5 * (1 / kinds * (1 - 1 / kinds) / count) ** 0.5
    assert torch.corrcoef(torch.stack([rows, columns, flips]).double()).triu(1).abs().max() < 5 / count**0.5


def test_without_augmentation_nothing_changes() -> None:
    assert not draw(5, Augmentation(), seed=0).any()
