"""The file for one's own machines: cluster.yaml's commands, other machines, and a firewall where the cloud has one."""

from __future__ import annotations

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private import util

from tuner.cluster.local_provider import firewall, local_cluster, main
from tuner.core.errors import InvalidInput

ROOT = Path(__file__).resolve().parents[2]
CLUSTER: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
HEAD, WORKERS = "192.168.1.10", ["192.168.1.11", "192.168.1.12"]
WHERE: dict[str, Any] = {
    "head": HEAD, "workers": WORKERS, "ssh_user": "tuner", "ssh_key": "~/.ssh/id_ed25519", "storage": "/srv/tuner",
}  # fmt: skip
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")
ARGUMENTS = ["--head", HEAD, "--workers", *WORKERS, "--ssh-user", "tuner", "--storage", "s3://bucket/tuner"]


@pytest.fixture
def derived() -> dict[str, Any]:
    return local_cluster(CLUSTER, **WHERE)


def test_ray_accepts_it_as_written_and_as_completed(
    derived: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    util.validate_config(derived)
    completed = util.prepare_config(copy.deepcopy(derived))
    util.validate_config(completed)
    (kind,) = completed["available_node_types"].values()
    assert (kind["min_workers"], kind["max_workers"]) == (2, 2), "machines of one's own are all kept"


def test_every_command_and_file_is_that_of_the_cloud(derived: dict[str, Any]) -> None:
    for key, value in CLUSTER.items():
        if key.endswith("_commands"):
            assert [command for command in derived[key] if command in value] == value, key
    for key in ("file_mounts", "rsync_exclude", "cluster_synced_files"):
        assert derived[key] == CLUSTER[key]


def test_what_is_added_is_the_firewall(derived: dict[str, Any]) -> None:
    for key in STARTS:
        assert derived[key] == [firewall([HEAD, *WORKERS]), *CLUSTER[key]], "closed before Ray opens a port"
    (added,) = [command for command in derived["setup_commands"] if command not in CLUSTER["setup_commands"]]
    assert "nftables" in added
    subprocess.run(["bash", "-n", "-c", added], check=True)


def test_machines_and_login_are_those_given(derived: dict[str, Any]) -> None:
    assert derived["provider"] == {"type": "local", "head_ip": HEAD, "worker_ips": WORKERS}
    assert derived["auth"] == {"ssh_user": "tuner", "ssh_private_key": "~/.ssh/id_ed25519"}
    assert derived["metadata"] == {"storage": "/srv/tuner"}
    assert "ssh_private_key" not in local_cluster(CLUSTER, **WHERE | {"ssh_key": None})["auth"]


def test_nothing_of_the_cloud_is_left(derived: dict[str, Any]) -> None:
    text = yaml.safe_dump(derived)
    for word in ("aws", "Instance", "sg-", "ami-", "s3://", "spot"):
        assert word not in text.replace("spot-", ""), word


def test_the_original_is_left_as_it_is() -> None:
    before = copy.deepcopy(CLUSTER)
    local_cluster(CLUSTER, **WHERE)
    assert before == CLUSTER


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": [HEAD]}, f"--head {HEAD} --workers {HEAD}: {HEAD} is named twice"),
        ({"workers": ["gpu-box"]}, "--head and --workers: 'gpu-box' must be an IPv4 address such as 192.168.1.10"),
        ({"head": "192.168.1.256"}, "--head and --workers: '192.168.1.256' must be an IPv4 address"),
        ({"storage": "runs"}, "--storage runs: must be a URI such as s3://bucket/folder or an absolute path"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        local_cluster(CLUSTER, **WHERE | changes)
    assert str(refused.value).startswith(message)


def test_the_command_prints_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ARGUMENTS, "--cluster", str(ROOT / "cluster.yaml"), "--name", "lab"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    where = WHERE | {"ssh_key": None, "storage": "s3://bucket/tuner"}
    assert printed == local_cluster(CLUSTER, **where) | {"cluster_name": "lab"}


@pytest.mark.parametrize("text", [None, "provider: {type: aws}", "[", "- a list"])
def test_the_command_names_a_file_that_is_none(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "cluster.yaml"
    if text is not None:
        file.write_text(text)
    assert main([*ARGUMENTS, "--cluster", str(file)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: --cluster {file}: ")
    assert said.err.count("\n") == 1
