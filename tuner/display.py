"""The live display of a running search; on anything that is no terminal, a line for each trial that ends."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.convergence import best_accuracy, target_label, time_to_target
from tuner.ledger import Ledger
from tuner.results import POINTS, Record

REFRESHES_PER_SECOND = 2


class Display(Callback):
    """Shows the ledger."""

    def __init__(self, console: Console, ledger: Ledger) -> None:
        self.console = console
        self.ledger = ledger
        self.started = time.monotonic()
        self._done_before = sum(_share_done(record) for record in ledger.records.values())
        self._told: set[str] = set()
        self._live = Live(
            get_renderable=self._render,
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            # What Ray prints belongs in the log, not above the table.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Display:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._tell(trial)

    def _tell(self, trial: Any) -> None:
        record = self.ledger.records.get(trial.config["trial"])
        if self.console.is_terminal or record is None or record.name in self._told:
            return
        self._told.add(record.name)
        num_ended = sum(record.ended for record in self.ledger.records.values())
        self.console.print(
            f"{num_ended}/{self.ledger.num_planned} {record.name} {record.status}, best accuracy "
            f"{best_accuracy(record.history):.4f}, {_duration(self._seconds_left())} left",
            highlight=False,
        )

    def _seconds_left(self) -> float | None:
        done = sum(_share_done(record) for record in list(self.ledger.records.values()))
        here = done - self._done_before
        if here <= 0:
            return None
        return (time.monotonic() - self.started) * (self.ledger.num_planned - done) / here

    def _render(self) -> RenderableType:
        targets = self.ledger.spec.targets
        search, spec = self.ledger.search, self.ledger.spec
        num_runs = sum(map(spec.num_seeds, POINTS))
        table = Table(title=f"{search.folder.name}: {spec.workload}, {spec.model}")
        table.add_column("variant")
        confirmed = ["confirmed"] if num_runs else []
        for column in ("trials", "running", "stopped", "diverged", "failed", *confirmed, "best accuracy"):
            table.add_column(column, justify="right")
        table.add_column(f"gradient evaluations to {target_label(targets[-1])}%", justify="right")
        for variant in search.variants:
            # A copy: the driver adds trials while the display's thread draws.
            records = [record for record in list(search.records.values()) if record.variant == variant.name]
            trials = search.trials_of(variant.name)
            runs = [record for record in records if record.phase == "confirm"]
            table.add_row(
                variant.name,
                f"{sum(record.ended for record in trials)}/{spec.trials}",
                *(str(sum(record.status == status for record in records)) for status in _SHOWN),
                *([f"{sum(record.ended for record in runs)}/{num_runs}"] if num_runs else []),
                f"{max((best_accuracy(record.history) for record in records), default=0):.4f}",
                _fastest(records, targets[-1]),
            )
        done = sum(_share_done(record) for record in list(self.ledger.records.values()))
        bar = ProgressBar(total=self.ledger.num_planned, completed=done, width=60)
        elapsed = _duration(time.monotonic() - self.started)
        left = _duration(self._seconds_left())
        return Group(table, bar, Text(f"\n{elapsed} gone, {left} left. Ctrl-C stops; nothing is lost."))


_SHOWN = ("running", "stopped", "diverged", "failed")


def _fastest(records: list[Record], target: float) -> str:
    times = [time for record in records if (time := time_to_target(list(record.history), target))]
    return str(min(time.gradient_evaluations for time in times)) if times else "-"


def _share_done(record: Record) -> float:
    if record.ended:
        return 1.0
    return record.history[-1].gradient_evaluations / record.history[-1].budget if record.history else 0.0


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
