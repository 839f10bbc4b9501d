"""Fixtures of every test: no test depends on the folder that pytest is started in, and none leaves anything there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

MADE_BY_PYTEST = (".pytest_cache", "__pycache__")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_where_it_was_started(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The folder that pytest was started in holds afterwards what it held before; tests run in an empty one."""
    started = request.config.invocation_params.dir
    before = entries(started)
    folder = tmp_path_factory.mktemp("empty")
    os.chdir(folder)
    yield folder
    os.chdir(started)
    assert entries(started) == before, "the tests changed the folder that they were started in"


@pytest.fixture(autouse=True)
def nothing_left_in_the_working_directory(nothing_left_where_it_was_started: Path) -> Iterator[None]:
    """A test that writes to a relative path without ``monkeypatch.chdir`` fails."""
    folder = nothing_left_where_it_was_started
    os.chdir(folder)
    yield
    os.chdir(folder)
    left = entries(folder)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert not left, "left in the working directory"


def entries(folder: Path) -> list[str]:
    """What a folder holds, and its ``runs``, apart from pytest's own."""
    found = [path for below in (folder, folder / "runs") if below.is_dir() for path in below.iterdir()]
    return sorted(str(path.relative_to(folder)) for path in found if path.name not in MADE_BY_PYTEST)
