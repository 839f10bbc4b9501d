"""Starts Ray on this machine or joins a cluster, and checks that a trial fits into it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from joblib import cpu_count

from tuner.core.errors import InvalidInput, first_line
from tuner.core.search_spec import SearchSpec

OBJECT_STORE_BYTES = 256 * 2**20
"""Size of Ray's object store.  Trials send only metrics, for which Ray would reserve a third of the memory."""
MOST_MACHINES = 1000
"""Number of machines that is counted for a machine type without a limit of its own."""
RECOUNT_SECONDS = 2.0
"""Seconds between two counts of a cluster's machines."""
PROBE_SECONDS = 10
"""Seconds within which a cluster's address must answer."""


@dataclass(frozen=True, slots=True)
class Resources:
    """The resources of each worker of a trial, and how many trials fit at a time."""

    cpus: float
    """CPUs of each worker, above 0."""
    gpus: float
    """GPUs of each worker: a part of one in [0, 1], or a number of whole ones."""
    slots: int
    """How many trials fit at a time, at least 1."""

    @property
    def threads(self) -> int:
        """Threads of each worker of a trial: its CPUs, at least one."""
        return max(1, int(self.cpus))


class Slots:
    """How many trials fit at a time into a cluster that grows and shrinks."""

    def __init__(self, spec: SearchSpec, resources: Resources) -> None:
        self._spec, self._resources = spec, resources
        self._slots, self._counted_at = resources.slots, time.monotonic()

    def now(self) -> int:
        """The number of slots as last counted, at most :data:`RECOUNT_SECONDS` ago."""
        if self._spec.address is not None and time.monotonic() - self._counted_at > RECOUNT_SECONDS:
            bundles = _num_fitting(_machines(), self._resources.cpus, self._resources.gpus)
            self._slots = bundles // self._spec.workers_per_trial
            self._counted_at = time.monotonic()
        return self._slots


def check_local_cpus(spec: SearchSpec) -> None:
    """Checks that this machine has a trial's CPUs, before anything is started; raises InvalidInput otherwise."""
    if spec.address is None and spec.cpus_per_trial > cpu_count():
        raise InvalidInput(f"--cpus-per-trial {spec.cpus_per_trial:g}: this machine has {cpu_count()}")
    if spec.address is None and spec.workers_per_trial * spec.cpus_per_trial > cpu_count():
        raise InvalidInput(
            f"--workers-per-trial {spec.workers_per_trial}: must be at most {cpu_count() // spec.cpus_per_trial:g} "
            f"with --cpus-per-trial {spec.cpus_per_trial:g}, this machine has {cpu_count()}"
        )


def start_ray(spec: SearchSpec) -> Resources:
    """Connects to Ray and returns a trial's resources.  Joins a cluster only if the spec has an address.

    Raises InvalidInput if the cluster does not answer, and if a trial fits neither its machines nor those that it can
    start.
    """
    # Relative paths and the user's own modules are looked up in the folder in which the search was started.
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"
    # The recorder keeps the logs.  Tune's own loggers would write the same numbers in three more formats.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if spec.address is None:
        ray.init(
            address="local",
            num_cpus=cpu_count(),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    else:
        try:
            _probe(spec.address)
            ray.init(address=spec.address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            reason = first_line(error)
            raise InvalidInput(f"--address {spec.address}: no Ray cluster answers there ({reason})") from None
    try:
        return _share(spec)
    except InvalidInput:
        ray.shutdown()
        raise


@contextmanager
def ray_shut_down() -> Iterator[None]:
    """Disconnects from Ray at the end; a Ray that was started here ends with it."""
    try:
        yield
    finally:
        ray.shutdown()


def _probe(address: str) -> None:
    """Raises OSError if nothing listens at the address; Ray itself would try for a minute."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=PROBE_SECONDS).close()


def _share(spec: SearchSpec) -> Resources:
    machines = _machines()
    most_gpus = max(machine.get("GPU", 0.0) for machine in machines)
    gpus = spec.gpus_per_trial if spec.gpus_per_trial is not None else float(most_gpus >= 1)
    where = "this machine" if spec.address is None else "the largest machine of the cluster"
    for name, wanted, kind in (("gpus", gpus, "GPU"), ("cpus", spec.cpus_per_trial, "CPU")):
        most = max(machine.get(kind, 0.0) for machine in machines)
        if wanted > most:
            raise InvalidInput(f"--{name}-per-trial {wanted:g}: {where} has {most:g}")
    fitting = _num_fitting(machines, spec.cpus_per_trial, gpus)
    if fitting == 0:
        raise InvalidInput(
            f"--cpus-per-trial {spec.cpus_per_trial:g} --gpus-per-trial {gpus:g}: no machine of the cluster has both"
        )
    slots = fitting // spec.workers_per_trial
    if slots == 0:
        where = "this machine" if spec.address is None else "the cluster"
        raise InvalidInput(f"--workers-per-trial {spec.workers_per_trial}: {where} has room for {fitting}")
    return Resources(spec.cpus_per_trial, gpus, min(slots, spec.max_concurrent or slots))


def _machines() -> list[dict[str, float]]:
    """Resources of each machine.

    A cluster that can grow is counted at its full size, so that trials may wait for machines that will be started.
    """
    return _startable_machines() or [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _num_fitting(machines: list[dict[str, float]], cpus: float, gpus: float) -> int:
    return sum(_fit(machine, cpus, gpus) for machine in machines)


def _fit(machine: dict[str, float], cpus: float, gpus: float) -> int:
    by_cpu = _whole(machine.get("CPU", 0.0) / cpus)
    if not gpus:
        return by_cpu
    on_each = _whole(1 / gpus)
    # A part of a GPU cannot be put together from two GPUs.
    by_gpu = int(machine.get("GPU", 0.0)) * on_each if on_each else _whole(machine.get("GPU", 0.0) / gpus)
    return min(by_cpu, by_gpu)


def _whole(quotient: float) -> int:
    # 1 / 0.2 is 5, though 1 // 0.2 is 4.
    return int(quotient + 1e-9)


def _startable_machines() -> list[dict[str, float]]:
    """Resources of the machine types that the cluster's autoscaler may start."""
    config = ray._private.state.state.get_cluster_config()
    groups = config.node_group_configs if config is not None else []
    # -1 stands for any number.
    counts = [group.max_count if group.max_count >= 0 else MOST_MACHINES for group in groups]
    return [dict(group.resources) for group, count in zip(groups, counts, strict=True) for _ in range(count)]
