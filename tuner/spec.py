"""What one training is: frozen dataclasses of plain data, without torch.

Dotted field names (``lr.peak``, ``norm.p_max``) are the names used in search spaces, in Optuna, as MLflow parameters
and on the command line.  Every class refuses, when it is made, a value outside the range its docstring gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from tuner.errors import InvalidInput, unknown

Rule: TypeAlias = Literal["sgd", "adamw", "lpsgd"]
Schedule: TypeAlias = Literal["constant", "cosine", "linear", "step", "one-cycle"]
Shape: TypeAlias = Literal["constant", "cosine", "linear", "step", "exponential"]
DampingForm: TypeAlias = Literal["linear", "square", "exponential"]
Scale: TypeAlias = Literal["none", "dual", "rms"]
Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "float64"]


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise InvalidInput(f"{name} = {value}: must be {allowed}")


def _require_choice(name: str, value: object, choices: object) -> None:
    if value not in get_args(choices):
        raise unknown(name, str(value), get_args(choices))


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRateSpec:
    """The learning rate as a function of the step (:func:`tuner.schedules.learning_rate`)."""

    peak: float = 0.1
    """Largest learning rate, above 0."""
    schedule: Schedule = "cosine"
    """How it falls after the warm-up."""
    warmup: float = 0.0
    """Fraction of the steps, in [0, 1), over which it rises linearly to the peak."""
    end: float = 0.0
    """Last learning rate as a fraction of the peak, in [0, 1]."""

    def __post_init__(self) -> None:
        _require(0 < self.peak < math.inf, "lr.peak", self.peak, "above 0 and finite")
        _require_choice("lr.schedule", self.schedule, Schedule)
        _require(0 <= self.warmup < 1, "lr.warmup", self.warmup, "in [0, 1)")
        _require(0 <= self.end <= 1, "lr.end", self.end, "in [0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class MomentumSpec:
    """The momentum coefficient: a constant, or computed from each step's learning rate."""

    schedule: Literal["constant", "critical"] = "constant"
    """``critical`` follows the learning rate (:func:`tuner.schedules.critical_momentum`)."""
    value: float = 0.9
    """The constant, in [0, 1); for ``adamw`` it is beta_1."""
    form: DampingForm = "linear"
    """Formula of the critical schedule."""
    zeta: float = 1.0
    """Damping ratio of the critical schedule, above 0; 1 is critical damping at unit curvature."""
    floor: float = 0.0
    """Lower bound of the critical schedule, in [0, cap]."""
    cap: float = 0.99
    """Upper bound of the critical schedule, in (0, 1): as the learning rate goes to 0 the momentum goes to 1."""

    def __post_init__(self) -> None:
        _require_choice("momentum.schedule", self.schedule, Literal["constant", "critical"])
        _require(0 <= self.value < 1, "momentum.value", self.value, "in [0, 1)")
        _require_choice("momentum.form", self.form, DampingForm)
        _require(0 < self.zeta < math.inf, "momentum.zeta", self.zeta, "above 0 and finite")
        _require(0 < self.cap < 1, "momentum.cap", self.cap, "in (0, 1)")
        _require(0 <= self.floor <= self.cap, "momentum.floor", self.floor, "in [0, momentum.cap]")


