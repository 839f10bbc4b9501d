"""What can break while a search runs on the cluster, and how it is brought back.

A fault takes the search, breaks something, and mends it; the search's driver may have ended by then.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import yaml

from tests.cluster.cluster import FILE
from tests.cluster.hosts import HOME, Host
from tests.cluster.searching import RUN_FOLDER, ClusterSearch
from tests.waiting import until

Fault = Callable[[ClusterSearch, random.Random], None]


def worker_killed(search: ClusterSearch, random: random.Random) -> None:
    """A worker's power fails; it comes back after a while, and the autoscaler brings Ray back on it."""
    hosts = search.cluster.hosts
    worker = random.choice(hosts.workers)
    worker.stop()
    time.sleep(random.uniform(1, 20))
    hosts.start(worker)


def worker_cut_off(search: ClusterSearch, random: random.Random) -> None:
    """A worker is off the network for 30 s; its trainings go on there, unheard."""
    hosts = search.cluster.hosts
    worker = random.choice(hosts.workers)
    hosts.cut(worker)
    time.sleep(30)
    hosts.heal(worker)


def driver_killed(search: ClusterSearch, random: random.Random) -> None:
    """kill -9 of the driver."""
    search.kill()


def head_ray_killed(search: ClusterSearch, random: random.Random) -> None:
    """All of Ray on the head ends by kill -9; ``ray up`` starts it again."""
    search.cluster.hosts.head.inside("pkill", "-9", "-f", "gcs_server|raylet|ray/dashboard|monitor.py|log_monitor.py")
    until(lambda: search.status is not None, "the driver notices")
    search.cluster.ray_up()


def mlflow_stopped(search: ClusterSearch, random: random.Random) -> None:
    """The MLflow server ends by kill -9 and is away for 60 s."""
    head = search.cluster.hosts.head
    head.inside("pkill", "-9", "--session", head.path(f"{HOME}/.mlflow/pid").read_text().strip())
    time.sleep(60)
    commands = yaml.safe_load(search.cluster.hosts.laptop.path(FILE).read_text())["head_start_ray_commands"]
    (start,) = [command for command in commands if "mlflow server" in command]
    search.cluster.on_head(start)
    ready = "curl -sf http://127.0.0.1:5000/health"
    until(lambda: search.cluster.on_head(ready, check=False).returncode == 0, "MLflow answers", every=1)


def postgresql_restarted(search: ClusterSearch, random: random.Random) -> None:
    """PostgreSQL is restarted, which ends all its connections; for half the time it stays away for some seconds."""
    head = search.cluster.hosts.head
    if random.random() < 0.5:
        head.inside("service", "postgresql", "restart")
        return
    head.inside("service", "postgresql", "stop")
    time.sleep(random.uniform(5, 15))
    head.inside("service", "postgresql", "start")


def disk_full(search: ClusterSearch, random: random.Random) -> None:
    """The disk of the run folder is full, for longer than the search waits or not, and is freed."""
    head = search.cluster.hosts.head
    filler = f"{RUN_FOLDER}/filler"
    head.inside("dd", "if=/dev/zero", f"of={filler}", "bs=64k", check=False)
    if random.random() < 0.5:
        time.sleep(random.uniform(5, 30))
    else:
        until(lambda: search.status is not None, f"it stops\n{search.output}")
        assert search.status in (0, 3), f"{search.status}\n{search.output}"
    head.inside("rm", filler)


FAULTS: dict[str, Fault] = {
    "worker-killed": worker_killed,
    "worker-cut-off": worker_cut_off,
    "driver-killed": driver_killed,
    "head-ray-killed": head_ray_killed,
    "mlflow-stopped": mlflow_stopped,
    "postgresql-restarted": postgresql_restarted,
    "disk-full": disk_full,
}
"""Name -> what breaks and mends it."""


def small_disk(head: Host) -> None:
    """Gives the run folder of the head a disk of its own, of 64 MB."""
    head.inside("mkdir", "-p", RUN_FOLDER)
    head.inside("mount", "-t", "tmpfs", "-o", "size=64m,mode=1777", "tmpfs", RUN_FOLDER)
    assert HOME in RUN_FOLDER


def inject(search: ClusterSearch, name: str, random: random.Random) -> None:
    """A fault during a running search, which is resumed where its driver has ended before the end."""
    search.note_interrupted()
    FAULTS[name](search, random)
    search.note_interrupted()
    if search.status not in (None, 0):
        search.start()
