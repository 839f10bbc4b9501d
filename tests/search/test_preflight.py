"""What is wrong with addresses and folders is found at once, in one line, and without a password in it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tuner.core import database
from tuner.core.errors import InvalidInput, masked
from tuner.core.search_spec import SearchSpec
from tuner.core.store import check_folder
from tuner.search.preflight import check
from tuner.tracking.client import check_tracking_uri

PASSWORD = "swordfish"


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A search that can be run, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return {"name": "s", "output": str(tmp_path / "runs")}


def refused(**values: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        check(SearchSpec.from_flags(**values))
    message = str(caught.value)
    assert message and "\n" not in message and PASSWORD not in message
    return message


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """A port on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture
def talking(request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a server that answers every connection with the test's bytes and hangs up."""

    def answer() -> None:
        while True:
            try:
                connection = listening.accept()[0]
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(request.param)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_good_search_passes_and_makes_nothing(good: dict[str, Any], tmp_path: Path) -> None:
    variants, splits = check(SearchSpec.from_flags(**good))
    assert splits
    assert [variant.name for variant in variants] == ["sgdm", "adamw", "lpsgdm", "critical"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"variants": ("adamv",)}, "did you mean 'adamw'?"),
        ({"space": ("lr.peek=1:2",)}, "did you mean 'lr.peak'?"),
        ({"cpus_per_trial": 1e5}, "--cpus-per-trial 100000: this machine has"),
        ({"workers_per_trial": 1024, "batch_size": 1024}, "--workers-per-trial 1024: must be at most"),
        ({"workload": "digit"}, "did you mean 'digits'?"),
        ({"output": "/dev/null"}, "--output /dev/null: /dev/null is not a folder"),
        ({"output": "/dev/null/below"}, "--output /dev/null/below: /dev/null is not a folder"),
        ({"tracking_uri": "mlruns"}, "--tracking-uri mlruns: must be an http(s):// server or a database such as"),
        ({"tracking_uri": "file:///tmp/mlruns"}, "must be an http(s):// server or a database such as"),
        ({"tracking_uri": "postgres://h/d"}, "--tracking-uri postgres://h/d: must be"),
        ({"tracking_uri": ""}, ""),
        ({"tracking_uri": "sqlite:///absent/m.db"}, "--tracking-uri sqlite:///absent/m.db: there is no folder"),
        ({"storage": "sqlite:///absent/o.db"}, "--storage sqlite:///absent/o.db: there is no folder"),
        ({"storage": "sqlite://"}, "--storage sqlite://: must name a file"),
        ({"storage": "sqlite:///:memory:"}, "must name a file"),
        ({"storage": "optuna.db"}, "--storage optuna.db: must be a database URL such as sqlite:///optuna.db"),
        ({"storage": "oracel://h/d"}, "--storage oracel://h/d: must be a database URL"),
        ({"storage": ""}, "--storage : must be a database URL"),
    ],
)
def test_the_first_thing_that_is_wrong_is_named(good: dict[str, Any], values: dict[str, Any], says: str) -> None:
    if values == {"tracking_uri": ""}:
        check(SearchSpec.from_flags(**good, **values))  # as good as none
    else:
        assert says in refused(**{**good, **values})


