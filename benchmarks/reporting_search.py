"""A search whose trainings only report, with the driver's time by part; ``benchmarks.growth`` runs it.

Everything except the training is the real search: ``run_search`` with its checks, Ray, Optuna's and MLflow's databases,
logs and report.  A worker reports at most two epochs from a formula (:mod:`benchmarks.simulated_search`).
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.tune.analysis.experiment_analysis import ExperimentAnalysis
from ray.tune.execution.tune_controller import TuneController
from rich.console import Console

from benchmarks.simulated_search import Truth, curve
from tuner.cluster import tune_run
from tuner.cluster.trial_actor import Results, TrialActor, TrialTask
from tuner.core.metrics import EpochMetrics, is_finished
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import from_dict, to_json
from tuner.core.trial_spec import TrialSpec
from tuner.search import finish, trials
from tuner.search.progress import Display
from tuner.search.session import run_search
from tuner.study.optuna_study import VariantStudy
from tuner.study.recorder import Recorder
from tuner.study.results import Search
from tuner.study.scheduler import TrialScheduler
from tuner.tracking.tracker import Tracker

VARIANTS = ("sgdm", "adamw", "lpsgdm", "critical")
EPOCHS = 2
RACE, REFINE, REPEAT = "settings of the race", "settings of the refinement", "settings of repeats"
TUNE, OPTUNA, RECORDER, LOGS, TELL = "Tune's controller", "Optuna's database", "recorder", "logs", "display"
SNAPSHOTS, TABLES, REPORT, END = "Tune's snapshots", "Tune's tables", "report", "end, the rest"
MLFLOW, RAY = "MLflow's thread", "Ray's threads"
ROOMS = (
    *(RACE, REFINE, REPEAT),
    *(OPTUNA, RECORDER, LOGS, TELL, MLFLOW, TUNE, SNAPSHOTS, RAY, TABLES, REPORT, END),
)


class ReportingActor(TrialActor):
    """A trial actor that reports epochs without training."""

    def setup(self, config: dict[str, Any]) -> None:
        self._results = report(from_dict(TrialSpec, json.loads(TrialTask(**config).spec)))


def report(spec: TrialSpec) -> Results:
    """The reports of a worker, with epochs from the formula."""
    history: list[EpochMetrics] = []
    for metrics in curve(spec, Truth(speed=1.2)):
        history.append(dataclasses.replace(metrics, finished_at=time.time()))
        yield {"metrics": to_json(history[-1]), "done": is_finished(spec, history)}


class Clock:
    """CPU seconds of the driver by part ("room").  A call counts for its own part, not for its caller's."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.series: list[dict[str, float]] = []
        """Costs so far, recorded after every ``every`` trials."""
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._rooms: list[str] = []
        self._num_ended = 0
        self._mlflow_seconds = 0.0

    def begin(self) -> None:
        """Starts counting."""
        self._wall, self._process, self._since = time.perf_counter(), time.process_time(), time.thread_time()
        self._main, self._mlflow = self._since, self._of_mlflow()
        self._seconds.clear()

    def now(self) -> dict[str, float]:
        """Ended trials, wall seconds and CPU seconds by part so far, other threads included."""
        self._switch()
        mlflow = self._of_mlflow() - self._mlflow
        others = time.process_time() - self._process - (self._since - self._main) - mlflow
        wall = time.perf_counter() - self._wall
        return {"trials": self._num_ended, "wall": wall, **self._seconds, MLFLOW: mlflow, RAY: others}

    def count(self, owner: Any, method: str, room: str) -> None:
        """Counts the main thread's time in a method for ``room``."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def counted(first: Any, *args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return original(first, *args, **kwargs)
            self._switch()
            self._rooms.append(room)
            try:
                return original(first, *args, **kwargs)
            finally:
                self._switch()
                self._rooms.pop()

        replace({(owner, method): counted})

    def watch(self) -> None:
        """Records the costs as trials end, and the time of MLflow's thread when it ends."""
        end, write = Recorder.end, Tracker._write

        def ended(recorder: Recorder, name: str, *, failure: str | None = None) -> None:
            end(recorder, name, failure=failure)
            self._num_ended += 1
            if self._num_ended % self.every == 0:
                self.series.append(self.now())

        def written(tracking: Tracker) -> None:
            write(tracking)
            self._mlflow_seconds = time.thread_time()

        replace({(Recorder, "end"): ended, (Tracker, "_write"): written})

    def _switch(self) -> None:
        now = time.thread_time()
        self._seconds[self._rooms[-1] if self._rooms else END] += now - self._since
        self._since = now

    def _of_mlflow(self) -> float:
        for thread in threading.enumerate():
            if thread.name == "mlflow" and thread.ident is not None:
                return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        return self._mlflow_seconds


