"""Turns cluster.yaml into a cluster of one's own machines: ``python -m tuner.cluster.local_provider``.

Ray's provider ``local`` connects to existing machines over SSH.  The files that are copied and the commands that
install and start the software are cluster.yaml's, word for word.  The addresses and the login differ.  Each machine's
own firewall replaces the cloud's security group: it closes Ray's ports to all machines outside the cluster.  The
firewall is necessary: one message without a token (``RaySyncer/StartSync``) ends the GCS and the raylets of Ray 2.60.
Source: ours.
"""

from __future__ import annotations

import argparse
import ipaddress
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tuner.core.errors import ExitStatus, InvalidInput, command

PROGRAM = "python -m tuner.cluster.local_provider"
CLUSTER = Path("cluster.yaml")
RAY_PORTS = "6379, 8076-8080, 10001-19999, 32768-60999"
"""Ports on which the ``ray start`` of cluster.yaml listens beyond loopback.

The last range is Linux's ephemeral ports.  The workers of one trial connect to each other there, without
authentication.
"""
TABLE = "sgd_tuner"
"""Name of the nftables table with the rules; ``sudo nft delete table inet sgd_tuner`` opens the ports again."""
INSTALL_FIREWALL = (
    "sudo nft --version > /dev/null 2>&1 || (sudo apt-get -o DPkg::Lock::Timeout=600 update && "
    "sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y nftables)"
)
OF_THE_CLOUD = ("provider", "auth", "metadata", "available_node_types", "head_node_type", "max_workers")


def local_cluster(
    cluster: dict[str, Any],
    *,
    head: str,
    workers: Sequence[str],
    ssh_user: str,
    ssh_key: str | None,
    storage: str,
    name: str | None = None,
) -> dict[str, Any]:
    """The cluster's configuration for machines at these IPv4 addresses.  ``ssh_user`` may log in and ``sudo`` on all.

    ``storage`` replaces the cloud's bucket: a URI, or the absolute path of a folder that all machines share.
    ``ssh_key`` is the file of a private key; without it the head needs a key of its own that opens the workers.

    Raises InvalidInput for an address that is no IPv4 address or is given twice, and for a relative ``storage``.
    """
    machines = [head, *workers]
    for machine in machines:
        if not _is_address(machine):
            raise InvalidInput(f"--head and --workers: {machine!r} must be an IPv4 address such as 192.168.1.10")
    if twice := sorted({machine for machine in machines if machines.count(machine) > 1}):
        raise InvalidInput(f"--head {head} --workers {' '.join(workers)}: {twice[0]} is named twice")
    if "://" not in storage and not storage.startswith("/"):
        raise InvalidInput(f"--storage {storage}: must be a URI such as s3://bucket/folder or an absolute path")
    closed = firewall(machines)
    return {
        "cluster_name": name or cluster["cluster_name"],
        "metadata": {"storage": storage.rstrip("/")},
        "provider": {"type": "local", "head_ip": head, "worker_ips": list(workers)},
        "auth": {"ssh_user": ssh_user} | ({"ssh_private_key": ssh_key} if ssh_key else {}),
        "max_workers": len(workers),
        **{key: value for key, value in cluster.items() if key not in ("cluster_name", *OF_THE_CLOUD)},
        "setup_commands": [*cluster["setup_commands"], INSTALL_FIREWALL],
        **{start: [closed, *cluster[start]] for start in ("head_start_ray_commands", "worker_start_ray_commands")},
    }


def firewall(machines: Sequence[str]) -> str:
    """The command that closes a machine's Ray ports to all machines but these; its other ports stay as they are."""
    table = f"table inet {TABLE}"
    rules = (
        'iifname "lo" accept',
        "ct state established,related accept",
        f"ip saddr {{ {', '.join(machines)} }} accept",
        f"tcp dport {{ {RAY_PORTS} }} reject with tcp reset",
    )
    chain = f"chain input {{ type filter hook input priority filter; {'; '.join(rules)}; }}"
    # `delete` fails for a table that does not exist, so the table is added first.  All of it is one transaction.
    return f"sudo nft '{table}; delete {table}; {table} {{ {chain}; }}'"


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Prints the cluster's configuration as YAML; exit status 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Print cluster.yaml for your own machines.")
    parser.add_argument(
        "--head", required=True, metavar="ADDRESS", help="machine that schedules trials and holds the databases"
    )
    parser.add_argument("--workers", required=True, nargs="+", metavar="ADDRESS", help="machines that train")
    parser.add_argument("--ssh-user", required=True, metavar="USER", help="login with sudo rights on all machines")
    parser.add_argument("--ssh-key", metavar="FILE", help="private key that opens all machines")
    parser.add_argument(
        "--storage", required=True, metavar="PLACE", help="URI, or shared folder, for MLflow's artifacts"
    )
    parser.add_argument("--name", metavar="NAME", help="the cluster's name; default: cluster.yaml's")
    parser.add_argument("--cluster", type=Path, default=CLUSTER, metavar="FILE", help="default: cluster.yaml")
    arguments = parser.parse_args(argv)
    cluster = local_cluster(
        _read(arguments.cluster),
        head=arguments.head,
        workers=arguments.workers,
        ssh_user=arguments.ssh_user,
        ssh_key=arguments.ssh_key,
        storage=arguments.storage,
        name=arguments.name,
    )
    print(f"# Made by {PROGRAM} from {arguments.cluster}, whose comments explain each line.")
    print(yaml.safe_dump(cluster, sort_keys=False, width=120), end="")
    return ExitStatus.OK


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
        return True
    except ValueError:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        cluster = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or "it is not YAML"
        raise InvalidInput(f"--cluster {path}: cannot be read ({reason})") from None
    needed = {"cluster_name", "setup_commands", "head_start_ray_commands", "worker_start_ray_commands"}
    if not isinstance(cluster, dict) or needed - set(cluster):
        raise InvalidInput(f"--cluster {path}: must be the repository's cluster.yaml or have its keys")
    return cluster


if __name__ == "__main__":
    sys.exit(main())
