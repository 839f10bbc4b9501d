"""The settings of SGD, and the settings that remain in the limit of many coordinates.

One step in the product form beta = u v changes u and v simultaneously.  g is the mean of r x over a batch, mu the
heavy-ball momentum, w the weight decay, which is part of the gradient, and s the random factor of the step::

    m_u <- mu m_u + g v + w u,   u <- u - s gamma m_u      and the same for v with u in place of v

Time is t = steps/d.  As d grows, the memory of momentum becomes short on this scale.  In the limit only these settings
remain (:class:`EffectiveSgd`):

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
    """The value of a rate at a time."""
    return rate(time) if callable(rate) else rate


@dataclass(frozen=True, kw_only=True, slots=True)
class EffectiveSgd:
    """The settings of SGD in the limit.  Raises :class:`InvalidInput` for a constant out of range."""

    lr: Rate
    """Effective learning rate gamma_e, at least 0."""
    nu: Rate = 1.0
    """Noise factor, at least 0; 0 is gradient flow."""
    decay: float = 0.0
    """Weight decay per unit of time, that is per step times d; at least 0."""

    def __post_init__(self) -> None:
        for name in ("lr", "nu", "decay"):
            value = getattr(self, name)
            # The square of the value must be finite, too.
            if not callable(value) and not 0 <= value <= 1e100:
                raise InvalidInput(f"{name} = {value}: must be at least 0 and finite, of order 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sgd:
    """The settings of SGD.  Raises :class:`InvalidInput` for values out of range."""

    lr: Rate
    """Learning rate gamma, at least 0, of order 1; a schedule is a function of time."""
    momentum: float = 0.0
    """Heavy-ball momentum mu, in [0, 1)."""
    batch: int = 1
    """Samples per step, at least 1."""
    law: Law = "none"
    """Law of the random factor s."""
    shape: float = 2.0
    """Shape of the gamma law, above 0."""
    decay: float = 0.0
    """Weight decay w per step, at least 0."""
    power: float = 1.0
    """Exponent a, in [0, 1], of the direction sign(z) |z|^a in place of the gradient z; 1 is SGD, 0 sign descent.  The
    learning rate is multiplied by d^((a - 1)/2).  Below 1 momentum, decay, batches and random factors are refused."""

    def __post_init__(self) -> None:
        self.effective(1)
        if not 0 <= self.power <= 1:
            raise InvalidInput(f"power = {self.power}: must be in [0, 1]")
        plain = self.momentum == 0 and self.batch == 1 and self.law == "none" and self.decay == 0
        if self.power < 1 and not plain:
            raise InvalidInput(f"power = {self.power}: goes with plain steps only, of one sample without momentum")

    def effective(self, dimension: int) -> EffectiveSgd:
        """The settings in the limit; ``power`` is not part of them."""
        memory = 1 / effective_lr(1.0, self.momentum)
        lr = self.lr
        return EffectiveSgd(
            lr=(lambda time: lr(time) / memory) if callable(lr) else lr / memory,
            nu=noise_factor(self.batch, law=self.law, shape=self.shape, momentum=self.momentum),
            decay=self.decay * dimension,
        )
