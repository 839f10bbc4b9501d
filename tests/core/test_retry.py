"""What is written while a database goes away is written once, whatever moment it goes at."""

from __future__ import annotations

import itertools
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest
from optuna.storages import RDBStorage
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from search_spaces import Variant
from tests.postgres import Postgres
from tuner.core import retry as retry_module
from tuner.core.errors import StorageFailed
from tuner.core.metrics import EpochMetrics
from tuner.core.retry import retry
from tuner.core.search_spec import SearchSpec
from tuner.study.optuna_study import VariantStudy, close_storage, open_storage

Epoch = Callable[..., EpochMetrics]
Toy = Callable[..., Variant]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were slept; the clock goes on by them alone."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: sum(slept))
    return slept


def away() -> NoReturn:
    raise OSError("connection to postgresql://me:swordfish@host/db refused\nIs the server running?")


def test_what_works_is_not_waited_for(pauses: list[float]) -> None:
    assert retry("the disk", lambda: 3) == 3
    assert pauses == []


def test_pauses_double_up_to_their_limit(pauses: list[float], caplog: pytest.LogCaptureFixture) -> None:
    answers = itertools.count()
    with caplog.at_level(logging.WARNING):
        assert retry("the disk", lambda: 7 if next(answers) == 7 else away()) == 7
    assert pauses == [1, 2, 4, 8, 15, 15, 15]
    assert len(caplog.records) == 2, "said when it begins and when it ends"
    assert "swordfish" not in caplog.text


def test_patience_ends_in_one_sentence(pauses: list[float]) -> None:
    with pytest.raises(StorageFailed) as caught:
        retry("the disk", away, seconds=40)
    assert sum(pauses) == 40
    assert str(caught.value) == ("the disk has failed for 40 s: connection to postgresql://me:***@host/db refused")
    assert isinstance(caught.value.__cause__, OSError)


def test_other_failures_are_not_repeated(pauses: list[float]) -> None:
    tried = itertools.count()
    with pytest.raises(ZeroDivisionError):
        retry("the disk", lambda: 1 / next(tried))
    with pytest.raises(OSError):
        retry("the disk", away, failures=(ValueError,))
    assert next(tried) == 1 and pauses == []


def test_ctrl_c_ends_the_wait_at_once() -> None:
    main = threading.main_thread().ident
    assert main is not None

    def attempt() -> NoReturn:
        threading.Timer(0.1, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
        away()

    with pytest.raises(KeyboardInterrupt):
        retry("the disk", attempt, seconds=10**6)


@contextmanager
def cut_off(postgres: Postgres, at: int, *, done: bool) -> Iterator[list[int]]:
    """The server ends the connection at this COMMIT, before it does it or before it says so; yields the COMMITs."""
    original = PGDialect_psycopg.do_commit
    commits: list[int] = []

    def do_commit(dialect: PGDialect_psycopg, connection: Any) -> None:
        commits.append(len(commits))
        if commits[-1] != at:
            original(dialect, connection)  # type: ignore[no-untyped-call]
            return
        if done:
            original(dialect, connection)  # type: ignore[no-untyped-call]
        postgres.sql(f"select pg_terminate_backend({connection.dbapi_connection.info.backend_pid}, 10000)")
        connection.execute("select 1")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PGDialect_psycopg, "do_commit", do_commit)
        yield commits


def lived(storage: RDBStorage, search: str, variant: Variant, epoch: Epoch) -> None:
    """A study from its beginning on, with a trial of each kind and ending."""
    study = VariantStudy(storage, SearchSpec(objective="auc"), variant, search=search)
    study.join(2)
    for status, number in (
        ("finished", study.ask_race(2, 1)),
        ("failed", study.ask_refine(0, 3)),
        ("stopped", study.ask_repeat(1, 1)),
    ):
        history = [epoch(1, 0.2 + number / 10)]
        study.report(number, history)
        study.tell(number, status, history, "it broke" if status == "failed" else None)
    study.settings(study.ask_refine(1, 3))


def held(storage: RDBStorage, search: str) -> list[tuple[Any, ...]]:
    """What the database holds of the study and its trials, times apart."""
    study = storage.get_study_id_from_name(f"{search}/toy")
    trials = storage.get_all_trials(study)
    held = [(t.number, t.state, t.values, t.params, t.user_attrs, t.intermediate_values) for t in trials]
    return [*held, (storage.get_study_user_attrs(study),)]


@pytest.fixture
def in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry_module, "FIRST_PAUSE_SECONDS", 0.01)


@pytest.mark.parametrize("done", [False, True], ids=["unheard", "unanswered"])
def test_a_connection_that_ends_at_any_commit_doubles_and_loses_nothing(
    postgres: Postgres, toy: Toy, epoch: Epoch, in_haste: None, done: bool
) -> None:
    storage = open_storage(postgres.create_database(f"cut-{done}"))
    variant = toy()
    with cut_off(postgres, -1, done=done) as commits:
        lived(storage, "whole", variant, epoch)
    expected = held(storage, "whole")
    assert [set(trial[4]) - {"status", "failure"} for trial in expected[:-1]] == [
        {"round", "slot"}, {"index", "point"}, {"repeats", "repeat"}, {"index"},
    ]  # fmt: skip
    assert expected[-1] == ({"joined": 2},)
    for at in commits:
        with cut_off(postgres, at, done=done) as reached:
            lived(storage, str(at), variant, epoch)
        assert len(reached) > at
        assert held(storage, str(at)) == expected, f"at commit {at}"
    close_storage(storage)


@pytest.mark.parametrize("done", [False, True], ids=["unheard", "unanswered"])
def test_a_database_is_opened_whenever_the_connection_ends(postgres: Postgres, in_haste: None, done: bool) -> None:
    with cut_off(postgres, -1, done=done) as commits:
        close_storage(open_storage(postgres.create_database(f"opened-{done}")))
    for at in commits:
        url = postgres.create_database(f"opened-{done}-{at}")
        with cut_off(postgres, at, done=done):
            close_storage(open_storage(url))
        close_storage(opened := RDBStorage(url))
        assert opened.get_all_studies() == []
