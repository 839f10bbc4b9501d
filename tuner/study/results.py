"""A search's trials and confirmed runs, as a running process holds them or as read from disk.

``load_search("name")`` needs neither Ray nor MLflow.  Optuna's studies hold which trials exist, and the search's folder
holds which confirmed runs exist.  The folder of each training holds its epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial

from search_spaces import Variant
from tuner.core.metrics import ACCURACY, epoch_metrics, is_finished, speed_metrics
from tuner.core.retry import retry
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import Setting, flatten, with_settings
from tuner.core.store import Store
from tuner.core.trial_spec import OptimizerSpec, TrialSpec
from tuner.core.variants import resolve_variants
from tuner.study import search_folder, trial_folder
from tuner.study.objectives import race_time
from tuner.study.optuna_study import JOINED, existing_storage, place_of, study_name, trial_name
from tuner.study.refinement import Candidate, best_candidate, candidates
from tuner.study.rounds import Race
from tuner.study.search_folder import Process
from tuner.study.trial_record import POINTS, Point, TrialRecord, phase_of, seed_number

if TYPE_CHECKING:  # slow to import, and used only in notebooks
    import pandas as pd

MOST_ATTEMPTS = 2
"""How often a slot of the race is trained if its training fails; then it counts as one that missed the target."""


@dataclass(slots=True)
class Search:
    """A search and its trials so far."""

    spec: SearchSpec
    search_id: str
    variants: tuple[Variant, ...]
    folder: Path
    studies: Mapping[str, optuna.Study]
    """Variant name -> its Optuna study."""
    processes: tuple[Process, ...] = ()
    """The processes that have worked on the search, in order, with their times, versions and hardware."""
    splits: str = ""
    """How the data is split, in words."""
    score: str = ACCURACY
    """Name of the task's score, which its metrics call accuracy."""
    records: dict[str, TrialRecord] = field(default_factory=dict)
    """Trials and confirmed runs by name; sorted by variant if they were read from disk."""
    tests: dict[str, TrialRecord] = field(default_factory=dict)
    """Readings of the test split by this process, by name; not among the records, because they train nothing."""
    joined: Mapping[str, int] = field(default_factory=dict)
    """Variant -> first round of the race that it takes part in; 0 where it is not said."""
    seconds: dict[str, float | None] = field(default_factory=dict)
    """Variant -> seconds per gradient evaluation, by its timings; None where no timing gave a figure.  It has no entry
    before the variant's timings have ended, and is empty with ``--cost gradient-evaluations``."""
    steps_per_epoch: int = 1
    """Gradient evaluations of an epoch; timings are planned by it."""
    race: Race = field(init=False)
    """The rounds of the race that have ended, and what follows from them."""

    def __post_init__(self) -> None:
        spec = self.spec
        names = [variant.name for variant in self.variants]
        timed = spec.objective == "time-to-target"
        self.race = Race(names, spec.round_size, spec.num_rounds, spec.alpha, timed, self.joined)
        for name in self.not_timed:
            self.race.refuse(name)
        for record in self.records.values():
            self.count(record)

    def count(self, record: TrialRecord) -> None:
        """Takes an ended trial of the race into account; a failed one only if it is not made again."""
        if record.phase != "race" or not record.ended:
            return
        number, slot = record.place["round"], record.place["slot"]
        if record.status == "failed" and self.num_failed(record.variant, number, slot) < MOST_ATTEMPTS:
            return
        time = race_time(self.spec.objective, record.status, record.history, self.spec.training.targets)
        cost = time * self.cost_of_evaluation(record.variant)
        self.race.end(record.variant, number, slot, None if record.status == "failed" else cost)

    def cost_of_evaluation(self, variant: str) -> float:
        """What one gradient evaluation of a variant counts in the race: 1, or its seconds with ``--cost seconds``.

        NaN where these are not known.
        """
        return (self.seconds.get(variant) or math.nan) if self.spec.cost == "seconds" else 1.0

    @property
    def to_be_timed(self) -> list[str]:
        """The variants whose seconds per gradient evaluation have still to be measured."""
        names = [variant.name for variant in self.variants if variant.name not in self.seconds]
        return names if self.spec.cost == "seconds" else []

    @property
    def not_timed(self) -> list[str]:
        """The variants whose timings gave no figure; they are out of the race."""
        return [variant.name for variant in self.variants if self.seconds.get(variant.name, 0.0) is None]

    def set_seconds(self, found: Mapping[str, float | None]) -> None:
        """Takes what timings have found, and puts variants out of the race that they found nothing of."""
        self.seconds |= found
        for name, value in found.items():
            if value is None:
                self.race.refuse(name)

    def num_failed(self, variant: str, number: int, slot: int) -> int:
        """How many trainings of a slot have failed."""
        places = [r.place for r in self.trials_of(variant) if r.phase == "race" and r.status == "failed"]
        return sum((place["round"], place["slot"]) == (number, slot) for place in places)

    def record(self, name: str) -> TrialRecord:
        """A trial, confirmed run or reading of the test split by its name."""
        return self.records.get(name) or self.tests[name]

    def folder_of(self, record: TrialRecord) -> Path:
        """A training's folder."""
        return self.folder / record.folder_name

    def write(self, record: TrialRecord, write: Callable[[Path], None]) -> None:
        """Writes into a training's folder; raises :class:`StorageFailed` where the disk stays unreachable or full."""
        folder = self.folder_of(record)
        retry(str(folder), lambda: write(folder))

    @property
    def root(self) -> Store:
        """Where workers write files: the search's folder, or a place of its own under ``--checkpoints``."""
        if self.spec.checkpoints is None:
            return Store(self.folder)
        return Store(f"{self.spec.checkpoints.rstrip('/')}/{self.spec.name}-{self.search_id[:8]}")

    def store(self, record: TrialRecord) -> Store:
        """The checkpoints and final weights of a training."""
        return self.root / record.folder_name

    @property
    def baseline(self) -> str:
        """The variant that all others are compared with."""
        return self.spec.baseline_among([variant.name for variant in self.variants])

    def pilots(self) -> list[TrialRecord]:
        """The trainings that set the targets."""
        return [record for record in list(self.records.values()) if record.phase == "pilot"]

    def timings(self) -> list[TrialRecord]:
        """The short trainings that measure seconds per gradient evaluation."""
        return [record for record in list(self.records.values()) if record.phase == "timing"]

    def trainings(self) -> list[TrialRecord]:
        """All trainings of the search's own length: all but the timings."""
        return [record for record in list(self.records.values()) if record.phase != "timing"]

    def trials_of(self, variant: str) -> list[TrialRecord]:
        """A variant's trials, in the order in which they were created."""
        return [r for r in list(self.records.values()) if r.variant == variant and r.is_trial]

    def candidates(self, variant: str) -> list[Candidate]:
        """The settings of a variant that finished a training, each with its repeats; the best first."""
        return candidates(self.spec, self.known_trials(variant))

    def known_trials(self, variant: str) -> list[TrialRecord]:
        """A variant's trials, of the race only those whose times are known, whatever ended first.

        These are the best of each round.  How long the others were watched depends on the number of workers and on
        kills, and what is chosen should not.  Of a variant without a known time, all observed trials of the race count.
        """
        trials = self.trials_of(variant)
        raced = [r for r in trials if r.phase == "race" and r.observed]
        return [r for r in trials if r.phase != "race"] + ([r for r in raced if self.is_best(r)] or raced)

    def is_best(self, record: TrialRecord) -> bool:
        """Whether a training of the race is its variant's best in a counted round."""
        slot = self.race.best_slot(record.variant, record.place["round"]) if "round" in record.place else None
        return slot is not None and bool(slot == record.place["slot"])

    def race_values(self, variant: str) -> dict[int, float]:
        """Number of a trial of the race -> what a model learns of it: its time, or the worst known one of the variant.

        The second is for trials whose time is not known.  Empty if none is.
        """
        raced = [r for r in self.trials_of(variant) if r.phase == "race" and r.observed]
        targets = self.spec.training.targets
        times = {
            r.number: race_time(self.spec.objective, r.status, r.history, targets)
            for r in self.known_trials(variant)
            if r.phase == "race"
        }
        known = {number: time for number, time in times.items() if math.isfinite(time)}
        counted = [r.number for r in raced if r.place.get("round", math.inf) < len(self.race.rounds)]
        worst = max(known.values(), default=math.inf)
        return {number: known.get(number, worst) for number in counted} if known else {}

    def best(self, variant: str) -> TrialRecord | None:
        """The trial whose settings are chosen for a variant; None if none finished."""
        chosen = best_candidate(self.candidates(variant))
        return chosen.trial if chosen else None

    @property
    def refined(self) -> list[str]:
        """The variants that are refined and confirmed: those that are left in the race and the baseline, or all.

        Those whose trainings all failed in a round are not among them.
        """
        names = [variant.name for variant in self.variants if variant.name not in self.race.failed]
        if self.spec.confirm == "all" or not self.spec.num_rounds:
            return names
        return [name for name in names if name == self.baseline or name in self.race.left]

    def default_optimizer(self, variant: str) -> OptimizerSpec:
        """The optimizer at a variant's default point."""
        chosen = next(known for known in self.variants if known.name == variant)
        return with_settings(OptimizerSpec(), chosen.default_settings())

    def wanted(self, variant: str, point: Point) -> list[TrialSpec]:
        """The trainings that confirm a variant's point, one per fresh seed; for ``best`` none if no trial finished.

        Training k has the same seed in all variants and points, so that initial weights and batches are equal.
        """
        if point == "default":
            optimizer = self.default_optimizer(variant)
        else:
            best = self.best(variant)
            if best is None:
                return []
            optimizer = best.spec.optimizer
        return [self.spec.confirm_spec(optimizer, k) for k in range(self.spec.num_seeds(point))]

    def confirmed(self, variant: str, point: Point = "best") -> dict[int, TrialRecord]:
        """A point's confirmed runs that exist, by the index of their seed, from 0.

        Runs of settings that were the best only while there were fewer trials are left out.
        """
        made = {r.spec: r for r in list(self.records.values()) if r.variant == variant and r.phase == "confirm"}
        wanted = enumerate(self.wanted(variant, point))
        return {k: made[spec] for k, spec in wanted if spec in made}

    def points_of(self, record: TrialRecord) -> list[Point]:
        """The points that a confirmed run confirms: one, both if they are equal, none if neither any more."""
        return [point for point in POINTS if record.spec in self.wanted(record.variant, point)]

    def trials(self) -> pd.DataFrame:
        """One row per trial or confirmed run: name, phase, status, settings by dotted name, final metrics."""
        import pandas as pd

        return pd.DataFrame([self._row(record) for record in self.records.values()])

    def _row(self, record: TrialRecord) -> dict[str, Any]:
        row: dict[str, Any] = {
            "name": record.name,
            "variant": record.variant,
            "phase": record.phase,
            "confirms": " ".join(self.points_of(record)) if record.phase == "confirm" else None,
            **{name: record.place.get(name) for name in ("round", "slot", "repeats")},
            "status": record.status,
            "seed": record.spec.seed,
            "gradient_evaluations": record.gradient_evaluations,
            "seconds": record.history[-1].seconds if record.history else 0.0,
        }
        settings: dict[str, Setting] = flatten(record.spec.optimizer)  # type: ignore[assignment]
        variant = next(known for known in self.variants if known.name == record.variant)
        row |= variant.point(settings)
        row |= speed_metrics(record.history, self.spec.training.targets) if record.history else {}
        return row | ({"test/accuracy": record.test.accuracy, "test/loss": record.test.loss} if record.test else {})

    def rounds(self) -> pd.DataFrame:
        """One row per counted round and variant: its least time, inf for a miss, and to where the round was watched.

        Times are in the unit of ``--cost``.
        """
        import pandas as pd

        return pd.DataFrame(
            [
                {"round": one.number, "variant": name, "time": time, "end": one.end}
                for one in self.race.rounds
                for name, time in one.results.items()
            ],
            columns=["round", "variant", "time", "end"],
        )

    def evidence(self) -> pd.DataFrame:
        """One row per ordered pair of variants: rounds won and lost, evidence, and that at which one is out."""
        import pandas as pd

        race = self.race
        return pd.DataFrame(
            [
                {
                    "variant": i,
                    "against": j,
                    "won": won,
                    "lost": race.wins[j, i],
                    "evidence": race.evidence(i, j),
                    "threshold": race.pair_threshold(i, j),
                    "out": j in race.out,
                }
                for (i, j), won in race.wins.items()
            ]
        )

    def curves(self) -> pd.DataFrame:
        """One row per epoch of each trial and confirmed run, with the metrics under their MLflow names."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"name": r.name, "variant": r.variant, "phase": r.phase, "epoch": m.epoch, **epoch_metrics(m)}
                for r in self.records.values()
                for m in r.history
            ]
        )


def load_search(name: str, *, output: str = "runs", storage: str | None = None) -> Search:
    """Reads a search, running or ended, from its folder ``<output>/<name>``, and changes nothing.

    ``storage`` is the URL of its studies; it is needed if it contains a password, which the folder does not keep.
    Raises :class:`InvalidInput` if there is no such search or its files cannot be read.
    """
    spec, search_id = search_folder.load(output, name, asked="search")
    spec = replace(spec, storage=storage or spec.storage)
    folder = Path(output).absolute() / name
    variants = search_folder.variants_of(folder) or resolve_variants(spec.variants, spec.space)
    opened = existing_storage(spec.storage or f"sqlite:///{folder / 'optuna.db'}")
    made = {} if opened is None else {s.study_name: s for s in opened.get_all_studies()}
    # The folder may have been renamed since.
    names = {variant.name: study_name(spec.name or name, variant.name) for variant in variants}
    studies = {
        variant: optuna.load_study(study_name=full, storage=opened)
        for variant, full in names.items()
        if opened is not None and full in made
    }
    processes, splits = search_folder.processes_of(folder), search_folder.splits_of(folder)
    joined = {name: int(study.user_attrs.get(JOINED, 0)) for name, study in studies.items()}
    score, seconds = search_folder.score_of(folder), search_folder.seconds_of(folder)
    search = Search(
        spec, search_id, variants, folder, studies, processes, splits, score, joined=joined, seconds=seconds
    )
    for variant in variants:
        if variant.name in studies:
            for trial in studies[variant.name].get_trials(deepcopy=False):
                record = _trial(search, variant, trial)
                search.records[record.name] = record
    for phase in trial_folder.OUTSIDE_STUDIES:
        search.records |= read_runs(search, phase)
    for record in search.records.values():
        search.count(record)
    return search


def _trial(search: Search, variant: Variant, trial: FrozenTrial) -> TrialRecord:
    optimizer = with_settings(OptimizerSpec(), {**variant.fixed, **trial.params})
    name = trial_name(variant.name, trial.number)
    history = trial_folder.read_epochs(search.folder / trial_folder.folder_name(name))
    status = trial.user_attrs.get("status", "failed") if trial.state.is_finished() else ""
    place = place_of(trial)
    return TrialRecord(
        name,
        variant.name,
        trial.number,
        search.spec.trial_spec(optimizer, seed_number(place, search.spec.round_size)),
        phase_of(place),
        status or ("running" if history else "pending"),
        history,
        place,
    )


def read_runs(search: Search, phase: trial_folder.RunPhase) -> dict[str, TrialRecord]:
    """The trainings of a phase outside the studies that a search's folder holds, by name, in order."""
    records, variants = [], [variant.name for variant in search.variants]
    for path in search.folder.glob(f"*.{phase}-*"):  # a variant's name has no dot
        spec = trial_folder.read_spec(path)
        variant, _, number = path.name.rpartition(f".{phase}-")
        if spec is None or variant not in variants or not number.isdecimal():  # a copy that somebody made
            continue
        history = trial_folder.read_epochs(path)
        status = "running" if history else "pending"
        if (path / trial_folder.FAILURE).exists():
            status = "failed"
        elif is_finished(spec, history):
            status = "diverged" if history[-1].diverged else "finished"
        test = trial_folder.read_test(path)
        name = trial_folder.run_name(variant, phase, int(number))
        records.append(TrialRecord(name, variant, int(number), spec, phase, status, history, test=test))
    return {record.name: record for record in sorted(records, key=lambda record: (record.variant, record.number))}
