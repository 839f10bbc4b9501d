"""Peak resident memory of the driver and of one trial's worker process in a search, against their limits.

The peaks are the kernel's own (VmHWM of /proc/PID/status, shared pages included), read ten times a second from outside.
Ray's own daemons are not counted, since every program that uses Ray has them.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.programs import scratch, search
from benchmarks.recording import conditions, parser, record, show

DRIVER_LIMIT_MB, WORKER_LIMIT_MB = 700, 1200
TRIAL_TITLE = "TrialActor"
"""Part of the title that Ray gives to a process that runs trials."""


class Peaks:
    """The largest peaks so far, in MB of 10^6 bytes."""

    def __init__(self) -> None:
        self.driver = 0.0
        self.workers: dict[int, float] = {}

    def look(self, pid: int) -> None:
        """Reads the driver's peak and that of its trials' workers."""
        with suppress(psutil.Error, OSError):
            self.driver = max(self.driver, peak_mb(pid))
            for child in psutil.Process(pid).children(recursive=True):
                with suppress(psutil.Error, OSError):
                    if child.pid in self.workers or TRIAL_TITLE in " ".join(child.cmdline()):
                        self.workers[child.pid] = max(self.workers.get(child.pid, 0.0), peak_mb(child.pid))


def peak_mb(pid: int) -> float:
    """Largest resident set of a process so far, in MB of 10^6 bytes; 0 for one that has just ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def main() -> int:
    """Runs a search and prints the peaks; exit status 1 if one is above its limit."""
    options = parser(__doc__, "memory")
    options.add_argument("--trials", type=int, default=2, help="trials of each variant")
    options.add_argument("--epochs", type=int, default=2)
    chosen = options.parse_args()
    before, peaks = conditions(), Peaks()
    with scratch() as folder:
        raced = ["--trials", str(chosen.trials), "--round-size", "1", "--refine-trials", "0"]
        search([*raced, "--epochs", str(chosen.epochs)], folder, watch=peaks.look)
    if not peaks.workers:
        raise RuntimeError(f"no process with {TRIAL_TITLE} in its title was seen")
    worker = max(peaks.workers.values())
    show(
        f"Peak resident memory, digits, {chosen.trials} trials of each variant, {chosen.epochs} epochs",
        ["", "MB", "limit, MB"],
        [["driver", f"{peaks.driver:.0f}", f"{DRIVER_LIMIT_MB}"], ["worker", f"{worker:.0f}", f"{WORKER_LIMIT_MB}"]],
    )
    record(chosen.out, before, {"driver_mb": peaks.driver, "workers_mb": sorted(peaks.workers.values())})
    return int(peaks.driver > DRIVER_LIMIT_MB or worker > WORKER_LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
