"""What a search is: :class:`SearchSpec`, from which the command line and the Python interface are made.

The help of each flag is the docstring under its field.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from search_spaces import expand
from tuner.core.errors import InvalidInput, unknown
from tuner.core.optimizer_spec import RecipeSpec
from tuner.core.serialization import flatten, from_dict
from tuner.core.trial_spec import USUAL_TARGETS, OptimizerSpec, TrialSpec, WorkloadSpec

Objective: TypeAlias = Literal["time-to-target", "accuracy", "auc", "pareto"]
Cost: TypeAlias = Literal["gradient-evaluations", "seconds"]
SamplerName: TypeAlias = Literal["tpe", "gp", "random", "cmaes"]


RECIPE = tuple(flatten(RecipeSpec()))
"""Fields of :class:`RecipeSpec` that have a flag."""

DEFAULT_TRACKING_URI = "sqlite:///mlflow.db"

FAR_ABOVE_CRITICAL = 3.0
"""Multiple of the predicted critical learning rate above which a trial that did not diverge is reported, in a search
that prunes none for it (ours)."""

FIRST_REFINE, FIRST_REPEAT, FIRST_FRESH, FIRST_PILOT, FIRST_TIMING = 400_000, 490_000, 500_000, 900_000, 950_000
"""Numbers of the first seed of the refinement, its repeats, the confirmed runs, the trainings that set targets, and
the timings.

