"""Image files to pixels, and the cache of decoded images that processes share.  Nothing here imports torch."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tuner.core.errors import InvalidInput
from tuner.workloads.folders import Listing
from tuner.workloads.splits import Positions, where

READ_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow's decoders raise for a damaged file."""

SAMPLE = 1000
"""Headers read to learn the size of a folder's images."""

RESIDENT_SIDE = 64
"""Images up to this side, in pixels, are worth holding in memory whole (1.3 million of them are 16 GB)."""

RESIDENT_FRACTION = 0.25
"""Part of the free memory that decoded images may take; the rest is for the model and for other workers."""

THREADS = 8
"""Files read at once: decoders work outside Python's lock, and disks answer faster to several requests."""

CHUNK = 256
"""Files a task of the thread pool, so that a million files do not make a million futures."""

LOCK = "lock"
"""File in the cache's folder that its writer holds locked."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the headers of a sample say."""

    common_side: int
    """The most frequent length of the shorter side, in pixels."""
    square: int | None
    """The side, where all are squares of one size."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """All images of a folder of squares of one size."""

    pixels: NDArray[np.uint8]
    """Shape (N, S, S, 3), in the order of the listing, mapped from a file; unreadable images are black."""
    unreadable: Positions


def read_size(path: Path) -> tuple[int, int]:
    """Width and height from the header alone."""
    with Image.open(path) as image:
        return image.size


def sample_sizes(listing: Listing) -> Sizes:
    """Sizes in a sample that is spread evenly over the listing; unreadable files are left out."""
    positions = np.linspace(0, len(listing.names) - 1, min(len(listing.names), SAMPLE)).astype(int)
    counts: Counter[tuple[int, int]] = Counter()
    for position in positions.tolist():
        try:
            counts[read_size(listing.path(position))] += 1
        except READ_ERRORS:
            continue
    if not counts:
        raise InvalidInput(f"{listing.root} has no readable image among the {len(positions)} that were tried")
    (width, height), _ = counts.most_common(1)[0]
    return Sizes(min(width, height), width if len(counts) == 1 and width == height else None)


def fits(listing: Listing, sizes: Sizes, free_bytes: int) -> bool:
    """Whether the images are small, of one size, and together small against the free memory."""
    if sizes.square is None or sizes.square > RESIDENT_SIDE:
        return False
    return len(listing.names) * sizes.square**2 * 3 <= RESIDENT_FRACTION * free_bytes


def free_memory() -> int:
    """Bytes of main memory that could be had without swapping (proc(5), MemAvailable)."""
    with Path("/proc/meminfo").open() as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def decode(listing: Listing, side: int) -> Decoded | None:
    """The decoded images, from the cache where it has them; None where one is not a square of that side.

    The cache is a file that is mapped, not read, so that processes on one machine hold it in memory once.  It is
    written by the first process that asks, under a lock, and replaced when a file of the folder changes.
    """
    with _cache(listing) as folder:
        pixels_file, notes_file = folder / f"{listing.key()}.npy", folder / f"{listing.key()}.json"
        if not notes_file.exists():
            _forget(folder, keep=listing.key())
            unfinished = folder / f"unfinished-{os.getpid()}.npy"
            shape = (len(listing.names), side, side, 3)
            pixels = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
            notes = _decode_into(pixels, listing)
            if notes["odd"] is None:
                pixels.flush()
                unfinished.rename(pixels_file)
            else:
                unfinished.unlink()
            _write(notes_file, notes)
        notes = json.loads(notes_file.read_text())
        if notes["odd"] is not None:
            return None
        # Copy on write: torch wants an array that it may write to.
        return Decoded(np.load(pixels_file, mmap_mode="c"), np.array(notes["unreadable"], dtype=np.int64))


def unreadable_headers(listing: Listing) -> Positions:
    """Positions of the files whose header cannot be read; from the cache where it has them."""
    with _cache(listing) as folder:
        notes_file = folder / f"{listing.key()}-headers.json"
        if not notes_file.exists():
            _forget(folder, keep=listing.key())
            bad = np.zeros(len(listing.names), dtype=np.bool_)

            def look(position: int) -> None:
                try:
                    read_size(listing.path(position))
                except READ_ERRORS:
                    bad[position] = True

            _for_each(len(bad), look)
            _write(notes_file, {"unreadable": where(bad).tolist()})
        return np.array(json.loads(notes_file.read_text())["unreadable"], dtype=np.int64)


def require_readable(listing: Listing, unreadable: Positions, *, skip_corrupt: bool) -> None:
    """Raises :class:`InvalidInput` that names the first unreadable file, unless such files are to be left out."""
    if len(unreadable) > 0 and not skip_corrupt:
        raise corrupt(listing.path(int(unreadable[0])), len(unreadable))


def corrupt(path: Path, count: int = 1) -> InvalidInput:
    """The error for a file that cannot be read."""
    others = f" ({count} such files)" if count > 1 else ""
    return InvalidInput(f"cannot read image {path}{others}: mend it, or leave such files out with --skip-corrupt")


def _decode_into(pixels: NDArray[np.uint8], listing: Listing) -> dict[str, Any]:
    """Fills the array; gives the positions of unreadable files and one whose size is not the array's."""
    bad, odd = np.zeros(len(pixels), dtype=np.bool_), np.zeros(len(pixels), dtype=np.bool_)

    def read(position: int) -> None:
        try:
            with Image.open(listing.path(position)) as image:
                if image.size != pixels.shape[1:3]:
                    odd[position] = True
                else:
                    pixels[position] = np.asarray(image.convert("RGB"))
        except READ_ERRORS:
            bad[position] = True

    _for_each(len(pixels), read)
    first_odd = where(odd)[:1].tolist()
    return {"unreadable": where(bad).tolist(), "odd": first_odd[0] if first_odd else None}


def _for_each(count: int, work: Callable[[int], None]) -> None:
    def chunk(start: int) -> None:
        for position in range(start, min(start + CHUNK, count)):
            work(position)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(chunk, range(0, count, CHUNK)))


@contextmanager
def _cache(listing: Listing) -> Iterator[Path]:
    """The cache's folder for a folder of images, held by this process alone."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    # Machines that share a home may have copies of the images that differ in their times: each keeps its own.
    place = f"{platform.node()}:{listing.root.resolve()}"
    folder = Path(home) / "tuner" / sha256(os.fsencode(place)).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise InvalidInput(f"cannot write the image cache {folder} ({error.strerror}): set XDG_CACHE_HOME") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _forget(folder: Path, *, keep: str) -> None:
    """Removes what earlier states of the images left; a process that has mapped it keeps it."""
    for path in folder.iterdir():
        if path.name != LOCK and not path.name.startswith(keep):
            path.unlink()


def _write(file: Path, notes: dict[str, Any]) -> None:
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(notes))
    unfinished.rename(file)
