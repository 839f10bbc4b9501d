"""Waits for events, with a limit that only a hang meets, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable

HANG_SECONDS = 900.0
"""Longest wait for anything."""


def until(done: Callable[[], bool], what: str, every: float = 0.1) -> None:
    """Waits for something, and says in vain for what."""
    end = time.monotonic() + HANG_SECONDS
    while not done():
        assert time.monotonic() < end, f"{what}: not within {HANG_SECONDS:g} s"
        time.sleep(every)
