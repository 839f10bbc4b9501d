"""The fixed split of a data set into train, validation and test: stratified, the same in every process (ours)."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Labels: TypeAlias = NDArray[np.int64]
Positions: TypeAlias = NDArray[np.int64]
Splits: TypeAlias = dict[str, Positions]
"""``train``, ``validation``, ``test`` -> positions in the whole data set, increasing."""

SPLIT_SEED = 0
"""Not a setting: all trials of all studies must be measured on the same images, whatever their own seeds."""


def stratified_mask(labels: Labels, fraction: float) -> NDArray[np.bool_]:
    """A mask over n images that selects round(fraction * n) of them at random; ``fraction`` is in [0, 1].

    Images are sorted by class, in random order within each class, and taken at even distances.  So a class of m images
    contributes the floor or the ceiling of m * (part's size / n).  The order comes from random bits, not from a
    shuffle: numpy promises that its bit generators give the same bits in every release.
    """
    num_images = len(labels)
    num_taken = round(fraction * num_images)
    order = np.lexsort((np.random.PCG64(SPLIT_SEED).random_raw(num_images), labels))
    place = np.arange(num_images, dtype=np.int64)
    mask = np.zeros(num_images, dtype=np.bool_)
    mask[order] = (place + 1) * num_taken // max(num_images, 1) > place * num_taken // max(num_images, 1)
    return mask


def split_off(positions: Positions, labels: Labels, fraction: float) -> tuple[Positions, Positions]:
    """The positions that stay, and a stratified fraction that is split off; ``labels`` are those of all images."""
    mask = stratified_mask(labels[positions], fraction)
    return positions[~mask], positions[mask]


def where(mask: NDArray[Any]) -> Positions:
    """The positions at which the mask is true."""
    return np.flatnonzero(mask).astype(np.int64)


class SealedSplit(RuntimeError):
    """The test split was read while sealed: an error in the program, not in its input."""


def refuse_sealed(split: str, sealed: bool) -> None:
    """Raises :class:`SealedSplit` for the test split while it is sealed."""
    if sealed and split == "test":
        raise SealedSplit("the test split is read once, by confirmed runs that have ended")
