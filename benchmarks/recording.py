"""Tables and JSON files of the benchmarks: the figures and the conditions under which they were measured."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow")


def parser(documentation: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with the module's docstring as its help and ``--out``."""
    made = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--out", type=Path, default=Path(f"{name}.json"), help="where the figures are written")
    return made


def conditions(device: str = "cpu") -> dict[str, Any]:
    """Machine, load and versions, which a reader needs to judge the figures."""
    return {
        "at": datetime.now().isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 2),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def record(out: Path, before: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    """Writes the figures and the conditions, which were taken before the measurement."""
    out.write_text(json.dumps({"conditions": before, "figures": figures}, indent=2) + "\n")
    print(f"Load average {before['load_average']} on {before['cores']} cores at the start. Written to {out}.")


def show(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Prints a table; the first column is text, the others are numbers."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for line in lines:
        table.add_row(*line)
    Console(width=None if Console().is_terminal else 120).print(table)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, and the range where there is more than one value."""
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
