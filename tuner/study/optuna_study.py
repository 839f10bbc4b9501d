"""One Optuna study per variant: draws settings, receives results, and is the authority on which trials exist.

The study of variant ``sgdm`` in search ``first`` is named ``first/sgdm``.  Trial ``n`` is named ``sgdm-0n``.

The user attributes of a trial say what it is for.  One of the race has ``round`` and ``slot``, from 0.  One of the
refinement has ``index``, its place among the settings that are tried there; or, if it repeats another trial's settings
with a further seed, ``repeats``, that trial's number, and ``repeat``, from 1.  ``point`` names a point that was given.
The user attribute ``joined`` of a study is the first round that the variant takes part in.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from search_spaces import Variant
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics
from tuner.core.retry import retry
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import Setting, with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.core.variants import from_unit
from tuner.study.objectives import OBJECTIVES, evaluate
from tuner.study.optuna_storage import close_storage, existing_storage, open_storage
from tuner.study.refinement import given_points
from tuner.study.rounds import quantile
from tuner.study.sampler import SearchSampler

__all__ = [
    "STATUSES",
    "VariantStudy",
    "close_storage",
    "existing_storage",
    "open_storage",
    "open_studies",
    "place_of",
    "study_name",
    "trial_name",
]

optuna.logging.set_verbosity(optuna.logging.WARNING)

STATUSES = {
    "finished": TrialState.COMPLETE,
    "diverged": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
"""How a trial ended -> its state in Optuna."""

PLACE = ("round", "slot", "index", "point", "repeats", "repeat")
"""User attributes that say what a trial is for."""
JOINED = "joined"
"""User attribute of a study: the first round that its variant takes part in."""

T = TypeVar("T")


def study_name(search: str, variant: str) -> str:
    """Name of a variant's study."""
    return f"{search}/{variant}"


def trial_name(variant: str, number: int) -> str:
    """Name of a trial, in Tune, MLflow and on disk."""
    return f"{variant}-{number:02d}"


