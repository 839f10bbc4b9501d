"""Images that processes read from disk batch by batch, a few batches ahead of the training."""

from __future__ import annotations

import multiprocessing
import time
import weakref
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tuner.core.errors import InvalidInput
from tuner.order import Batch
from tuner.workloads.cropping import read_square
from tuner.workloads.decoding import READ_ERRORS, THREADS, corrupt
from tuner.workloads.folders import Listing
from tuner.workloads.images import EVALUATION_BATCH, WHOLE, channel_statistics, image_arguments, normalize
from tuner.workloads.splits import Splits, refuse_sealed
from tuner.workloads.task import CLASSIFICATION

STREAMED_SIDE = 224
"""Side in pixels of the images that a model sees, unless the files are smaller; the usual value for ImageNet."""

REPLACEMENTS = 10
"""Images that are drawn in place of an unreadable one before an error; all of them fail only if most are unreadable."""

AHEAD = 2
"""Batches that each process reads ahead; this bounds the memory to about loader_workers * (AHEAD + 1) batches."""

STATISTICS_SAMPLE = 512
"""Training images over which mean and deviation are computed: 25 million pixels at 224 x 224."""


class Request(NamedTuple):
    """A batch to read."""

    split: str
    indices: NDArray[np.int64]
    """Positions in the split."""
    seed: int | None
    """Seeds the crops and the images that replace unreadable ones; with None unreadable images are left out."""
    augment: bool
    first: int = 0
    """Position in the batch of the first image; the draws of an image depend on its position."""


class Loaded(NamedTuple):
    """A batch that was read."""

    images: Tensor
    """uint8, shape (B, 3, S, S), channels_last."""
    labels: Tensor
    """int64, shape (B,)."""
    unreadable: list[str]
    """Files that could not be read."""
    problem: str | None = None
    """Why there is no batch; a text, since an exception from another process would bring its whole traceback."""


