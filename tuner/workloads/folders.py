"""Folders of image files, train/<class>/*: listing, classes, splits.  Nothing here imports torch."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import InvalidInput
from tuner.workloads.splits import Labels, Splits, split_off

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The extensions that torchvision's ImageFolder reads."""

SPLIT_FOLDERS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
"""Split -> names that its folder may have; ``val`` is the usual name in ImageNet."""

SPLIT_OFF_FRACTION = 0.1
"""Part of ``train`` that becomes ``validation`` or ``test`` if the folder of that split is missing."""


@dataclass(frozen=True, slots=True)
class Listing:
    """The image files of a folder, in the order of split, class and path."""

    root: Path
    classes: tuple[str, ...]
    """Names of the classes, sorted; a label is a position in them."""
    names: NDArray[np.bytes_]
    """Paths relative to the root, shape (N,); one array, since a million strings are slow to send to a process."""
    labels: Labels
    file_sizes: NDArray[np.int64]
    """Sizes of the files in bytes, shape (N,)."""
    modified: NDArray[np.int64]
    """Modification times, ns since 1970, shape (N,)."""
    parts: Splits
    """Split -> positions, for those splits that have a folder."""

    def path(self, position: int) -> Path:
        """The file at a position."""
        return self.root / os.fsdecode(self.names[position].tobytes().rstrip(b"\0"))

    def key(self) -> str:
        """A hash that changes when a file is added, removed, renamed or written."""
        state = hashlib.sha256()
        for column in (self.names, self.file_sizes, self.modified):
            state.update(f"{column.shape} {column.dtype} ".encode())
            state.update(np.ascontiguousarray(column).data)
        return state.hexdigest()[:32]


def scan(data_dir: str | None) -> Listing:
    """All images under the folder.

    Raises :class:`InvalidInput` if there is no train/<class>/, if a class has no image, and if the classes of
    validation or test are not those of train.
    """
    root = require_folder(data_dir)
    classes: tuple[str, ...] = ()
    rows: list[tuple[bytes, int, int, int]] = []
    parts: Splits = {}
    for split, folder in split_folders(root).items():
        found = class_folders(folder)
        classes = classes or found
        _require_same_classes(folder, classes, found)
        first = len(rows)
        for label, name in enumerate(classes):
            files = sorted(_images(os.fsencode(folder / name)))
            if not files:
                raise InvalidInput(f"class folder {folder / name} has no image ({', '.join(IMAGE_EXTENSIONS)})")
            skip = len(os.fsencode(root)) + 1
            rows.extend((path[skip:], size, modified, label) for path, size, modified in files)
        parts[split] = np.arange(first, len(rows))
    names, file_sizes, modified, labels = zip(*rows, strict=True)
    return Listing(
        root,
        classes,
        np.array(names),
        np.array(labels, dtype=np.int64),
        np.array(file_sizes, dtype=np.int64),
        np.array(modified, dtype=np.int64),
        parts,
    )


def split(listing: Listing) -> tuple[Splits, str]:
    """Train, validation and test, and one sentence on how they were made."""
    parts = dict(listing.parts)
    absent = [name for name in ("validation", "test") if name not in parts]
    # The second part is taken from the rest after the first; the larger fraction makes both a tenth of the whole.
    for num_taken, name in enumerate(absent):
        fraction = SPLIT_OFF_FRACTION / (1 - num_taken * SPLIT_OFF_FRACTION)
        parts["train"], parts[name] = split_off(parts["train"], listing.labels, fraction)
        if len(parts[name]) == 0:
            raise InvalidInput(f"{listing.root}/train has too few images to split {name} off: add a folder {name}/")
    if not absent:
        return parts, "train, validation and test are the folder's own"
    made = " and ".join(f"{name} ({SPLIT_OFF_FRACTION:.0%})" for name in absent)
    own = " and ".join(name for name in ("validation", "test") if name not in absent)
    note = f"{made} split off train by class with a fixed seed"
    return parts, f"{note}; {own} is the folder's own" if own else note


def without(splits: Splits, excluded: NDArray[np.int64]) -> Splits:
    """The splits without some positions.  Splits are made first, so an unreadable image changes no other's split."""
    return {name: positions[~np.isin(positions, excluded)] for name, positions in splits.items()}


def digest(listing: Listing, splits: Splits) -> str:
    """SHA-256 over relative paths, sizes in bytes and splits: equal for copies of a folder on several machines."""
    state = hashlib.sha256()
    for name, positions in sorted(splits.items()):
        state.update(f"{name} {len(positions)} ".encode())
        for row, size in zip(listing.names[positions].tolist(), listing.file_sizes[positions].tolist(), strict=True):
            state.update(row + b"\0%d\0" % size)
    return state.hexdigest()


def require_folder(data_dir: str | None) -> Path:
    """The folder of the images.  Raises :class:`InvalidInput`, with the closest existing name, if it is missing."""
    if data_dir is None:
        raise InvalidInput("imagefolder needs --data-dir: the folder that holds train/<class>/*")
    root = Path(data_dir)
    if not root.exists():
        beside = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        near = difflib.get_close_matches(root.name, beside, n=1)
        hint = f"did you mean {root.parent / near[0]}?" if near else "there is no such folder"
        raise InvalidInput(f"--data-dir {root}: {hint}")
    if not root.is_dir():
        raise InvalidInput(f"--data-dir {root}: is a file, not the folder that holds train/<class>/*")
    return root


def split_folders(root: Path) -> dict[str, Path]:
    """Split -> its folder, for the folders that exist.  Raises :class:`InvalidInput` if train/ is missing."""
    found: dict[str, Path] = {}
    for name, spellings in SPLIT_FOLDERS.items():
        here = [root / spelling for spelling in spellings if (root / spelling).is_dir()]
        if len(here) > 1:
            raise InvalidInput(f"--data-dir {root}: has both {here[0].name}/ and {here[1].name}/, keep one of them")
        if here:
            found[name] = here[0]
    if "train" not in found:
        raise InvalidInput(f"--data-dir {root}: has no folder train/, it must hold train/<class>/*")
    return found


def class_folders(folder: Path) -> tuple[str, ...]:
    """Sorted names of the classes; hidden folders do not count."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise InvalidInput(f"{folder} has no class folders, it must hold <class>/*.jpg or the like")
    return tuple(names)


def _require_same_classes(folder: Path, expected: tuple[str, ...], found: tuple[str, ...]) -> None:
    absent, surplus = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if absent:
        raise InvalidInput(f"{folder} has no class {absent[0]!r}, but train has ({len(absent)} such classes)")
    if surplus:
        raise InvalidInput(f"{folder} has a class {surplus[0]!r}, but train does not ({len(surplus)} such classes)")


def _images(folder: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Path, size and modification time of the images in a folder and its subfolders."""
    extensions = tuple(extension.encode() for extension in IMAGE_EXTENSIONS)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _images(entry.path)
            elif entry.name.lower().endswith(extensions) and not entry.name.startswith(b"."):
                try:
                    status = entry.stat()
                except OSError as error:
                    raise InvalidInput(f"cannot read {os.fsdecode(entry.path)}: {error.strerror}") from None
                yield entry.path, status.st_size, status.st_mtime_ns
