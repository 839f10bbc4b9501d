"""Who has no credential gets no answer: from outside the cluster at no port but SSH's, from inside by Ray's token."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from subprocess import PIPE

import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.hosts import ROOT, USER, Host
from tests.waiting import HANG_SECONDS

pytestmark = pytest.mark.cluster

STRANGERS = str(ROOT / "tests/cluster/strangers.py")
SSH_PORT, GCS, OBJECT_MANAGER, RAYLET, RUNTIME_ENV, AGENT_GRPC, AGENT, CLIENT = (
    22, 6379, 8076, 8077, 8078, 8079, 8080, 10001,
)  # fmt: skip
BUSY = """
import ray, sys
ray.init("auto", log_to_driver=False)
@ray.remote(num_cpus=1)
class Worker:
    def name(self): return ray.util.get_node_ip_address()
workers = [Worker.remote() for _ in range(2)]
print(*ray.get([worker.name.remote() for worker in workers]), flush=True)
sys.stdin.read()
"""


def asked(host: Host, *arguments: str) -> dict[str, list[int]]:
    """The answer of strangers.py, run on the host by someone who has no token."""
    said = host.inside("python", STRANGERS, *arguments)
    answer: dict[str, list[int]] = json.loads(said.stdout)
    return answer


@pytest.fixture(scope="module")
def busy(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with a driver and actors at work, whose ports are open too."""
    command = f"bash --login -i -c {shlex.quote(f'python -c {shlex.quote(BUSY)}')}"
    program = cluster.hosts.enter_by_ssh(cluster.hosts.head, command)
    with subprocess.Popen(program, stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL) as driver:
        assert driver.stdout is not None and driver.stdout.readline()
        yield cluster
        driver.communicate(timeout=HANG_SECONDS)


def test_from_outside_only_ssh_answers(busy: Cluster) -> None:
    head, worker = busy.hosts.head.address, busy.hosts.workers[0].address
    assert asked(busy.hosts.stranger, "ports", head, worker) == {head: [SSH_PORT], worker: [SSH_PORT]}
    assert asked(busy.hosts.laptop, "ports", head) == {head: [SSH_PORT]}


def test_ssh_wants_a_key(cluster: Cluster) -> None:
    head = f"{USER}@{cluster.hosts.head.address}"
    refused = cluster.hosts.stranger.inside(
        "ssh", "-o", "StrictHostKeyChecking=no", "-o", "BatchMode=yes", head, "true", check=False
    )
    assert refused.returncode != 0
    assert "Permission denied (publickey" in refused.stderr


def test_the_nodes_see_what_the_file_says_and_workers(busy: Cluster) -> None:
    head, worker = busy.hosts.head, busy.hosts.workers[0]
    ports = asked(busy.hosts.workers[1], "ports", head.address, worker.address)
    node = {SSH_PORT, OBJECT_MANAGER, RAYLET, RUNTIME_ENV, AGENT_GRPC, AGENT}
    for host, fixed in ((head, node | {GCS, CLIENT}), (worker, node)):
        others = set(ports[host.address]) - fixed
        assert fixed <= set(ports[host.address])
        assert others and all(10002 <= port <= 19999 for port in others), others


def test_inside_ray_wants_the_token_for_everything(busy: Cluster) -> None:
    head, worker = busy.hosts.head, busy.hosts.workers[0]
    ports = asked(busy.hosts.workers[1], "ports", head.address, worker.address)
    ends = [f"{address}:{port}" for address, found in ports.items() for port in found if port != SSH_PORT]
    for end, outcomes in asked(busy.hosts.workers[1], "calls", *ends).items():
        refused = {"UNAUTHENTICATED", "401"} & set(outcomes)
        assert refused, f"{end} has nothing that a token opens"
        # What a server does not know it does not do; a server of one protocol breaks off the other's connections.
        assert set(outcomes) <= refused | {"UNIMPLEMENTED", "UNAVAILABLE", "no HTTP"}, (end, outcomes)


def test_on_the_head_databases_and_pages_want_a_login(cluster: Cluster) -> None:
    head = cluster.hosts.head
    for path in ("/", "/api/2.0/mlflow/experiments/search?max_results=1", "/ajax-api/2.0/mlflow/experiments/search"):
        for login in ([], ["--user", "admin:password1234"], ["--user", "admin:"]):
            page = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", *login, f"http://127.0.0.1:5000{path}"]
            assert head.inside(*page).stdout == "401"
    job = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://127.0.0.1:8265/api/jobs/"]
    assert head.inside(*job).stdout == "401"
    for connection in ("host=127.0.0.1 user=ubuntu", "host=127.0.0.1 user=postgres", "user=postgres", "user=ubuntu"):
        refused = head.inside("psql", "--no-password", f"dbname=mlflow {connection}", "-c", "", check=False)
        assert refused.returncode != 0, connection
