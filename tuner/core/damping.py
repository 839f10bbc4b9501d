"""Whether a momentum damps SGD less than critically, critically, or more.

SGD with momentum is v <- mu v + g and x <- x - alpha v, as in ``torch.optim.SGD``.  Along an eigenvector of curvature
lambda it is a linear map.  The map's multipliers are the roots of z^2 - (1 + mu - alpha lambda) z + mu, whose
discriminant is

    (1 + mu - alpha lambda)^2 - 4 mu = ((1 - sqrt(mu))^2 - alpha lambda) ((1 + sqrt(mu))^2 - alpha lambda).

Damping is critical at alpha lambda = (1 - sqrt(mu))^2, where both roots are sqrt(mu) (ours; Pasichnyk, 2026,
https://arxiv.org/abs/2603.28921 has the classes and mu = 1 - 2 sqrt(alpha), which is this at small alpha and
lambda = 1).
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

Damping: TypeAlias = Literal["under", "critical", "over"]

DAMPING_CODES: dict[Damping, int] = {"under": -1, "critical": 0, "over": 1}
"""The classes as numbers, for metrics."""
CRITICAL_BAND = 0.05
"""Largest distance from 1 at which a damping ratio counts as critical, that of a curvature 10% off (ours)."""


def damping_ratio(lr: float, momentum: float, curvature: float) -> float | None:
    """(1 - sqrt(mu)) / sqrt(alpha lambda): 1 if critically damped, above 1 if overdamped, below 1 if underdamped.

    It holds for the buffer of ``torch.optim.SGD`` with dampening 0 and without Nesterov's step; ``curvature`` includes
    coupled weight decay.  Up to alpha lambda = (1 + sqrt(mu))^2 the ratio is above 1 exactly where the discriminant is
    above 0.  The ratio of continuous time, (1 - mu) / (2 sqrt(alpha lambda)), is not.  Beyond that value the roots are
    real again, but negative: the iterate changes its sign at every step, and from alpha lambda = 2 (1 + mu) on it does
    not converge.  The ratio is then below (1 - sqrt(mu)) / (1 + sqrt(mu)).  This counts as underdamped, as does every
    iterate that overshoots.

    ``momentum`` must be in [0, 1]; raises ValueError otherwise.  Returns None if lr or curvature is not positive and
    finite, because there is no oscillator then.
    """
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum = {momentum}: must be in [0, 1]")
    if not (0 < lr < math.inf and 0 < curvature < math.inf):
        return None
    return (1 - math.sqrt(momentum)) / math.sqrt(lr * curvature)


def damping_class(ratio: float) -> Damping:
    """The class of a damping ratio, ``critical`` within :data:`CRITICAL_BAND` of 1."""
    if abs(ratio - 1) <= CRITICAL_BAND:
        return "critical"
    return "under" if ratio < 1 else "over"
