"""The errors that users see, and how a command ends.  A message is one line, with no password in it."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import ParamSpec


class InvalidInput(ValueError):
    """What was asked for cannot be done; the command line prints the message and exits with status 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InvalidInput:
    """An error that names the nearest known value, or lists all where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
    return InvalidInput(f"unknown {kind} {name!r}: {hint}")


def first_line(error: BaseException) -> str:
    """What an error says, without what libraries add on further lines; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def masked(uri: str) -> str:
    """The URI without its passwords, whatever characters they are of."""
    # Not by urlsplit: it ends the host at the first of / ? # and refuses lone brackets.
    without_user = re.sub(r"(?<=://)([^:/@]*):.*@", r"\1:***@", uri)
    return re.sub(r"(?<=[?&])(password|passwd|token)=[^&]*", r"\1=***", without_user)


class StorageFailed(Exception):
    """A database or a disk was unreachable for longer than writing is retried; the message is one sentence.

    Everything written before is still there, so the search can be resumed.
    """


class ExitStatus(IntEnum):
    """How a command ends."""

    OK = 0
    NOTHING_FINISHED = 1
    BAD_INPUT = 2
    STORAGE_FAILED = 3
    INTERRUPTED = 130


P = ParamSpec("P")


def command(main: Callable[P, int]) -> Callable[P, int]:
    """Makes a function the main function of a command, which prints each of these errors in one line.

    The command's exit status is 2 for :class:`InvalidInput`, 3 for :class:`StorageFailed` and 130 after Ctrl-C.
    """

    @functools.wraps(main)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except (InvalidInput, StorageFailed) as error:
            print(f"error: {error}", file=sys.stderr)
            return ExitStatus.BAD_INPUT if isinstance(error, InvalidInput) else ExitStatus.STORAGE_FAILED
        except KeyboardInterrupt:
            return ExitStatus.INTERRUPTED

    return run