class VariantStudy:
    """The trials of one variant.

    Only this process writes to the study, so the sampler and all readers use a copy in memory.  A trial is drawn on the
    copy and then stored in one transaction, and no read waits for a database.  Writing is retried while the storage is
    unreachable, and raises :class:`tuner.core.errors.StorageFailed` if it stays so.  Every write can be repeated.
    """

    def __init__(self, storage: BaseStorage, spec: SearchSpec, variant: Variant, *, search: str) -> None:
        """Opens the study of a variant in the search of this name, or creates it."""
        self.variant = variant
        self.spec = spec
        self.joined = 0
        """The first round that the variant takes part in."""
        # The name is part of the seed, so that variants with equally many settings draw different points.
        seed = (spec.seed * 1_000_003 + zlib.crc32(variant.name.encode())) % 2**32
        self._sampler = SearchSampler(variant, seed, spec.sampler)
        self._learned: list[FrozenTrial] | None = None
        """What the model of the refinement learns from; None for all trials of the study."""
        self._storage = storage
        self._directions = [goal.direction for goal in OBJECTIVES[spec.objective]]
        name = study_name(search, variant.name)
        _retry(
            lambda: optuna.create_study(
                storage=storage, study_name=name, directions=self._directions, load_if_exists=True
            )
        )
        self._study_id = _retry(lambda: storage.get_study_id_from_name(name))
        stored = _retry(lambda: storage.get_all_trials(self._study_id, deepcopy=False))
        self._existing = {trial.number: trial for trial in stored}
        self._ids = {trial.number: trial._trial_id for trial in stored}
        self._copy = InMemoryStorage()
        self.study = optuna.create_study(
            storage=self._copy,
            study_name=name,
            directions=self._directions,
            sampler=self._sampler,
            pruner=optuna.pruners.NopPruner(),
        )
        self.study.add_trials(stored)

    def join(self, first_round: int) -> None:
        """Sets the round from which a new variant takes part; one that has joined before keeps its own."""
        attributes = _retry(lambda: self._storage.get_study_user_attrs(self._study_id))
        if JOINED not in attributes:
            _retry(lambda: self._storage.set_study_user_attr(self._study_id, JOINED, first_round))
            attributes = {JOINED: first_round}
        self.joined = int(attributes[JOINED])

    def existing(self, *, ended: bool) -> list[int]:
        """Numbers of the trials that had ended, or had not, when the study was opened."""
        return [number for number, trial in self._existing.items() if trial.state.is_finished() == ended]

    def existing_status(self, number: int) -> str:
        """How a trial ended that had ended when the study was opened."""
        return str(self._existing[number].user_attrs.get("status", "failed"))

    def ask_race(self, number: int, slot: int) -> int:
        """Creates the trial of a slot of a round and returns its number."""
        place = number * self.spec.round_size + slot
        drawn = {
            name: from_unit(distribution, quantile(name, self.spec.seed, place))
            for name, distribution in self.variant.searched.items()
        }
        return self._ask(drawn, {"round": number, "slot": slot})

    def ask_refine(self, index: int, num: int) -> int:
        """Creates the ``index``-th of ``num`` trials of the refinement, from 0; given points come first.

        A search that is resumed with more trials has more given points; they come before the sampler's next ones.
        """
        tried = {trial.user_attrs.get("point") for trial in self.study.get_trials(deepcopy=False)}
        points = given_points(self.variant, num)
        name = next((name for name in points if name not in tried), None)
        if name is None:
            drawn = None if self._learned is None else self._drawn(self._learned, index)
            return self._ask(drawn, {"index": index}, model=index)
        return self._ask(points[name], {"index": index, "point": name})

    def learn(self, values: Mapping[int, float]) -> None:
        """Makes the model of the refinement learn from these values of the race's trials alone.

        It does not learn from the refinement itself, whose trainings end in one order or another.
        """
        # Of a race the smallest value is the best, whatever the objective.
        sign = 1.0 if self._directions == ["minimize"] else -1.0
        self._learned = [
            optuna.trial.create_trial(
                params=self._trial(number).params, distributions=self._trial(number).distributions, value=sign * value
            )
            for number, value in sorted(values.items())
        ]

    def _drawn(self, learned: Sequence[FrozenTrial], index: int) -> dict[str, Setting]:
        """Settings for the ``index``-th place, from the race and from the settings of the places before it."""
        before = [
            optuna.trial.create_trial(state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions)
            for trial in self.study.get_trials(deepcopy=False)
            if trial.user_attrs.get("index", index) < index
        ]
        # A sampler of its own: the other one remembers which trials of its study it has gone through.
        sampler = SearchSampler(self.variant, self._sampler.seed, self._sampler.kind)
        sampler.model(index, learned)
        study = optuna.create_study(
            storage=InMemoryStorage(),
            directions=self._directions,
            sampler=sampler,
        )
        study.add_trials([*learned, *before])
        return self._suggested(study.ask())

    def ask_repeat(self, number: int, repeat: int) -> int:
        """Creates a trial with the settings of trial ``number`` and a further seed; ``repeat`` counts from 1."""
        return self._ask(self._trial(number).params, {"repeats": number, "repeat": repeat})

    def _ask(self, given: Mapping[str, Any] | None, attributes: Mapping[str, Any], *, model: int = 0) -> int:
        if given is None:
            self._sampler.model(model)
        else:
            self._sampler.give(given)
        trial = self.study.ask()
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        self._suggested(trial)
        self._store(self._trial(trial.number))
        return trial.number

    def _suggested(self, trial: optuna.Trial) -> dict[str, Setting]:
        drawn: dict[str, Setting] = {}
        for name, distribution in self.variant.searched.items():
            if self.variant.active(name, drawn):
                drawn[name] = _suggest(trial, name, distribution)
        return drawn

    def _store(self, trial: FrozenTrial) -> None:
        tried = False

        def attempt() -> int:
            nonlocal tried
            if tried:
                with suppress(KeyError):  # the first attempt stored nothing
                    return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
            tried = True
            return self._storage.create_new_trial(self._study_id, template_trial=trial)

        self._ids[trial.number] = _retry(attempt)

    def settings(self, number: int) -> OptimizerSpec:
        """The optimizer of a trial."""
        return with_settings(OptimizerSpec(), {**self.variant.fixed, **self._trial(number).params})

    def place(self, number: int) -> dict[str, Any]:
        """What a trial is for: its user attributes, without how it ended."""
        return place_of(self._trial(number))

    def tags(self, number: int) -> dict[str, str]:
        """Further tags of a trial: what it is for, and why it failed if it did."""
        failure = self._trial(number).user_attrs.get("failure")
        tags = {name: str(value) for name, value in self.place(number).items()}
        return tags | ({"failure": failure} if failure else {})

    def reported_steps(self, number: int) -> set[int]:
        """Steps of the values that a trial had reported when the study was opened."""
        existing = self._existing.get(number)
        return set(existing.intermediate_values) if existing else set()

    def report(self, number: int, history: Sequence[EpochMetrics]) -> None:
        """Records the running value of a single objective at the history's last epoch."""
        step = history[-1].gradient_evaluations
        if len(OBJECTIVES[self.spec.objective]) == 1 and step not in self.reported_steps(number):
            value = float(evaluate(self.spec.objective, history, self.spec.training.targets)[0])
            self._write(number, lambda storage, trial: storage.set_trial_intermediate_value(trial, step, value))

    def tell(self, number: int, status: str, history: Sequence[EpochMetrics], failure: str | None = None) -> None:
        """Ends a trial with one of :data:`STATUSES`; a second call changes nothing.

        The value of a stopped trial is the last one that it reported, as in Optuna's samplers.
        """
        trial, state = self._trial(number), STATUSES[status]
        values: list[float] | None = None
        if state == TrialState.COMPLETE:
            values = [float(v) for v in evaluate(self.spec.objective, history, self.spec.training.targets)]
        elif state == TrialState.PRUNED and trial.last_step is not None:
            values = [trial.intermediate_values[trial.last_step]]
        attributes = {"status": status}
        if failure or trial.user_attrs.get("failure"):  # a process killed right here may have left a wrong one
            attributes["failure"] = failure or ""

        def end(storage: BaseStorage, trial_id: int) -> None:
            with suppress(optuna.exceptions.UpdateFinishedTrialError):
                for name, value in attributes.items():
                    storage.set_trial_user_attr(trial_id, name, value)
                storage.set_trial_state_values(trial_id, state, values)

        self._write(number, end)

    def _write(self, number: int, write: Callable[[BaseStorage, int], None]) -> None:
        write(self._copy, self._trial(number)._trial_id)
        _retry(lambda: write(self._storage, self._ids[number]))

    def _trial(self, number: int) -> FrozenTrial:
        # A study's own method would copy all trials to return one.
        return self._copy.get_trial(self._copy.get_trial_id_from_study_id_trial_number(self.study._study_id, number))


