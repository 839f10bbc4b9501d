"""A PostgreSQL server of a test's own, from Debian's package: on a socket, and on a loopback port where asked."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Literal

BINARIES = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: int(path.parent.name))
"""None where PostgreSQL is not installed."""
OWNER = "postgres"
"""The user of the database, and where root starts the server, which refuses to be root, of the machine."""


class Postgres:
    """A server with a folder of its own; what it writes survives any restart, though not a crash of the machine.

    Not in pytest's folder: that is root's alone where root runs the tests.
    """

    def __init__(self, *, loopback: bool = False) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
        self._is_root = os.geteuid() == 0
        if self._is_root:
            owner = pwd.getpwnam(OWNER)
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.host = "127.0.0.1" if loopback else str(self.folder)
        addresses = "127.0.0.1" if loopback else ""
        self._run("initdb", "--username", OWNER, "--auth", "trust", "--no-sync", "--encoding", "UTF8")
        options = f"-k {self.folder} -c listen_addresses='{addresses}' -p {self.port} -c fsync=off"
        self._start = ("start", "--wait", "--log", str(self.folder / "log"), "--options", options)

    def __enter__(self) -> Postgres:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.is_up():
            self.stop("immediate")
        shutil.rmtree(self.folder)

    def is_up(self) -> bool:
        return (self.folder / "data/postmaster.pid").exists()

    def start(self) -> None:
        self._run("pg_ctl", *self._start)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """``fast`` ends connections and writes all that is in memory; ``immediate`` is a crash, mended at the start."""
        self._run("pg_ctl", "stop", "--wait", "--mode", mode)

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        self.stop(mode)
        self.start()

    def create_database(self, name: str, *, like: str = "template1") -> str:
        """Makes a database, a copy of another that nobody uses or an empty one, and returns its URL."""
        self.sql(f'create database "{name}" template "{like}"')
        return self.url(name)

    def url(self, database: str = OWNER, user: str = OWNER) -> str:
        """As SQLAlchemy and libpq take it."""
        return f"postgresql://{user}@/{database}?host={self.host}&port={self.port}"

    def sql(self, command: str, database: str = OWNER) -> str:
        """What psql prints of a command, unaligned."""
        return self.run("psql", "--no-psqlrc", "--tuples-only", "--no-align", "--command", command, self.url(database))

    def run(self, program: str, *arguments: str, **environment: str) -> str:
        """What one of PostgreSQL's own programs prints."""
        assert BINARIES is not None
        command = [str(BINARIES / program), *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def _run(self, program: str, *arguments: str) -> None:
        assert BINARIES is not None
        as_owner = ["runuser", "-u", OWNER, "--"] if self._is_root else []
        command = [*as_owner, str(BINARIES / program), "--pgdata", str(self.folder / "data"), *arguments]
        # Not through pipes: the server that pg_ctl leaves behind would hold them open.
        with (self.folder / "out").open("w") as out:
            status = subprocess.run(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd="/", check=False)
        log = self.folder / "log"
        assert status.returncode == 0, (self.folder / "out").read_text() + (log.read_text() if log.exists() else "")
