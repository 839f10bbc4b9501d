"""Decides which trial is next, and whether a trial continues; independent of Ray.

Timings come first, one at a time, where the cost is in seconds; then trainings that set the targets, where these are
not given; and then the race.  After it, each variant that is refined gets further settings, repeats of the best ones,
and confirmed runs of those that are chosen.  The test split is read last.

Optuna's studies hold which trials exist and which of them have ended.  The folders hold the same for confirmed runs.  A
process that resumes a killed search plans from these alone.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from tuner.core.metrics import EpochMetrics, error_area
from tuner.core.search_spec import NUM_FINALISTS, NUM_REPEATS, SearchSpec
from tuner.core.trial_spec import TrialSpec
from tuner.study.objectives import race_time
from tuner.study.optuna_study import VariantStudy, trial_name
from tuner.study.refinement import finalists, most_repeats
from tuner.study.results import Search, read_runs
from tuner.study.search_folder import save_seconds, save_targets
from tuner.study.targets import NUM_PILOTS, measured_targets
from tuner.study.timings import NUM_SPARE, NUM_TIMINGS, measured_seconds, timed, timing_epochs
from tuner.study.trial_folder import OUTSIDE_STUDIES, RunPhase, read_epochs, run_name, write_spec
from tuner.study.trial_record import POINTS, Phase, TrialRecord, phase_of, seed_number

END = object()


class TrialScheduler:
    """Plans the trials, confirmed runs and readings of the test split of a search; fills the search's records."""

    def __init__(self, search: Search, studies: Mapping[str, VariantStudy]) -> None:
        """Lists the trials that earlier processes ended, and plans the rest."""
        self.search = search
        self.records = search.records
        self.studies = studies
        self.race = search.race
        self.all_planned = False
        """Whether :meth:`next_trial` has nothing more to give, now or later."""
        self._live: list[TrialRecord] = []
        self._again: list[TrialRecord] = []
        """Trials that :meth:`next_trial` gives again."""
        self._stopped: set[str] = set()
        """Names of the trials that :meth:`should_continue` has refused."""
        self._failed: list[TrialRecord] = []
        """Trials of the race that failed and are made again."""
        self._begun: set[tuple[str, int, int]] = set()
        """Variant, round and slot of the trials of the race, but for those that are made again."""
        self._num_made: Counter[tuple[str, Phase]] = Counter()
        """Variant and phase -> number of its trainings so far."""
        self._all_made: set[tuple[str, Phase]] = set()
        """Variants and phases whose trainings have all been made."""
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
    def spec(self) -> SearchSpec:
        """The spec of the search, with its targets once they are known."""
        return self.search.spec

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

    def end(self, record: TrialRecord) -> None:
        """Takes the end of a trial of the race into account."""
        if record.phase != "race":
            return
        self.search.count(record)
        place = record.variant, record.place["round"], record.place["slot"]
        if record.status == "failed" and not self.race.has_ended(*place):
            self._begun.discard(place)
            self._failed.append(record)

    @property
    def num_planned(self) -> int:
        """Most trainings that the whole search can have; those that are made again, and earlier bests, apart."""
        num = NUM_PILOTS if self.spec.targets == "auto" else 0
        raced = [] if self.race.is_over else self.race.left
        refined, untimed = self.search.refined, self.search.to_be_timed
        for name in self.studies:
            most: dict[Phase, int] = {
                "timing": NUM_TIMINGS if name in untimed else 0,
                "race": self._num_race if name in raced else 0,
                "refine": self._num_refine if name in refined else 0,
                "confirm": sum(map(self.spec.num_seeds, POINTS)) if name in refined else 0,
            }
            for phase, planned in most.items():
                made = self._num_made[name, phase]
                num += made if (name, phase) in self._all_made else max(made, planned)
        return num

    @property
    def _num_race(self) -> int:
        return self.spec.num_rounds * self.spec.round_size if len(self.studies) > 1 else 0

    @property
    def _num_refine(self) -> int:
        return self.num_settings + most_repeats(self._num_race, self.num_settings)

    @property
    def num_settings(self) -> int:
        """Number of settings that the refinement of each variant tries; without a race, all trials are its own."""
        return self.spec.refine_trials if self._num_race else self.spec.trials

    def is_complete(self) -> bool:
        """Whether there is nothing left to do."""
        confirmed = [record for record in self.records.values() if record.phase == "confirm"]
        return (
            bool(self.spec.training.targets)
            and self.race.is_over
            and not any(study.existing(ended=False) for study in self.studies.values())
            and all(self._is_refined(name) for name in self.search.refined)
            and all(record.ended and (record.test or record.status != "finished") for record in confirmed)
            and all(
                len(self.search.confirmed(name, point)) == len(self.search.wanted(name, point))
                for name in self.search.refined
                for point in POINTS
            )
        )

    def should_continue(self, name: str, metrics: EpochMetrics) -> bool:
        """Whether a training continues after this epoch, which is not its last; one that is no trial always does."""
        record = self.records[name]
        if not record.is_trial:
            return True
        spent = self._spent([*record.history, metrics])
        if record.phase == "race":
            spent *= self.search.cost_of_evaluation(record.variant)
        should_continue = not self.spec.early_stopping or spent < self._cap(record)
        if record.phase == "race" and not self.race.takes_part(record.variant, record.place["round"]):
            should_continue = False
        if self.spec.prune_above_critical and self.is_far_above_critical(metrics):
            should_continue = False
        if not should_continue:
            self._stopped.add(name)
        return should_continue

    def was_stopped(self, name: str) -> bool:
        """Whether :meth:`should_continue` has refused a trial."""
        return name in self._stopped

    def is_far_above_critical(self, metrics: EpochMetrics) -> bool:
        """Whether a training's learning rate is far above the predicted critical one."""
        return (metrics.lr_over_critical or 0) > self.spec.far_above_critical

    def _spent(self, history: list[EpochMetrics]) -> float:
        """The least time that a running trial can still have, in the unit of :func:`race_time`."""
        last = history[-1]
        if self.spec.objective == "time-to-target":
            return last.gradient_evaluations
        if self.spec.objective == "auc":
            # The area so far; the rest of the budget may have no error at all.
            return error_area(history) - (1 - last.gradient_evaluations / last.budget) * (1 - last.validation_accuracy)
        return -math.inf

    def _cap(self, record: TrialRecord) -> float:
        """The time beyond which a trial can change nothing: in the race's unit, or in that of :func:`race_time`."""
        if record.phase == "race":
            return self.race.cap(record.variant, record.place["round"])
        if record.repeats is not None or record.place.get("point"):
            return math.inf  # settings that are compared by their means, and so need their whole times
        # What takes longer than the second best of those that have ended is none of the finalists, whatever comes.
        known = [r for r in self.search.known_trials(record.variant) if r.repeats is None and r.status == "finished"]
        targets = self.spec.training.targets
        times = (race_time(self.spec.objective, r.status, r.history, targets) for r in known)
        best = heapq.nsmallest(NUM_FINALISTS, times)
        return best[-1] if len(best) == NUM_FINALISTS else math.inf

    def _list_earlier(self) -> None:
        for name, study in self.studies.items():
            for number in study.existing(ended=True):
                record = self._add(name, number)
                record.status = study.existing_status(number)
                record.history = read_epochs(self.search.folder_of(record))
                self.end(record)
        for phase in OUTSIDE_STUDIES:
            runs = read_runs(self.search, phase)
            self._num_made.update((record.variant, phase) for record in runs.values())
            self.records |= runs
        for record in self.records.values():
            if not record.ended:
                record.status, record.history = "pending", []  # its worker reports these epochs again

    def _plan(self) -> Iterator[TrialRecord | None]:
        yield from [record for record in self.records.values() if record.ended]
        if names := self.search.to_be_timed:
            yield from self._timings(names)
        for name, study in self.studies.items():
            for number in study.existing(ended=False):
                yield self._add(name, number)
        if not self.spec.training.targets:
            yield from self._pilots()
        yield from self._race()
        refined = self.search.refined
        yield from _in_turn([self._refine_and_confirm(name) for name in refined])
        # Confirmed runs that an earlier process began, of variants that have been put out since.
        begun = [record for record in self.records.values() if record.phase == "confirm" and not record.ended]
        yield from [record for record in begun if record.variant not in refined]
        yield from self._test()

    def _timings(self, names: list[str]) -> Iterator[TrialRecord | None]:
        """The timings of these variants, each alone; then takes and saves what they found.

        The k-th timings of all variants come before the next ones, so that a device that slows down slows all down.
        """
        epochs = timing_epochs(self.search.steps_per_epoch)
        made = {(record.variant, record.number): record for record in self.search.timings()}
        histories = {name: [r.history for r in made.values() if r.variant == name and r.observed] for name in names}
        for number in range(1, NUM_TIMINGS + NUM_SPARE + 1):
            for name in names:
                known = sum(timed(history) is not None for history in histories[name])
                if known >= NUM_TIMINGS or ((name, number) in made and made[name, number].ended):
                    continue
                if (name, number) not in made:
                    spec = self.spec.timing_spec(self.search.default_optimizer(name), number - 1, epochs)
                    made[name, number] = self._add_run(name, "timing", number, spec)
                record = made[name, number]
                yield record
                while not record.ended:
                    yield None
                if record.observed:
                    histories[name].append(record.history)
        found = {name: measured_seconds(histories[name]) for name in names}
        save_seconds(self.search.folder, self.search.seconds | found)
        self.search.set_seconds(found)

    def _pilots(self) -> Iterator[TrialRecord | None]:
        """The trainings that set the targets; then sets them, for this process and for later ones."""
        baseline = self.search.baseline
        optimizer = self.search.default_optimizer(baseline)
        made = {record.spec: record for record in self.search.pilots()}
        for k in range(NUM_PILOTS):
            spec = self.spec.pilot_spec(optimizer, k)
            if spec not in made:
                made[spec] = self._add_run(baseline, "pilot", k + 1, spec)
            if not made[spec].ended:
                yield made[spec]
        while not all(record.ended for record in made.values()):
            yield None
        targets = measured_targets([record.history for record in made.values() if record.observed])
        save_targets(self.search.folder, targets)
        self.search.spec = self.spec.with_targets(targets)
        for study in self.studies.values():
            study.spec = self.search.spec

    def _race(self) -> Iterator[TrialRecord | None]:
        """The trainings of each round in random order; the next round's before the last one of a round has ended."""
        for number in range(self.spec.num_rounds):
            for name, slot in self.race.order(number, self.spec.seed):
                yield from self._made_again()
                if self.race.is_over:
                    return
                if self.race.takes_part(name, number) and (name, number, slot) not in self._begun:
                    yield self._add(name, self.studies[name].ask_race(number, slot))
        while not self.race.is_over:
            yield from self._made_again()
            if not self.race.is_over:  # the one that was made again may have ended it
                yield None

    def _made_again(self) -> Iterator[TrialRecord]:
        while self._failed:
            failed = self._failed.pop(0)
            number, slot = failed.place["round"], failed.place["slot"]
            begun = (failed.variant, number, slot) in self._begun  # by an earlier process
            if not begun and self.race.takes_part(failed.variant, number):
                yield self._add(failed.variant, self.studies[failed.variant].ask_race(number, slot))

    def _refine_and_confirm(self, name: str) -> Iterator[TrialRecord | None]:
        """The trials and confirmed runs of a variant after the race."""
        study = self.studies[name]
        if self._num_race:
            study.learn(self.search.race_values(name))
        for index in self._missing_settings(name):
            yield self._add(name, study.ask_refine(index, self.num_settings))
        while self._is_running(name):
            yield None
        if self.num_settings:
            for number, repeat in self._missing_repeats(name):
                yield self._add(name, study.ask_repeat(number, repeat))
            self._all_made.add((name, "refine"))
            while self._is_running(name):
                yield None
        if self.spec.confirm_seeds:
            yield from self._confirmations(name)

    def _is_running(self, name: str) -> bool:
        return any(not record.ended for record in self._live if record.variant == name and record.is_trial)

    def _missing_settings(self, name: str) -> list[int]:
        """Places in the refinement that no trial has taken."""
        tried = {r.place["index"] for r in self.search.trials_of(name) if "index" in r.place}
        return [index for index in range(self.num_settings) if index not in tried]

    def _missing_repeats(self, name: str) -> list[tuple[int, int]]:
        """Number of the trial and of the repeat, for the repeats that no trial has made; round by round of repeats."""
        made = {(r.repeats, r.place["repeat"]) for r in self.search.trials_of(name) if r.repeats is not None}
        wanted = [c.trial.number for c in finalists(self.search.candidates(name))]
        places = [(number, repeat) for repeat in range(1, NUM_REPEATS + 1) for number in wanted]
        return [place for place in places if place not in made]

    def _is_refined(self, name: str) -> bool:
        return not self._missing_settings(name) and not (self.num_settings and self._missing_repeats(name))

    def _confirmations(self, variant: str) -> list[TrialRecord]:
        """The confirmed runs of a variant that have not ended; makes the folders of new ones."""
        runs = [r for r in self.records.values() if r.variant == variant and r.phase == "confirm"]
        made: dict[TrialSpec, TrialRecord] = {record.spec: record for record in runs}
        for spec in [spec for point in POINTS for spec in self.search.wanted(variant, point)]:
            if spec not in made:
                number = min(set(range(1, len(runs) + 2)) - {record.number for record in runs})
                made[spec] = self._add_run(variant, "confirm", number, spec)
                runs.append(made[spec])
        self._all_made.add((variant, "confirm"))
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

    def _add_run(self, variant: str, phase: RunPhase, number: int, spec: TrialSpec) -> TrialRecord:
        """A training outside the studies; its folder makes it exist."""
        record = TrialRecord(run_name(variant, phase, number), variant, number, spec, phase)
        self.search.write(record, lambda folder: write_spec(folder, spec))
        self.records[record.name] = record
        self._num_made[variant, phase] += 1
        return record

    def _add(self, variant: str, number: int) -> TrialRecord:
        study = self.studies[variant]
        place = study.place(number)
        spec = self.spec.trial_spec(study.settings(number), seed_number(place, self.spec.round_size))
        record = TrialRecord(trial_name(variant, number), variant, number, spec, phase_of(place), place=place)
        self.records[record.name] = record
        self._num_made[variant, record.phase] += 1
        if record.phase == "race":
            self._begun.add((variant, place["round"], place["slot"]))
        return record


def _in_turn(plans: Iterable[Iterator[TrialRecord | None]]) -> Iterator[TrialRecord | None]:
    """One trial of each plan in turn; None while none has one."""
    left = list(plans)
    while left:
        given = False
        for plan in [*left]:
            record = next(plan, END)
            if record is END:
                left.remove(plan)
            elif isinstance(record, TrialRecord):
                given = True
                yield record
        if left and not given:
            yield None
