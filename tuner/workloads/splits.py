"""The fixed split of a data set into train, validation and test: ours, stratified, the same in every process."""

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
    """Which images a random part of round(fraction * n) of n images takes; fraction in [0, 1].

    Images are laid out by class, in random order within each, and taken at even distances.  So a class of m images
    gives the floor or the ceiling of m * (part's size / n).  Random bits, not shuffles, are drawn: numpy promises
    that its bit generators give the same bits in every release.
    """
    num_images = len(labels)
    num_taken = round(fraction * num_images)
    order = np.lexsort((np.random.PCG64(SPLIT_SEED).random_raw(num_images), labels))
    place = np.arange(num_images, dtype=np.int64)
    mask = np.zeros(num_images, dtype=np.bool_)
    mask[order] = (place + 1) * num_taken // max(num_images, 1) > place * num_taken // max(num_images, 1)
    return mask


def split_off(positions: Positions, labels: Labels, fraction: float) -> tuple[Positions, Positions]:
    """The positions that stay and the stratified fraction of them that leaves; ``labels`` are those of all images."""
    mask = stratified_mask(labels[positions], fraction)
    return positions[~mask], positions[mask]


def where(mask: NDArray[Any]) -> Positions:
    """The positions at which the mask is true."""
    return np.flatnonzero(mask).astype(np.int64)


class SealedSplit(RuntimeError):
    """The test split was asked for before its time: a fault of the program, not of its input."""


def refuse_sealed(split: str, sealed: bool) -> None:
    """Raises :class:`SealedSplit` for the test split while it is sealed."""
    if sealed and split == "test":
        raise SealedSplit("the test split is read once, by confirmed runs that have ended")
