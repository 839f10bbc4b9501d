"""Data by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor

from tuner.core.errors import InvalidInput, unknown
from tuner.core.trial_spec import WorkloadSpec, is_own
from tuner.order import Batch
from tuner.workloads import decoding, folders
from tuner.workloads.augmentation import Augmentation
from tuner.workloads.datasets import LabeledImages, load_cifar, load_digits, load_fashion_mnist, own_splits_note
from tuner.workloads.diagonal import DiagonalSamples
from tuner.workloads.images import WHOLE, ModelArguments, ResidentImages
from tuner.workloads.own_data import read_own
from tuner.workloads.population import make_population
from tuner.workloads.samples import OwnSamples
from tuner.workloads.streaming import STREAMED_SIDE, StreamedImages
from tuner.workloads.task import Task


class Data(Protocol):
    """The data of a training: inputs with labels in three splits, ``train``, ``validation`` and ``test``."""

    @property
    def task(self) -> Task:
        """Loss and score of a model's outputs."""

    @property
    def model_arguments(self) -> ModelArguments:
        """Arguments that the builder of a model may ask for, such as the number of classes."""

    @property
    def chance(self) -> float:
        """Score of guessing, in [0, 1): 1 / number of classes for accuracy, 0 for other scores."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Split -> number of samples."""

    sealed: bool
    """Whether the test split is refused."""

    @property
    def splits_note(self) -> str:
        """One sentence on how the splits were made."""

    @property
    def digest(self) -> str:
        """SHA-256; equal if data and splits are equal."""

    @property
    def num_skipped(self) -> int:
        """Number of unreadable images that were left out so far."""

    @property
    def loading_seconds(self) -> float:
        """Seconds that the caller has waited for data so far."""

    def train_batches(self, batches: Iterable[Batch], part: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (B, ...), floats or integers, and labels (B, ...), on the device, in the order of the batches.

        The same batch gives the same bits at every call.  ``part`` selects consecutive samples of each batch, which
        have the same bits as in the whole batch.
        """

    def evaluation_batches(self, split: str, part: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """The whole split, or a ``part`` of it, without augmentation; the last batch may be short.

        Raises :class:`SealedSplit` for the test split of sealed data.
        """


class Images(Data, Protocol):
    """Classified square images: (B, C, S, S), float32, normalized, channels_last; labels int64."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; a label is a position among them."""

    @property
    def num_classes(self) -> int: ...

    @property
    def channels(self) -> int: ...

    @property
    def image_size(self) -> int:
        """Side in pixels."""

    @property
    def mean(self) -> Tensor:
        """Mean of each channel's pixels (0 to 255) over ``train``, float32 (C, 1, 1); normalization subtracts it."""

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of each channel's pixels over ``train``, float32 (C, 1, 1); normalization's divisor."""


def are_images(data: Data) -> TypeGuard[Images]:
    return isinstance(data, ResidentImages | StreamedImages)


def require_images(data: Data) -> Images:
    """Returns the data itself.  Raises :class:`InvalidInput` if it has no images."""
    if not are_images(data):
        raise InvalidInput("this data has no images")
    return data


def load_data(spec: WorkloadSpec, device: torch.device, *, sealed: bool = True) -> Data:
    """The workload's data, ready for the device; the test split can be read only if ``sealed`` is False.

    Raises :class:`InvalidInput` for an unknown name, for data that is missing or cannot be read, and for a batch larger
    than the training split.
    """
    if spec.data not in DATA and not is_own(spec.data):
        raise unknown("data", spec.data, DATA)
    data = (_own if is_own(spec.data) else DATA[spec.data])(spec, device)
    data.sealed = sealed
    for split, size in data.sizes.items():
        if size == 0:
            raise InvalidInput(f"{spec.data} has no image left in its {split} split")
    if spec.batch_size > data.sizes["train"]:
        raise InvalidInput(f"--batch-size {spec.batch_size}: must be at most {data.sizes['train']}, the training split")
    return data


def with_precision(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    """Inputs in the precision of a training; integers, such as the ids of tokens, stay integers."""
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


cached_data = lru_cache(maxsize=1)(load_data)
"""Caches one copy: a worker trains many trials on the same data and then tests on it."""


def _resident(
    load: Callable[[WorkloadSpec], LabeledImages],
    augmentation: Augmentation,
    spec: WorkloadSpec,
    device: torch.device,
) -> Images:
    whole = load(spec)
    return ResidentImages(
        whole.pixels,
        whole.labels,
        whole.splits,
        classes=whole.classes,
        splits_note=whole.splits_note,
        digest=whole.digest,
        augmentation=augmentation if spec.augment else Augmentation(),
        batch_size=spec.batch_size,
        device=device,
    )


def _image_folder(spec: WorkloadSpec, device: torch.device) -> Images:
    """Images of a folder: held on the device if they are small, of one size, and fit; otherwise streamed."""
    listing = folders.scan(spec.data_dir)
    splits, note = folders.split(listing)
    sizes = decoding.sample_sizes(listing)
    wanted = spec.stream == "never" or (spec.stream == "auto" and decoding.fits(listing, sizes, _free_bytes(device)))
    decoded = decoding.decode(listing, sizes.square) if wanted and sizes.square is not None else None
    if decoded is None and spec.stream == "never":
        raise InvalidInput(f"--stream never: needs square images of one size, {listing.root} has others; use auto")
    if decoded is not None:
        unreadable = decoded.unreadable
        decoding.require_readable(listing, unreadable, skip_corrupt=spec.skip_corrupt)
    else:
        # Without skip_corrupt the first unreadable image stops the training, so the headers need not be read.
        unreadable = decoding.unreadable_headers(listing) if spec.skip_corrupt else np.empty(0, dtype=np.int64)
    splits = folders.without(splits, unreadable)
    digest = folders.digest(listing, splits)
    if decoded is None:
        return StreamedImages(
            listing,
            splits,
            side=min(sizes.common_side, STREAMED_SIDE),
            splits_note=note,
            digest=digest,
            augment=spec.augment,
            batch_size=spec.batch_size,
            loader_workers=spec.loader_workers,
            skip_corrupt=spec.skip_corrupt,
            device=device,
            num_skipped=len(unreadable),
        )
    # An eighth of the side, in proportion to the usual 4 of CIFAR's 32 pixels.
    padding = decoded.pixels.shape[1] // 8
    return ResidentImages(
        decoded.pixels,
        listing.labels,
        splits,
        classes=listing.classes,
        splits_note=note,
        digest=digest,
        augmentation=Augmentation(padding=padding, flip=True) if spec.augment else Augmentation(),
        batch_size=spec.batch_size,
        device=device,
        num_skipped=len(unreadable),
    )


def _diagonal(spec: WorkloadSpec, device: torch.device) -> Data:
    return DiagonalSamples(make_population(), device=device)


def _own(spec: WorkloadSpec, device: torch.device) -> Data:
    note, free = own_splits_note(spec.data), _free_bytes(device)
    return OwnSamples(read_own(spec), splits_note=note, batch_size=spec.batch_size, device=device, free=free)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else decoding.free_memory()


DATA: dict[str, Callable[[WorkloadSpec, torch.device], Data]] = {
    # No flips: a mirrored digit is not a digit.
    "digits": partial(_resident, load_digits, Augmentation(padding=1)),
    "fashion-mnist": partial(_resident, load_fashion_mnist, Augmentation(padding=2, flip=True)),
    "cifar10": partial(_resident, load_cifar, Augmentation(padding=4, flip=True)),
    "cifar100": partial(_resident, load_cifar, Augmentation(padding=4, flip=True)),
    "imagefolder": _image_folder,
    "diagonal": _diagonal,
}
"""Name of the data -> function that loads it; a user's own data is named by its function."""