@dataclass(frozen=True, kw_only=True, slots=True)
class NormSpec:
    """The p of l_p-norm descent as a function of time (:func:`tuner.schedules.norm_exponent`)."""

    p_max: float = 2.0
    """First p, in [2, inf]."""
    p_end: float = 2.0
    """Last p, in [2, p_max]."""
    shape: Shape = "constant"
    """How p falls from p_max to p_end."""
    variable: Literal["p", "alpha"] = "p"
    """What the shape is a shape of: p, or alpha = 1/(p-1)."""
    hold: float = 0.0
    """Fraction of the run, in [0, 1), that stays at p_max."""
    interval: Literal["epoch", "step"] = "epoch"
    """p changes once an epoch (as in the paper) or at every step."""
    scale: Scale = "none"
    """Rescaling of the direction (:class:`tuner.optimizers.LPSGD`)."""

    def __post_init__(self) -> None:
        _require(2 <= self.p_max <= math.inf, "norm.p_max", self.p_max, "in [2, inf]")
        _require(2 <= self.p_end <= self.p_max, "norm.p_end", self.p_end, "in [2, norm.p_max]")
        _require_choice("norm.shape", self.shape, Shape)
        _require_choice("norm.variable", self.variable, Literal["p", "alpha"])
        _require(0 <= self.hold < 1, "norm.hold", self.hold, "in [0, 1)")
        _require_choice("norm.interval", self.interval, Literal["epoch", "step"])
        _require_choice("norm.scale", self.scale, Scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecaySpec:
    """Weight decay; the optimizer decides whether it is coupled (``sgd``) or decoupled (``adamw``, ``lpsgd``)."""

    weight: float = 0.0
    """Coefficient, at least 0."""

    def __post_init__(self) -> None:
        _require(0 <= self.weight < math.inf, "decay.weight", self.weight, "at least 0 and finite")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSpec:
    """One point of view on SGD: an update rule and the settings of its knobs."""

    rule: Rule = "sgd"
    """Update rule, a key of :data:`tuner.optimizers.RULES`."""
    lr: LearningRateSpec = field(default_factory=LearningRateSpec)
    momentum: MomentumSpec = field(default_factory=MomentumSpec)
    norm: NormSpec = field(default_factory=NormSpec)
    decay: DecaySpec = field(default_factory=DecaySpec)
    second_moment: float = 0.999
    """beta_2 of ``adamw``, in [0, 1)."""

    def __post_init__(self) -> None:
        _require_choice("rule", self.rule, Rule)
        _require(0 <= self.second_moment < 1, "second_moment", self.second_moment, "in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadSpec:
    """What is trained: data, model, batch."""

    data: str = "digits"
    """A key of :data:`tuner.workloads.DATA`."""
    model: str = "resnet8"
    """A key of :data:`tuner.workloads.MODELS`, a torchvision classifier, or ``package.module:function``."""
    data_dir: str | None = None
    """Folder of the data; not used by ``digits``."""
    download: bool = False
    """Fetch the data set into ``data_dir`` where it is missing."""
    batch_size: int = 64
    """Images a gradient evaluation, at least 1."""
    augment: bool = True
    """Random crops and flips, as far as the data set allows them."""
    skip_corrupt: bool = False
    """Leave out images that cannot be read, instead of stopping."""
    stream: Literal["auto", "always", "never"] = "auto"
    """Read images from disk batch by batch; ``auto`` does so where they do not fit the device's memory."""
    loader_workers: int = 2
    """Processes that read images when streaming, at least 0."""

    def __post_init__(self) -> None:
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _require(self.loader_workers >= 0, "loader_workers", self.loader_workers, "at least 0")
        _require_choice("stream", self.stream, Literal["auto", "always", "never"])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """One training, whole: the same spec gives the same numbers on the same machine."""

    workload: WorkloadSpec = field(default_factory=WorkloadSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    epochs: int = 10
    """Passes over the training split, at least 1; epochs times steps per epoch is the budget."""
    targets: tuple[float, ...] = (0.9, 0.95)
    """Validation accuracies, each in (0, 1), whose first crossing is timed."""
    stop_at_target: bool = False
    """End the training once the highest target is reached."""
    max_loss: float = 1e3
    """A training loss above this, or one that is not finite, is a divergence."""
    seed: int = 0
    """Draws the initial weights, the batches and their augmentation; at least 0."""
    precision: Precision = "auto"
    """``auto`` is bfloat16 autocast on a GPU and float32 elsewhere."""
    compile: bool = False
    """Compile the forward pass with torch.compile."""

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(len(self.targets) > 0, "targets", self.targets, "at least one accuracy")
        for target in self.targets:
            _require(0 < target < 1, "targets", target, "in (0, 1)")
        _require(list(self.targets) == sorted(set(self.targets)), "targets", self.targets, "increasing")
        _require(self.max_loss > 0, "max_loss", self.max_loss, "above 0")
        _require(0 <= self.seed < 2**62, "seed", self.seed, "in [0, 2^62)")
        _require_choice("precision", self.precision, Precision)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """What is known at the end of an epoch; counts and seconds run from the start of the training."""

    epoch: int
    """Epochs done, from 1."""
    gradient_evaluations: int
    """Batches sent forward and backward so far, replays too; the training ends when they reach the budget."""
    steps: int
    """Updates that the weights are the result of, at most ``gradient_evaluations``."""
    budget: int
    """Gradient evaluations of the whole training as planned."""
    train_loss: float
    """Mean cross-entropy over this epoch's batches, as trained on; inf where the training diverged."""
    train_accuracy: float
    """Share of this epoch's training images, as augmented, that were classified correctly, in [0, 1]."""
    validation_loss: float
    """Mean cross-entropy over the validation split; inf where it is not finite."""
    validation_accuracy: float
    """In [0, 1], in evaluation mode."""
    lr: float
    """Learning rate of the epoch's last step; the next two likewise."""
    momentum: float
    p: float
    seconds: float
    """Seconds of training so far, evaluation and compilation apart."""
    evaluation_seconds: float
    """Seconds of evaluation so far."""
    compile_seconds: float
    """Seconds of compilation and warm-up so far."""
    loading_seconds: float
    """Part of ``seconds`` spent waiting for data."""
    images_per_second: float
    """Training images of this epoch over its seconds."""
    diverged: bool
    """The training ended here: a loss, training or validation, was not finite, or the training loss above its bound."""
    finished_at: float
    """Wall clock at the end of the epoch, seconds since 1970."""
