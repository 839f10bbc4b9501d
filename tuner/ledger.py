"""What happens to trials: planned, run, judged, ended.  Knows nothing of Ray.

Optuna's studies are the truth about which trials exist and which have ended; each trial's folder holds its epochs.
What a program that was killed had not yet written follows from these two: to resume, everything is told again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from search_spaces import Variant
from tuner.convergence import is_over, speed_metrics, time_to_target
from tuner.plan import SearchSpec
from tuner.rungs import Rungs
from tuner.settings import flatten
from tuner.spec import EpochMetrics, TrialSpec
from tuner.study import VariantStudy, trial_name
from tuner.tracking import Tracking
from tuner.trial_folder import CHECKPOINT, read_epochs


@dataclass(slots=True)
class Record:
    """What is known of one trial."""

    name: str
    variant: str
    number: int
    spec: TrialSpec
    status: str = "pending"
    """pending, running, or as it ended: finished, stopped, diverged, failed."""
    history: list[EpochMetrics] = field(default_factory=list)
    started_at: float | None = None
    """When a worker of this program took it up, seconds since 1970."""
    ended_at: float | None = None
    busy_seconds: float = 0.0
    """Time this program's workers spent inside train()."""

    @property
    def ended(self) -> bool:
        return self.status not in ("pending", "running")


class Ledger:
    """All trials of a search."""

    def __init__(
        self,
        spec: SearchSpec,
        variants: Sequence[Variant],
        studies: dict[str, VariantStudy],
        tracking: Tracking,
        folder: Path,
        splits: str,
    ) -> None:
        self.spec = spec
        self.variants = variants
        self.studies = studies
        self.tracking = tracking
        self.folder = folder
        self.splits = splits
        """How the data is split, for the reader."""
        self.records: dict[str, Record] = {}
        """By trial name, in the order in which they were made."""
        self._rungs = {variant.name: Rungs() for variant in variants}
        self._waiting = self._plan()

    def next_trial(self) -> Record | None:
        """The next trial to run, or one that has ended already and only needs to be listed; None after the last."""
        return next(self._waiting, None)

    def is_complete(self) -> bool:
        """Whether every planned trial had ended when the studies were opened."""
        return all(
            len(study.existing(ended=True)) >= self.spec.trials and not study.existing(ended=False)
            for study in self.studies.values()
        )

    def list_all(self) -> None:
        """Lists the trials of earlier programs, where nothing has asked for them."""
        while self.next_trial() is not None:
            pass

    def _plan(self) -> Iterator[Record]:
        """Trials of earlier programs first, then new ones, one of each variant in turn."""
        for name, study in self.studies.items():
            for number in study.existing(ended=True):
                yield self._relist(name, number, study.existing_status(number))
        for name, study in self.studies.items():
            for number in study.existing(ended=False):
                yield self._start(name, number)
        num_made = {name: sum(record.variant == name for record in self.records.values()) for name in self.studies}
        for number in range(self.spec.trials):
            for name, study in self.studies.items():
                if num_made[name] <= number:
                    yield self._start(name, study.ask())

    def _relist(self, variant: str, number: int, status: str) -> Record:
        record = self._add(variant, number)
        record.status = status
        record.history = read_epochs(self.folder / record.name)
        self._at_rungs(record, record.history)
        self._open(record)
        for metrics in record.history:
            self.tracking.log_epoch(record.name, metrics)
        self._close(record)
        return record

    def _start(self, variant: str, number: int) -> Record:
        record = self._add(variant, number)
        # What Optuna was told was judged before, and the trial let through; what only the log has, is yet to be judged.
        judged = self.studies[variant].reported_steps(number)
        history = read_epochs(self.folder / record.name)
        self._at_rungs(record, [metrics for metrics in history if metrics.gradient_evaluations in judged])
        return record

    def _add(self, variant: str, number: int) -> Record:
        spec = self.spec.trial_spec(self.studies[variant].settings(number), number)
        record = Record(trial_name(variant, number), variant, number, spec)
        self.records[record.name] = record
        return record

    def _at_rungs(self, record: Record, history: Sequence[EpochMetrics]) -> None:
        for metrics in history:
            self._rungs[record.variant].goes_on(record.name, _share(metrics), metrics.validation_accuracy)

    def start(self, name: str) -> None:
        """A worker has taken up a trial."""
        record = self.records[name]
        record.started_at = record.started_at or time.time()
        if record.status == "pending":
            record.status = "running"
            self._open(record)

    def record(self, name: str, metrics: EpochMetrics, busy_seconds: float) -> None:
        """A trial has told an epoch; one that it told before changes nothing."""
        record = self.records[name]
        record.busy_seconds += busy_seconds
        if record.history and metrics.epoch <= record.history[-1].epoch:
            return
        record.history.append(metrics)
        self.studies[record.variant].report(record.number, record.history)
        self.tracking.log_epoch(name, metrics)

    def goes_on(self, name: str, metrics: EpochMetrics) -> bool:
        """Whether a trial with this epoch, not its last, behind it trains on."""
        record = self.records[name]
        ahead = self._rungs[record.variant].goes_on(name, _share(metrics), metrics.validation_accuracy)
        # Its time to the target is known, and its area and tail are worth having.
        reached = time_to_target([*record.history, metrics], self.spec.targets[-1]) is not None
        return ahead or reached or not self.spec.early_stopping or self.spec.objective == "pareto"

    def end(self, name: str, *, failure: str | None = None) -> None:
        """A trial has ended: it failed, diverged, ran to its end, or was stopped."""
        record = self.records[name]
        if record.ended:
            return
        self.start(name)
        record.status = "failed" if failure is not None else self._how_it_ended(record)
        self.studies[record.variant].tell(record.number, record.status, record.history, failure)
        record.ended_at = time.time()
        self._close(record)

    def busy_share(self, slots: int) -> float | None:
        """Share of the slots' time, from the first start of a trial to the last end, spent inside train()."""
        ran = [record for record in self.records.values() if record.started_at and record.ended_at]
        if not ran:
            return None
        span = max(r.ended_at or 0 for r in ran) - min(r.started_at or 0 for r in ran)
        return sum(record.busy_seconds for record in ran) / (slots * span) if span > 0 else None

    def _how_it_ended(self, record: Record) -> str:
        if record.history and record.history[-1].diverged:
            return "diverged"
        return "finished" if is_over(record.spec, record.history) else "stopped"

    def _open(self, record: Record) -> None:
        parameters = {name: value for name, value in flatten(record.spec).items() if value is not None}
        variant = self.studies[record.variant].variant
        tags = {
            "variant": record.variant,
            "idea": variant.idea,
            "workload": self.spec.workload,
            **({"controls": variant.controls} if variant.controls else {}),
            **self.studies[record.variant].tags(record.number),
        }
        self.tracking.start_trial(record.name, parameters, tags)

    def _close(self, record: Record) -> None:
        last = record.history[-1] if record.history else None
        summary = speed_metrics(record.history, self.spec.targets) if record.history else {}
        tags = self.studies[record.variant].tags(record.number)
        self.tracking.end_trial(record.name, record.status, summary, last, tags)
        # Only after Optuna was told: whoever resumes finds the end there, or the checkpoint here.
        for left in (self.folder / record.name).glob(f"{CHECKPOINT}*"):
            left.unlink(missing_ok=True)


def _share(metrics: EpochMetrics) -> float:
    return metrics.gradient_evaluations / metrics.budget
