"""How busy this machine is: processors, memory, disk, network and, with ``nvidia-ml-py``, NVIDIA's GPUs."""

from __future__ import annotations

import logging
from typing import Any

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

logger = logging.getLogger(__name__)


class SystemLoad:
    """MLflow's own readings, without its writer, which gives up when the server is away."""

    def __init__(self) -> None:
        self._monitors: list[Any] = []  # their methods carry no types
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            try:
                self._monitors.append(kind())
            except Exception as error:  # each has errors of its own for what is not there
                logger.info("%s: %s", kind.__name__, error)
        # The processors' load is that since the reading before.
        self.read()

    def read(self) -> dict[str, float]:
        """Value by metric name, ``system/...``, which the UI shows on a page of their own."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values
