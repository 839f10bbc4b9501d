"""The one error for bad input: its message is the one line that a user sees."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InvalidInput(ValueError):
    """What was asked for cannot be done; the command line prints the message and exits with status 2."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InvalidInput:
    """An error that names the nearest known value, or lists all where none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(names)}"
    return InvalidInput(f"unknown {kind} {name!r}: {hint}")
