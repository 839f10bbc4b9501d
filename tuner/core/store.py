"""Where trainings keep checkpoints and final weights: a folder, or any URI that PyArrow or fsspec knows.

A file is read and written whole.  An interrupted write may leave an incomplete file, but damages no other one.
"""

from __future__ import annotations

import os
import re
import uuid
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.core.errors import InvalidInput, first_line, masked

if TYPE_CHECKING:  # a training without a store does not need it
    from pyarrow.fs import FileSystem

CHECKPOINT = re.compile(r"checkpoint-(\d+)\.pt")
"""Pattern of the names of a training's checkpoints; its group is the epoch."""
WEIGHTS = "weights.pt"
"""Name of the file with a confirmed run's final weights."""


class Store:
    """Files of bytes in one place; ``store / "name"`` is a place within it.  Methods raise OSError."""

    def __init__(self, place: str | Path) -> None:
        """Raises ValueError or OSError for a URI that nothing here can open."""
        self.place = str(place) if "://" in str(place) else str(Path(place).absolute())
        self._files, self._path = _open(self.place)

    def __truediv__(self, name: str) -> Store:
        return self._elsewhere(f"{self.place}/{name}", f"{self._path}/{name}")

    @property
    def parent(self) -> Store:
        """The place that this one is in."""
        return self._elsewhere(*(path.rpartition("/")[0] or "/" for path in (self.place, self._path)))

    def _elsewhere(self, place: str, path: str) -> Store:
        other = Store.__new__(Store)
        other.place, other._files, other._path = place, self._files, path
        return other

    @property
    def is_local(self) -> bool:
        """Whether the place is a folder of this machine, or one that is mounted on it."""
        return bool(self._files.type_name == "local")

    def exists(self) -> bool:
        """Whether the folder exists; always true for object storage, which has no folders."""
        return not self.is_local or Path(self._path).exists()

    def require(self) -> None:
        """Raises FileNotFoundError if the folder does not exist."""
        if not self.exists():
            raise FileNotFoundError("it does not exist here: --checkpoints must be a place that all machines reach")

    def make(self) -> None:
        """Makes the folder; does nothing for object storage."""
        if self.is_local:
            Path(self._path).mkdir(parents=True, exist_ok=True)

    def names(self, *folders: str) -> list[str]:
        """Sorted names of the files in this place, or of those in its ``folders``, as ``folder/name``."""
        from pyarrow.fs import FileSelector, FileType

        found = []
        for folder in folders or ("",):
            selector = FileSelector(f"{self._path}/{folder}".rstrip("/"), allow_not_found=True)
            found += self._files.get_file_info(selector)
        return sorted(info.path[len(self._path) + 1 :] for info in found if info.type == FileType.File)

    def read(self, name: str) -> bytes:
        """The content of a file; raises FileNotFoundError if there is none."""
        with self._files.open_input_file(f"{self._path}/{name}") as file:
            return bytes(file.read())

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, replacing one of that name."""
        if self.is_local:
            # Without its parents: on a machine that does not see the shared folder, they would hide that fault.
            Path(self._path).mkdir(exist_ok=True)
        with self._files.open_output_stream(f"{self._path}/{name}") as file:
            file.write(content)

    def delete(self, name: str) -> None:
        """Deletes a file, if it exists."""
        with suppress(FileNotFoundError):
            self._files.delete_file(f"{self._path}/{name}")


def check_place(asked: str, place: str) -> None:
    """Raises :class:`InvalidInput` if the place cannot be written to; ``asked`` is the flag that the message names.

    Writes a file there and deletes it again.  If the folder does not exist, its nearest existing parent is tested.
    """
    if re.search(r"://[^/]*:[^/]*@", place):
        raise InvalidInput(f"{asked} {masked(place)}: credentials belong in the environment, not in a URI")
    if not place or "?" in place or place.startswith("memory:"):
        raise InvalidInput(f"{asked} {place!r}: must be a folder, or a URI such as s3://bucket/folder without a query")
    probe = f".probe-{uuid.uuid4().hex}"
    try:
        store = Store(place)
        while not store.exists():
            store = store.parent
        store.write(probe, b"")
        store.delete(probe)
    except (OSError, ValueError, ImportError) as error:
        raise InvalidInput(f"{asked} {place}: cannot be written to ({first_line(error)[:200]})") from None


def _open(place: str) -> tuple[FileSystem, str]:
    from pyarrow import ArrowInvalid
    from pyarrow.fs import FileSystem, FSSpecHandler, LocalFileSystem, PyFileSystem

    if "://" not in place:
        return LocalFileSystem(), place
    try:
        files, path = FileSystem.from_uri(place)
    except ArrowInvalid:
        import fsspec

        implementation, path = fsspec.core.url_to_fs(place)
        files = PyFileSystem(FSSpecHandler(implementation))
    return files, path.rstrip("/")


def check_folder(name: str, folder: Path) -> None:
    """Raises :class:`InvalidInput`, with the flag ``name``, if the folder, or its nearest parent, is not writable."""
    nearest = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not nearest.is_dir():
        raise InvalidInput(f"{name} {folder}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise InvalidInput(f"{name} {folder}: {nearest} is not writable")
