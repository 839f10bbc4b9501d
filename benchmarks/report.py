"""Wall time and peak memory of ``python -m tuner.report`` on a large search, against their limits.

The search's trainings are formulas (:mod:`benchmarks.simulated_search`), its files and its database are as a search
leaves them.  The time is that of the whole program, from its start; the peak is the kernel's own (VmHWM).
"""

from __future__ import annotations

import sys
import time

from benchmarks.memory import peak_mb
from benchmarks.programs import SEARCH_NAME, run, scratch
from benchmarks.recording import conditions, parser, record, show
from benchmarks.simulated_search import Truth, simulate
from tuner.plan import SearchSpec

LIMIT_SECONDS, LIMIT_MB = 30, 1000
TRUTHS = {
    "sgdm": Truth(),
    "adamw": Truth(speed=0.5, lr_best=1e-3, lr_limit=0.02),
    "lpsgdm": Truth(speed=0.7, lr_limit=1.0),
    "critical": Truth(speed=0.9, lr_limit=1.0),
}


def main() -> int:
    """Reports on a simulated search and prints what that cost; 1 where it is above a limit."""
    options = parser(__doc__, "report")
    options.add_argument("--trials", type=int, default=1000, help="trials of all four variants together")
    options.add_argument("--epochs", type=int, default=10)
    chosen = options.parse_args()
    before, peaks = conditions(), [0.0]
    with scratch() as folder:
        spec = SearchSpec(
            name=SEARCH_NAME, variants=tuple(TRUTHS), trials=max(1, chosen.trials // len(TRUTHS)), epochs=chosen.epochs
        )
        started_at = time.perf_counter()
        simulate(spec, TRUTHS, output=folder / "runs")
        print(f"Simulated in {time.perf_counter() - started_at:.0f} s.")
        finished = run("tuner.report", [SEARCH_NAME], folder, watch=lambda pid: peaks.append(_peak_mb(pid)))
        written = [path for path in (folder / "runs" / SEARCH_NAME).glob("report*") if path.is_file()]
        page_mb = max(path.stat().st_size for path in written) / 1e6
    show(
        f"The report of {spec.trials * len(TRUTHS)} trials of {chosen.epochs} epochs",
        ["", "measured", "limit"],
        [
            ["seconds", f"{finished.seconds:.1f}", f"{LIMIT_SECONDS}"],
            ["peak memory, MB", f"{max(peaks):.0f}", f"{LIMIT_MB}"],
            ["page, MB", f"{page_mb:.1f}", ""],
        ],
    )
    record(chosen.out, before, {"seconds": finished.seconds, "peak_mb": max(peaks), "page_mb": page_mb})
    return int(finished.seconds > LIMIT_SECONDS or max(peaks) > LIMIT_MB)


def _peak_mb(pid: int) -> float:
    try:
        return peak_mb(pid)
    except OSError:  # it has just ended
        return 0.0


if __name__ == "__main__":
    sys.exit(main())
