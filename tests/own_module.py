"""A module of a user's own, importable while a test uses it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def own_module(folder: Path, name: str, text: str) -> Iterator[str]:
    """Writes the module into the folder and gives its name; modules are imported once, so each needs its own name."""
    (folder / f"{name}.py").write_text(text)
    sys.path.insert(0, str(folder))
    try:
        yield name
    finally:
        sys.path.remove(str(folder))
