"""The live display of a running search; without a terminal, one line per trial that ends."""

from __future__ import annotations

import copy
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tuner.core.metrics import best_accuracy, target_label, time_to_target
from tuner.study.results import POINTS, TrialRecord
from tuner.study.scheduler import TrialScheduler

REFRESHES_PER_SECOND = 2


class Display:
    """Shows the progress of a scheduler's trials."""

    def __init__(self, console: Console, trials: TrialScheduler) -> None:
        self.console = console
        self.trials = trials
        self.started = time.monotonic()
        self._open: list[TrialRecord] = []
        self._num_seen = 0
        self._ended = {variant.name: _Standing() for variant in trials.search.variants}
        self._done_before = _done(self._standings())
        self._printed: set[str] = set()
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

    def print_end(self, record: TrialRecord) -> None:
        """Prints one line for a trial that has ended, once; nothing if the output is a terminal."""
        if self.console.is_terminal or record.name in self._printed:
            return
        self._printed.add(record.name)
        standings = self._standings()
        num_ended = sum(standing.num_ended.total() for standing in standings.values())
        self.console.print(
            f"{num_ended}/{self.trials.num_planned} {record.name} {record.status}, best accuracy "
            f"{best_accuracy(record.history):.4f}, {_duration(self._seconds_left(_done(standings)))} left",
            highlight=False,
        )

    def _standings(self) -> dict[str, _Standing]:
        """Variant -> its progress.  Records that have ended are added only once, as there may be thousands."""
        records, num_known, new = self.trials.records, -1, list[TrialRecord]()
        while num_known != len(records):  # the driver adds trials while the display's thread draws
            num_known = len(records)
            new = list(itertools.islice(reversed(records.values()), num_known - self._num_seen))
        looked_at, self._open, self._num_seen = [*self._open, *new], [], num_known
        target = self.trials.spec.training.targets[-1]
        for record in looked_at:
            if record.ended:
                self._ended[record.variant].add(record, target)
            else:
                self._open.append(record)
        standings = copy.deepcopy(self._ended)
        for record in self._open:
            standings[record.variant].add(record, target)
        return standings

    def _seconds_left(self, done: float) -> float | None:
        here = done - self._done_before
        if here <= 0:
            return None
        return (time.monotonic() - self.started) * (self.trials.num_planned - done) / here

    def _render(self) -> RenderableType:
        targets = self.trials.spec.training.targets
        search, spec, standings = self.trials.search, self.trials.spec, self._standings()
        num_runs = sum(map(spec.num_seeds, POINTS))
        table = Table(title=f"{search.folder.name}: {spec.training.workload.data}, {spec.training.workload.model}")
        table.add_column("variant")
        confirmed = ["confirmed"] if num_runs else []
        for column in ("trials", "running", "stopped", "diverged", "failed", *confirmed, "best accuracy"):
            table.add_column(column, justify="right")
        table.add_column(f"gradient evaluations to {target_label(targets[-1])}%", justify="right")
        for variant in search.variants:
            standing = standings[variant.name]
            table.add_row(
                variant.name,
                f"{standing.num_ended['explore']}/{spec.trials}",
                *(str(standing.statuses[status]) for status in _SHOWN),
                *([f"{standing.num_ended['confirm']}/{num_runs}"] if num_runs else []),
                f"{standing.best_accuracy:.4f}",
                f"{standing.fastest or '-'}",
            )
        done = _done(standings)
        bar = ProgressBar(total=self.trials.num_planned, completed=done, width=60)
        elapsed = _duration(time.monotonic() - self.started)
        left = _duration(self._seconds_left(done))
        return Group(table, bar, Text(f"\n{elapsed} elapsed, {left} left. Ctrl-C stops; nothing is lost."))


_SHOWN = ("running", "stopped", "diverged", "failed")


@dataclass(slots=True)
class _Standing:
    """The progress of some trainings of a variant."""

    num_ended: Counter[str] = field(default_factory=Counter)
    """Number of trainings that have ended, by phase."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Number of trainings by status."""
    done: float = 0.0
    """Number of trainings done; a running one counts as the share of its budget that it has spent."""
    best_accuracy: float = 0.0
    fastest: int | None = None
    """Fewest gradient evaluations to the highest target; None if no training reached it."""

    def add(self, record: TrialRecord, target: float) -> None:
        history = list(record.history)
        self.statuses[record.status] += 1
        if record.ended:
            self.num_ended[record.phase] += 1
            self.done += 1
        elif history:
            self.done += history[-1].gradient_evaluations / history[-1].budget
        self.best_accuracy = max(self.best_accuracy, best_accuracy(history))
        if reached := time_to_target(history, target):
            self.fastest = min(self.fastest or reached.gradient_evaluations, reached.gradient_evaluations)


def _done(standings: dict[str, _Standing]) -> float:
    return sum(standing.done for standing in standings.values())


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
