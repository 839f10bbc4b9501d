"""The result of every simulation and every solver: risk, curvature and norms as functions of time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import InvalidInput
from tuner.theory.problem import Floats, Numbers


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trajectory:
    """R runs at T times; R is 1 if nothing is random.  All fields but the times are means over coordinates, (R, T).

    A run that diverged has the risk inf from then on; its other numbers are meaningless.
    """

    times: Floats
    """Times in steps/d, (T,), at least 0 and increasing."""
    risk: Floats
    """Risk P = avg lambda delta^2/2 + sigma^2/2; inf for a run that has diverged."""
    curvature: Floats
    """Trace of the Hessian of P in (u, v): avg lambda S, S = u^2 + v^2."""
    norm: Floats
    """Squared norm of the weights: avg S, S = u^2 + v^2."""
    distance: Floats
    """Squared distance to the target: avg delta^2, delta = beta - beta*."""

    @property
    def diverged(self) -> NDArray[np.bool_]:
        """Whether a run diverged, (R,)."""
        return np.asarray(~np.isfinite(self.risk).all(axis=1))

    @property
    def median(self) -> Floats:
        """The median of the risk over runs, (T,); diverged runs count as the largest."""
        return np.median(self.risk, axis=0)

    def time_to(self, risk: float) -> Floats:
        """The first time at which each run's risk is at most ``risk``, (R,); log-linear between times, inf if never."""
        found = np.full(len(self.risk), math.inf)
        for run, curve in enumerate(self.risk):
            below = np.flatnonzero(curve <= risk)
            if not len(below):
                continue
            after = int(below[0])
            found[run] = self.times[after]
            if after and np.isfinite(curve[after - 1]) and curve[after] > 0:
                heights = np.log(curve[after - 1 : after + 1])
                back = (math.log(risk) - heights[1]) / (heights[0] - heights[1])
                found[run] -= back * (self.times[after] - self.times[after - 1])
        return found

    def followed_by(self, later: Trajectory) -> Trajectory:
        """This trajectory and a ``later`` one of the same number of runs, joined in time."""
        names = ("risk", "curvature", "norm", "distance")
        joined = {name: np.concatenate([getattr(self, name), getattr(later, name)], axis=1) for name in names}
        return Trajectory(times=np.concatenate([self.times, later.times]), **joined)

    def gap_to(self, other: Trajectory) -> Floats:
        """Mean over time of |P - P'|/P' for each run's P, where P' is ``other``, one run at the same times, (R,)."""
        return np.asarray(np.abs(self.risk / other.risk - 1).mean(axis=1))


def from_rows(times: Floats, rows: Iterable[NDArray[np.floating]]) -> Trajectory:
    """The trajectory from one row (4, R) per time, of risk, curvature, norm and distance."""
    table = np.stack(list(rows), axis=-1).astype(np.float64)
    risk = np.where(np.isfinite(table[0]), table[0], np.inf)
    return Trajectory(times=times, risk=risk, curvature=table[1], norm=table[2], distance=table[3])


def require_times(times: Numbers) -> Floats:
    """The times as an array.  Raises :class:`InvalidInput` unless they are finite, at least 0 and increasing."""
    checked = np.array(times, dtype=np.float64)
    if checked.ndim != 1 or not checked.size or not np.isfinite(checked).all():
        raise InvalidInput("times: must be a sequence of finite numbers")
    if checked[0] < 0 or (np.diff(checked) <= 0).any():
        raise InvalidInput("times: must rise, from 0 or later")
    return checked
