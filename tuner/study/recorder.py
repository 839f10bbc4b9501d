"""What happens to trials and confirmed runs: planned, run, judged, ended, tested.  Knows nothing of Ray.

Optuna's studies are the truth about which trials exist and which have ended, the folders about which confirmed runs;
each one's folder holds its epochs.  What a program that was killed had not yet written follows from these: to resume,
everything is told again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from optuna.storages import RDBStorage

from tuner.core.metrics import is_over, speed_metrics, time_to_target
from tuner.core.retry import patiently
from tuner.core.serialization import flatten
from tuner.core.store import CHECKPOINT
from tuner.core.trial_spec import EpochMetrics, TrialSpec
from tuner.study.optuna_study import VariantStudy, close_storage, trial_name
from tuner.study.results import POINTS, Record, Search, read_confirmed
from tuner.study.successive_halving import Rungs
from tuner.study.trial_folder import (
    FAILURE,
    FinalScore,
    append_epoch,
    confirmed_name,
    mend_log,
    read_epochs,
    write_spec,
    write_test,
    write_whole,
)
from tuner.tracking.tracker import Tracking

logger = logging.getLogger(__name__)

END = object()


class Ledger:
    """All trials and confirmed runs of a search; fills the search's records."""

    def __init__(
        self, search: Search, studies: Mapping[str, VariantStudy], tracking: Tracking, storage: RDBStorage
    ) -> None:
        self.search = search
        self.spec = search.spec
        self.records = search.records
        self.studies = studies
        self.tracking = tracking
        self.storage = storage
        self.all_planned = False
        """Whether :meth:`next_trial` has nothing more to give, now or later."""
        self._live: list[Record] = []
        self._again: list[Record] = []
        """Of the live ones, those that are to be given again."""
        self._stopped: set[str] = set()
        """Trials that a rung did not let through."""
        self._num_confirmed: Counter[str] = Counter()
        """Confirmed runs that have been made, by variant."""
        self._logged: dict[str, set[int]] = {}
        """Epochs in the logs of trainings that earlier programs began."""
        self._pruning = ThreadPoolExecutor(1, thread_name_prefix="pruning")
        self._tests: dict[str, Record] = {}
        """Readings of the test split, by name: no trainings, so no records."""
        self._rungs = {variant.name: Rungs() for variant in search.variants}
        self._list_earlier()
        self._waiting = self._plan()

    def next_trial(self) -> Record | None:
        """What to run next, or what has ended already and only needs to be listed.

        None where there is nothing now: ask again after a trial has ended, unless ``all_planned``.
        """
        record = self._again.pop(0) if self._again else next(self._waiting, END)
        self.all_planned = record is END
        if not isinstance(record, Record):
            return None
        self._live.append(record)
        return record

    @property
    def num_live(self) -> int:
        """How many of those that were given run or wait."""
        self._live = [record for record in self._live if not record.ended]
        return len(self._live)

    def again(self, name: str) -> None:
        """A trial that was given is to be given again."""
        record = self._record(name)
        self._live.remove(record)
        self._again.append(record)

    def num_lost_machines(self, name: str) -> int:
        """Times that a machine was lost under it, in this program."""
        return self._record(name).num_lost_machines

    def _record(self, name: str) -> Record:
        """A trial, confirmed run or test."""
        return self.records.get(name) or self._tests[name]

    @property
    def num_planned(self) -> int:
        """Trials and confirmed runs there will be, where a trial of each variant finishes."""
        num_runs = sum(map(self.spec.num_seeds, POINTS))
        return sum(self.spec.trials + max(num_runs, self._num_confirmed[name]) for name in self.studies)

    def is_complete(self) -> bool:
        """Whether there is nothing left to do."""
        explored = all(
            len(self.search.trials_of(name)) >= self.spec.trials and not study.existing(ended=False)
            for name, study in self.studies.items()
        )
        confirmed = [record for record in self.records.values() if record.phase == "confirm"]
        return (
            explored
            and all(record.ended and (record.test or record.status != "finished") for record in confirmed)
            and all(
                len(self.search.confirmed(name, point)) == len(self.search.wanted(name, point))
                for name in self.studies
                for point in POINTS
            )
        )

    def _list_earlier(self) -> None:
        """Tells of what earlier programs brought to an end."""
        for name, study in self.studies.items():
            for number in study.existing(ended=True):
                record = self._add(name, number)
                record.status = study.existing_status(number)
                record.history = read_epochs(self._folder(record))
                self._at_rungs(record, record.history)
        confirmed = read_confirmed(self.search)
        self._num_confirmed.update(record.variant for record in confirmed.values())
        self.records |= confirmed
        for record in self.records.values():
            if record.ended:
                self._open(record)
                for metrics in record.history:
                    self.tracking.log_epoch(record.name, metrics)
                self._close(record)
            else:
                record.status, record.history = "pending", []  # its worker tells these epochs again
        self._pruning.submit(self._prune, {record.folder_name for record in self.records.values() if record.ended})

    def _plan(self) -> Iterator[Record | None]:
        yield from [record for record in self.records.values() if record.ended]
        yield from self._explore()
        yield from self._confirm()
        yield from self._test()

    def _explore(self) -> Iterator[Record]:
        """Trials that earlier programs left, then new ones, one of each variant in turn."""
        for name, study in self.studies.items():
            for number in study.existing(ended=False):
                record = self._add(name, number)
                # What Optuna was told was judged before, and the trial let through; what only the log has was not.
                judged = study.reported_steps(number)
                history = read_epochs(self._folder(record))
                self._at_rungs(record, [metrics for metrics in history if metrics.gradient_evaluations in judged])
                yield record
        num_made = {name: len(self.search.trials_of(name)) for name in self.studies}
        for number in range(self.spec.trials):
            for name, study in self.studies.items():
                if num_made[name] <= number:
                    yield self._add(name, study.ask())

    def _confirm(self) -> Iterator[Record | None]:
        """The confirmed runs of each variant whose trials have all ended, one of each such variant in turn."""
        exploring = list(self.studies) if self.spec.confirm_seeds else []
        ready: list[tuple[int, Record]] = []
        while exploring or ready:
            for name in [*exploring]:
                if all(record.ended for record in self._live if record.variant == name):
                    exploring.remove(name)
                    ready += enumerate(self._confirmations(name))
            ready.sort(key=lambda turn: turn[0])
            if ready:
                yield ready.pop(0)[1]
            elif exploring:
                yield None

    def _confirmations(self, variant: str) -> list[Record]:
        """The runs that are left of those that confirm a variant; makes the folders of those that are new."""
        runs = [r for r in self.records.values() if r.variant == variant and r.phase == "confirm"]
        made: dict[TrialSpec, Record] = {record.spec: record for record in runs}
        for spec in [spec for point in POINTS for spec in self.search.wanted(variant, point)]:
            if spec not in made:
                number = min(set(range(1, len(runs) + 2)) - {record.number for record in runs})
                record = Record(confirmed_name(variant, number), variant, number, spec, "confirm")
                self._write(record, lambda folder, spec=spec: write_spec(folder, spec))  # type: ignore[misc]
                made[spec] = self.records[record.name] = record
                self._num_confirmed[variant] += 1
                runs.append(record)
        return [record for record in made.values() if not record.ended]

    def _test(self) -> Iterator[Record | None]:
        """When every confirmed run has ended, the test split for those that finished."""
        confirmed = [record for record in self.records.values() if record.phase == "confirm"]
        while not all(record.ended for record in confirmed):
            yield None
        for record in confirmed:
            if record.status == "finished" and record.test is None:
                test = Record(f"{record.name}/test", record.variant, record.number, record.spec, "test")
                self._tests[test.name] = test
                yield test

    def _add(self, variant: str, number: int) -> Record:
        study = self.studies[variant]
        spec = self.spec.trial_spec(study.settings(number), number)
        record = Record(trial_name(variant, number), variant, number, spec, arm=study.tags(number).get("arm"))
        self.records[record.name] = record
        return record

    def _at_rungs(self, record: Record, history: Sequence[EpochMetrics]) -> None:
        for metrics in history:
            self._rungs[record.variant].goes_on(record.name, _share(metrics), metrics.validation_accuracy)

    def start(self, name: str) -> None:
        """A worker has taken up a trial."""
        record = self._record(name)
        record.started_at = record.started_at or time.time()
        if record.status == "pending":
            record.status = "running"
            if record.phase != "test":
                self._write(record, lambda folder: self._begin(record, folder))
                self._open(record)

    def _begin(self, record: Record, folder: Path) -> None:
        write_spec(folder, record.spec)
        self._logged[record.name] = mend_log(folder)

    def lost_machine(self, name: str) -> None:
        """The machine that trained it is gone; it goes on elsewhere from its last checkpoint."""
        record = self._record(name)
        record.num_lost_machines += 1
        if record.phase != "test":
            self._open(record)

    def record(self, name: str, metrics: EpochMetrics, busy_seconds: float) -> None:
        """A trial has told an epoch; one that it told before changes nothing."""
        self.start(name)
        record = self.records[name]
        record.busy_seconds += busy_seconds
        if record.history and metrics.epoch <= record.history[-1].epoch:
            return
        record.history.append(metrics)
        if metrics.epoch not in self._logged[name]:
            self._write(record, lambda folder: append_epoch(folder, metrics))
        # An epoch that Optuna knows was let through: one that stops the trial is told together with its end.
        if record.phase == "explore" and name not in self._stopped:
            self.studies[record.variant].report(record.number, record.history)
        self.tracking.log_epoch(name, metrics)

    def record_test(self, name: str, score: FinalScore, busy_seconds: float) -> None:
        """The test split has been read for a confirmed run."""
        self._tests[name].busy_seconds += busy_seconds
        record = self.records[_tested(name)]
        self._write(record, lambda folder: write_test(folder, score))
        record.test = score

    def goes_on(self, name: str, metrics: EpochMetrics) -> bool:
        """Whether a trial with this epoch, not its last, behind it trains on; confirmed runs always do."""
        record = self.records[name]
        if record.phase == "confirm":
            return True
        ahead = self._rungs[record.variant].goes_on(name, _share(metrics), metrics.validation_accuracy)
        # Its time to the target is known, and its area and tail are worth having.
        reached = time_to_target([*record.history, metrics], self.spec.targets[-1]) is not None
        goes_on = ahead or reached or not self.spec.early_stopping or self.spec.objective == "pareto"
        # After the rungs, which a trial that is pruned here has come to all the same: so they find it when resumed.
        goes_on = goes_on and not (self.spec.prune_above_critical and self._is_far_above_critical(metrics))
        if not goes_on:
            self._stopped.add(name)
        return goes_on

    def end(self, name: str, *, failure: str | None = None) -> None:
        """A trial, confirmed run or test has ended: it failed, diverged, ran to its end, or was stopped."""
        record = self._record(name)
        if record.ended:
            return
        self.start(name)
        record.ended_at = time.time()
        if record.phase == "test":
            # Its training has ended well all the same; a later program reads again.
            record.status = "finished" if failure is None else "failed"
            self._close(self.records[_tested(name)], {"test_failure": failure or ""})
            return
        status = "failed" if failure is not None else self._how_it_ended(record)
        if record.phase == "explore":
            study = self.studies[record.variant]
            if name in self._stopped:
                study.report(record.number, record.history)
            study.tell(record.number, status, record.history, failure)
        elif failure is not None:
            self._write(record, lambda folder: write_whole(folder / FAILURE, failure + "\n"))
        record.status = status
        self._say_if_prediction_failed(record)
        self._close(record)

    def _is_far_above_critical(self, metrics: EpochMetrics) -> bool:
        return (metrics.lr_over_critical or 0) > self.spec.far_above_critical

    def _say_if_prediction_failed(self, record: Record) -> None:
        """Of a trial that diverged or failed nothing is said; the report lists the others again."""
        last = record.history[-1] if record.history else None
        if not last or record.phase != "explore" or record.status not in ("finished", "stopped"):
            return
        if self._is_far_above_critical(last):
            logger.warning(
                "%s %s without diverging, at lr.peak %.3g, %.3g times the predicted critical one",
                record.name,
                "finished" if record.status == "finished" else "was stopped",
                record.spec.optimizer.lr.peak,
                last.lr_over_critical,
            )

    def busy_share(self, slots: int) -> float | None:
        """Share of the slots' time, from the first start of a trial to the last end, that workers were busy with it."""
        known = [*self.records.values(), *self._tests.values()]
        ran = [record for record in known if record.started_at and record.ended_at]
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
            "phase": record.phase,
            "idea": variant.idea,
            "workload": self.spec.workload,
            **({"controls": variant.controls} if variant.controls else {}),
            **self._tags(record),
        }
        self.tracking.start_trial(record.name, parameters, tags)

    def amend(self) -> None:
        """Tells MLflow what each confirmed run confirms now, and the scores that an earlier program could not read."""
        for record in self.records.values():
            if record.phase == "confirm" and record.ended and record.history:
                self.tracking.amend(record.name, self._tags(record), _scores(record), record.history[-1])

    def _close(self, record: Record, tags: Mapping[str, str] | None = None) -> None:
        """``tags`` are of a reading of the test split, after which a confirmed run has ended for MLflow too."""
        if record.phase == "explore" or record.test or record.status != "finished" or tags:
            last = record.history[-1] if record.history else None
            summary = speed_metrics(record.history, self.spec.targets) if record.history else {}
            summary |= _scores(record)
            self.tracking.end_trial(record.name, record.status, summary, last, {**self._tags(record), **(tags or {})})
        # Only after Optuna was told: whoever resumes finds the end there, or the checkpoint here.
        self._pruning.submit(self._prune, {record.folder_name})

    def _prune(self, ended: set[str]) -> None:
        """Deletes the checkpoints of trainings that have ended; in a thread, as storage may be slow to answer."""
        try:
            for name in self.search.root.names(*ended):
                folder, _, file = name.rpartition("/")
                if folder in ended and CHECKPOINT.fullmatch(file):
                    self.search.root.delete(name)
        except OSError as error:
            logger.warning("Checkpoints of ended trials stay until the search is resumed: %s", error)

    def close(self, *, wait: bool = True) -> None:
        """Ends what this program has open; what was told stands, and what is not pruned is by the next program."""
        self._pruning.shutdown(wait=wait, cancel_futures=not wait)
        close_storage(self.storage)

    def _write(self, record: Record, write: Callable[[Path], None]) -> None:
        """Writes into a training's folder.  Raises :class:`StorageFailed` where the disk stays away or full."""
        folder = self._folder(record)
        patiently(str(folder), lambda: write(folder))

    def _tags(self, record: Record) -> dict[str, str]:
        lost = {"lost_machines": str(record.num_lost_machines)} if record.num_lost_machines else {}
        if record.phase == "explore":
            return self.studies[record.variant].tags(record.number) | lost
        failure = self._folder(record) / FAILURE
        tags = {"confirms": " ".join(self.search.points_of(record)) or "an earlier best", **lost}
        return {**tags, "failure": failure.read_text().strip()} if record.status == "failed" else tags

    def _folder(self, record: Record) -> Path:
        return self.search.folder / record.folder_name


def _scores(record: Record) -> dict[str, float]:
    return {"test/accuracy": record.test.accuracy, "test/loss": record.test.loss} if record.test else {}


def _tested(name: str) -> str:
    return name.removesuffix("/test")


def _share(metrics: EpochMetrics) -> float:
    return metrics.gradient_evaluations / metrics.budget
