"""What a search is: one frozen dataclass, the source of the command line and of the Python interface; and its result.

The help of each flag is the docstring under its field.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from search_spaces import expand
from tuner.core.errors import InvalidInput, masked, unknown
from tuner.core.trial_spec import OptimizerSpec, Precision, TrialSpec, WorkloadSpec, default_model

Objective: TypeAlias = Literal["time-to-target", "accuracy", "auc", "pareto"]


FAR_ABOVE_CRITICAL = 3.0
"""Times the predicted critical learning rate from which on it is said that a trial did not diverge, where none is
pruned for that; ours."""

FIRST_FRESH = 500_000
"""Seeds from here on are of no trial: two searches' seeds are 1,000,003 apart."""

CHANGEABLE_ON_RESUME = frozenset(
    {
        "resume",
        "dry_run",
        "list",
        "download",
        "trials",
        "variants",
        "confirm_seeds",
        "baseline",
        "system_metrics",
        "max_concurrent",
        "max_failures",
        "time_budget",
        "address",
        "storage",
        "tracking_uri",
        "checkpoint_seconds",
    }
)
"""Fields that may differ when a search is resumed: they change no number of a trial that was already planned."""


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
    targets: tuple[float, ...] = (0.9, 0.95)
    """Validation accuracies in (0, 1), increasing, whose first crossing is timed."""
    stop_at_target: bool = False
    """End a trial once it reaches the highest target, instead of training to the end of its budget."""
    early_stopping: bool = True
    """Stop the trials that fall behind their own variant's at successive rungs."""
    workload: str = "digits"
    """Data: digits, fashion-mnist, cifar10, cifar100, imagefolder; or diagonal, Gaussian samples for a network of two
    weights a coordinate, whose accuracy is R^2."""
    model: str | None = None
    """Model: resnet8/20/32/56, resnet18/34/50, a torchvision classifier, or package.module:function; of the workload
    diagonal, diagonal or diagonal-squares. Default: resnet8, or diagonal for the workload diagonal."""
    data_dir: str | None = None
    """Folder of the data."""
    download: bool = False
    """Fetch the data set into the data folder if it is missing."""
    skip_corrupt: bool = False
    """Leave out images that cannot be read."""
    stream: Literal["auto", "always", "never"] = "auto"
    """Read images from disk batch by batch; auto does so where they do not fit in memory, decided once a search."""
    epochs: int = 10
    """Largest number of epochs a trial, at least 1."""
    batch_size: int = 64
    """Images, or samples, a gradient evaluation, at least 1."""
    precision: Precision = "auto"
    """auto is bfloat16 autocast on a GPU and float32 elsewhere."""
    compile: bool = False
    """Compile the models with torch.compile."""
    curvature: int = 0
    """Estimate the loss's curvature, and the damping class there, at every so many evaluations, at a cost; 0: never."""
    predict_critical_lr: bool = False
    """Predict, from the curvature at a training's first weights, the lr.peak from which on it diverges, and report how
    true that was; no trial is stopped for it."""
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
        if self.model is None:
            # Here and not where it is used: what is saved, shown and compared is the model that is trained.
            object.__setattr__(self, "model", default_model(self.workload))
        if self.data_dir is not None:
            # Absolute: workers, and whoever resumes the search, may be in other folders.
            object.__setattr__(self, "data_dir", str(Path(self.data_dir).absolute()))
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
        if self.batch_size % self.workers_per_trial:
            raise InvalidInput(
                f"--batch-size {self.batch_size}: must be a multiple of --workers-per-trial {self.workers_per_trial}"
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
            if not self.predict_critical_lr:
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
        return TrialSpec(
            workload=self.workload_spec(),
            optimizer=optimizer,
            epochs=self.epochs,
            targets=self.targets,
            stop_at_target=self.stop_at_target,
            seed=self.seed * 1_000_003 + number,
            precision=self.precision,
            compile=self.compile,
            curvature=self.curvature,
            predict_critical_lr=self.predict_critical_lr,
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
        return WorkloadSpec(
            data=self.workload,
            model=self.model or default_model(self.workload),
            data_dir=self.data_dir,
            batch_size=self.batch_size,
            skip_corrupt=self.skip_corrupt,
            stream=self.stream,
            loader_workers=max(1, int(self.cpus_per_trial)),
        )

    def located(self) -> SearchSpec:
        """The same with SQLite databases, MLflow's default one too, by absolute path, so as to resume anywhere."""
        uris = {"storage": self.storage, "tracking_uri": self.tracking_uri or DEFAULT_TRACKING_URI}
        files = {
            name: f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
            for name, uri in uris.items()
            if uri and uri.startswith("sqlite:///") and uri != "sqlite:///"
        }
        return dataclasses.replace(self, **files)  # type: ignore[arg-type]

    def refuse_changes(self, saved: SearchSpec) -> None:
        """Raises InvalidInput, by name, where resuming ``saved`` as this spec would change results."""
        for item in dataclasses.fields(self):
            old, new = getattr(saved, item.name), getattr(self, item.name)
            if old != new and item.name not in CHANGEABLE_ON_RESUME:
                raise InvalidInput(
                    f"{flag(item.name)} {_shown(new)}: search {saved.name!r} was started with {_shown(old)}, "
                    "and a resumed search keeps it"
                )
        if self.trials < saved.trials:
            raise InvalidInput(f"--trials {self.trials}: a resumed search keeps its {saved.trials} trials or adds some")
        if self.confirm_seeds < saved.confirm_seeds:
            raise InvalidInput(
                f"--confirm-seeds {self.confirm_seeds}: a resumed search keeps its {saved.confirm_seeds} or adds some"
            )
        kept = expand(self.variants)
        if missing := [name for name in expand(saved.variants) if name not in kept]:
            raise InvalidInput(f"--variants: a resumed search keeps all its variants, {', '.join(missing)} too")


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
    name, separator, rest = message.partition(" = ")
    return f"{flag(name)} {rest}" if separator else f"--{message.removeprefix('unknown ')}"


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else masked(str(value))


DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"
