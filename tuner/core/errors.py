"""The one error for bad input: its message is the one line that a user sees, and no password is in it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


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
