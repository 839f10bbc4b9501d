"""One Optuna study a variant: asks for settings, is told results, and is the truth about which trials exist.

The study of variant ``sgdm`` in search ``first`` is named ``first/sgdm``.  Trial ``n`` is named ``sgdm-0n``.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import Trial, TrialState
from sqlalchemy import event
from sqlalchemy.engine import make_url

from search_spaces import Variant
from tuner.objectives import OBJECTIVES, evaluate
from tuner.plan import Objective, SearchSpec
from tuner.sampling import Arm, ArmSampler, num_default, num_random
from tuner.settings import Setting, with_settings
from tuner.spec import EpochMetrics, OptimizerSpec

optuna.logging.set_verbosity(optuna.logging.WARNING)

STATUSES = {
    "finished": TrialState.COMPLETE,
    "diverged": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}
"""How a trial ended, and the state that Optuna is told."""


def open_storage(url: str) -> RDBStorage:
    """The Optuna storage of a URL.

    SQLite waits for a lock for a minute instead of five seconds, and writes ahead to a log: the settings of a trial are
    a transaction each, and by default each waits for the disk.  A program that is killed loses nothing by it.
    """
    if url.startswith("sqlite"):
        storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})
        event.listen(storage.engine, "connect", _write_ahead)
        storage.engine.dispose()  # connections made before do not know yet
        return storage
    return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})


def close_storage(storage: RDBStorage) -> None:
    """Ends the connections; SQLite then puts what it has written ahead into the one file."""
    storage.remove_session()
    storage.engine.dispose()


def existing_storage(url: str) -> BaseStorage | None:
    """The storage of a URL for reading; None where its SQLite file does not exist, which opening would make."""
    path = make_url(url).database if url.startswith("sqlite") else None
    return None if path and not Path(path).exists() else open_storage(url)


def _write_ahead(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=normal")


def study_name(search: str, variant: str) -> str:
    """Name of a variant's study."""
    return f"{search}/{variant}"


def trial_name(variant: str, number: int) -> str:
    """Name of a trial, in Tune, MLflow and on disk."""
    return f"{variant}-{number:02d}"


class VariantStudy:
    """The trials of one variant."""

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
        # The name keeps the spaces of variants apart that happen to have equally many settings.
        self._sampler = ArmSampler(variant, seed=(seed * 1_000_003 + zlib.crc32(variant.name.encode())) % 2**32)
        self.study = optuna.create_study(
            storage=storage,
            study_name=study_name(search, variant.name),
            directions=[goal.direction for goal in OBJECTIVES[objective]],
            sampler=self._sampler,
            pruner=optuna.pruners.NopPruner(),
            load_if_exists=True,
        )
        self._existing = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        self._trials: dict[int, Trial] = {}
        self._arms: Counter[Arm] = Counter(
            trial.user_attrs["arm"] for trial in self._existing.values() if "arm" in trial.user_attrs
        )

    def existing(self, *, ended: bool) -> list[int]:
        """Numbers of the trials that had ended, or had not, when the study was opened."""
        return [number for number, trial in self._existing.items() if trial.state.is_finished() == ended]

    def existing_status(self, number: int) -> str:
        """How a trial that had ended before the study was opened did so."""
        return str(self._existing[number].user_attrs.get("status", "failed"))

    def ask(self) -> int:
        """Makes a trial and returns its number; :meth:`settings` draws its settings."""
        trial = self.study.ask()
        self._trials[trial.number] = trial
        return trial.number

    def settings(self, number: int) -> OptimizerSpec:
        """The optimizer of a trial.

        What the storage holds of it stands; what is missing, because the program was killed while it asked, is drawn.
        """
        ended = self._existing.get(number)
        if ended is not None and ended.state.is_finished():
            return with_settings(OptimizerSpec(), {**self.variant.fixed, **ended.params})
        trial = self._trial(number)
        attributes = trial.user_attrs
        if "arm" not in attributes:
            arm = self._next_arm()
            attributes = {"arm_index": self._arms[arm], "arm": arm}
            for name, value in attributes.items():
                trial.set_user_attr(name, value)
            self._arms[arm] += 1
        if attributes["arm"] == "default":
            trial.set_user_attr("part", list(self.variant.enqueued)[attributes["arm_index"]])
        self._sampler.choose(attributes["arm"], attributes["arm_index"])
        drawn: dict[str, Setting] = {}
        for name, distribution in self.variant.searched.items():
            if self.variant.active(name, drawn):
                drawn[name] = _suggest(trial, name, distribution)
        return with_settings(OptimizerSpec(), {**self.variant.fixed, **drawn})

    def _next_arm(self) -> Arm:
        if self._arms["random"] < num_random(self.num_trials):
            return "random"
        return "default" if self._arms["default"] < num_default(self.variant, self.num_trials) else "model"

    def tags(self, number: int) -> dict[str, str]:
        """What else is known of a trial: its arm, the name of the enqueued point it is, and why it failed if it did."""
        existing = self._existing.get(number)
        ended_before = existing is not None and existing.state.is_finished()
        attributes = existing.user_attrs if existing and ended_before else self._trial(number).user_attrs
        return {name: attributes[name] for name in ("arm", "part", "failure") if attributes.get(name)}

    def reported_steps(self, number: int) -> set[int]:
        """Steps of the values that a trial had reported when the study was opened."""
        existing = self._existing.get(number)
        return set(existing.intermediate_values) if existing else set()

    def report(self, number: int, history: Sequence[EpochMetrics]) -> None:
        """Records the running value of a single objective at the history's last epoch."""
        step = history[-1].gradient_evaluations
        existing = self._existing.get(number)
        if len(OBJECTIVES[self.objective]) == 1 and not (existing and step in existing.intermediate_values):
            self._trial(number).report(evaluate(self.objective, history, self.targets)[0], step)

    def tell(self, number: int, status: str, history: Sequence[EpochMetrics], failure: str | None = None) -> None:
        """Ends a trial; told again, keeps what was told first."""
        trial = self._trial(number)
        try:
            trial.set_user_attr("status", status)
        except optuna.exceptions.UpdateFinishedTrialError:
            return
        if failure or trial.user_attrs.get("failure"):  # a program killed right here may have left one that is not so
            trial.set_user_attr("failure", failure or "")
        state = STATUSES[status]
        values = evaluate(self.objective, history, self.targets) if state == TrialState.COMPLETE else None
        self.study.tell(number, values, state=state)

    def _trial(self, number: int) -> Trial:
        if number not in self._trials:
            self._trials[number] = Trial(self.study, self._existing[number]._trial_id)
        return self._trials[number]


def open_studies(
    spec: SearchSpec, variants: Sequence[Variant], storage: BaseStorage, *, search: str
) -> dict[str, VariantStudy]:
    """Variant name -> its study, made where there is none."""
    return {
        variant.name: VariantStudy(
            storage=storage,
            search=search,
            variant=variant,
            objective=spec.objective,
            targets=spec.targets,
            num_trials=spec.trials,
            seed=spec.seed,
        )
        for variant in variants
    }


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Setting:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(name, low, high, step=step, log=log)
    raise TypeError(f"{name}: {distribution}")
