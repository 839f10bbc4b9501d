"""Checks before a search starts that a database can be opened and written to."""

from __future__ import annotations

import os
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from tuner.core.errors import InvalidInput, first_line, masked

PROBE_SECONDS = 10
"""Longest wait for a server's answer, in seconds."""
MAY_WRITE = """
    select current_setting('transaction_read_only') = 'off' and (
        has_schema_privilege(current_schema(), 'CREATE')
        or to_regclass('studies') is not null or to_regclass('experiments') is not null
    )
"""
"""Asks PostgreSQL whether this user may create the tables of Optuna and MLflow, or whether they exist already."""


def check_database(name: str, uri: str) -> None:
    """Raises :class:`InvalidInput`, which names the flag ``name``, if the database at ``uri`` cannot be opened.

    A server has :data:`PROBE_SECONDS` to answer.  A SQLite file need not exist, but its folder must be writable.
    """
    try:
        url = make_url(uri)
        url.get_dialect()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise InvalidInput(f"{name} {masked(uri)}: must be a database URL such as sqlite:///optuna.db") from None
    if url.get_backend_name() == "sqlite":
        _check_sqlite(name, url)
        return
    timeout = {"connect_timeout": PROBE_SECONDS} if url.get_backend_name() in ("postgresql", "mysql") else {}
    try:
        engine = create_engine(url, connect_args=timeout)
        with engine.connect() as connection:
            may_write = url.get_backend_name() != "postgresql" or connection.scalar(text(MAY_WRITE))
        engine.dispose()
    except (SQLAlchemyError, ModuleNotFoundError) as error:
        reason = probe_reason(getattr(error, "orig", None) or error)
        raise InvalidInput(f"{name} {masked(uri)}: the database cannot be opened ({reason})") from None
    if not may_write:
        raise InvalidInput(f"{name} {masked(uri)}: it is read-only, or its user may not create tables there")


def _check_sqlite(name: str, url: URL) -> None:
    if not url.database or url.database == ":memory:":
        raise InvalidInput(f"{name} {url}: must name a file")
    path = Path(url.database).absolute()
    if not path.parent.is_dir():
        raise InvalidInput(f"{name} {url}: there is no folder {path.parent}")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidInput(f"{name} {url}: {path} is not writable")
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\0":
                raise InvalidInput(f"{name} {url}: {path} is not an SQLite database")


def probe_reason(error: BaseException) -> str:
    """Why a server or database did not answer, in one line."""
    inner = getattr(error, "reason", None) or error
    return first_line(inner)[:200]
