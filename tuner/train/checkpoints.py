"""A training's checkpoints: the newest that can be read counts, and older ones go when a newer one is whole.

A checkpoint holds all that a training needs to continue; how it is made is :mod:`tuner.train.trainer`'s affair.
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
"""Part of a training's time that its checkpoints may take, where no interval is asked for: ours."""


class Checkpoints:
    """The checkpoints of one training in a place of its own."""

    def __init__(self, store: Store, *, spec_digest: str, interval: float | None = None) -> None:
        """``interval`` is the least number of seconds from one checkpoint to the next; with None they are as far apart
        as it takes for them to cost at most 5% of the time."""
        self._store = store
        self._spec_digest = spec_digest
        self._interval = interval
        self._kept: list[str] = []
        self._saved_at = -float("inf")
        self._cost = 0.0

    def newest(self) -> dict[str, Any] | None:
        """The content of the newest checkpoint that is whole, on the CPU; None where there is none.

        Raises :class:`InvalidInput` for that of another training.
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
        except FileNotFoundError:  # another worker of this training, cut off for a while, has just deleted it
            return b""

    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        interval = self._cost * (1 / LARGEST_SHARE - 1) if self._interval is None else self._interval
        return time.monotonic() - self._saved_at >= interval

    def save(self, epoch: int, content: dict[str, Any]) -> None:
        """Writes the checkpoint of an epoch, then deletes those before it.

        Raises :class:`StorageFailed` where the storage stays away.
        """
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "spec": self._spec_digest, **content}, buffer)
        name = f"checkpoint-{epoch:06d}.pt"

        def write() -> None:
            started = time.monotonic()
            self._store.write(name, buffer.getvalue())
            self._cost = time.monotonic() - started  # without the time that the storage was away

        retry(f"{self._store.place}/{name}", write)
        for older in self._kept:
            if older < name:
                retry(f"{self._store.place}/{older}", partial(self._store.delete, older))
        self._kept = [name]
        self._saved_at = time.monotonic()
