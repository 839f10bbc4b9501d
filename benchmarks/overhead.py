"""Wall time of a whole search, process start included, against bare trainings and against Ray Tune with its defaults.

All programs train ResNet-8 on the digits for one epoch, once per trial, one thread per training.  They take turns:

bare         the trainings one after the other in one process, by a hand-written loop, with SGD only: the work of the
             peers.  ``bare, four rules`` uses the update rules of our four variants in turn: the work of ours.  So
             the extra cost of AdamW and l_p descent over SGD is not counted as overhead
ours         python -m tuner.search without early stopping: as many rounds of four variants, of which none is put out
peer         Ray Tune, OptunaSearch, MLflowLoggerCallback and SQLite: peers/tune_optuna_mlflow.py
peer, reuse  the same with a class trainable and reuse_actors=True

The least possible time on a machine is the bare time over its cores.  The stages of our time are read from the files
that a search writes.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

from benchmarks.programs import SEARCH_NAME, Finished, mlflow_runs, run, scratch, search, search_folder
from benchmarks.recording import conditions, parser, record, show, spread
from tuner.study.search_folder import processes_of

VARIANTS = ("sgdm", "adamw", "lpsgdm", "critical")
BARE, BARE_FOUR, OURS, PEER, PEER_REUSE = "bare", "bare, four rules", "ours", "peer", "peer, reuse"
WORK = {BARE: BARE, BARE_FOUR: BARE_FOUR, OURS: BARE_FOUR, PEER: BARE, PEER_REUSE: BARE}
"""Program -> the bare program that does the same trainings."""


def programs(num_trials: int) -> dict[str, Callable[[Path], Finished]]:
    """The programs that are compared: name -> function that runs the program in a folder."""
    bare, peer = "benchmarks.peers.bare_loop", "benchmarks.peers.tune_optuna_mlflow"
    count = str(num_trials)
    each = str(num_trials // len(VARIANTS))
    return {
        BARE: lambda folder: run(bare, ["--trainings", count], folder),
        BARE_FOUR: lambda folder: run(bare, ["--trainings", count, "--variants", *VARIANTS], folder),
        OURS: lambda folder: search(
            [
                *("--epochs", "1", "--trials", each, "--variants", *VARIANTS, "--no-early-stopping"),
                *("--round-size", "1", "--alpha", "0", "--refine-trials", "0", "--confirm-seeds", "0"),
            ],
            folder,
        ),
        PEER: lambda folder: run(peer, ["--trials", count], folder),
        PEER_REUSE: lambda folder: run(peer, ["--trials", count, "--reuse-actors"], folder),
    }


def breakdown(finished: Finished, slots: int) -> dict[str, float]:
    """Seconds of each stage of one of our searches, from modification times and contents of its files."""
    folder = search_folder(finished)
    epochs = [
        json.loads(line)["metrics"] for log in folder.glob("*/result.json") for line in log.read_text().splitlines()
    ]
    busy = sum(epoch["seconds"] + epoch["evaluation_seconds"] for epoch in epochs)
    first = min(epoch["finished_at"] - epoch["seconds"] - epoch["evaluation_seconds"] for epoch in epochs)
    last = max(epoch["finished_at"] for epoch in epochs)
    locked, ray_is_up = (folder / ".lock").stat().st_mtime, processes_of(folder)[0].started_at
    runs = mlflow_runs(finished)
    ends = {name: end for name, (_, _, end) in runs.items()}
    told = max(ends[log.parent.name] for log in folder.glob("*/result.json"))
    return {
        "imports and checks": locked - finished.started_at,
        "Ray starts": ray_is_up - locked,
        "workers start": first - ray_is_up,
        "trainings and between": last - first,
        "core-seconds in trainings": busy,
        "core-seconds between, a trial": (slots * (last - first) - busy) / len(epochs),
        "MLflow behind at the end": told - last,
        "table and files": ends[SEARCH_NAME] - last,
        "Ray stops": finished.ended_at - ends[SEARCH_NAME],
    }


def main() -> None:
    """Runs the programs in turn and prints the table."""
    options = parser(__doc__, "overhead")
    options.add_argument("--trials", type=int, default=32, help="trainings of each program, a multiple of four")
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument(
        "--skip-slow", action="store_true", help="leave out the peer that does not reuse its processes"
    )
    chosen = options.parse_args()
    if chosen.trials < len(VARIANTS) or chosen.trials % len(VARIANTS):
        options.error(f"--trials {chosen.trials}: must be a multiple of {len(VARIANTS)}")
    before, cores = conditions(), len(os.sched_getaffinity(0))
    compared = {name: go for name, go in programs(chosen.trials).items() if not (chosen.skip_slow and name == PEER)}
    walls: dict[str, list[float]] = {name: [] for name in compared}
    stages: list[dict[str, float]] = []
    for repeat in range(chosen.repeats):
        for name, go in compared.items():
            with scratch() as folder:
                finished = go(folder)
                walls[name].append(finished.seconds)
                if name == OURS:
                    stages.append(breakdown(finished, cores))
            print(f"{repeat + 1}/{chosen.repeats} {name}: {walls[name][-1]:.1f} s", flush=True)
    medians = {name: statistics.median(values) for name, values in walls.items()}
    ratios = {name: {other: medians[name] / medians[other] for other in medians} for name in medians}
    show(
        f"{chosen.trials} one-epoch trainings, seconds of wall time",
        ["", "seconds", "over bare, same work", "over bare / cores", "over ours"],
        [
            [
                name,
                spread(walls[name], ".1f"),
                f"{ratios[name][WORK[name]]:.2f}",
                f"{ratios[name][WORK[name]] * cores:.2f}",
                f"{ratios[name][OURS]:.2f}",
            ]
            for name in medians
        ],
    )
    where = {stage: statistics.median(line[stage] for line in stages) for stage in stages[0]}
    print("Where our time goes, s: " + ", ".join(f"{stage} {value:.2f}" for stage, value in where.items()) + ".")
    record(chosen.out, before, {"trials": chosen.trials, "seconds": walls, "ratios": ratios, "ours": stages})


if __name__ == "__main__":
    main()
