"""Shared fixtures."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import signal
import sqlite3
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from sqlalchemy import Engine

from search_spaces import Variant
from tests.command import TINY, Running, search
from tests.distribution import process_of, pytest_xdist_make_scheduler  # noqa: F401
from tests.postgres import BINARIES, Postgres
from tests.tidy import nothing_left_in_the_working_directory, nothing_left_where_it_was_started  # noqa: F401
from tuner.core.metrics import EpochMetrics
from tuner.core.search_spec import SearchSpec
from tuner.study.optuna_study import open_storage, open_studies
from tuner.study.recorder import Recorder
from tuner.study.results import Search
from tuner.study.scheduler import TrialScheduler
from tuner.tracking.tracker import Tracker


def pytest_configure(config: pytest.Config) -> None:
    # Where a shell started the tests in the background it is ignored, here and in all searches that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests run in empty folders; Ray's workers import what is defined here, as `tests.cluster.test_worker_group`.
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(config.rootpath) not in known:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(config.rootpath), *known)))
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)  # else each of these processes starts one for every core


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is slow comes first, so that no process is left with it at the end."""
    slow = {process_of(item.nodeid) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: process_of(item.nodeid) not in slow)


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """The searches of a test that failed would be in the way of the tests after it."""
    yield
    while Running.begun:
        Running.begun.pop().kill()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread, as in a trial: the networks of the tests are small."""
    import torch  # most tests have no use for it

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def memory_given_back() -> Iterator[None]:
    """After a module of large networks the process holds what it held before: C's allocator keeps what is freed."""
    yield
    gc.collect()
    with suppress(AttributeError):  # not the GNU C library
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def epoch() -> Callable[..., EpochMetrics]:
    """Makes the metrics of an epoch of ten gradient evaluations, in a budget of a hundred."""

    def make(number: int, accuracy: float, **changes: Any) -> EpochMetrics:
        values: dict[str, Any] = {
            "epoch": number,
            "gradient_evaluations": 10 * number,
            "steps": 10 * number,
            "budget": 100,
            "train_loss": 1.0,
            "train_accuracy": accuracy,
            "validation_loss": 1.0,
            "validation_accuracy": accuracy,
            "lr": 0.1,
            "momentum": 0.9,
            "p": 2.0,
            "seconds": 0.5 * number,
            "evaluation_seconds": 0.1 * number,
            "compile_seconds": 0.0,
            "loading_seconds": 0.0,
            "images_per_second": 1000.0,
            "diverged": False,
            "finished_at": 1.7e9 + number,
        }
        return EpochMetrics(**{**values, **changes})

    return make


@pytest.fixture
def toy() -> Callable[..., Variant]:
    """Makes a variant of two settings."""

    def make(name: str = "toy", **changes: Any) -> Variant:
        values: dict[str, Any] = {
            "idea": "two settings",
            "source": "ours",
            "fixed": {"rule": "sgd"},
            "searched": {
                "lr.peak": FloatDistribution(1e-3, 1.0, log=True),
                "momentum.value": FloatDistribution(0, 0.9),
            },
            "default": {"lr.peak": 0.1, "momentum.value": 0.5},
        }
        return Variant(name=name, **{**values, **changes})

    return make


@pytest.fixture(scope="session")
def quick_sqlite() -> Iterator[None]:
    """SQLite that does not wait for the disk: programs are killed here, machines are not."""
    from sqlalchemy import event

    def hurry(connection: object, record: object) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    event.listen(Engine, "connect", hurry)
    yield
    event.remove(Engine, "connect", hurry)


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory, quick_sqlite: None) -> Path:
    """A folder with the empty databases ``mlflow.db`` and ``optuna.db``: copying is much faster than making."""
    from mlflow.tracking import MlflowClient

    folder = tmp_path_factory.mktemp("databases")
    with warnings.catch_warnings(action="ignore"):  # MLflow's own, of what SQLAlchemy is about to drop
        MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()
    open_storage(f"sqlite:///{folder / 'optuna.db'}").remove_session()
    return folder


@pytest.fixture
def mlflow_uri(databases: Path, tmp_path: Path) -> str:
    """An MLflow store of this test's own."""
    return f"sqlite:///{shutil.copy(databases / 'mlflow.db', tmp_path)}"


@pytest.fixture
def storage_url(databases: Path, tmp_path: Path) -> str:
    """An Optuna storage of this test's own."""
    return f"sqlite:///{shutil.copy(databases / 'optuna.db', tmp_path)}"


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """A PostgreSQL server for all tests; each makes databases of its own."""
    if BINARIES is None:
        pytest.skip("PostgreSQL is not installed")
    with Postgres(loopback=True) as server:
        yield server


@pytest.fixture
def postgres(postgres_server: Postgres) -> Iterator[Postgres]:
    """The same, which a test may stop."""
    yield postgres_server
    if not postgres_server.is_up():
        postgres_server.start()


@pytest.fixture
def open_recorder(mlflow_uri: str, storage_url: str, tmp_path: Path) -> Iterator[Callable[..., Recorder]]:
    """Opens the search "s" as a program that starts does; opened again, it is the same search."""
    opened: list[Tracker] = []

    def open_it(variants: list[Variant], **changes: Any) -> Recorder:
        names = tuple(variant.name for variant in variants)
        spec = SearchSpec.from_flags(**{"name": "s", "variants": names, "confirm_seeds": 0, **changes})
        storage = open_storage(storage_url)
        studies = open_studies(spec, variants, storage, search="s")
        tracking = Tracker(
            uri=mlflow_uri, experiment="e", search="s", search_id="id", parameters={"seed": spec.seed}, tags={}
        )
        opened.append(tracking)
        by_variant = {name: study.study for name, study in studies.items()}
        joined = {name: study.joined for name, study in studies.items()}
        search = Search(spec, "id", tuple(variants), tmp_path / "s", by_variant, joined=joined)
        return Recorder(TrialScheduler(search, studies), tracking, storage)

    yield open_it
    # A test that forks beside another's writing thread would take over whatever lock that holds, for good.
    for tracking in opened:
        tracking.finish("interrupted", {}, [], timeout=10)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A small search of all default variants; easy targets, so that they are reached."""
    folder = tmp_path_factory.mktemp("search")
    arguments = ["--name", "a", "--epochs", "3", *TINY, "--targets", ".2", ".6", "--confirm-seeds", "2"]
    ran = search(folder, *arguments, "--curvature", "3")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder, ran