The slots of the race have smaller numbers.  The seeds of two searches are 1,000,003 apart.
"""
NUM_FINALISTS, NUM_REPEATS = 2, 4
"""How many of a variant's settings are trained again before one is chosen, and with how many further seeds each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSpec:
    """Which way of running SGD trains this network fastest?"""

    name: str | None = None
    """Name of the search and of its folder: letters, digits, '.', '-', '_'. Default: the workload and the time."""
    variants: tuple[str, ...] = ("sgdm", "adamw", "lpsgdm", "critical")
    """Variants to compare: a name that --list shows, variant@point for a named point, a group (papers, baselines,
    controls, modern, all), or package.module:NAME for a variant or an optimizer of your own; name=package.module:NAME
    gives it another name."""
    space: tuple[str, ...] = ()
    """Ranges to change, as [variant:]name=low:high[:log], name=a,b,c or name=value, e.g. lr.peak=1e-4:1e-1:log."""
    trials: int = 64
    """Most trainings that a variant may begin in the race, at least 1. A variant is out as soon as another is shown to
    be faster, and the race ends when one is left. Without a race, the settings that a variant tries."""
    round_size: int = 4
    """Random settings that each variant may try in a round of the race, at least 1 and, in a race, at most --trials.
    The fastest of them counts."""
    alpha: float = 0.05
    """Largest probability, in [0, 1), that a fastest variant is ever out of the race, however long it lasts. 0 puts
    none out, so that all have equal budgets."""
    refine_trials: int = 8
    """Settings that are tried for each variant after the race, the default point first, at least 0."""
    sampler: SamplerName = "tpe"
    """How these settings are drawn, by Optuna's samplers, which learn from the race, or without one from all trainings
    before."""
    objective: Objective = "time-to-target"
    """What is optimized: gradient evaluations to the highest target, final accuracy (or other score), area under the
    error curve, or (pareto) the first two at once, without a race."""
    cost: Cost = "gradient-evaluations"
    """What variants are compared by: gradient evaluations, or seconds of training, which are a training's gradient
    evaluations times its variant's seconds for one. These are measured once, before the race, with nothing else of the
    search running. The report shows both."""
    confirm: Literal["left", "all"] = "left"
    """Variants that are refined and confirmed after the race: those that are left and the baseline, or all."""
    confirm_seeds: int = 6
    """Number of fresh seeds with which a variant's chosen settings are trained again, in full, and then tested. The
    default point gets half as many, rounded up. 0 skips both."""
    baseline: str | None = None
    """Variant that the others are compared with. Default: sgdm if it is among the variants, else the first one."""
    training: TrialSpec = field(default_factory=TrialSpec)
    """What every trial trains, with its epochs and targets; each trial has its own optimizer and seed."""
    targets: tuple[float, ...] | Literal["auto"] | None = None
    """Validation accuracies (or other scores) in (0, 1), increasing; the time to each is measured, and the race is to
    the highest. auto takes what the baseline's default point reaches at a third and at four fifths of its budget, by
    the median of three seeds that are trained first. Default: 0.9 0.95 for digits, else auto."""
    label_smoothing: float = 0.0
    """Share of each label, in [0, 1), that is spread over all classes in training, for every variant that does not set
    recipe.label_smoothing itself."""
    clip_norm: float = 0.0
    """Norm to which longer gradients are scaled down, at least 0, for every variant that does not set recipe.clip_norm
    itself. 0 clips none."""
    mixup: float = 0.0
    """Parameter of the beta distribution by which inputs are mixed in training, at least 0, for every variant that does
    not set recipe.mixup itself. 0 mixes none."""
    early_stopping: bool = True
    """End a training before its budget is spent once it has reached the highest target or can no longer be the
    best of its round or variant. No round of the race depends on this."""
    prune_above_critical: float | None = None
    """Stop a trial after its first evaluation if its lr.peak exceeds this multiple, above 0, of the critical one that
    --predict-critical-lr predicts. Default: stop none for that."""
    seed: int = 0
    """Seed of the search, at least 0. The seed of each training follows from it and from what the training is for, the
    same for all variants."""
    cpus_per_trial: float = 1.0
    """CPUs and threads of each trial, above 0."""
    gpus_per_trial: float | None = None
    """GPUs of each trial, at least 0; trials with a fraction such as 0.25 share one, and above 1 the number must be
    whole. Default: 1 if there is any GPU, else 0."""
    workers_per_trial: int = 1
    """Processes that train each trial together, at least 1. Each takes an equal part of every batch, and each has
    --cpus-per-trial CPUs and --gpus-per-trial GPUs, which must be whole if there are several processes."""
    max_concurrent: int | None = None
    """Largest number of trials at a time, at least 1. Default: as many as fit."""
    max_failures: int = 2
    """How often a trial whose process dies is restarted from its last checkpoint, at least 0; after that it counts as
    failed."""
    time_budget: str | None = None
    """Stop the search after this time, e.g. 90s, 20m or 2h; it can be resumed."""
    resume_check: bool = True
    """Refuse an optimizer of your own of which two steps show that a resumed trial would give other numbers."""
    address: str | None = None
    """Address of a Ray cluster; auto is the one on this machine. Default: start Ray on this machine for the search."""
    storage: str | None = None
    """URL of Optuna's storage. Default: SQLite in the search's folder."""
    tracking_uri: str | None = None
    """MLflow tracking URI. Default: sqlite:///mlflow.db in the working folder."""
    experiment: str = "sgd-tuner"
    """Name of the MLflow experiment."""
    system_metrics: bool = False
    """Log this machine's load (processors, memory, GPUs) to MLflow's parent run."""
    checkpoints: str | None = None
    """Folder or URI for checkpoints and final weights (s3://bucket/folder, gs://..., any that fsspec knows), which all
    machines of a cluster must reach. Default: the search's folder."""
    checkpoint_seconds: float | None = None
    """Least number of seconds between two checkpoints of a trial, at least 0; 0 writes one every epoch. Default: as
    often as costs at most 5% of the time."""
    output: str = "runs"
    """Folder that holds the searches' folders."""
    resume: str | None = None
    """Name of a search to resume. It keeps its settings; only flags that change no earlier result may differ."""
    dry_run: bool = False
    """Print the plan and its cost; start nothing."""
    list: bool = False
    """Print all variants, what they search and their named points; start nothing."""

    def __post_init__(self) -> None:
        if self.targets is None:
            usual = USUAL_TARGETS if self.training.workload.data == "digits" else "auto"
            object.__setattr__(self, "targets", self.training.targets or usual)
        if self.targets != "auto":
            if not self.targets:
                raise InvalidInput("--targets: must name at least one score, or auto")
            object.__setattr__(self, "training", dataclasses.replace(self.training, targets=self.targets))
        default = flatten(TrialSpec())
        for leaf, value in flatten(self.training).items():
            if not _is_flag(leaf) and leaf != "targets" and value != default[leaf]:
                raise InvalidInput(f"training.{leaf} = {value}: the search sets it; leave it at its default")
        workload = self.training.workload
        if workload.data_dir is not None:
            # Absolute: workers, and a process that resumes the search, may run in other folders.
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
        if not 1 <= self.trials < FIRST_REFINE:
            raise InvalidInput(f"--trials {self.trials}: must be at least 1 and below {FIRST_REFINE}")
        raced = self.objective != "pareto" and len(expand(self.variants)) > 1
        if self.round_size < 1 or (raced and self.round_size > self.trials):
            raise InvalidInput(f"--round-size {self.round_size}: must be at least 1 and at most --trials {self.trials}")
        if not 0 <= self.alpha < 1:
            raise InvalidInput(f"--alpha {self.alpha}: must be at least 0 and below 1")
        if not 0 <= self.refine_trials < FIRST_REPEAT - FIRST_REFINE:
            raise InvalidInput(f"--refine-trials {self.refine_trials}: must be at least 0")
        for name, choices in (("sampler", SamplerName), ("confirm", Literal["left", "all"]), ("cost", Cost)):
            if getattr(self, name) not in get_args(choices):
                raise unknown(name, getattr(self, name), get_args(choices))
        if self.cost == "seconds" and not (raced and self.objective == "time-to-target"):
            raise InvalidInput(
                "--cost seconds: needs --objective time-to-target and at least two variants, whose race is by seconds"
            )
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
        """The training with seed ``number`` of this search.

        Trainings of the same number have the same seed in all variants, so that initial weights and batches are equal.
        """
        given = {
            name: value for name in RECIPE if (value := getattr(self, name)) and getattr(optimizer.recipe, name) is None
        }
        if given:
            optimizer = dataclasses.replace(optimizer, recipe=dataclasses.replace(optimizer.recipe, **given))
        timed = self.early_stopping and self.objective == "time-to-target" and number < FIRST_FRESH
        return dataclasses.replace(
            self.training,
            workload=self.workload_spec(),
            optimizer=optimizer,
            seed=self.seed * 1_000_003 + number,
            stop_at_target=timed and bool(self.training.targets),
        )

    def pilot_spec(self, optimizer: OptimizerSpec, k: int) -> TrialSpec:
        """The training with seed ``k`` by which targets are chosen, for its whole budget and without any target."""
        return dataclasses.replace(self.trial_spec(optimizer, FIRST_PILOT + k), targets=())

    def timing_spec(self, optimizer: OptimizerSpec, k: int, epochs: int) -> TrialSpec:
        """The training with seed ``k`` by which seconds per gradient evaluation are measured, without any target."""
        spec = self.trial_spec(optimizer, FIRST_TIMING + k)
        return dataclasses.replace(spec, epochs=epochs, targets=(), curvature=0, predict_critical_lr=False)

    def with_targets(self, targets: tuple[float, ...]) -> SearchSpec:
        """The same spec with these targets, which have been measured."""
        return dataclasses.replace(self, training=dataclasses.replace(self.training, targets=targets))

    def confirm_spec(self, optimizer: OptimizerSpec, k: int) -> TrialSpec:
        """The training that confirms an optimizer with fresh seed ``k``, the same for all, for its whole budget."""
        return self.trial_spec(optimizer, FIRST_FRESH + k)

    def baseline_among(self, names: Sequence[str]) -> str:
        """The variant that all others are compared with, of variants of these names."""
        return self.baseline or ("sgdm" if "sgdm" in names else names[0])

    @property
    def num_rounds(self) -> int:
        """Rounds of the race: as many as --trials allows, and none for pareto, whose two goals give no order."""
        return 0 if self.objective == "pareto" else self.trials // self.round_size

    def num_seeds(self, point: Literal["best", "default"]) -> int:
        """Number of fresh seeds of each variant's best settings, or of its default point: half as many, rounded up."""
        return self.confirm_seeds if point == "best" else (self.confirm_seeds + 1) // 2

    @property
    def far_above_critical(self) -> float:
        """Multiple of the predicted critical learning rate above which a trial is, or would be, pruned."""
        return self.prune_above_critical or FAR_ABOVE_CRITICAL

    def workload_spec(self) -> WorkloadSpec:
        """The workload of every trial."""
        return dataclasses.replace(
            self.training.workload, download=False, loader_workers=max(1, int(self.cpus_per_trial))
        )

    @classmethod
    def from_flags(cls, **values: Any) -> SearchSpec:
        """The spec from flags, named with ``_`` for ``-``: ``from_flags(workload="cifar10", trials=32)``.

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
        """Flag, with ``_`` for ``-`` -> value; :meth:`from_flags` makes the same spec from them."""
        return {name: functools.reduce(getattr, path, self) for name, path in LEAVES.items()}

    def located(self) -> SearchSpec:
        """The same spec with absolute paths of SQLite databases, MLflow's default included: valid in any folder."""
        uris = {"storage": self.storage, "tracking_uri": self.tracking_uri or DEFAULT_TRACKING_URI}
        files = {
            name: f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
            for name, uri in uris.items()
            if uri and uri.startswith("sqlite:///") and uri != "sqlite:///"
        }
        return dataclasses.replace(self, **files)  # type: ignore[arg-type]


