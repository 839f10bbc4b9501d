"""cluster.yaml on test hosts, by the commands that a user types on a laptop."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.cluster.hosts import KEY, LAPTOP_HOME, ROOT, USER, Host, Hosts
from tests.waiting import HANG_SECONDS, until

FILE = f"{LAPTOP_HOME}/cluster.yaml"
"""The file for the hosts, on the laptop, made from cluster.yaml by the command that makes it for one's own machines."""
STORAGE = "postgresql+psycopg:///optuna?host=/var/run/postgresql"
MLFLOW = "http://127.0.0.1:5000"


class Cluster:
    """Hosts for a cluster, and the commands that make it one; ``with`` ends them."""

    def __init__(self, folder: Path, num_workers: int = 2) -> None:
        self.hosts = Hosts(folder, num_workers)

    def __enter__(self) -> Cluster:
        try:
            self.hosts.up()
            # What Debian's package does where it is not installed yet.
            version = max(Path("/usr/lib/postgresql").iterdir(), key=lambda path: int(path.name)).name
            self.hosts.head.inside("pg_createcluster", version, "main")
            addresses = [worker.address for worker in self.hosts.workers]
            derived = self.laptop(
                *(
                    "python",
                    "-m",
                    "tuner.cluster.local_provider",
                    "--head",
                    self.hosts.head.address,
                    "--workers",
                    *addresses,
                ),
                *("--ssh-user", USER, "--ssh-key", KEY, "--storage", "/srv"),
            )
            self.hosts.laptop.path(FILE).write_text(derived.stdout)
        except BaseException:
            self.hosts.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.hosts.down()

    def laptop(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Runs a command on the laptop, in the repository's folder."""
        return self.hosts.laptop.inside(*command, cwd=ROOT, check=check)

    def ray_up(self) -> str:
        """``ray up``, and the wait for all nodes; returns what it says."""
        said = self.laptop("ray", "up", "--yes", FILE)
        until(lambda: not any(map(self.is_quiet, self.hosts.workers)), "Ray starts on all workers")
        until(lambda: len(self.nodes()) == 1 + len(self.hosts.workers), "all nodes are in the cluster", every=2)
        return said.stdout + said.stderr

    def ray_down(self) -> str:
        """``ray down``; returns what it says."""
        said = self.laptop("ray", "down", "--yes", FILE)
        return said.stdout + said.stderr

    def on_head(self, command: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in a shell on the head like the one that ``ray attach`` gives."""
        return self.hosts.ssh(self.hosts.head, _login(command), check=check)

    def nodes(self) -> list[str]:
        """Addresses of the nodes that are alive, the head's included; none where Ray does not answer."""
        asked = self.on_head("ray list nodes --format json --filter state=ALIVE", check=False)
        return [node["node_ip"] for node in json.loads(asked.stdout)] if asked.returncode == 0 else []

    def is_quiet(self, host: Host) -> bool:
        """Whether no process of Ray is left on the host."""
        return host.inside("pgrep", "-f", "raylet|gcs_server|ray::|ray/dashboard", check=False).returncode == 1

    def _succeeds(self, command: str) -> bool:
        return self.laptop("bash", "-c", command, check=False).returncode == 0

    @contextmanager
    def tunnel(self, *ports: int) -> Iterator[None]:
        """``ray attach -p``, while in use: these ports of the head's loopback are the laptop's own."""
        options = [option for port in ports for option in ("-p", str(port))]
        attach = subprocess.Popen(
            self.hosts.laptop.enter("ray", "attach", FILE, *options, cwd=ROOT),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for port in ports:
                dial = f"exec 3<>/dev/tcp/127.0.0.1/{port}"
                until(partial(self._succeeds, dial), f"port {port} of the tunnel")
            yield
        finally:
            attach.communicate(b"exit\n", timeout=HANG_SECONDS)

    def password(self) -> str:
        """MLflow's, of the user ``admin``, as the user reads it."""
        said = self.laptop("ray", "exec", FILE, "cat ~/.mlflow/credentials").stdout
        (password,) = re.findall(r"^mlflow_tracking_password = (\w+)", said, re.MULTILINE)
        return str(password)

    def fetch(self, path: str) -> None:
        """A file of the head's home comes to the laptop's."""
        self.laptop("mkdir", "-p", f"{LAPTOP_HOME}/{Path(path).parent}")
        self.laptop("ray", "rsync-down", FILE, f"~/{path}", f"{LAPTOP_HOME}/{path}")


def _login(command: str) -> str:
    return f"bash --login -i -c {shlex.quote(command)}"
