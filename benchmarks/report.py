"""Seconds and peak resident memory of the report of a large search, against their limits.

The search is simulated (:mod:`benchmarks.simulated_search`) and stands on disk as a real one would, its studies in
SQLite.  The report is the command, in a process of its own; its peak is the kernel's, shared pages included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.programs import scratch
from benchmarks.recording import conditions, parser, record, show, spread
from benchmarks.simulated_search import Truth, simulate
from tuner.plan import SearchSpec

SECONDS_LIMIT, MEMORY_LIMIT_MB = 30.0, 1000.0
TRUTHS = {
    "sgdm": Truth(lr_limit=0.5),
    "adamw": Truth(lr_best=0.003, speed=0.8),
    "lpsgdm": Truth(lr_best=0.02, speed=0.7),
    "critical": Truth(speed=0.5),
}


def cost(name: str, output: Path) -> tuple[float, float, float]:
    """Seconds, seconds of the processor, and peak in MB of 10^6 bytes, of the report of a search."""
    start = time.perf_counter()
    program = subprocess.Popen(
        [sys.executable, "-m", "tuner.report", name, "--output", str(output)], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(program.pid, 0)
    seconds = time.perf_counter() - start
    program.returncode = os.waitstatus_to_exitcode(status)
    if program.returncode:
        raise RuntimeError(f"the report ended with exit status {program.returncode}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def main() -> int:
    """Makes a search, reports on it and prints what that costs; 1 where it is above a limit."""
    options = parser(__doc__, "report")
    options.add_argument("--trials", type=int, default=250, help=f"trials of each of {len(TRUTHS)} variants")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--repeats", type=int, default=3, help="reports of the same search")
    chosen = options.parse_args()
    before = conditions()
    with scratch() as folder:
        spec = SearchSpec(name="large", variants=tuple(TRUTHS), trials=chosen.trials, epochs=chosen.epochs)
        num_runs = len(simulate(spec, TRUTHS, output=folder).records)
        costs = [cost("large", folder) for _ in range(chosen.repeats)]
        size = (folder / "large" / "report.html").stat().st_size / 1e6
    seconds, busy, peaks = ([one[i] for one in costs] for i in range(3))
    show(
        f"Report of {len(TRUTHS)} x {chosen.trials} trials, {num_runs} trainings of at most {chosen.epochs} epochs",
        ["", "measured", "limit"],
        [
            ["seconds", spread(seconds, ".1f"), f"{SECONDS_LIMIT:.0f}"],
            ["seconds of the processor", spread(busy, ".1f"), ""],
            ["peak memory, MB", spread(peaks, ".0f"), f"{MEMORY_LIMIT_MB:.0f}"],
            ["page, MB", f"{size:.2f}", ""],
        ],
    )
    record(
        chosen.out,
        before,
        {"seconds": seconds, "cpu_seconds": busy, "peak_mb": peaks, "page_mb": size, "trainings": num_runs},
    )
    return int(max(seconds) > SECONDS_LIMIT or max(peaks) > MEMORY_LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