def place_of(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial is for: its user attributes, without how it ended."""
    return {name: trial.user_attrs[name] for name in PLACE if name in trial.user_attrs}


def _retry(attempt: Callable[[], T]) -> T:
    return retry("Optuna's storage", attempt)


def open_studies(
    spec: SearchSpec, variants: Sequence[Variant], storage: BaseStorage, *, search: str
) -> dict[str, VariantStudy]:
    """Variant name -> its study, created if missing.

    A new variant takes part from the first round of which no trial exists.
    Raises :class:`InvalidInput`, before it creates any, if the search's folder has a trial that the storage lacks, and
    if no round is left for a new variant.
    """
    stored = {variant.name: _stored(storage, study_name(search, variant.name)) for variant in variants}
    first = max((t.user_attrs.get("round", -1) + 1 for trials in stored.values() for t in trials or ()), default=0)
    for variant in variants:
        trials = stored[variant.name]
        _refuse_lacking(trials or (), study_name(search, variant.name), variant.name, Path(spec.output) / search)
        if trials is None and first and first >= spec.num_rounds:
            raise InvalidInput(
                f"--variants {variant.name}: {first} rounds have begun without it, and --trials {spec.trials} allows "
                f"no more; give at least --trials {(first + 1) * spec.round_size}"
            )
    studies = {variant.name: VariantStudy(storage, spec, variant, search=search) for variant in variants}
    for study in studies.values():
        study.join(first)
    return studies


def _stored(storage: BaseStorage, study: str) -> list[FrozenTrial] | None:
    """The trials of a study; None if there is no such study."""

    def read() -> list[FrozenTrial] | None:
        with suppress(KeyError):
            return storage.get_all_trials(storage.get_study_id_from_name(study), deepcopy=False)
        return None

    return _retry(read)


def _refuse_lacking(trials: Sequence[FrozenTrial], study: str, variant: str, folder: Path) -> None:
    named = re.compile(rf"{re.escape(variant)}-\d\d+")
    begun = {path.name for path in folder.glob("*") if named.fullmatch(path.name)}
    if lacking := begun - {trial_name(variant, trial.number) for trial in trials}:
        raise InvalidInput(
            f"--storage: study {study!r} lacks trial {min(lacking)}, which {folder} has: copy the search's studies "
            "there first, as docs/databases.md shows"
        )


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Setting:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(name, low, high, step=step, log=log)
    raise TypeError(f"{name}: {distribution}")
