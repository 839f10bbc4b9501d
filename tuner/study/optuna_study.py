"""One Optuna study per variant: draws settings, receives results, and is the authority on which trials exist.

The study of variant ``sgdm`` in search ``first`` is named ``first/sgdm``.  Trial ``n`` is named ``sgdm-0n``.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from search_spaces import Variant
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics
from tuner.core.retry import retry
from tuner.core.search_spec import Objective, SearchSpec
from tuner.core.serialization import Setting, with_settings
from tuner.core.trial_spec import OptimizerSpec
from tuner.study.objectives import OBJECTIVES, evaluate
from tuner.study.optuna_storage import close_storage, existing_storage, open_storage
from tuner.study.sampler import Arm, SearchSampler, num_default, num_random

__all__ = [
    "STATUSES",
    "VariantStudy",
    "close_storage",
    "existing_storage",
    "open_storage",
    "open_studies",
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

    def __init__(
        self,
        *,
        storage: BaseStorage,
        search: str,
        variant: Variant,
        objective: Objective,
        targets: Sequence[float],
        num_trials: int,
        seed: int,
    ) -> None:
        self.variant = variant
        self.objective: Objective = objective
        self.targets = tuple(targets)
        self.num_trials = num_trials
        # The name is part of the seed, so that variants with equally many settings draw different points.
        self._sampler = SearchSampler(variant, seed=(seed * 1_000_003 + zlib.crc32(variant.name.encode())) % 2**32)
        self._storage = storage
        name, directions = study_name(search, variant.name), [goal.direction for goal in OBJECTIVES[objective]]
        _retry(
            lambda: optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
        )
        self._study_id = _retry(lambda: storage.get_study_id_from_name(name))
        stored = _retry(lambda: storage.get_all_trials(self._study_id, deepcopy=False))
        self._existing = {trial.number: trial for trial in stored}
        self._ids = {trial.number: trial._trial_id for trial in stored}
        self._copy = InMemoryStorage()
        self.study = optuna.create_study(
            storage=self._copy,
            study_name=name,
            directions=directions,
            sampler=self._sampler,
            pruner=optuna.pruners.NopPruner(),
        )
        self.study.add_trials(stored)
        self._arms: Counter[Arm] = Counter(trial.user_attrs["arm"] for trial in stored if "arm" in trial.user_attrs)

    def existing(self, *, ended: bool) -> list[int]:
        """Numbers of the trials that had ended, or had not, when the study was opened."""
        return [number for number, trial in self._existing.items() if trial.state.is_finished() == ended]

    def existing_status(self, number: int) -> str:
        """How a trial ended that had ended when the study was opened."""
        return str(self._existing[number].user_attrs.get("status", "failed"))

    def ask(self) -> int:
        """Creates a trial, draws its settings and returns its number."""
        arm = self._next_arm()
        index = self._arms[arm]
        self._arms[arm] += 1
        self._sampler.choose(arm, index)
        trial = self.study.ask()
        trial.set_user_attr("arm_index", index)
        trial.set_user_attr("arm", arm)
        if arm == "default":
            trial.set_user_attr("part", list(self.variant.enqueued)[index])
        drawn: dict[str, Setting] = {}
        for name, distribution in self.variant.searched.items():
            if self.variant.active(name, drawn):
                drawn[name] = _suggest(trial, name, distribution)
        self._store(self._trial(trial.number))
        return trial.number

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

    def _next_arm(self) -> Arm:
        if self._arms["random"] < num_random(self.num_trials):
            return "random"
        return "default" if self._arms["default"] < num_default(self.variant, self.num_trials) else "model"

    def tags(self, number: int) -> dict[str, str]:
        """Further tags of a trial: its arm, the name of its point if it was enqueued, and why it failed if it did."""
        attributes = self._trial(number).user_attrs
        return {name: attributes[name] for name in ("arm", "part", "failure") if attributes.get(name)}

    def reported_steps(self, number: int) -> set[int]:
        """Steps of the values that a trial had reported when the study was opened."""
        existing = self._existing.get(number)
        return set(existing.intermediate_values) if existing else set()

    def report(self, number: int, history: Sequence[EpochMetrics]) -> None:
        """Records the running value of a single objective at the history's last epoch."""
        step = history[-1].gradient_evaluations
        if len(OBJECTIVES[self.objective]) == 1 and step not in self.reported_steps(number):
            value = float(evaluate(self.objective, history, self.targets)[0])
            self._write(number, lambda storage, trial: storage.set_trial_intermediate_value(trial, step, value))

    def tell(self, number: int, status: str, history: Sequence[EpochMetrics], failure: str | None = None) -> None:
        """Ends a trial with one of :data:`STATUSES`; a second call changes nothing.

        The value of a stopped trial is the last one that it reported, as in Optuna's samplers.
        """
        trial, state = self._trial(number), STATUSES[status]
        values: list[float] | None = None
        if state == TrialState.COMPLETE:
            values = [float(value) for value in evaluate(self.objective, history, self.targets)]
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


def _retry(attempt: Callable[[], T]) -> T:
    return retry("Optuna's storage", attempt)


def open_studies(
    spec: SearchSpec, variants: Sequence[Variant], storage: BaseStorage, *, search: str
) -> dict[str, VariantStudy]:
    """Variant name -> its study, created if missing.

    Raises :class:`InvalidInput`, before it creates any, if the search's folder has a trial that the storage lacks.
    """
    for variant in variants:
        _refuse_lacking(storage, study_name(search, variant.name), variant.name, Path(spec.output) / search)
    return {
        variant.name: VariantStudy(
            storage=storage,
            search=search,
            variant=variant,
            objective=spec.objective,
            targets=spec.training.targets,
            num_trials=spec.trials,
            seed=spec.seed,
        )
        for variant in variants
    }


def _refuse_lacking(storage: BaseStorage, study: str, variant: str, folder: Path) -> None:
    def stored() -> set[str]:
        with suppress(KeyError):
            trials = storage.get_all_trials(storage.get_study_id_from_name(study), deepcopy=False)
            return {trial_name(variant, trial.number) for trial in trials}
        return set()

    named = re.compile(rf"{re.escape(variant)}-\d\d+")
    begun = {path.name for path in folder.glob("*") if named.fullmatch(path.name)}
    if lacking := begun - _retry(stored):
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
