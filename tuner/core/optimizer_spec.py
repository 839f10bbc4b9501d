"""SGD's hyperparameters as plain data, without torch: :class:`OptimizerSpec`, with one part for each aspect of SGD.

Dotted field names (``lr.peak``, ``norm.p_max``) are the names used in search spaces, in Optuna, as MLflow parameters
and on the command line.  Every class raises :class:`InvalidInput` for a value outside the range its docstring gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from tuner.core.errors import InvalidInput, unknown
from tuner.core.serialization import Arguments

KnownRule: TypeAlias = Literal["sgd", "adamw", "lpsgd", "lion"]
Schedule: TypeAlias = Literal["constant", "cosine", "linear", "step", "one-cycle"]
Shape: TypeAlias = Literal["constant", "cosine", "linear", "step", "exponential"]
DampingForm: TypeAlias = Literal["linear", "square", "exponential"]
Scale: TypeAlias = Literal["none", "dual", "rms"]
Scope: TypeAlias = Literal["tensor", "global"]
MomentumSchedule: TypeAlias = Literal["constant", "critical", "hybrid", "cycle", "matched", "own"]
Switch: TypeAlias = Literal["fraction", "accuracy", "crossing"]
Rescale: TypeAlias = Literal["none", "lr", "sqrt-lr"]
Law: TypeAlias = Literal["none", "exponential", "uniform", "gamma"]


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raises :class:`InvalidInput`, "name = value: must be allowed", unless the condition holds."""
    if not condition:
        raise InvalidInput(f"{name} = {value}: must be {allowed}")


