"""How a command ends: its exit status, and the one line that says why there is nothing."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

from tuner.core.errors import InvalidInput
from tuner.core.retry import StorageFailed

OK, NOTHING_FINISHED, BAD_INPUT, STORAGE_FAILED, INTERRUPTED = 0, 1, 2, 3, 130

P = ParamSpec("P")


def says_why(main: Callable[P, int]) -> Callable[P, int]:
    """A command that ends with 2 for :class:`InvalidInput`, 3 for :class:`StorageFailed` and 130 after Ctrl-C."""

    @functools.wraps(main)
    def command(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (InvalidInput, StorageFailed) as error:
            print(f"error: {error}", file=sys.stderr)
            return BAD_INPUT if isinstance(error, InvalidInput) else STORAGE_FAILED
        except KeyboardInterrupt:
            return INTERRUPTED

    return command
