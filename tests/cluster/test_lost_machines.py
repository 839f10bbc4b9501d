"""A machine that is taken away costs its trials no failure; a worker that dies by itself does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from tests.command import FORMULA, HELD_EPOCH, NUM_ALONE, Running, epochs_logged, mlflow_runs, studies

pytestmark = pytest.mark.slow
EPOCHS = 2 * HELD_EPOCH


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs and a node with one, which each test leaves as it found it."""
    memory = 100 * 2**20
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": memory}
    )
    cluster.add_node(num_cpus=1, object_store_memory=memory)
    yield cluster
    cluster.shutdown()


def lose(cluster: Cluster, folder: Path) -> None:
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)


def drain(cluster: Cluster, folder: Path) -> None:
    """As a cloud's notice of preemption does it, where something passes it on."""
    (node,) = cluster.worker_nodes
    subprocess.run(
        [
            *(str(Path(sys.executable).with_name("ray")), "drain-node", "--address", cluster.address),
            *("--node-id", node.node_id, "--deadline-remaining-seconds", "1"),
            *("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"),
        ],
        check=True,
        capture_output=True,
    )
    # Ray ends what still runs there at the deadline; then the cloud takes the machine.
    cluster.remove_node(node, allow_graceful=True)


def crash(cluster: Cluster, folder: Path) -> None:
    (node,) = cluster.worker_nodes
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    (worker,) = [child for child in raylet.children() if "TrialActor" in " ".join(child.cmdline())]
    os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("happens", "costs_a_failure"),
    [
        (lose, False),
        pytest.param(drain, False, marks=pytest.mark.extensive),
        pytest.param(crash, True, marks=pytest.mark.extensive),
    ],
)
def test_what_counts_as_a_failure(
    cluster: Cluster, happens: Callable[[Cluster, Path], None], costs_a_failure: bool, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    small = ["--name", "a", "--epochs", str(EPOCHS), "--trials", "2", "--round-size", "2", "--confirm-seeds", "0"]
    small += ["--variants", "sgdm", "--max-failures", "0", "--no-early-stopping", "--address", cluster.address]
    running = Running(tmp_path, *small, program=FORMULA, HOLD=str(go))
    running.wait_until(lambda: len(epochs_logged(tmp_path).get("sgdm-00", [])) == HELD_EPOCH)
    happens(cluster, tmp_path)
    if happens is not crash:
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    go.touch()
    assert running.wait() == 0, running.output()
    states = [trial.state.name for trial in studies(tmp_path)["sgdm"].trials]
    # Two settings, and repeats of those that finished.
    assert states == (["FAIL", *["COMPLETE"] * NUM_ALONE] if costs_a_failure else ["COMPLETE"] * 2 * NUM_ALONE)
    _, runs = mlflow_runs(tmp_path)
    tags = next(run.data.tags for run in runs if run.info.run_name == "sgdm-00")
    assert tags.get("lost_machines") == (None if costs_a_failure else "1")
    assert ("died" in tags.get("failure", "")) == costs_a_failure
    assert epochs_logged(tmp_path)["sgdm-01"] == list(range(1, EPOCHS + 1))
