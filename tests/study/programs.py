"""Programs that work on one search and may be killed at any moment; its storage and its folder outlive them.

Scheduler, recorder, studies and files are those of a search.  Trainings are formulas, and MLflow is told nothing.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, InMemoryStorage, RDBStorage

from benchmarks.simulated_search import STEPS_PER_EPOCH, Truth, curve
from search_spaces import Variant
from tuner.core.metrics import FinalScore, is_finished
from tuner.core.search_spec import NUM_REPEATS, SearchSpec
from tuner.study import search_folder
from tuner.study.optuna_study import VariantStudy, open_studies
from tuner.study.recorder import Recorder
from tuner.study.refinement import finalists
from tuner.study.results import MOST_ATTEMPTS, Search
from tuner.study.rounds import Round
from tuner.study.scheduler import TrialScheduler
from tuner.study.trial_record import POINTS, TrialRecord
from tuner.tracking.tracker import Tracker

TRUTHS = {
    "fast": Truth(speed=1.0, noise=0.3, own=1, stream=0),
    "near": Truth(speed=0.75, noise=0.3, own=1, stream=1),
    "slow": Truth(speed=0.5, noise=0.3, own=1, stream=2),
}
"""What the variants of these names are like, beside each other."""
SMALL: dict[str, Any] = {
    "seed": 4, "trials": 32, "round_size": 2, "alpha": 0.2, "refine_trials": 3, "confirm_seeds": 2,
    "epochs": 8, "targets": (0.5, 0.8),
}  # fmt: skip


def variant(name: str, **changes: Any) -> Variant:
    """A variant of two settings, of which only the learning rate matters."""
    values: dict[str, Any] = {
        "idea": "two settings",
        "source": "ours",
        "fixed": {"rule": "sgd"},
        "searched": {"lr.peak": FloatDistribution(1e-2, 1.0, log=True), "momentum.value": FloatDistribution(0, 0.9)},
        "default": {"lr.peak": 0.02, "momentum.value": 0.5},
    }
    return Variant(name=name, **{**values, **changes})


Fails = Callable[[Search, TrialRecord], bool]


def never(search: Search, record: TrialRecord) -> bool:
    return False


@dataclass
class Kept:
    """What is kept of a search between its programs."""

    folder: Path
    truths: Mapping[str, Truth] = field(default_factory=lambda: TRUTHS)
    storage: BaseStorage = field(default_factory=InMemoryStorage)
    fails: Fails = never
    """Whether a training's worker dies after its first epoch."""

    def open(self, variants: Sequence[Variant | str] = ("fast", "slow"), **changes: Any) -> Program:
        """What a program does at its start: a new search, or this one resumed."""
        chosen = tuple(variant(one) if isinstance(one, str) else one for one in variants)
        names = tuple(one.name for one in chosen)
        spec = SearchSpec.from_flags(name="s", output=str(self.folder), variants=names, **{**SMALL, **changes})
        folder = self.folder / "s"
        folder.mkdir(exist_ok=True)
        if (folder / search_folder.SPEC_FILE).exists():
            measured = search_folder.load(str(self.folder), "s")[0].training.targets
            spec = spec.with_targets(measured) if spec.targets == "auto" else spec
        studies = open_studies(spec, chosen, self.storage, search="s")
        search_folder.save(folder, spec, "id", {})
        joined = {name: study.joined for name, study in studies.items()}
        search = Search(
            spec,
            "id",
            chosen,
            folder,
            {n: s.study for n, s in studies.items()},
            joined=joined,
            seconds=search_folder.seconds_of(folder),
            steps_per_epoch=STEPS_PER_EPOCH,
        )
        return Program(self, search, studies)


