"""What a search has come to: its trials and its confirmed runs, as a program holds them or read from disk.

``load_search("name")`` needs neither Ray nor MLflow.  Optuna's studies say which trials there are, and the folders
which confirmed runs; each one's folder holds its epochs.
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

if TYPE_CHECKING:  # slow to import, and of use to notebooks alone
    import pandas as pd

Phase: TypeAlias = Literal["explore", "confirm", "test"]
Point: TypeAlias = Literal["best", "default"]
"""What a confirmed run confirms: the settings of its variant's best trial, or the variant's default point."""
POINTS: tuple[Point, ...] = ("best", "default")


@dataclass(slots=True)
class TrialRecord:
    """What is known of one training: a trial of the exploration, or a confirmed run."""

    name: str
    """``sgdm-03`` of a trial, ``sgdm/confirm-1`` of a confirmed run."""
    variant: str
    number: int
    spec: TrialSpec
    phase: Phase = "explore"
    status: str = "pending"
    """pending, running, or as it ended: finished, stopped, diverged, failed."""
    history: list[EpochMetrics] = field(default_factory=list)
    arm: str | None = None
    """Of a trial: random, default or model (:mod:`tuner.study.sampler`)."""
    test: FinalScore | None = None
    """Of a confirmed run: its final weights on the test split."""
    started_at: float | None = None
    """When a worker of this program took it up, seconds since 1970."""
    ended_at: float | None = None
    num_lost_machines: int = 0
    """Times that a machine was taken away or lost while it trained there, in this program."""
    busy_seconds: float = 0.0
    """Time this program's workers spent inside train()."""

    @property
    def ended(self) -> bool:
        return self.status not in ("pending", "running")

    @property
    def observed(self) -> bool:
        """Whether it ended by itself: a failure says nothing of the settings."""
        return self.ended and self.status != "failed"

    @property
    def folder_name(self) -> str:
        """Name of its folder in the search's."""
        return trial_folder.folder_name(self.name)

    @property
    def gradient_evaluations(self) -> int:
        """What it has spent."""
        return self.history[-1].gradient_evaluations if self.history else 0


@dataclass(slots=True)
class Search:
    """A search, as far as it has come."""

    spec: SearchSpec
    search_id: str
    variants: tuple[Variant, ...]
    folder: Path
    studies: Mapping[str, optuna.Study]
    """Variant name -> its Optuna study."""
    processes: tuple[Process, ...] = ()
    """The processes that have worked on it, in order: when, with which versions, on what."""
    splits: str = ""
    """How the data is split, for the reader."""
    records: dict[str, TrialRecord] = field(default_factory=dict)
    """Trials and confirmed runs by name; read from disk, variant by variant."""
    tests: dict[str, TrialRecord] = field(default_factory=dict)
    """Readings of the test split by this process, by name: they train nothing, so they are no records."""

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
        """Where workers keep what they write: the search's folder, or a place of its own under ``--checkpoints``."""
        if self.spec.checkpoints is None:
            return Store(self.folder)
        return Store(f"{self.spec.checkpoints.rstrip('/')}/{self.spec.name}-{self.search_id[:8]}")

    def store(self, record: TrialRecord) -> Store:
        """The checkpoints and final weights of a training."""
        return self.root / record.folder_name

    @property
    def baseline(self) -> str:
        """The variant that all are compared with."""
        names = [variant.name for variant in self.variants]
        return self.spec.baseline or ("sgdm" if "sgdm" in names else names[0])

    def trials_of(self, variant: str) -> list[TrialRecord]:
        """A variant's trials, as they were made."""
        return [r for r in list(self.records.values()) if r.variant == variant and r.phase == "explore"]

    def best(self, variant: str) -> TrialRecord | None:
        """The finished trial with the best objective, the earliest of equals; None where none finished."""
        # One whose log is gone has finished, but how is not known.
        finished = [record for record in self.trials_of(variant) if record.status == "finished" and record.history]
        return min(finished, key=self._rank, default=None)

    def _rank(self, record: TrialRecord) -> tuple[float, ...]:
        objective = self.spec.objective
        return rank(objective, evaluate(objective, record.history, self.spec.training.targets))

    def wanted(self, variant: str, point: Point) -> list[TrialSpec]:
        """The trainings that confirm a variant's point, one for each fresh seed; none where no trial finished.

        Number k of them has the same seed in all variants and points: equal initial weights and batches.
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
        """A point's confirmed runs by the index of their seed, those that have been made.

        Runs of settings that were the best at a time when fewer trials had been made are not among them.
        """
        made = {r.spec: r for r in list(self.records.values()) if r.variant == variant and r.phase == "confirm"}
        wanted = enumerate(self.wanted(variant, point))
        return {k: made[spec] for k, spec in wanted if spec in made}

    def points_of(self, record: TrialRecord) -> list[Point]:
        """What a confirmed run confirms: one point, both where they are the same, or none any more."""
        return [point for point in POINTS if record.spec in self.wanted(record.variant, point)]

    def trials(self) -> pd.DataFrame:
        """A row a trial or confirmed run: its name, phase and end, its settings by dotted name, its final metrics."""
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
        """A row an epoch of each trial and confirmed run, with the metrics that MLflow has, under their names."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"name": r.name, "variant": r.variant, "phase": r.phase, "epoch": m.epoch, **epoch_metrics(m)}
                for r in self.records.values()
                for m in r.history
            ]
        )


def load_search(name: str, *, output: str = "runs", storage: str | None = None) -> Search:
    """Reads a search from its folder ``<output>/<name>``, running or ended, and changes nothing.

    ``storage`` is the URL of its studies, where that holds a password, which is not kept.
    Raises :class:`InvalidInput` where there is no such search, or a variant of the user's own is there no more.
    """
    spec, search_id = search_folder.load(output, name, asked="search")
    spec = replace(spec, storage=storage or spec.storage)
    folder = Path(output).absolute() / name
    variants = resolve_variants(spec.variants, spec.space)
    opened = existing_storage(spec.storage or f"sqlite:///{folder / 'optuna.db'}")
    made = {} if opened is None else {s.study_name: s for s in opened.get_all_studies()}
    # Its folder may have been given another name since.
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