class StreamedImages:
    """Images of a folder, cropped to one size as they are read, and normalized over a sample of ``train``.

    In training with ``augment`` each image is a random resized crop, mirrored with probability 1/2.  In training
    without it, and in evaluation, the image is its center.  One iteration over training batches and one over evaluation
    batches can be active at a time.
    """

    task = CLASSIFICATION

    def __init__(
        self,
        listing: Listing,
        splits: Splits,
        *,
        side: int,
        splits_note: str,
        digest: str,
        augment: bool,
        batch_size: int,
        loader_workers: int,
        skip_corrupt: bool,
        device: torch.device,
        num_skipped: int = 0,
    ) -> None:
        """``splits`` contains no image known to be unreadable; ``num_skipped`` is the number of those left out."""
        self.sealed = True
        self.classes = listing.classes
        self.num_classes = len(listing.classes)
        self.channels = 3
        self.image_size = side
        self.chance = 1 / self.num_classes
        self.model_arguments = image_arguments(self.num_classes, self.num_classes, channels=3, side=side)
        self.sizes = {name: len(positions) for name, positions in splits.items()}
        self.splits_note = splits_note
        self.digest = digest
        self.loading_seconds = 0.0
        self._num_excluded = num_skipped
        self._met: set[str] = set()
        self._augment = augment
        self._evaluation_batch = max(batch_size, EVALUATION_BATCH)
        self._device = device
        self._files = _Files(listing, splits, side, skip_corrupt)
        mean, deviation = channel_statistics([self._sample()])
        self.mean, self.deviation = mean.to(device), deviation.to(device)
        # Two sets of processes, so an evaluation in the middle of an epoch does not end the epoch's iteration.
        self._training = _Feed(self._files, loader_workers, device)
        self._evaluation = _Feed(self._files, loader_workers, device)

    @property
    def num_skipped(self) -> int:
        """Number of unreadable images that were left out so far."""
        return self._num_excluded + len(self._met)

    def train_batches(self, batches: Iterable[Batch], part: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, S, S), float32, channels_last, and labels (B,), int64, in the order of the batches.

        The same batch gives the same bits at every call, with any number of workers.  A ``part`` of a batch has the
        same bits as in the whole; the rest is not read.  ``batches`` is read ahead.
        An unreadable image raises :class:`tuner.core.errors.InvalidInput`.  With ``skip_corrupt`` another image, drawn
        from the batch's seed, replaces it.
        """
        requests = (
            Request("train", batch.indices[part].numpy(), batch.seed, self._augment, first=part.start or 0)
            for batch in batches
        )
        return self._deliver(self._training, requests)

    def evaluation_batches(self, split: str, part: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """The centers of the whole split, or of a ``part`` of it, in order; the last batch may be short.

        An unreadable image raises :class:`tuner.core.errors.InvalidInput`; with ``skip_corrupt`` it is left out.
        Raises :class:`SealedSplit` for the test split of sealed data.
        """
        refuse_sealed(split, self.sealed)
        batches = torch.split(torch.arange(self.sizes[split])[part], self._evaluation_batch)
        return self._deliver(self._evaluation, [Request(split, batch.numpy(), None, False) for batch in batches])

    def _deliver(self, feed: _Feed, requests: Iterable[Request]) -> Iterator[tuple[Tensor, Tensor]]:
        started = time.perf_counter()
        for loaded in feed.load(requests):
            self.loading_seconds += time.perf_counter() - started
            self._note(loaded)
            if len(loaded.labels) > 0:
                images = loaded.images.to(self._device, non_blocking=True)
                labels = loaded.labels.to(self._device, non_blocking=True)
                yield normalize(images, self.mean, self.deviation), labels
            started = time.perf_counter()

    def _note(self, loaded: Loaded) -> None:
        if loaded.problem is not None:
            raise InvalidInput(loaded.problem)
        self._met.update(loaded.unreadable)

    def _sample(self) -> Tensor:
        """Centers of training images at even distances in the split, (B, 3, S, S)."""
        size = self.sizes["train"]
        positions = np.linspace(0, size - 1, min(size, STATISTICS_SAMPLE)).astype(np.int64)
        requests = (Request("train", part, None, False) for part in np.array_split(positions, THREADS))
        with ThreadPoolExecutor(THREADS) as pool:
            parts = list(pool.map(self._files.__getitem__, requests))
        for part in parts:
            self._note(part)
        return torch.cat([part.images for part in parts])


class _Files(Dataset[Loaded]):
    """Maps a request to its batch; every loading process has a copy."""

    def __init__(self, listing: Listing, splits: Splits, side: int, skip_corrupt: bool) -> None:
        self._listing = listing
        self._splits = splits
        self._side = side
        self._skip_corrupt = skip_corrupt

    def __getitem__(self, request: Request) -> Loaded:
        unreadable: list[str] = []
        squares: list[NDArray[np.uint8]] = []
        labels: list[int] = []
        for place, index in enumerate(request.indices.tolist(), start=request.first):
            for attempt in range(1 + REPLACEMENTS):
                # Every image has its own generator, so a replaced image does not change the draws of the others.
                generator = None if request.seed is None else np.random.default_rng((request.seed, place, attempt))
                if attempt > 0 and generator is not None:
                    index = int(generator.integers(len(self._splits[request.split])))
                position = int(self._splits[request.split][index])
                path = self._listing.path(position)
                try:
                    squares.append(read_square(path, self._side, generator if request.augment else None))
                except READ_ERRORS:
                    unreadable.append(str(path))
                    if not self._skip_corrupt:
                        return self._batch([], [], unreadable)._replace(problem=str(corrupt(path)))
                    if generator is None:
                        break
                else:
                    labels.append(int(self._listing.labels[position]))
                    break
            else:
                problem = f"{1 + REPLACEMENTS} images in a row cannot be read, the last of them {path}"
                return self._batch([], [], unreadable)._replace(problem=problem)
        return self._batch(squares, labels, unreadable)

    def _batch(self, squares: list[NDArray[np.uint8]], labels: list[int], unreadable: list[str]) -> Loaded:
        pixels = np.stack(squares) if squares else np.empty((0, self._side, self._side, 3), dtype=np.uint8)
        # Rows of pixels of three bytes each are torch's channels_last.
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        return Loaded(images, torch.tensor(labels, dtype=torch.int64), unreadable)


class _Feed:
    """A loader whose processes stay alive from one iteration to the next."""

    def __init__(self, files: _Files, num_workers: int, device: torch.device) -> None:
        context = None
        if num_workers > 0:
            # Not fork: a process that uses CUDA or has threads, as Ray's workers do, must not be copied.
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["torch", "PIL.Image"])
        self.pending: Iterator[Request] = iter(())
        self._turn = 0
        loader = DataLoader(
            files,
            batch_size=None,
            sampler=_Requests(self),
            num_workers=num_workers,
            prefetch_factor=AHEAD if num_workers > 0 else None,
            persistent_workers=num_workers > 0,
            pin_memory=device.type == "cuda",
            multiprocessing_context=context,
            # A loader draws a seed for its processes; a draw from torch's global generator would change the training.
            generator=torch.Generator(),
        )
        # Python destroys the parts of a reference cycle in any order, and a loader whose queues are gone waits five
        # seconds for each process.  So the loader must not be part of a cycle: only this list holds it.
        self._loader = [loader]
        weakref.finalize(self, self._loader.clear)

    def load(self, requests: Iterable[Request]) -> Iterator[Loaded]:
        """The batches in order.  An iteration raises RuntimeError once a later one has begun."""
        self._turn += 1
        turn = self._turn
        self.pending = iter(requests)
        for loaded in self._loader[0]:
            yield loaded
            if turn != self._turn:
                raise RuntimeError("a later iteration over this data has begun: only one can go on at a time")


class _Requests(Sampler[Request]):
    """The requests that a loader reads next; it does not keep the feed alive."""

    def __init__(self, feed: _Feed) -> None:
        self._feed = weakref.ref(feed)

    def __iter__(self) -> Iterator[Request]:
        while (feed := self._feed()) is not None and (request := next(feed.pending, None)) is not None:
            del feed
            yield request
