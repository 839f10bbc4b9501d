"""MLflow's SQLite database, made whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore


def make_database(path: Path) -> None:
    """Makes the database where there is none.

    A program killed while MLflow makes its tables would leave a file that MLflow can neither use nor mend.
    """
    if path.exists():
        return
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    try:
        # Closes its connections, so that the file is whole.
        store = SqlAlchemyStore(f"sqlite:///{draft}", str(path.absolute().parent / "mlruns"))  # type: ignore[no-untyped-call]
        store.engine.dispose()
        with suppress(FileExistsError):  # somebody was faster
            os.link(draft, path)
    finally:
        for leftover in path.parent.glob(f"{draft.name}*"):
            leftover.unlink()
