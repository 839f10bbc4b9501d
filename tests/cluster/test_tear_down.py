"""``ray down``; the last of the tests that share a cluster, by its name."""

from __future__ import annotations

from functools import partial

import pytest

from tests.cluster.cluster import Cluster
from tests.waiting import until

pytestmark = [pytest.mark.cluster, pytest.mark.extensive]


def test_ray_down_leaves_no_process_of_ray(cluster: Cluster) -> None:
    hosts = (cluster.hosts.head, *cluster.hosts.workers)
    until(lambda: not any(map(cluster.is_quiet, hosts)), "Ray runs everywhere again", every=1)
    cluster.ray_down()
    assert cluster.is_quiet(cluster.hosts.head)
    for worker in cluster.hosts.workers:
        # Nothing tells a worker of one's own: it ends when it has not heard of the head for a minute.
        until(partial(cluster.is_quiet, worker), f"Ray ends on {worker.name}", every=1)
