"""Share of the workers' time that the default search spends inside train(), and its wall time.

The search measures the share itself, over all workers, from the first start of a trial to the last end.  It is the
metric search/train_share of the parent run in MLflow.  Wall time is that of the process, start and end included.
"""

from __future__ import annotations

from benchmarks.programs import SEARCH_NAME, mlflow_runs, scratch, search
from benchmarks.recording import conditions, parser, record, show, spread


def main() -> None:
    """Runs the search and prints the share and the wall time."""
    options = parser(__doc__, "share")
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument("arguments", nargs="*", metavar="FLAG", help="flags of the search, after --")
    chosen = options.parse_args()
    before = conditions()
    walls: list[float] = []
    shares: list[float] = []
    for _ in range(chosen.repeats):
        with scratch() as folder:
            finished = search(chosen.arguments, folder)
            walls.append(finished.seconds)
            shares.append(mlflow_runs(finished)[SEARCH_NAME][0]["search/train_share"])
    show(
        " ".join(["python -m tuner.search", *chosen.arguments]),
        ["", "median"],
        [["wall time, s", spread(walls, ".1f")], ["share of the workers' time in train", spread(shares)]],
    )
    record(chosen.out, before, {"arguments": chosen.arguments, "seconds": walls, "train_share": shares})


if __name__ == "__main__":
    main()
