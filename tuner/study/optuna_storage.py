"""The database behind Optuna: how it is opened, and which errors are outages."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from alembic.runtime.migration import MigrationContext
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import create_engine, event
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError, SQLAlchemyError

from tuner.core.errors import masked
from tuner.core.retry import retry

CONNECT: dict[str, dict[str, int]] = {
    "sqlite": {"timeout": 60},
    "postgresql": {
        "connect_timeout": 10,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,
    },
}
"""Connection settings by database, in seconds; ``tcp_user_timeout`` is in milliseconds.

A server that vanishes without closing its connections is noticed within a minute.
"""
POSTGRESQL_SESSION = "set idle_in_transaction_session_timeout = '60s'; set lock_timeout = '20s'"
"""Limits of a session, so that a connection that broke in a transaction does not block the next one for hours."""


def open_storage(url: str) -> RDBStorage:
    """Opens the Optuna storage of a URL for writing; retries while it is unreachable.

    A call that the database does not carry out raises OSError.  Optuna does not retry on that error by itself: a retry
    would create a second trial where only the answer to the first was lost.

    SQLite waits a minute for a lock instead of five seconds, and uses a write-ahead log.  A process that is killed
    loses nothing by that.
    """
    storage = retry(
        f"Optuna's storage {masked(url)}", lambda: _opened(url), failures=(SQLAlchemyError, StorageInternalError)
    )
    event.listen(storage.engine, "handle_error", _as_oserror)
    return storage


def close_storage(storage: RDBStorage) -> None:
    """Closes the connections; SQLite then merges its write-ahead log into the database file."""
    storage.remove_session()
    storage.engine.dispose()


def existing_storage(url: str) -> BaseStorage | None:
    """The storage of a URL for reading; None if it does not exist yet.

    Opening a storage creates its file and tables, and fails if two processes do so at once.  So a reader leaves that to
    the search.
    """
    path = make_url(url).database if url.startswith("sqlite") else None
    return None if (path and not Path(path).exists()) or not _is_made(url) else _opened(url)


def _is_made(url: str) -> bool:
    engine = create_engine(url, connect_args=_connect_args(url))
    try:
        with engine.connect() as connection:
            # Optuna writes the version of its tables last.
            return MigrationContext.configure(connection).get_current_revision() is not None
    finally:
        engine.dispose()


def _connect_args(url: str) -> dict[str, int]:
    return CONNECT.get(make_url(url).get_backend_name(), {})


def _opened(url: str) -> RDBStorage:
    storage = RDBStorage(url, engine_kwargs={"connect_args": _connect_args(url)})
    backend = make_url(url).get_backend_name()
    if backend in CONNECTED:
        event.listen(storage.engine, "connect", CONNECTED[backend])
        storage.engine.dispose()  # connections made before lack the setting
    return storage


def _write_ahead(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=normal")


def _limit_locks(connection: DBAPIConnection, _: object) -> None:
    connection.cursor().execute(POSTGRESQL_SESSION)
    connection.commit()


CONNECTED: dict[str, Callable[..., None]] = {"sqlite": _write_ahead, "postgresql": _limit_locks}
"""Database -> function that sets up a new connection."""


def _as_oserror(context: ExceptionContext) -> OSError | None:
    away = isinstance(context.sqlalchemy_exception, OperationalError | InterfaceError | InternalError)
    return OSError(str(context.original_exception)) if away else None
