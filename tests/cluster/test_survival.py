"""A search on the cluster loses nothing and doubles nothing, whatever part dies.

After the tests that know all that their cluster has done, before the one that ends it.
"""

from __future__ import annotations

import random

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.faults import FAULTS, inject
from tests.cluster.searching import ClusterSearch

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_search_survives_the_loss_of_a_worker(cluster: Cluster) -> None:
    search = ClusterSearch(cluster, "fault", trials=3, epochs=6)
    search.start()
    search.wait_for_epochs(12)
    assert search.status is None, search.output
    inject(search, "worker-killed", random.Random(0))
    assert search.wait() == 0, search.output
    search.check_whole()
    assert search.check_interrupted(2) >= 1


@pytest.mark.extensive
def test_a_search_survives_the_loss_of_its_driver_and_of_a_worker(cluster: Cluster) -> None:
    """Two faults in one search; ``python -m tests.cluster.soak`` has all of them, one by one and at random."""
    search = ClusterSearch(cluster, "faults")
    search.start()
    for name in ("driver-killed", "worker-killed"):
        assert name in FAULTS
        search.wait_for_epochs(40)
        assert search.status is None, search.output
        inject(search, name, random.Random(0))
    assert search.wait() == 0, search.output
    search.check_whole()
    assert search.check_interrupted(6) >= 4
