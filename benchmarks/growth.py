"""The driver's own time per trial as a search grows, on SQLite and PostgreSQL: a table and a figure.

The trainings only report (:mod:`benchmarks.reporting_search`), so only the driver's work for a trial remains: its
settings, Optuna's and MLflow's databases, logs, the race, Ray Tune.  The figures are CPU seconds of the driver's
process, by part.  Wall time would include other work of the machine, and the driver is idle while a trial trains.  Each
search is a process of its own.  The benchmark starts its own PostgreSQL server, which holds both databases.

A search that ended is kept under ``--folder`` and not repeated.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.memory import peak_mb
from benchmarks.programs import run, scratch
from benchmarks.recording import conditions, parser, record
from benchmarks.reporting_search import (
    END,
    LOGS,
    MLFLOW,
    OPTUNA,
    RACE,
    RAY,
    RECORDER,
    REFINE,
    REPEAT,
    REPORT,
    SNAPSHOTS,
    TABLES,
    TELL,
    TUNE,
    VARIANTS,
)
from tests.postgres import BINARIES, Postgres

TIMEOUT_SECONDS = 4 * 3600.0
Costs = Mapping[str, Any]
GROUPS = {
    "settings, race and repeats": (RACE, REPEAT),
    "settings, refinement (TPE)": (REFINE,),
    "Optuna's database": (OPTUNA,),
    "recorder and race": (RECORDER,),
    "logs on disk": (LOGS,),
    "display, one line per trial": (TELL,),
    "MLflow's thread": (MLFLOW,),
    "Tune's controller": (TUNE,),
    "Tune's snapshots": (SNAPSHOTS,),
    "Ray's threads": (RAY,),
}
"""Costs of every trial: row of the table -> parts of the driver."""
AT_END = {"Tune's tables": (TABLES,), "report": (REPORT,), "leaderboard and the rest": (END,)}


@contextmanager
def urls(database: str) -> Iterator[list[str]]:
    """Arguments of the search that name its two databases."""
    if database == "sqlite":
        yield []
        return
    with Postgres() as server:
        storage, tracking = (server.create_database(name) for name in ("optuna", "mlflow"))
        yield ["--storage", storage, "--tracking-uri", tracking]


def costs(database: str, trials: int, kept: Path) -> Costs:
    """The costs of a search with ``trials`` trials of each variant."""
    if not kept.exists():
        peak = 0.0

        def look(pid: int) -> None:
            nonlocal peak
            with suppress(OSError):
                peak = max(peak, peak_mb(pid))

        with scratch() as folder, urls(database) as databases:
            arguments = ["--trials", str(trials), *databases, "--out", "costs.json"]
            run("benchmarks.reporting_search", arguments, folder, watch=look, timeout=TIMEOUT_SECONDS)
            measured = json.loads((folder / "costs.json").read_text())
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({**measured, "peak_mb": peak}, indent=2) + "\n")
    found: Costs = json.loads(kept.read_text())
    return found


def seconds(state: Mapping[str, float], rooms: Sequence[str]) -> float:
    """CPU seconds of several parts together."""
    return sum(state.get(room, 0.0) for room in rooms)


def lines(found: Costs) -> dict[str, str]:
    """Row of the table -> its figure for one search."""
    total, trained = found["total"], found["trained"]
    num_trials = total["trials"]

    def each(rooms: Sequence[str], count: float = num_trials) -> str:
        return f"{1000 * seconds(total, rooms) / count:.2f}" if count else "-"

    return {
        **{f"{name}, ms": each(rooms) for name, rooms in GROUPS.items()},
        "**all, ms per trial**": f"**{each([room for rooms in GROUPS.values() for room in rooms])}**",
        "wall, ms per trial": f"{1000 * trained['wall'] / num_trials:.0f}",
        "one draw of the race, ms": each([RACE], found["phases"].get("race", 0)),
        "one draw of the refinement, ms": each([REFINE], found["phases"].get("refine", 0)),
        "one drawing of the display, ms": f"{1000 * found['refresh']:.1f}",
        **{f"at the end: {name}, s": f"{seconds(total, rooms):.2f}" for name, rooms in AT_END.items()},
        "at the end, wall, s": f"{total['wall'] - trained['wall']:.0f}",
        "Tune's snapshot, MB": f"{found['snapshot_mb']:.1f}",
        "report.html, MB": f"{found['report_mb']:.2f}",
        "peak memory of the driver, MB": f"{found['peak_mb']:.0f}",
    }


def table(found: Mapping[tuple[str, int], Costs]) -> str:
    """The table of all searches in Markdown, one column per search."""
    columns = {key: lines(value) for key, value in found.items()}
    head = [f"{name}, {value['total']['trials']:,}" for (name, _), value in found.items()]
    rows = [["", *head], ["---", *["---:"] * len(head)]]
    rows += [[name, *(column[name] for column in columns.values())] for name in next(iter(columns.values()))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(found: Mapping[tuple[str, int], Costs], path: Path) -> None:
    """Draws the cost per trial, by part, against the ended trials, for each database's largest search."""
    largest = {name: max(trials for other, trials in found if other == name) for name, _ in found}
    figure = Figure(figsize=(4 + 4.5 * len(largest), 4.6), layout="constrained")
    panels = figure.subplots(1, len(largest), sharey=True, squeeze=False)[0]
    for axes, (name, trials) in zip(panels, largest.items(), strict=True):
        states: list[dict[str, float]] = [{"trials": 0}, *found[name, trials]["series"]]
        spans = list(itertools.pairwise(states))
        middles = [(before["trials"] + after["trials"]) / 2 for before, after in spans]
        stacked = [
            [
                1000 * (seconds(after, rooms) - seconds(before, rooms)) / (after["trials"] - before["trials"])
                for before, after in spans
            ]
            for rooms in GROUPS.values()
        ]
        axes.stackplot(middles, stacked, labels=list(GROUPS))
        axes.set_title(f"{name}, {states[-1]['trials']:,} trials of {len(VARIANTS)} variants", fontsize="medium")
        axes.set_xlabel("trials that have ended")
        axes.margins(x=0)
    panels[0].set_ylabel("driver's CPU milliseconds per trial")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right upper", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the remaining searches, prints the table and draws the figure."""
    options = parser(__doc__, "growth")
    options.add_argument(
        "--trials", type=int, nargs="+", default=[25, 250, 2500], help="trials of each of four variants"
    )
    options.add_argument("--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"])
    options.add_argument("--folder", type=Path, default=Path("growth"), help="where searches that ended are kept")
    options.add_argument("--picture", type=Path, default=Path("growth.png"))
    chosen = options.parse_args()
    if "postgresql" in chosen.databases and BINARIES is None:
        options.error("--databases postgresql: no PostgreSQL under /usr/lib/postgresql")
    before = conditions()
    found: dict[tuple[str, int], Costs] = {}
    for database in chosen.databases:
        for trials in sorted(chosen.trials):
            found[database, trials] = costs(database, trials, chosen.folder / f"{database}-{trials}.json")
            print(f"{database}, {len(VARIANTS)} x {trials} trials: done", flush=True)
    print(table(found))
    draw(found, chosen.picture)
    record(chosen.out, before, {f"{database}-{trials}": value for (database, trials), value in found.items()})


if __name__ == "__main__":
    main()
