"""The environment that produced a result: versions, hardware, commit."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from joblib import cpu_count

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "sgd-tuner")


def versions() -> dict[str, str]:
    """Package -> installed version, Python's included."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def hardware() -> str:
    """This machine's cores, processor and operating system, in words."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{cpu_count()} cores, {model}, {platform.system()}"


def commit() -> str | None:
    """The commit of this code's own repository; None for an installed copy, even inside another repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=False
        )
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return head.stdout.strip() if tracked.returncode == head.returncode == 0 else None


PLAIN_WIDTH = 120
"""Columns of output that goes to no terminal; the 80 that rich would take break the table."""
