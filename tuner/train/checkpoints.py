"""A training's checkpoints: the newest readable one is loaded, and older ones are deleted after a newer one is written.

A checkpoint holds all that a training needs to continue.  Its content comes from :mod:`tuner.train.trainer`.
"""

from __future__ import annotations

import io
import pickle
import time
from functools import partial
from typing import Any

import torch

from tuner.core.errors import InvalidInput
from tuner.core.retry import retry
from tuner.core.store import CHECKPOINT, Store

FORMAT = 3
LARGEST_SHARE = 0.05
"""Part of a training's time that its checkpoints may take if no interval is set.  Source: ours."""


class Checkpoints:
    """The checkpoints of one training, in a store of its own."""

    def __init__(self, store: Store, *, spec_digest: str, interval: float | None = None) -> None:
        """``interval`` is the least number of seconds from one checkpoint to the next, at least 0.

        With None the interval is chosen so that checkpoints cost at most 5% of the time.
        """
        self._store = store
        self._spec_digest = spec_digest
        self._interval = interval
        self._kept: list[str] = []
        self._saved_at = -float("inf")
        self._cost = 0.0

    def newest(self) -> dict[str, Any] | None:
        """The content of the newest checkpoint that is readable, on the CPU; None if there is none.

        Raises :class:`InvalidInput` if it is of another training, and :class:`StorageFailed` if the storage stays
        unreachable.
        """
        found = {int(match[1]): name for name in self._names() if (match := CHECKPOINT.fullmatch(name))}
        self._kept = list(found.values())
        for epoch in sorted(found, reverse=True):
            content = self._read(found[epoch])
            if content is not None:
                if content.get("format") != FORMAT or content.get("spec") != self._spec_digest:
                    raise InvalidInput(f"{self._store.place}/{found[epoch]} is the checkpoint of another training")
                return content
        return None

    def _names(self) -> list[str]:
        return retry(f"the checkpoints in {self._store.place}", self._store.names)

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            stored = retry(f"{self._store.place}/{name}", lambda: self._read_bytes(name))
            content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
        except (EOFError, RuntimeError, pickle.UnpicklingError):
            return None
        return content if isinstance(content, dict) else None

    def _read_bytes(self, name: str) -> bytes:
        try:
            return self._store.read(name)
        except FileNotFoundError:  # deleted just now by another worker of this training that was cut off for a while
            return b""

    def is_due(self) -> bool:
        """Whether the next checkpoint is due."""
        interval = self._cost * (1 / LARGEST_SHARE - 1) if self._interval is None else self._interval
        return time.monotonic() - self._saved_at >= interval

    def save(self, epoch: int, content: dict[str, Any]) -> None:
        """Writes the checkpoint of an epoch, then deletes earlier ones.

        Raises :class:`StorageFailed` if the storage stays unreachable.
        """
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "spec": self._spec_digest, **content}, buffer)
        name = f"checkpoint-{epoch:06d}.pt"

        def write() -> None:
            started = time.monotonic()
            self._store.write(name, buffer.getvalue())
            self._cost = time.monotonic() - started  # without the time spent on failed attempts

        retry(f"{self._store.place}/{name}", write)
        for older in self._kept:
            if older < name:
                retry(f"{self._store.place}/{older}", partial(self._store.delete, older))
        self._kept = [name]
        self._saved_at = time.monotonic()