class Silent:
    """A tracker that tells nobody."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **named: None


class Program:
    """A program that works on a search."""

    def __init__(self, kept: Kept, search: Search, studies: Mapping[str, VariantStudy]) -> None:
        self.kept = kept
        self.search = search
        self.scheduler = TrialScheduler(search, studies)
        self.recorder = Recorder(self.scheduler, cast(Tracker, Silent()), cast(RDBStorage, kept.storage))
        self.given: list[str] = []
        """Names of the trainings that were given to workers, in order."""
        self._live: list[Iterator[None]] = []
        self._generator = random.Random(0)

    def run(self, num_workers: int = 1, *, steps: int | None = None, seed: int | None = None) -> bool:
        """Whether it comes to its end in so many more steps, each of a random worker."""
        live = self._live
        if seed is not None:
            self._generator.seed(seed)
        for step in itertools.count():
            if step == steps:
                return False
            while len(live) < num_workers and (record := self.scheduler.next_trial()) is not None:
                if not record.ended:
                    self.given.append(record.name)
                    live.append(self._train(record))
            if not live:
                self.recorder._pruning.shutdown()
                assert self.scheduler.all_planned, "nothing is trained, and nothing is planned"
                return True
            training = self._generator.choice(live)
            if next(training, "ended") == "ended":
                live.remove(training)
        raise AssertionError

    def _train(self, record: TrialRecord) -> Iterator[None]:
        recorder, scheduler = self.recorder, self.scheduler
        recorder.start(record.name)
        yield
        if record.phase == "test":
            recorder.record_test(record.name, FinalScore(0.5, 0.9, "data"), 0.1)
            yield
            recorder.end(record.name)
            return
        told = []
        for metrics in curve(record.spec, self.kept.truths[record.variant]):
            told.append(metrics)
            done = is_finished(record.spec, told)
            goes_on = done or scheduler.should_continue(record.name, metrics)
            yield
            recorder.record(record.name, metrics, 0.1)
            yield
            if self.kept.fails(self.search, record):
                recorder.end(record.name, failure="its worker died")
                return
            if done or not goes_on:
                break
        recorder.end(record.name)


Outcome = tuple[list[Round], dict[tuple[str, str], int], dict[str, int], set[str]]


def outcome(search: Search) -> Outcome:
    """What a race has come to, whoever trained what and when."""
    race = search.race
    return race.rounds, race.wins, race.out, race.failed


def check_whole(program: Program) -> None:
    """All that was planned has ended, and nothing was lost or made twice."""
    search, race = program.search, program.search.race
    assert race.is_over and all(record.ended for record in search.records.values())
    for name in [one.name for one in search.variants]:
        trials = search.trials_of(name)
        assert sorted(record.number for record in trials) == list(range(len(trials)))
        places = [tuple(sorted(record.place.items())) for record in trials if record.status != "failed"]
        assert len(set(places)) == len(places), "two trainings of one place"
        raced = [record for record in trials if record.phase == "race"]
        attempts = Counter((record.place["round"], record.place["slot"]) for record in raced)
        failed = Counter((r.place["round"], r.place["slot"]) for r in raced if r.status == "failed")
        assert all(attempts[place] <= min(failed[place] + 1, MOST_ATTEMPTS) for place in attempts)
        for one in race.rounds:
            if name in one.results:
                assert all((one.number, slot) in attempts for slot in range(race.size)), "a slot is missing"
        if name not in search.refined:
            continue
        num_settings = program.scheduler.num_settings
        tried = [record.place["index"] for record in trials if "index" in record.place]
        assert sorted(tried) == list(range(num_settings))
        if num_settings:
            made = {(record.repeats, record.place["repeat"]) for record in trials if record.repeats is not None}
            numbers = [candidate.trial.number for candidate in finalists(search.candidates(name))]
            assert made >= set(itertools.product(numbers, range(1, NUM_REPEATS + 1)))
        for point in POINTS:
            assert len(search.confirmed(name, point)) == len(search.wanted(name, point)) >= search.spec.num_seeds(point)
    runs = [record for record in search.records.values() if record.phase == "confirm"]
    assert len({(record.variant, record.spec) for record in runs}) == len(runs)
    assert all((record.test is not None) == (record.status == "finished") for record in runs)
    assert sorted(path.name for path in search.folder.glob("*/")) == sorted(
        record.folder_name for record in search.records.values()
    )


def of_phase(search: Search, phase: str, name: str | None = None) -> list[TrialRecord]:
    """The trainings of a phase, of one variant or of all."""
    return [r for r in search.records.values() if r.phase == phase and name in (None, r.variant)]