def require_choice(name: str, value: object, choices: object) -> None:
    """Raises :class:`InvalidInput`, which names the nearest choice, unless the value is one of a Literal's choices."""
    if value not in get_args(choices):
        raise unknown(name, str(value), get_args(choices))


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRateSpec:
    """The learning rate as a function of the step (:func:`tuner.schedules.learning_rate`)."""

    peak: float = 0.1
    """Largest learning rate, above 0."""
    schedule: str = "cosine"
    """How the learning rate falls after the warm-up: constant, cosine, linear, step or one-cycle; or
    ``package.module:function``, a function(step, num_steps) that gives the factor of the peak, finite and at least 0.
    Such a function has no warm-up and no end beside it."""
    warmup: float = 0.0
    """Fraction of the steps, in [0, 1), over which it rises linearly to the peak; for ``one-cycle``, 0 means 0.3."""
    end: float = 0.0
    """Learning rate just after the last step, as a fraction of the peak, in [0, 1]; ``constant`` and ``step`` ignore
    it."""

    def __post_init__(self) -> None:
        require(0 < self.peak < math.inf, "lr.peak", self.peak, "above 0 and finite")
        require(0 <= self.warmup < 1, "lr.warmup", self.warmup, "in [0, 1)")
        require(0 <= self.end <= 1, "lr.end", self.end, "in [0, 1]")
        if ":" not in self.schedule:
            require_choice("lr.schedule", self.schedule, Schedule)
            return
        require(self.warmup == 0, "lr.warmup", self.warmup, f"0 with the schedule {self.schedule}")
        require(self.end == 0, "lr.end", self.end, f"0 with the schedule {self.schedule}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MomentumSpec:
    """Memory: the momentum coefficient, a constant or computed from each step's learning rate.

    :mod:`tuner.optimizers.hyperparameters` computes it.
    """

    schedule: MomentumSchedule = "constant"
    """How the momentum changes.  ``constant`` does not.  ``critical`` follows the learning rate.  ``hybrid`` follows it
    until a switch, and is constant from then on.  ``cycle`` falls while the learning rate rises, and rises while it
    falls.  ``matched`` keeps the momentum constant and changes the learning rate, so that lr/(1 - momentum) is as under
    ``critical``.  ``own`` leaves the momentum to the ``arguments`` of an optimizer given by import path."""
    value: float = 0.9
    """Constant momentum, in [0, 1).  It is the largest momentum of ``cycle``, and beta_1 of ``adamw`` and ``lion``."""
    low: float = 0.85
    """Momentum of ``cycle`` at the peak of the learning rate, in [0, 1); with that schedule at most ``value``."""
    form: DampingForm = "linear"
    """Formula of the critical schedule (:func:`tuner.schedules.critical_momentum`)."""
    zeta: float = 1.0
    """Damping ratio of the critical schedule, above 0; 1 is critical damping at unit curvature."""
    floor: float = 0.0
    """Lower bound of the critical schedule, in [0, cap]."""
    cap: float = 0.99
    """Upper bound of the critical schedule, in (0, 1); without it, a learning rate of 0 would give a momentum of 1."""
    switch: Switch = "fraction"
    """What ends the critical part of ``hybrid`` for good: ``fraction``, a share of the training; ``accuracy``, a
    validation accuracy; or ``crossing``, the critical momentum reaching ``value`` after the warm-up."""
    switch_fraction: float = 0.5
    """Share of the training after which ``hybrid`` switches by ``fraction``, in (0, 1)."""
    switch_accuracy: float = 0.9
    """Validation accuracy at which ``hybrid`` switches by ``accuracy``, in (0, 1)."""
    nesterov: bool = False
    """Whether the step is taken along the buffer as the next step would see it; only for ``sgd`` and ``lpsgd``, and not
    at a constant momentum of 0."""
    rescale: Rescale = "none"
    """Factor of the momentum buffer when the learning rate changes from a to b, for ``sgd`` and ``lpsgd``.  ``none``
    is 1.  ``lr`` is a/b, which at p = 2 keeps the displacement of a step.  ``sqrt-lr`` is sqrt(a/b), which at p = 2
    keeps the oscillator's velocity."""

    def __post_init__(self) -> None:
        require_choice("momentum.schedule", self.schedule, MomentumSchedule)
        require(0 <= self.value < 1, "momentum.value", self.value, "in [0, 1)")
        require(0 <= self.low < 1, "momentum.low", self.low, "in [0, 1)")
        if self.schedule == "cycle":
            require(self.low <= self.value, "momentum.low", self.low, "at most momentum.value")
        require_choice("momentum.form", self.form, DampingForm)
        require(0 < self.zeta < math.inf, "momentum.zeta", self.zeta, "above 0 and finite")
        require(0 < self.cap < 1, "momentum.cap", self.cap, "in (0, 1)")
        require(0 <= self.floor <= self.cap, "momentum.floor", self.floor, "in [0, momentum.cap]")
        require_choice("momentum.switch", self.switch, Switch)
        require(0 < self.switch_fraction < 1, "momentum.switch_fraction", self.switch_fraction, "in (0, 1)")
        require(0 < self.switch_accuracy < 1, "momentum.switch_accuracy", self.switch_accuracy, "in (0, 1)")
        require_choice("momentum.rescale", self.rescale, Rescale)


@dataclass(frozen=True, kw_only=True, slots=True)
class NormSpec:
    """Direction: the p of l_p-norm descent as a function of time (:func:`tuner.schedules.norm_exponent`)."""

    p_max: float = 2.0
    """First p, in [2, inf]."""
    p_end: float = 2.0
    """Last p, in [2, p_max]."""
    shape: Shape = "constant"
    """How p falls from p_max to p_end."""
    variable: Literal["p", "alpha"] = "p"
    """Quantity that follows the shape: p, or alpha = 1/(p-1)."""
    hold: float = 0.0
    """Fraction of the training, in [0, 1), from its start, during which p stays at p_max."""
    interval: Literal["epoch", "step"] = "epoch"
    """Whether p changes once per epoch (as in the paper) or at every step."""
    scale: Scale = "none"
    """Rescaling of the direction (:class:`tuner.optimizers.LPSGD`)."""
    scope: Scope = "tensor"
    """Whether each tensor has its own norm for ``scale``, or all parameters share one."""

    def __post_init__(self) -> None:
        require(2 <= self.p_max <= math.inf, "norm.p_max", self.p_max, "in [2, inf]")
        require(2 <= self.p_end <= self.p_max, "norm.p_end", self.p_end, "in [2, norm.p_max]")
        require_choice("norm.shape", self.shape, Shape)
        require_choice("norm.variable", self.variable, Literal["p", "alpha"])
        require(0 <= self.hold < 1, "norm.hold", self.hold, "in [0, 1)")
        require_choice("norm.interval", self.interval, Literal["epoch", "step"])
        require_choice("norm.scale", self.scale, Scale)
        require_choice("norm.scope", self.scope, Scope)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingSpec:
    """Length: a random factor of each step (:class:`tuner.optimizers.RandomScaling`)."""

    law: Law = "none"
    """Distribution of the factor, with mean 1; ``none`` is the constant factor 1."""
    shape: float = 2.0
    """Shape k of the gamma distribution, above 0; its variance is 1/k."""
    active: float = 1.0
    """Fraction of the training, in (0, 1], from its start, during which steps have the factor."""
    decay: bool = True
    """Whether decoupled weight decay is multiplied by the factor as well."""

    def __post_init__(self) -> None:
        require_choice("scaling.law", self.law, Law)
        require(0 < self.shape < math.inf, "scaling.shape", self.shape, "above 0 and finite")
        require(0 < self.active <= 1, "scaling.active", self.active, "in (0, 1]")


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderSpec:
    """Order: how the steps of the batches are composed (:mod:`tuner.order`)."""

    composition: Literal["forward", "backward"] = "forward"
    """``backward`` applies the newest batch first, from an anchor; its replays count as gradient evaluations."""
    start: float = 0.0
    """Fraction of the budget, in [0, 1), spent forward before the backward phase; rounded to whole epochs."""
    window: int = 0
    """Batches after which the anchor moves to the current iterate, at least 0; 0 keeps it where the phase began."""
    interval: int = 1
    """Epochs' worth of steps between two evaluations of the backward phase, at least 1."""

    def __post_init__(self) -> None:
        require_choice("order.composition", self.composition, Literal["forward", "backward"])
        require(0 <= self.start < 1, "order.start", self.start, "in [0, 1)")
        require(self.window >= 0, "order.window", self.window, "at least 0")
        require(self.interval >= 1, "order.interval", self.interval, "at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class AverageSpec:
    """Which weights are evaluated: the last, or an exponential moving average over the steps."""

    decay: float = 0.0
    """Weight of the past in the average, in [0, 1); 0 evaluates the last weights."""

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, "average.decay", self.decay, "in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecaySpec:
    """Weight decay: part of the gradient (coupled) in ``sgd``, decoupled in the other rules."""

    weight: float = 0.0
    """Coefficient of the weight decay, at least 0."""

    def __post_init__(self) -> None:
        require(0 <= self.weight < math.inf, "decay.weight", self.weight, "at least 0 and finite")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeSpec:
    """What a training does beside its optimizer.  None takes what the search sets for all variants, by default 0."""

    label_smoothing: float | None = None
    """Share of each label that is spread over all classes, in [0, 1)."""
    clip_norm: float | None = None
    """Largest norm of the whole gradient, at least 0; longer ones are scaled down to it.  0 clips none."""
    mixup: float | None = None
    """Both parameters of the beta distribution by which pairs of inputs are mixed, at least 0; 0 mixes none."""

    def __post_init__(self) -> None:
        require(0 <= (self.label_smoothing or 0) < 1, "recipe.label_smoothing", self.label_smoothing, "in [0, 1)")
        for name, value in (("clip_norm", self.clip_norm), ("mixup", self.mixup)):
            require(0 <= (value or 0) < math.inf, f"recipe.{name}", value, "at least 0 and finite")
        # Below, the draws of the beta distribution underflow.
        require(not 0 < (self.mixup or 0) < 1e-3, "recipe.mixup", self.mixup, "0 or at least 0.001")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSpec:
    """One way of running SGD: an update rule and its hyperparameters."""

    rule: str = "sgd"
    """Update rule: a key of :data:`tuner.optimizers.rules.RULES`, or ``package.module:callable`` for any optimizer.  It
    is called with parameters, or with the model if its first argument is called so, with lr and with ``arguments``."""
    arguments: Arguments = field(default_factory=Arguments)
    """Further keyword arguments of the rule, ``arguments.NAME`` each.  Text in brackets is a tuple: ``(0.9, 0.99)``."""
    parameter_groups: str = "all"
    """How the parameters are grouped (:mod:`tuner.optimizers.parameter_groups`): all, no-decay-1d, JSON of regular
    expressions, or ``package.module:function``."""
    create_graph: bool = False
    """Whether each gradient keeps its graph, for a rule that differentiates it again."""
    contiguous: bool = False
    """Whether the parameters are contiguous, for a rule that views them as vectors; else they are channels_last."""
    lr: LearningRateSpec = field(default_factory=LearningRateSpec)
    momentum: MomentumSpec = field(default_factory=MomentumSpec)
    norm: NormSpec = field(default_factory=NormSpec)
    scaling: ScalingSpec = field(default_factory=ScalingSpec)
    order: OrderSpec = field(default_factory=OrderSpec)
    average: AverageSpec = field(default_factory=AverageSpec)
    decay: DecaySpec = field(default_factory=DecaySpec)
    recipe: RecipeSpec = field(default_factory=RecipeSpec)
    second_moment: float = 0.999
    """beta_2 of ``adamw`` and ``lion``, in [0, 1)."""

    def __post_init__(self) -> None:
        if ":" in self.rule:
            self._require_own_arguments()
        else:
            require_choice("rule", self.rule, KnownRule)
            known = f"another schedule for the rule {self.rule}"
            require(self.momentum.schedule != "own", "momentum.schedule", "own", known)
        require(0 <= self.second_moment < 1, "second_moment", self.second_moment, "in [0, 1)")
        for name in self.arguments:
            require(name.isidentifier(), f"arguments.{name}", self.arguments[name], "the name of a keyword argument")
        if self.momentum.schedule == "matched":
            # the other rules' buffers are averages, whose effective step is the learning rate itself
            require(self.rule == "sgd", "momentum.schedule", "matched", f"another schedule for the rule {self.rule}")
        has_buffer = self.rule in ("sgd", "lpsgd")
        if self.momentum.nesterov:
            require(has_buffer, "momentum.nesterov", True, f"false for the rule {self.rule}")
            require(
                self.momentum.schedule != "constant" or self.momentum.value > 0,
                "momentum.nesterov",
                True,
                "false where momentum.value is 0",
            )
        if self.momentum.rescale != "none":
            require(has_buffer, "momentum.rescale", self.momentum.rescale, f"none for the rule {self.rule}")
        if self.scaling.law != "none" and not self.scaling.decay and self.decay.weight > 0:
            require(self.rule != "sgd", "scaling.decay", False, "true for the rule sgd, whose decay is in its buffer")

    @property
    def is_tried_first(self) -> bool:
        """Whether a part of it may be a user's own code or unfit for the model: two steps show whether it works."""
        usual = OptimizerSpec()
        return ":" in self.rule + self.lr.schedule or any(
            getattr(self, name) != getattr(usual, name) for name in ("arguments", "parameter_groups", "recipe")
        )

    def _require_own_arguments(self) -> None:
        """What a known rule has a field for is an argument of any other optimizer, so that nothing is set twice."""
        only = "left at its default for {}: give arguments.{} in place of it"
        decay, beta = self.decay.weight, self.second_moment
        require(decay == 0, "decay.weight", decay, only.format(self.rule, "weight_decay"))
        require(beta == 0.999, "second_moment", beta, only.format(self.rule, "betas"))
        require(self.norm == NormSpec(), "norm.p_max", self.norm.p_max, f"left at its default for {self.rule}")
