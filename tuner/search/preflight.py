"""Everything that can be wrong with a search is found here, before anything of it exists."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import create_engine, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from search_spaces import Variant
from tuner.cluster.ray_cluster import check_local_cpus
from tuner.core.errors import InvalidInput, first_line, masked, unknown
from tuner.core.search_spec import DEFAULT_TRACKING_URI, SearchSpec
from tuner.core.store import check_place
from tuner.core.variants import resolve_variants
from tuner.workloads.check import Prepared, check_workload, prepare

PROBE_SECONDS = 10
"""How long a server may take to answer."""
MAY_WRITE = """
    select current_setting('transaction_read_only') = 'off' and (
        has_schema_privilege(current_schema(), 'CREATE')
        or to_regclass('studies') is not null or to_regclass('experiments') is not null
    )
"""
"""Whether PostgreSQL lets this user make the tables of Optuna and MLflow, or they are there."""


def check(spec: SearchSpec) -> tuple[tuple[Variant, ...], Prepared]:
    """The search's variants, and what is known of its data.

    Raises InvalidInput with one sentence for the first thing that is wrong.
    """
    workload = replace(spec.workload_spec(), download=spec.download)
    try:
        variants = resolve_variants(spec.variants, spec.space)
        if spec.baseline is not None and spec.baseline not in (names := [variant.name for variant in variants]):
            raise unknown("variant in --baseline", spec.baseline, names)
        check_workload(workload)
        check_local_cpus(spec)
        check_folder("--output", Path(spec.output))
        if spec.checkpoints is not None and not spec.dry_run:
            check_place("--checkpoints", spec.checkpoints)
        if spec.storage is not None:
            _check_database("--storage", spec.storage)
        check_tracking_uri(spec.tracking_uri or DEFAULT_TRACKING_URI)
        return variants, prepare(workload)
    except InvalidInput as error:
        raise InvalidInput(_with_flag(str(error))) from None


def _with_flag(message: str) -> str:
    """The message with the flag that names the thing, where it names the thing alone."""
    flags = {"unknown variant '": "--variants", "unknown data '": "--workload", "unknown model '": "--model"}
    return next((f"{flag}: {message}" for start, flag in flags.items() if message.startswith(start)), message)


def check_folder(name: str, folder: Path) -> None:
    """The folder of the flag ``name`` must exist and be writable, or its nearest parent that exists must be."""
    nearest = next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())
    if not nearest.is_dir():
        raise InvalidInput(f"{name} {folder}: {nearest} is not a folder")
    if not os.access(nearest, os.W_OK):
        raise InvalidInput(f"{name} {folder}: {nearest} is not writable")


def check_tracking_uri(uri: str) -> None:
    """An MLflow server must answer in time, a database must open; MLflow itself would try for minutes."""
    scheme = uri.partition("://")[0]
    if scheme in ("http", "https"):
        _check_server(uri)
    elif scheme.partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        _check_database("--tracking-uri", uri)
    else:
        raise InvalidInput(
            f"--tracking-uri {masked(uri)}: must be an http(s):// server or a database such as {DEFAULT_TRACKING_URI}"
        )


def _check_server(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
        with urllib.request.urlopen(f"{bare}/health", timeout=PROBE_SECONDS) as answer:
            healthy = answer.read(16).strip() == b"OK"
    except urllib.error.HTTPError as error:
        # A server with login answers 401 to strangers: it is there, and MLflow's client has the credentials.
        healthy = error.code == 401
    except (OSError, ValueError, HTTPException) as error:
        raise InvalidInput(f"--tracking-uri {masked(uri)}: no MLflow server answers ({_reason(error)})") from None
    if not healthy:
        raise InvalidInput(f"--tracking-uri {masked(uri)}: what answers there is no MLflow server")


def _check_database(name: str, uri: str) -> None:
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
        reason = _reason(getattr(error, "orig", None) or error)
        raise InvalidInput(f"{name} {masked(uri)}: the database does not open ({reason})") from None
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


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None) or error
    return first_line(inner)[:200]
