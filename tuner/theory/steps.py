"""How SGD is run, and what of it is left in the limit of many coordinates.

One step in the product form beta = u v, g the mean of r x over a batch, simultaneously in u and v, with heavy-ball
momentum mu, weight decay w in the gradient and a random factor s of the step::

    m_u <- mu m_u + g v + w u,   u <- u - s gamma m_u      and the same for v with u in place of v

Time is t = steps/d.  As d grows, momentum is gone after no time, so that all that is left (:class:`EffectiveSgd`) is

    gamma_e(t) = gamma(t)/(1 - mu(t)),   nu(t) (:func:`tuner.theory.stability.noise_factor`),   w d
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from tuner.core.errors import InvalidInput
from tuner.core.optimizer_spec import Law
from tuner.theory.stability import effective_lr, noise_factor

Rate: TypeAlias = float | Callable[[float], float]
"""A constant, or a function of time."""


def at(rate: Rate, time: float) -> float:
    """A rate's value at a time."""
    return rate(time) if callable(rate) else rate


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectiveSgd:
    """What the limit knows of a way of running SGD.  Raises :class:`InvalidInput` for a constant out of range."""

    lr: Rate
    """gamma_e, at least 0."""
    nu: Rate = 1.0
    """Noise factor, at least 0; 0 is gradient flow."""
    decay: float = 0.0
    """Weight decay a unit of time: that of a step times d; at least 0."""

    def __post_init__(self) -> None:
        for name in ("lr", "nu", "decay"):
            value = getattr(self, name)
            # Its square has to be a number, too.
            if not callable(value) and not 0 <= value <= 1e100:
                raise InvalidInput(f"{name} = {value}: must be at least 0 and finite, of order 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sgd:
    """A way of running SGD.  Raises :class:`InvalidInput` for values out of range."""

    lr: Rate
    """gamma, of order 1; a schedule is a function of time."""
    momentum: float = 0.0
    """mu, in [0, 1)."""
    batch: int = 1
    """Samples a step, at least 1."""
    law: Law = "none"
    """Law of the random factor s."""
    shape: float = 2.0
    """Shape of the gamma law, above 0."""
    decay: float = 0.0
    """w, of a step; at least 0."""
    power: float = 1.0
    """a of the direction sign(z) |z|^a that takes the place of the gradient z, in [0, 1]; 1 is SGD, 0 sign descent.
    The learning rate is multiplied by d^((a - 1)/2).  Below 1 without momentum, decay, batches and factors."""

    def __post_init__(self) -> None:
        self.effective(1)
        if not 0 <= self.power <= 1:
            raise InvalidInput(f"power = {self.power}: must be in [0, 1]")
        plain = self.momentum == 0 and self.batch == 1 and self.law == "none" and self.decay == 0
        if self.power < 1 and not plain:
            raise InvalidInput(f"power = {self.power}: goes with plain steps only, of one sample without momentum")

    def effective(self, dimension: int) -> EffectiveSgd:
        """What is left of it in the limit; of ``power`` nothing is said."""
        memory = 1 / effective_lr(1.0, self.momentum)
        lr = self.lr
        return EffectiveSgd(
            lr=(lambda time: lr(time) / memory) if callable(lr) else lr / memory,
            nu=noise_factor(self.batch, law=self.law, shape=self.shape, momentum=self.momentum),
            decay=self.decay * dimension,
        )