def replace(functions: Mapping[tuple[Any, str], Any]) -> None:
    """Replaces attributes: (owner, name) -> function."""
    for (owner, name), function in functions.items():
        setattr(owner, name, function)


def refresh_seconds(recorder: Recorder, repeats: int = 3) -> float:
    """CPU seconds of drawing the terminal's display once, the least of ``repeats``."""
    display = Display(Console(), recorder.scheduler)
    taken = []
    for _ in range(repeats):
        before = time.thread_time()
        Console(file=io.StringIO(), force_terminal=True, width=120).print(display._render())
        taken.append(time.thread_time() - before)
    return min(taken)


def measured(spec: SearchSpec) -> dict[str, Any]:
    """Runs a search and returns its costs.  Run it in a process of its own, since it replaces functions for good."""
    clock = Clock(every=max(1, len(spec.variants) * (spec.trials + spec.refine_trials) // 20))
    costs: dict[str, Any] = {}
    train, finish_search = trials.train, finish.finish_search

    def trained(recorder: Recorder, *args: Any) -> Any:
        clock.begin()
        answer = train(recorder, *args)
        records = recorder.records.values()
        costs["total"] = clock.now()
        costs["phases"] = Counter("repeat" if r.repeats is not None else r.phase for r in records)
        costs["statuses"] = Counter(r.status for r in records)
        return answer

    def concluded(recorder: Recorder, *args: Any, **kwargs: Any) -> Any:
        costs["trained"] = clock.now()
        costs["refresh"] = refresh_seconds(recorder)
        clock._since = time.thread_time()
        return finish_search(recorder, *args, **kwargs)

    replace(
        {(trials, "train"): trained, (trials, "finish_search"): concluded, (tune_run, "TrialActor"): ReportingActor}
    )
    finish.FLUSH_SECONDS = 3600.0  # MLflow falls behind trainings that take no time
    clock.watch()
    clock.count(trials, "tune_all", TUNE)
    for method, room in (("ask_race", RACE), ("ask_refine", REFINE), ("ask_repeat", REPEAT)):
        clock.count(VariantStudy, method, room)
    for method in ("_store", "_write"):
        clock.count(VariantStudy, method, OPTUNA)
    for method in ("next_trial", "should_continue", "end"):
        clock.count(TrialScheduler, method, RECORDER)
    for method in ("start", "record", "end"):
        clock.count(Recorder, method, RECORDER)
    clock.count(Search, "write", LOGS)
    clock.count(Display, "print_end", TELL)
    clock.count(TuneController, "save_to_dir", SNAPSHOTS)
    clock.count(ExperimentAnalysis, "__init__", TABLES)
    clock.count(finish, "write_report", REPORT)
    result = run_search(spec)
    if result.interrupted or result.storage_failed:
        raise RuntimeError("the search was stopped")
    costs["series"] = clock.series
    return costs


def main() -> None:
    """Runs one search and writes its costs."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, required=True, help="trials of each variant, half of them in the race")
    options.add_argument("--storage", default=None)
    options.add_argument("--tracking-uri", default=None)
    options.add_argument("--out", type=Path, required=True)
    chosen = options.parse_args()
    spec = SearchSpec.from_flags(
        name="grown",
        variants=VARIANTS,
        trials=chosen.trials // 2,
        round_size=1,
        alpha=0.0,  # all have as many trials
        refine_trials=chosen.trials - chosen.trials // 2,
        epochs=EPOCHS,
        targets=(0.5, 0.8),  # which about half of them reach
        confirm_seeds=0,
        storage=chosen.storage,
        tracking_uri=chosen.tracking_uri,
    )
    costs = measured(spec)
    folder = Path("runs/grown")
    costs["report_mb"] = (folder / "report.html").stat().st_size / 1e6
    costs["snapshot_mb"] = sum(path.stat().st_size for path in folder.glob("experiment_state*.json")) / 1e6
    chosen.out.write_text(json.dumps(costs, indent=2) + "\n")


if __name__ == "__main__":
    main()