SET_BY_SEARCH = ("seed", "max_loss", "stop_at_target", "targets", "workload.augment", "workload.loader_workers")
"""Fields of a search's training that the search sets, besides the optimizer; they have no flags."""


def _is_flag(leaf: str) -> bool:
    return not leaf.startswith("optimizer.") and leaf not in SET_BY_SEARCH


def _leaves() -> Iterator[tuple[str, tuple[str, ...]]]:
    for item in dataclasses.fields(SearchSpec):
        if item.name != "training":
            yield item.name, (item.name,)
            continue
        for leaf in flatten(TrialSpec()):
            path = leaf.split(".")
            if _is_flag(leaf):
                yield "workload" if leaf == "workload.data" else path[-1], ("training", *path)


LEAVES: dict[str, tuple[str, ...]] = dict(_leaves())
"""Flag, with ``_`` for ``-`` -> path of its field in a :class:`SearchSpec`."""


def flag(name: str) -> str:
    """The flag of a field, as it is typed."""
    return "--" + name.replace("_", "-")


def seconds(duration: str | None) -> float | None:
    """Seconds of a duration such as ``90``, ``90s``, ``20m`` or ``2h``; raises :class:`InvalidInput` for other text."""
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
    if message.startswith("unknown ") and not message.startswith("unknown flag"):
        return f"--{message.removeprefix('unknown ')}"
    if not separator or message.startswith("--") or (name.startswith("training.") and name not in whole):
        return message
    return f"{flag(whole.get(name) or last.get(name, name))} {rest}"