@pytest.mark.parametrize("name", ["storage", "tracking_uri"])
def test_a_file_that_is_no_database_is_refused_and_an_empty_one_is_not(good: dict[str, Any], name: str) -> None:
    Path("notes.db").write_text("these are my notes, not a database")
    assert "notes.db is not an SQLite database" in refused(**good | {name: "sqlite:///notes.db"})
    Path("folder.db").mkdir()
    assert "folder.db is not writable" in refused(**good | {name: "sqlite:///folder.db"})
    Path("empty.db").touch()
    check(SearchSpec.from_flags(**good | {name: "sqlite:///empty.db"}))


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:swordfish@127.0.0.1:1/db",
        "postgresql+psycopg://me:swordfish@127.0.0.1:1/db",
        "mysql://me:swordfish@127.0.0.1:1/db",
        "postgresql://me:swordfish@127.0.0.1:port/db",
        "postgresql://me:sword#swordfish@127.0.0.1:1/db",
        "postgresql://me:sword/swordfish@127.0.0.1:1/db",
        "postgresql://me:sword[swordfish@127.0.0.1:1/db",
        "postgresql://me@127.0.0.1:1/db?password=swordfish",
    ],
)
@pytest.mark.parametrize("name", ["storage", "tracking_uri"])
def test_a_database_that_is_not_there_is_refused_without_its_password(
    good: dict[str, Any], name: str, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PROBE_SECONDS", 2)
    assert f"--{name.replace('_', '-')} " in refused(**good | {name: uri})


@pytest.mark.parametrize(
    "authority",
    ["h:abc", "me:swordfish@h:abc", "[::1", "", "127.0.0.1:99999", "me:swordfish@127.0.0.1:1"],
)
def test_a_server_that_cannot_be_is_refused(good: dict[str, Any], authority: str) -> None:
    assert "--tracking-uri " in refused(**good, tracking_uri=f"http://{authority}")


def test_a_server_that_is_away_is_refused(good: dict[str, Any], free_port: int) -> None:
    message = refused(**good, tracking_uri=f"http://me:{PASSWORD}@127.0.0.1:{free_port}")
    assert f"--tracking-uri http://me:***@127.0.0.1:{free_port}: no MLflow server answers (" in message


def test_a_server_that_never_answers_is_given_up_in_time(
    good: dict[str, Any], silent: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both at once, as each takes all of its time; the clients' own is minutes, and the test would end by that."""
    assert database.PROBE_SECONDS <= 10
    monkeypatch.setattr(database, "PROBE_SECONDS", 2)
    uris = {
        "tracking_uri": f"http://me:{PASSWORD}@127.0.0.1:{silent}",
        "storage": f"postgresql://me:{PASSWORD}@127.0.0.1:{silent}/db",
    }
    messages: dict[str, str] = {}

    def ask(name: str, uri: str) -> None:
        try:
            check(SearchSpec.from_flags(**good | {name: uri}))
        except InvalidInput as error:
            messages[name] = str(error)

    threads = [threading.Thread(target=ask, args=item) for item in uris.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert "--tracking-uri http://me:***@127.0.0.1" in messages["tracking_uri"]
    assert "--storage postgresql://me:***@127.0.0.1" in messages["storage"]


@pytest.mark.parametrize(
    "talking",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nNO",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<html>",
    ],
    indirect=True,
    ids=["ssh", "nothing", "another answer", "not found", "error", "cut short"],
)
def test_what_is_no_mlflow_server_is_refused(good: dict[str, Any], talking: int) -> None:
    message = refused(**good, tracking_uri=f"http://me:{PASSWORD}@127.0.0.1:{talking}")
    assert f"--tracking-uri http://me:***@127.0.0.1:{talking}: " in message


@pytest.mark.parametrize("status", [200, 401])
def test_a_server_that_is_well_or_asks_for_a_login_passes(status: int) -> None:
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"OK")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        check_tracking_uri(f"http://me:{PASSWORD}@127.0.0.1:{server.server_port}/base/")
        server.shutdown()
        thread.join()
    assert asked == ["/base/health"]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://host:5000", "http://host:5000"),
        ("http://me@host:5000", "http://me@host:5000"),
        ("http://me:swordfish@host:5000/a?b=c#d", "http://me:***@host:5000/a?b=c#d"),
        ("http://:swordfish@host", "http://:***@host"),
        ("http://me:@host", "http://me:***@host"),
        ("http://me:a@swordfish@host", "http://me:***@host"),
        ("postgresql+psycopg://me:swordfish@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("sqlite:////absolute/mlflow.db", "sqlite:////absolute/mlflow.db"),
        ("runs", "runs"),
    ],
)
def test_passwords_are_masked_and_all_else_stays(uri: str, shown: str) -> None:
    assert masked(uri) == shown
    assert masked(masked(uri)) == shown


@pytest.mark.parametrize("odd", [*"#/?[]", ":", "%23", "@", " "])
def test_a_password_of_any_characters_is_masked(odd: str) -> None:
    """SQLAlchemy takes all of these between the colon and the last at sign."""
    shown = masked(f"postgresql://me:a{odd}swordfish@host/db")
    assert "swordfish" not in shown and shown.endswith("@host/db")


def test_a_password_among_the_options_is_masked() -> None:
    assert "swordfish" not in masked("postgresql://me@host/db?user=me&password=swordfish")


def test_folders_that_can_be_made_pass(tmp_path: Path) -> None:
    check_folder("--output", tmp_path)
    check_folder("--output", tmp_path / "a" / "b" / "c")
    assert not (tmp_path / "a").exists()
