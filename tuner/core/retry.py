"""Retries while a database or a disk is unreachable, and raises one error if it stays so."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from tuner.core.errors import StorageFailed, first_line, masked

logger = logging.getLogger(__name__)

RETRY_SECONDS = 120.0
"""How long a failing call is retried by default, in seconds."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 15.0

T = TypeVar("T")


def retry(
    what: str,
    attempt: Callable[[], T],
    *,
    failures: tuple[type[Exception], ...] = (OSError,),
    seconds: float | None = None,
) -> T:
    """Returns what ``attempt`` returns; retries after each of ``failures``, with pauses of 1 s that double up to 15 s.

    ``attempt`` must be repeatable: it may have done its work before it failed, with only the answer lost.
    Raises :class:`StorageFailed`, whose message begins with ``what``, once ``seconds`` (default:
    :data:`RETRY_SECONDS`) have passed since the first failure.  Ctrl-C ends the wait at once.
    """
    patience = RETRY_SECONDS if seconds is None else seconds
    pause, give_up_at = FIRST_PAUSE_SECONDS, 0.0
    while True:
        try:
            answer = attempt()
        except failures as error:
            reason = _reason(error)
            now = time.monotonic()
            if not give_up_at:
                give_up_at = now + patience
                logger.warning("%s failed and is retried for up to %g s: %s", what, patience, reason)
            if now >= give_up_at:
                raise StorageFailed(f"{what} has failed for {patience:g} s: {reason}") from error
            time.sleep(min(pause, give_up_at - now))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            if give_up_at:
                logger.warning("%s works again", what)
            return answer


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause: the wrappers around it say only that something failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return masked(first_line(error))[:300]
