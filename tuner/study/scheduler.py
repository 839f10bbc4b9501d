"""Decides which trial is next, and whether a trial continues; independent of Ray.

Optuna's studies hold which trials exist and which of them have ended.  The folders hold the same for confirmed runs.  A
process that resumes a killed search plans from these alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tuner.core.metrics import EpochMetrics, time_to_target
from tuner.core.trial_spec import TrialSpec
from tuner.study.optuna_study import VariantStudy, trial_name
from tuner.study.results import POINTS, Search, TrialRecord, read_confirmed
from tuner.study.successive_halving import SuccessiveHalving
from tuner.study.trial_folder import confirmed_name, read_epochs, write_spec

END = object()


class TrialScheduler:
    """Plans the trials, confirmed runs and readings of the test split of a search; fills the search's records."""

    def __init__(self, search: Search, studies: Mapping[str, VariantStudy]) -> None:
        """Lists the trials that earlier processes ended, and plans the rest."""
        self.search = search
        self.spec = search.spec
        self.records = search.records
        self.studies = studies
        self.all_planned = False
        """Whether :meth:`next_trial` has nothing more to give, now or later."""
        self._live: list[TrialRecord] = []
        self._again: list[TrialRecord] = []
        """Trials that :meth:`next_trial` gives again."""
        self._stopped: set[str] = set()
        """Names of the trials that :meth:`should_continue` has refused."""
        self._num_confirmed: Counter[str] = Counter()
        """Variant -> number of its confirmed runs so far."""
        self._rungs = {variant.name: SuccessiveHalving() for variant in search.variants}
        self._list_earlier()
        self._waiting = self._plan()

    def next_trial(self) -> TrialRecord | None:
        """The next trial to run, or one that has ended already and only needs to be listed.

        None if there is none now: ask again after a trial has ended, unless ``all_planned``.
        """
        record = self._again.pop(0) if self._again else next(self._waiting, END)
        self.all_planned = record is END
        if not isinstance(record, TrialRecord):
            return None
        self._live.append(record)
        return record

    @property
    def num_live(self) -> int:
        """Number of given trials that have not ended."""
        self._live = [record for record in self._live if not record.ended]
        return len(self._live)

    def again(self, name: str) -> None:
        """Makes :meth:`next_trial` give a trial again."""
        record = self.search.record(name)
        self._live.remove(record)
        self._again.append(record)

    @property
    def num_planned(self) -> int:
        """Number of trials and confirmed runs of the whole search, if a trial of each variant finishes."""
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

    def should_continue(self, name: str, metrics: EpochMetrics) -> bool:
        """Whether a trial continues after this epoch, which is not its last; confirmed runs always do."""
        record = self.records[name]
        if record.phase == "confirm":
            return True
        ahead = self._rungs[record.variant].should_continue(name, _share(metrics), metrics.validation_accuracy)
        # A trial that reached the target trains on, for the area and the tail of its curve.
        reached = time_to_target([*record.history, metrics], self.spec.training.targets[-1]) is not None
        should_continue = ahead or reached or not self.spec.early_stopping or self.spec.objective == "pareto"
        # After the rungs, so that they count a trial that is pruned here, as they do in a resumed search.
        should_continue = should_continue and not (
            self.spec.prune_above_critical and self.is_far_above_critical(metrics)
        )
        if not should_continue:
            self._stopped.add(name)
        return should_continue

    def was_stopped(self, name: str) -> bool:
        """Whether :meth:`should_continue` has refused a trial."""
        return name in self._stopped

    def is_far_above_critical(self, metrics: EpochMetrics) -> bool:
        """Whether a training's learning rate is far above the predicted critical one."""
        return (metrics.lr_over_critical or 0) > self.spec.far_above_critical

    def _list_earlier(self) -> None:
        for name, study in self.studies.items():
            for number in study.existing(ended=True):
                record = self._add(name, number)
                record.status = study.existing_status(number)
                record.history = read_epochs(self.search.folder_of(record))
                self._at_rungs(record, record.history)
        confirmed = read_confirmed(self.search)
        self._num_confirmed.update(record.variant for record in confirmed.values())
        self.records |= confirmed
        for record in self.records.values():
            if not record.ended:
                record.status, record.history = "pending", []  # its worker reports these epochs again

    def _plan(self) -> Iterator[TrialRecord | None]:
        yield from [record for record in self.records.values() if record.ended]
        yield from self._explore()
        yield from self._confirm()
        yield from self._test()

    def _explore(self) -> Iterator[TrialRecord]:
        """Trials that earlier processes left unfinished, then new ones, one of each variant in turn."""
        for name, study in self.studies.items():
            for number in study.existing(ended=False):
                record = self._add(name, number)
                # Epochs that Optuna holds were judged, and let the trial through; those only in the log were not.
                judged = study.reported_steps(number)
                history = read_epochs(self.search.folder_of(record))
                self._at_rungs(record, [metrics for metrics in history if metrics.gradient_evaluations in judged])
                yield record
        num_made = {name: len(self.search.trials_of(name)) for name in self.studies}
        for number in range(self.spec.trials):
            for name, study in self.studies.items():
                if num_made[name] <= number:
                    yield self._add(name, study.ask())

    def _confirm(self) -> Iterator[TrialRecord | None]:
        """The confirmed runs of each variant whose trials have all ended, one of each such variant in turn."""
        exploring = list(self.studies) if self.spec.confirm_seeds else []
        ready: list[tuple[int, TrialRecord]] = []
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

    def _confirmations(self, variant: str) -> list[TrialRecord]:
        """The confirmed runs of a variant that have not ended; makes the folders of new ones."""
        runs = [r for r in self.records.values() if r.variant == variant and r.phase == "confirm"]
        made: dict[TrialSpec, TrialRecord] = {record.spec: record for record in runs}
        for spec in [spec for point in POINTS for spec in self.search.wanted(variant, point)]:
            if spec not in made:
                number = min(set(range(1, len(runs) + 2)) - {record.number for record in runs})
                record = TrialRecord(confirmed_name(variant, number), variant, number, spec, "confirm")
                self.search.write(record, lambda folder, spec=spec: write_spec(folder, spec))  # type: ignore[misc]
                made[spec] = self.records[record.name] = record
                self._num_confirmed[variant] += 1
                runs.append(record)
        return [record for record in made.values() if not record.ended]

    def _test(self) -> Iterator[TrialRecord | None]:
        """Readings of the test split for the confirmed runs that finished, once all confirmed runs have ended."""
        confirmed = [record for record in self.records.values() if record.phase == "confirm"]
        while not all(record.ended for record in confirmed):
            yield None
        for record in confirmed:
            if record.status == "finished" and record.test is None:
                test = TrialRecord(f"{record.name}/test", record.variant, record.number, record.spec, "test")
                self.search.tests[test.name] = test
                yield test

    def _add(self, variant: str, number: int) -> TrialRecord:
        study = self.studies[variant]
        spec = self.spec.trial_spec(study.settings(number), number)
        record = TrialRecord(trial_name(variant, number), variant, number, spec, arm=study.tags(number).get("arm"))
        self.records[record.name] = record
        return record

    def _at_rungs(self, record: TrialRecord, history: Sequence[EpochMetrics]) -> None:
        for metrics in history:
            self._rungs[record.variant].should_continue(record.name, _share(metrics), metrics.validation_accuracy)


def _share(metrics: EpochMetrics) -> float:
    return metrics.gradient_evaluations / metrics.budget
