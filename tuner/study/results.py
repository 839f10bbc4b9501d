"""A search's trials and confirmed runs, as a running process holds them or as read from disk.

``load_search("name")`` needs neither Ray nor MLflow.  Optuna's studies hold which trials exist, and the search's folder
holds which confirmed runs exist.  The folder of each training holds its epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import optuna
from optuna.trial import FrozenTrial

from search_spaces import Variant
from tuner.core.metrics import EpochMetrics, FinalScore, epoch_metrics, is_finished, speed_metrics
from tuner.core.retry import retry
from tuner.core.search_spec import SearchSpec
from tuner.core.serialization import Setting, flatten, with_settings
from tuner.core.store import Store
from tuner.core.trial_spec import OptimizerSpec, TrialSpec
from tuner.core.variants import resolve_variants
from tuner.study import search_folder, trial_folder
from tuner.study.objectives import evaluate, rank
from tuner.study.optuna_study import existing_storage, study_name, trial_name
from tuner.study.search_folder import Process

if TYPE_CHECKING:  # slow to import, and used only in notebooks
    import pandas as pd

Phase: TypeAlias = Literal["explore", "confirm", "test"]
Point: TypeAlias = Literal["best", "default"]
"""What a confirmed run confirms: the settings of its variant's best trial, or the variant's default point."""
POINTS: tuple[Point, ...] = ("best", "default")


@dataclass(slots=True)
class TrialRecord:
    """What is known of one training: a trial of the exploration, or a confirmed run."""

    name: str
    """Name: ``sgdm-03`` for a trial, ``sgdm/confirm-1`` for a confirmed run."""
    variant: str
    number: int
    """Number among its variant's trials, from 0, or among its confirmed runs, from 1."""
    spec: TrialSpec
    phase: Phase = "explore"
    status: str = "pending"
    """``pending`` or ``running``; after its end ``finished``, ``stopped``, ``diverged`` or ``failed``."""
    history: list[EpochMetrics] = field(default_factory=list)
    arm: str | None = None
    """Arm of a trial: random, default or model (:mod:`tuner.study.sampler`); None for a confirmed run."""
    test: FinalScore | None = None
    """Score of a confirmed run's final weights on the test split; None until it has been read."""
    started_at: float | None = None
    """When a worker of this process started it, in seconds since 1970; None if none did."""
    ended_at: float | None = None
    """When it ended in this process, in seconds since 1970; None if it did not."""
    num_lost_machines: int = 0
    """How often, in this process, the machine that trained it was lost or taken away."""
    busy_seconds: float = 0.0
    """Seconds that workers of this process spent inside train()."""

    @property
    def ended(self) -> bool:
        return self.status not in ("pending", "running")

    @property
    def observed(self) -> bool:
        """Whether it ended by itself; a failure tells nothing about the settings."""
        return self.ended and self.status != "failed"

    @property
    def folder_name(self) -> str:
        """Name of its folder within the search's folder."""
        return trial_folder.folder_name(self.name)

    @property
    def gradient_evaluations(self) -> int:
        """Gradient evaluations that it has spent so far."""
        return self.history[-1].gradient_evaluations if self.history else 0


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
    records: dict[str, TrialRecord] = field(default_factory=dict)
    """Trials and confirmed runs by name; sorted by variant if they were read from disk."""
    tests: dict[str, TrialRecord] = field(default_factory=dict)
    """Readings of the test split by this process, by name; not among the records, because they train nothing."""

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
        names = [variant.name for variant in self.variants]
        return self.spec.baseline or ("sgdm" if "sgdm" in names else names[0])

    def trials_of(self, variant: str) -> list[TrialRecord]:
        """A variant's trials, in the order in which they were created."""
        return [r for r in list(self.records.values()) if r.variant == variant and r.phase == "explore"]

    def best(self, variant: str) -> TrialRecord | None:
        """The finished trial with the best objective, the earliest among equals; None if none finished."""
        # A finished trial whose log is missing has no known objective.
        finished = [record for record in self.trials_of(variant) if record.status == "finished" and record.history]
        return min(finished, key=self._rank, default=None)

    def _rank(self, record: TrialRecord) -> tuple[float, ...]:
        objective = self.spec.objective
        return rank(objective, evaluate(objective, record.history, self.spec.training.targets))

    def wanted(self, variant: str, point: Point) -> list[TrialSpec]:
        """The trainings that confirm a variant's point, one per fresh seed; for ``best`` none if no trial finished.

        Training k has the same seed in all variants and points, so that initial weights and batches are equal.
        """
        if point == "default":
            chosen = next(known for known in self.variants if known.name == variant)
            optimizer = with_settings(OptimizerSpec(), chosen.default_settings())
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
            "arm": record.arm,
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
    Raises :class:`InvalidInput` if there is no such search, or if a user's own variant can no longer be imported.
    """
    spec, search_id = search_folder.load(output, name, asked="search")
    spec = replace(spec, storage=storage or spec.storage)
    folder = Path(output).absolute() / name
    variants = resolve_variants(spec.variants, spec.space)
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
    search = Search(spec, search_id, variants, folder, studies, processes, splits)
    for variant in variants:
        if variant.name in studies:
            for trial in studies[variant.name].get_trials(deepcopy=False):
                record = _trial(search, variant, trial)
                search.records[record.name] = record
    search.records |= read_confirmed(search)
    return search


def _trial(search: Search, variant: Variant, trial: FrozenTrial) -> TrialRecord:
    optimizer = with_settings(OptimizerSpec(), {**variant.fixed, **trial.params})
    name = trial_name(variant.name, trial.number)
    history = trial_folder.read_epochs(search.folder / trial_folder.folder_name(name))
    status = trial.user_attrs.get("status", "failed") if trial.state.is_finished() else ""
    return TrialRecord(
        name,
        variant.name,
        trial.number,
        search.spec.trial_spec(optimizer, trial.number),
        status=status or ("running" if history else "pending"),
        history=history,
        arm=trial.user_attrs.get("arm"),
    )


def read_confirmed(search: Search) -> dict[str, TrialRecord]:
    """The confirmed runs that a search's folder holds, by name, in the order of their numbers."""
    records, variants = [], [variant.name for variant in search.variants]
    for path in search.folder.glob(trial_folder.CONFIRMED):
        spec = trial_folder.read_spec(path)
        variant, _, number = path.name.rpartition(".confirm-")
        if spec is None or variant not in variants or not number.isdecimal():  # a copy that somebody made
            continue
        history = trial_folder.read_epochs(path)
        status = "running" if history else "pending"
        if (path / trial_folder.FAILURE).exists():
            status = "failed"
        elif is_finished(spec, history):
            status = "diverged" if history[-1].diverged else "finished"
        test = trial_folder.read_test(path)
        name = trial_folder.confirmed_name(variant, int(number))
        records.append(TrialRecord(name, variant, int(number), spec, "confirm", status, history, test=test))
    return {record.name: record for record in sorted(records, key=lambda record: (record.variant, record.number))}
