"""Seconds and peak resident memory of the report of a large search, against their limits.

The search is simulated (:mod:`benchmarks.simulated_search`).  It has the files of a real search, with its studies in
SQLite.  The report runs as its command, in a process of its own.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from benchmarks.memory import peak_mb
from benchmarks.programs import run, scratch
from benchmarks.recording import conditions, parser, record, show, spread
from benchmarks.simulated_search import Truth, simulate
from tuner.core.search_spec import SearchSpec

SECONDS_LIMIT, MEMORY_LIMIT_MB = 30.0, 1000.0
TRUTHS = {
    "sgdm": Truth(lr_limit=0.5),
    "adamw": Truth(lr_best=0.003, speed=0.8),
    "lpsgdm": Truth(lr_best=0.02, speed=0.7),
    "critical": Truth(speed=0.5),
}


def cost(name: str, folder: Path) -> tuple[float, float]:
    """Seconds and peak memory, in MB of 10^6 bytes, of the report of a search."""
    peak = 0.0

    def look(pid: int) -> None:
        nonlocal peak
        with suppress(OSError):
            peak = max(peak, peak_mb(pid))

    ran = run("tuner.report", [name, "--output", str(folder)], folder, watch=look)
    return ran.ended_at - ran.started_at, peak


def main() -> int:
    """Simulates a search, reports on it and prints the cost; exit status 1 if a limit is exceeded."""
    options = parser(__doc__, "report")
    options.add_argument(
        "--trials", type=int, default=250, help=f"trials of each of {len(TRUTHS)} variants in the race"
    )
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--repeats", type=int, default=3, help="reports of the same search")
    chosen = options.parse_args()
    before = conditions()
    with scratch() as folder:
        # Nobody is put out, so that all variants have as many trials.
        flags = {"trials": chosen.trials, "epochs": chosen.epochs, "alpha": 0.0}
        spec = SearchSpec.from_flags(name="large", variants=tuple(TRUTHS), **flags)
        num_runs = len(simulate(spec, TRUTHS, output=folder).records)
        costs = [cost("large", folder) for _ in range(chosen.repeats)]
        size = (folder / "large" / "report.html").stat().st_size / 1e6
    seconds, peaks = ([one[i] for one in costs] for i in range(2))
    show(
        f"Report of {len(TRUTHS)} x {chosen.trials} trials, {num_runs} trainings of at most {chosen.epochs} epochs",
        ["", "measured", "limit"],
        [
            ["seconds", spread(seconds, ".1f"), f"{SECONDS_LIMIT:.0f}"],
            ["peak memory, MB", spread(peaks, ".0f"), f"{MEMORY_LIMIT_MB:.0f}"],
            ["page, MB", f"{size:.2f}", ""],
        ],
    )
    record(
        chosen.out,
        before,
        {"seconds": seconds, "peak_mb": peaks, "page_mb": size, "trainings": num_runs},
    )
    return int(max(seconds) > SECONDS_LIMIT or max(peaks) > MEMORY_LIMIT_MB)


if __name__ == "__main__":
    sys.exit(main())
