"""What a search is: one frozen dataclass, the source of the command line and of the Python interface; and its result.

The help of each flag is the docstring under its field.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from tuner.core.errors import InvalidInput, unknown
from tuner.core.serialization import flatten, from_dict
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec

Objective: TypeAlias = Literal["time-to-target", "accuracy", "auc", "pareto"]


DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"

FAR_ABOVE_CRITICAL = 3.0
"""Times the predicted critical learning rate from which on it is said that a trial did not diverge, where none is
pruned for that; ours."""

FIRST_FRESH = 500_000
"""Seeds from here on are of no trial: two searches' seeds are 1,000,003 apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpec:
    """Which way of running SGD trains this network fastest?"""

    name: str | None = None
    """Name of the search and of its folder: letters, digits, '.', '-', '_'. Default: the workload and the time."""
    variants: tuple[str, ...] = ("sgdm", "adamw", "lpsgdm", "critical")
    """Variants to compare, by names that --list shows: a variant, variant@point, a group (papers, baselines, controls,
    all), or package.module:VARIANT."""
    space: tuple[str, ...] = ()
    """Ranges to change, as [variant:]name=low:high[:log], name=a,b,c or name=value, e.g. lr.peak=1e-4:1e-1:log."""
    trials: int = 8
    """Trials of each variant, at least 1."""
    objective: Objective = "time-to-target"
    """What is optimized: gradient evaluations to the highest target, final accuracy, area under the error curve,
    or (pareto) the first two at once, without early stopping."""
    confirm_seeds: int = 6
    """Fresh seeds with which each variant's best settings are trained again, in full, and then tested; half as many
    for its default point. Fewer than 6 decide nothing where a target was missed; 0 skips both."""
    baseline: str | None = None
    """Variant that the others are compared with. Default: sgdm, or the first where that is not among them."""
    training: TrialSpec = field(default_factory=TrialSpec)
    """What every trial trains, with its epochs and targets; each trial has an optimizer and a seed of its own."""
    early_stopping: bool = True
    """Stop the trials that fall behind their own variant's at successive rungs."""
    prune_above_critical: float | None = None
    """Stop a trial after its first evaluation where its lr.peak is above this many times the predicted critical one."""
    seed: int = 0
    """Seeds the search and, with a trial's number, each trial."""
    cpus_per_trial: float = 1.0
    """CPUs, and threads, of each trial, above 0."""
    gpus_per_trial: float | None = None
    """GPUs of each trial; parts such as 0.25 share one. Default: one where there are any, else none."""
    workers_per_trial: int = 1
    """Processes that train each trial together, at least 1. Each takes an equal part of every batch, and the CPUs and
    GPUs of a trial are those of each process; GPUs must be whole then."""
    max_concurrent: int | None = None
    """Largest number of trials at a time. Default: as many as fit."""
    max_failures: int = 2
    """Times a trial whose process dies is taken up again from its last epoch before it counts as failed."""
    time_budget: str | None = None
    """Stop the search after this long, e.g. 90s, 20m or 2h; it can be resumed."""
    address: str | None = None
    """Address of a Ray cluster (auto: the one on this machine). Default: a Ray of its own on this machine."""
    storage: str | None = None
    """Optuna storage URL. Default: SQLite in the search's folder."""
    tracking_uri: str | None = None
    """MLflow tracking URI. Default: sqlite:///mlflow.db in the working folder."""
    experiment: str = "sgd-tuner"
    """MLflow experiment."""
    system_metrics: bool = False
    """Log this machine's load (processors, memory, GPUs) to MLflow's parent run."""
    checkpoints: str | None = None
    """Folder or URI that all machines of a cluster reach (s3://bucket/folder, gs://..., any that fsspec knows), for
    checkpoints and final weights. Default: the search's folder."""
    checkpoint_seconds: float | None = None
    """Least number of seconds between two checkpoints of a trial; 0: one every epoch. Default: as often as costs at
    most 5% of the time."""
    output: str = "runs"
    """Folder that holds the searches' folders."""
    resume: str | None = None
    """Name of a search to go on with; its other settings are taken from its first start."""
    dry_run: bool = False
    """Print the plan and its cost; start nothing."""
    list: bool = False
    """Print all variants, what they search and their named points; start nothing."""

    def __post_init__(self) -> None:
        default = flatten(TrialSpec())
        for leaf, value in flatten(self.training).items():
            is_flag = leaf.partition(".")[0] != "optimizer" and leaf not in SET_BY_SEARCH
            if not is_flag and value != default[leaf]:
                raise InvalidInput(f"training.{leaf} = {value}: the search sets it; leave it at its default")
        workload = self.training.workload
        if workload.data_dir is not None:
            # Absolute: workers, and whoever resumes the search, may be in other folders.
            workload = dataclasses.replace(workload, data_dir=str(Path(workload.data_dir).absolute()))
            object.__setattr__(self, "training", dataclasses.replace(self.training, workload=workload))
        if self.checkpoints and "://" not in self.checkpoints:
            object.__setattr__(self, "checkpoints", str(Path(self.checkpoints).absolute()))
        if self.objective not in get_args(Objective):
            raise unknown("objective", self.objective, get_args(Objective))
        for name in ("name", "resume"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", value):
                raise InvalidInput(f"--{name} {value!r}: must be a plain folder name of letters, digits, '.', '-', '_'")
        if self.name is not None and self.resume is not None and self.name != self.resume:
            raise InvalidInput(f"--name {self.name} and --resume {self.resume}: give one of them")
        if not self.variants:
            raise InvalidInput("--variants: must name at least one variant")
        if len(set(self.variants)) < len(self.variants):
            raise InvalidInput(f"--variants {' '.join(self.variants)}: names a variant twice")
        if not 1 <= self.trials < FIRST_FRESH:
            raise InvalidInput(f"--trials {self.trials}: must be at least 1 and below {FIRST_FRESH}")
        _at_least("confirm_seeds", self.confirm_seeds, 0)
        _at_least("seed", self.seed, 0)
        _at_least("max_failures", self.max_failures, 0)
        _at_least("max_concurrent", self.max_concurrent, 1)
        _at_least("gpus_per_trial", self.gpus_per_trial, 0)
        if self.gpus_per_trial is not None and self.gpus_per_trial > 1 and self.gpus_per_trial % 1:
            raise InvalidInput(f"--gpus-per-trial {self.gpus_per_trial}: must be a whole number where it is above 1")
        _at_least("workers_per_trial", self.workers_per_trial, 1)
        if workload.batch_size % self.workers_per_trial:
            raise InvalidInput(
                f"--batch-size {workload.batch_size}: must be a multiple of "
                f"--workers-per-trial {self.workers_per_trial}"
            )
        if self.workers_per_trial > 1 and (self.gpus_per_trial or 0) % 1:
            raise InvalidInput(
                f"--gpus-per-trial {self.gpus_per_trial:g}: must be whole with --workers-per-trial "
                f"{self.workers_per_trial}"
            )
        if not 0 < self.cpus_per_trial < math.inf:
            raise InvalidInput(f"--cpus-per-trial {self.cpus_per_trial}: must be above 0")
        if "://" in self.output:
            raise InvalidInput(
                f"--output {self.output}: must be a folder of this machine; what workers keep goes to --checkpoints"
            )
        _at_least("checkpoint_seconds", self.checkpoint_seconds, 0)
        if self.prune_above_critical is not None:
            if not 0 < self.prune_above_critical < math.inf:
                raise InvalidInput(f"--prune-above-critical {self.prune_above_critical}: must be above 0 and finite")
            if not self.training.predict_critical_lr:
                raise InvalidInput(
                    f"--prune-above-critical {self.prune_above_critical:g}: needs --predict-critical-lr, whose "
                    "prediction it is a multiple of"
                )
        if not self.experiment.strip():
            raise InvalidInput("--experiment: must not be empty")
        seconds(self.time_budget)
        try:
            self.trial_spec(OptimizerSpec(), 0)
        except InvalidInput as error:
            raise InvalidInput(_as_flag(str(error))) from None

    def trial_spec(self, optimizer: OptimizerSpec, number: int) -> TrialSpec:
        """The training that trial ``number`` of a variant is.

        Trials of one number share their seed over all variants: equal initial weights and batches.
        """
        return dataclasses.replace(
            self.training, workload=self.workload_spec(), optimizer=optimizer, seed=self.seed * 1_000_003 + number
        )

    def confirm_spec(self, optimizer: OptimizerSpec, k: int) -> TrialSpec:
        """The training that confirms an optimizer with fresh seed ``k``, the same for all: full length, to its end."""
        return dataclasses.replace(self.trial_spec(optimizer, FIRST_FRESH + k), stop_at_target=False)

    def num_seeds(self, point: Literal["best", "default"]) -> int:
        """Fresh seeds of each variant's best settings, and of its default point: the larger half."""
        return self.confirm_seeds if point == "best" else (self.confirm_seeds + 1) // 2

    @property
    def far_above_critical(self) -> float:
        """Times the predicted critical learning rate above which a trial is, or would be, pruned."""
        return self.prune_above_critical or FAR_ABOVE_CRITICAL

    def workload_spec(self) -> WorkloadSpec:
        """What every trial trains."""
        return dataclasses.replace(
            self.training.workload, download=False, loader_workers=max(1, int(self.cpus_per_trial))
        )

    @classmethod
    def from_flags(cls, **values: Any) -> SearchSpec:
        """The spec that flags make, by their names with ``_`` for ``-``: ``from_flags(workload="cifar10", trials=32)``.

        Raises :class:`InvalidInput` for a name that is no flag and for a value that is refused.
        """
        nested: dict[str, Any] = {}
        for name, value in values.items():
            if name not in LEAVES:
                raise unknown("flag", name, LEAVES)
            *path, leaf = LEAVES[name]
            place = nested
            for part in path:
                place = place.setdefault(part, {})
            place[leaf] = value
        try:
            return from_dict(cls, nested)
        except InvalidInput as error:
            raise InvalidInput(_as_flag(str(error))) from None

    def flags(self) -> dict[str, Any]:
        """Flag, with ``_`` for ``-`` -> value; :meth:`from_flags` gives the spec again."""
        return {name: functools.reduce(getattr, path, self) for name, path in LEAVES.items()}

    def located(self) -> SearchSpec:
        """The same with SQLite databases, MLflow's default one too, by absolute path, so as to resume anywhere."""
        uris = {"storage": self.storage, "tracking_uri": self.tracking_uri or DEFAULT_TRACKING_URI}
        files = {
            name: f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
            for name, uri in uris.items()
            if uri and uri.startswith("sqlite:///") and uri != "sqlite:///"
        }
        return dataclasses.replace(self, **files)  # type: ignore[arg-type]


SET_BY_SEARCH = ("seed", "max_loss", "workload.augment", "workload.loader_workers")
"""Leaves of a search's training that are no flags, beside its optimizer."""


def _leaves() -> Iterator[tuple[str, tuple[str, ...]]]:
    for item in dataclasses.fields(SearchSpec):
        if item.name != "training":
            yield item.name, (item.name,)
            continue
        for leaf in flatten(TrialSpec()):
            path = leaf.split(".")
            if path[0] != "optimizer" and leaf not in SET_BY_SEARCH:
                yield "workload" if leaf == "workload.data" else path[-1], ("training", *path)


LEAVES: dict[str, tuple[str, ...]] = dict(_leaves())
"""Flag, with ``_`` for ``-`` -> where its value stands in a :class:`SearchSpec`."""


def flag(name: str) -> str:
    """A field's name as it is typed."""
    return "--" + name.replace("_", "-")


def seconds(duration: str | None) -> float | None:
    """Seconds of a duration such as ``90``, ``90s``, ``20m`` or ``2h``."""
    if duration is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", duration.strip())
    if not match or float(match[1]) == 0:
        raise InvalidInput(f"--time-budget {duration!r}: must be a duration such as 90s, 20m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _at_least(name: str, value: float | None, least: int) -> None:
    if value is not None and not least <= value < math.inf:
        raise InvalidInput(f"{flag(name)} {value}: must be at least {least}")


def _as_flag(message: str) -> str:
    """A message of a spec's own, which begins with a leaf's name or with ``unknown``, in the name of the flag."""
    name, separator, rest = message.partition(" = ")
    whole = {".".join(path): known for known, path in LEAVES.items()}
    last = {path[-1]: known for known, path in LEAVES.items()}
    if message.startswith(("--", "unknown flag")) or (name.startswith("training.") and name not in whole):
        return message
    if not separator:
        return f"--{message.removeprefix('unknown ')}"
    return f"{flag(whole.get(name) or last.get(name, name))} {rest}"
