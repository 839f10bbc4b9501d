"""The problem that :mod:`tuner.theory` is about: a diagonal linear network on Gaussian data.

::

    x_i ~ N(0, lambda_i/d),   y = <x, beta*> + sigma eps,   beta_i = u_i v_i,   delta = beta - beta*
    loss = r^2/2,   r = <x, delta> - sigma eps
    risk P = sum_i lambda_i delta_i^2/(2 d) + sigma^2/2

The d coordinates are of K types, each with its own lambda, beta* and initial weights.  In the limit only the share of
each type counts, and d does not occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import InvalidInput

Floats: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = Sequence[float] | Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Problem:
    """K types of coordinates.  Raises :class:`InvalidInput` for shapes that differ and for values out of range."""

    lam: Floats
    """Eigenvalues lambda of d E[x x^T], (K,): at least 0, at least one above 0."""
    target: Floats
    """Target weights beta*, (K,)."""
    share: Floats
    """Share of each type in the coordinates, (K,): positive, with sum 1."""
    u: Floats
    """Initial weights u, (K,)."""
    v: Floats
    """Initial weights v, (K,)."""
    noise: float = 0.0
    """Standard deviation sigma of the labels' noise, at least 0."""

    def __post_init__(self) -> None:
        require_spectrum(self.lam, self.target)
        for name in ("share", "u", "v"):
            values = getattr(self, name)
            if values.shape != self.lam.shape:
                raise InvalidInput(f"{name}: has {values.size} values for {self.lam.size} eigenvalues")
            if not np.isfinite(values).all():
                raise InvalidInput(f"{name}: must be finite")
        if not (self.share > 0).all() or not np.isclose(self.share.sum(), 1):
            raise InvalidInput("share: must be positive and of sum 1")
        if not 0 <= self.noise < np.inf:
            raise InvalidInput(f"noise = {self.noise}: must be at least 0 and finite")

    @property
    def first_risk(self) -> float:
        """The risk P of the initial weights."""
        return self.risk(self.u * self.v)

    def risk(self, beta: Floats) -> float:
        """The risk P if all coordinates of a type have the same beta, (K,)."""
        return float(self.share @ (self.lam * (beta - self.target) ** 2) + self.noise**2) / 2

    def types_of(self, dimension: int) -> NDArray[np.int64]:
        """The type of each of d coordinates, (d,), in blocks; each type has its share of them, to within one.

        Raises :class:`InvalidInput` if a type would have no coordinate.
        """
        return np.repeat(np.arange(self.lam.size), self.counts_of(dimension))

    def counts_of(self, dimension: int) -> NDArray[np.int64]:
        """The number of coordinates of each type among d, (K,).

        Raises :class:`InvalidInput` if a type would have no coordinate.
        """
        ends = np.rint(np.cumsum(self.share) * dimension).astype(np.int64)
        counts = np.diff(ends, prepend=0)
        if (counts < 1).any():
            raise InvalidInput(f"dimension = {dimension}: too few for {self.lam.size} types")
        return counts


def make_problem(
    lam: Numbers,
    target: Numbers,
    *,
    share: Numbers | None = None,
    u: float | Numbers = 1.0,
    v: float | Numbers = 0.0,
    noise: float = 0.0,
) -> Problem:
    """A problem from sequences of K numbers, one per type.

    Shares are equal by default.  ``u`` and ``v`` may be one number for all types.  Raises :class:`InvalidInput` for
    sequences of different lengths and for values out of range.
    """
    rates, wanted = np.array(lam, dtype=np.float64), np.array(target, dtype=np.float64)
    require_spectrum(rates, wanted)

    def starts(values: float | Numbers) -> Floats:
        start = np.array(values, dtype=np.float64)
        return np.full(rates.shape, float(start)) if start.ndim == 0 else start

    shares = np.full(rates.shape, 1 / rates.size) if share is None else np.array(share, dtype=np.float64)
    return Problem(lam=rates, target=wanted, share=shares, u=starts(u), v=starts(v), noise=noise)


def grid_problem(lams: Numbers, targets: Numbers, *, u: float = 1.0, v: float = 0.0, noise: float = 0.0) -> Problem:
    """A problem with one type per pair of an eigenvalue and a target, in equal shares."""
    pairs = np.array(np.meshgrid(lams, targets, indexing="ij"), dtype=np.float64).reshape(2, -1)
    return make_problem(pairs[0], pairs[1], u=u, v=v, noise=noise)


def standard_problem(*, noise: float = 0.0) -> Problem:
    """Twenty types (ours): every lambda of .2, .5, 1, 1.5, 1.8 with every beta* of -1, 0, .5, 1.5; u = 1, v = 0."""
    return grid_problem([0.2, 0.5, 1.0, 1.5, 1.8], [-1.0, 0.0, 0.5, 1.5], noise=noise)


def require_spectrum(lam: Floats, target: Floats) -> None:
    """Raises :class:`InvalidInput` unless both are (K,), finite, and lam is at least 0 and not 0 everywhere."""
    if lam.ndim != 1 or lam.size == 0:
        raise InvalidInput(f"lam: must be a sequence of eigenvalues, not of shape {lam.shape}")
    if target.shape != lam.shape:
        raise InvalidInput(f"target: has {target.size} values for {lam.size} eigenvalues")
    if not np.isfinite(lam).all() or not np.isfinite(target).all():
        raise InvalidInput("lam and target: must be finite")
    if not (lam >= 0).all() or not (lam > 0).any():
        raise InvalidInput("lam: eigenvalues must be at least 0, and at least one above 0")
