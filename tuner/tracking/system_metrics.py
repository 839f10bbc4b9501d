"""This machine's load: processors, memory, disk, network and, with ``nvidia-ml-py``, NVIDIA GPUs."""

from __future__ import annotations

import logging
from typing import Any

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

logger = logging.getLogger(__name__)


class SystemLoad:
    """MLflow's own monitors, without MLflow's writer, which gives up when the server is unreachable."""

    def __init__(self) -> None:
        self._monitors: list[Any] = []  # their methods have no type annotations
        for kind in (CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor):
            try:
                self._monitors.append(kind())
            except Exception as error:  # each monitor raises errors of its own for missing hardware
                logger.info("%s: %s", kind.__name__, error)
        # A reading gives the processors' load since the reading before it.
        self.read()

    def read(self) -> dict[str, float]:
        """Metric name -> value.  MLflow's UI shows names that begin with ``system/`` on a page of their own."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return values
