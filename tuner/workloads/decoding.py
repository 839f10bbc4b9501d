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
"""Errors that Pillow's decoders raise for a damaged file."""

SAMPLE = 1000
"""Number of headers that are read to learn the size of a folder's images."""

RESIDENT_SIDE = 64
"""Largest side, in pixels, of images that are held in memory (1.3 million such images take 16 GB)."""

RESIDENT_FRACTION = 0.25
"""Part of the free memory that decoded images may take; the rest is for the model and other workers."""

THREADS = 8
"""Files read at once: decoders release Python's lock, and disks serve several requests faster."""

CHUNK = 256
"""Files per task of the thread pool: a million files must not make a million futures."""

LOCK = "lock"
"""Name of the file in the cache's folder that the writer locks."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Image sizes, from the headers of a sample."""

    common_side: int
    """The most frequent length of the shorter side, in pixels."""
    square: int | None
    """The side in pixels if all images are squares of one size, else None."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """All images of a folder whose images are squares of one size."""

    pixels: NDArray[np.uint8]
    """Shape (N, S, S, 3), in the order of the listing, mapped from a file; unreadable images are black."""
    unreadable: Positions


def read_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header alone."""
    with Image.open(path) as image:
        return image.size


def sample_sizes(listing: Listing) -> Sizes:
    """Image sizes in a sample that is spread evenly over the listing; unreadable files are left out.

    Raises :class:`InvalidInput` if no file of the sample can be read.
    """
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
    """Whether the images are small, of one size, and take at most RESIDENT_FRACTION of the free memory."""
    if sizes.square is None or sizes.square > RESIDENT_SIDE:
        return False
    return len(listing.names) * sizes.square**2 * 3 <= RESIDENT_FRACTION * free_bytes


def free_memory() -> int:
    """Bytes of main memory that are available without swapping (proc(5), MemAvailable)."""
    with Path("/proc/meminfo").open() as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def decode(listing: Listing, side: int) -> Decoded | None:
    """The decoded images, from the cache if it has them; None if an image is not a square of side ``side``.

    The cache is a file that is mapped, not read, so processes on one machine share it in memory.  The first process
    that needs it writes it, under a lock.  It is replaced when a file of the folder changes.
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
        # Copy on write, since torch needs a writable array.
        return Decoded(np.load(pixels_file, mmap_mode="c"), np.array(notes["unreadable"], dtype=np.int64))


def unreadable_headers(listing: Listing) -> Positions:
    """Positions of the files whose header cannot be read, from the cache if it has them."""
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
    """Raises :class:`InvalidInput`, naming the first unreadable file, unless ``skip_corrupt`` is set."""
    if len(unreadable) > 0 and not skip_corrupt:
        raise corrupt(listing.path(int(unreadable[0])), len(unreadable))


def corrupt(path: Path, count: int = 1) -> InvalidInput:
    """The error for a file that cannot be read."""
    others = f" ({count} such files)" if count > 1 else ""
    return InvalidInput(f"cannot read image {path}{others}: repair it, or skip such files with --skip-corrupt")


def _decode_into(pixels: NDArray[np.uint8], listing: Listing) -> dict[str, Any]:
    """Fills the array; returns the positions of unreadable files, and of one image of another size if there is one."""
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
    """The cache's folder for a folder of images, locked for this process."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    # One cache per machine: machines that share a home may have copies of the images with different times.
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
    """Removes cached files of earlier states of the images; a process that has mapped one can still read it."""
    for path in folder.iterdir():
        if path.name != LOCK and not path.name.startswith(keep):
            path.unlink()


def _write(file: Path, notes: dict[str, Any]) -> None:
    unfinished = file.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(notes))
    unfinished.rename(file)
