"""One cluster for all tests that only use it; a test that breaks machines makes its own ``Cluster``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.hosts import lacking


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster after ``ray up``, all its nodes in it."""
    if reason := lacking():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("hosts") / "hosts") as cluster:
        cluster.ray_up()
        yield cluster
