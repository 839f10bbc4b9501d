"""How MLflow is reached: its address, its login and its SQLite file."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tuner.core.database import PROBE_SECONDS, check_database, probe_reason
from tuner.core.errors import InvalidInput, masked
from tuner.core.search_spec import DEFAULT_TRACKING_URI


def make_database(path: Path) -> None:
    """Makes MLflow's SQLite database if it does not exist; it appears complete or not at all.

    MLflow itself makes the tables one by one.  A program killed meanwhile would leave a file that MLflow can neither
    use nor repair.
    """
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # slow to import, and checks do not need it

    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        # Closing the connections completes the file.
        store = SqlAlchemyStore(f"sqlite:///{draft}", str(path.absolute().parent / "mlruns"))  # type: ignore[no-untyped-call]
        store.engine.dispose()
        with suppress(FileExistsError):  # another program was faster
            os.link(draft, path)
    finally:
        for leftover in path.parent.glob(f"{draft.name}*"):
            leftover.unlink()


def check_tracking_uri(uri: str) -> None:
    """Checks that an MLflow server answers in time, or that a database opens; MLflow itself would try for minutes.

    Raises :class:`InvalidInput` otherwise, and for a URI that is neither.
    """
    scheme = uri.partition("://")[0]
    if scheme in ("http", "https"):
        _check_server(uri)
    elif scheme.partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql"):
        check_database("--tracking-uri", uri)
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
        # A server with a login answers 401, because this request has no credentials.  MLflow's client has them.
        healthy = error.code == 401
    except (OSError, ValueError, HTTPException) as error:
        raise InvalidInput(f"--tracking-uri {masked(uri)}: no MLflow server answers ({probe_reason(error)})") from None
    if not healthy:
        raise InvalidInput(f"--tracking-uri {masked(uri)}: the server there is not MLflow")


def with_login_apart(uri: str) -> str:
    """A server's URI without user and password.

    They go into the environment variables from which MLflow's client reads them, so that no message shows them.
    """
    parts = urlsplit(uri) if uri.startswith("http") else None
    if parts is None or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
