"""Whether a momentum is below or above what damps SGD critically.

SGD with momentum, v <- mu v + g and x <- x - alpha v as in ``torch.optim.SGD``, is along an eigenvector of curvature
lambda a linear map whose multipliers are the roots of z^2 - (1 + mu - alpha lambda) z + mu, of discriminant

    (1 + mu - alpha lambda)^2 - 4 mu = ((1 - sqrt(mu))^2 - alpha lambda) ((1 + sqrt(mu))^2 - alpha lambda).

Both roots are sqrt(mu), which is critical damping, where alpha lambda = (1 - sqrt(mu))^2 (ours; Pasichnyk, 2026,
https://arxiv.org/abs/2603.28921 has the classes and mu = 1 - 2 sqrt(alpha), this at small alpha and lambda = 1).
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

Damping: TypeAlias = Literal["under", "critical", "over"]

DAMPING_CODES: dict[Damping, int] = {"under": -1, "critical": 0, "over": 1}
"""The classes as numbers, for metrics."""
CRITICAL_BAND = 0.05
"""Distance from 1 within which a damping ratio is critical: that of a curvature 10% off (ours)."""


def damping_ratio(lr: float, momentum: float, curvature: float) -> float | None:
    """(1 - sqrt(mu)) / sqrt(alpha lambda): 1 at critical damping, above 1 where over- and below 1 where underdamped.

    For the undamped buffer of ``torch.optim.SGD``, without Nesterov's step; ``curvature`` includes coupled weight
    decay.  Up to alpha lambda = (1 + sqrt(mu))^2 it is above 1 just where the discriminant is above 0, which 1 - mu
    over 2 sqrt(alpha lambda), the ratio of continuous time, is not.  Beyond, the roots are real again, but below 0:
    the iterate changes its sign at every step, and from 2 (1 + mu) on it does not converge.  The ratio is then below
    (1 - sqrt(mu)) / (1 + sqrt(mu)), and says underdamped, which every iterate that overshoots is.

    ``momentum`` is in [0, 1]; ValueError otherwise.  None where lr or curvature is not above 0 and finite: that
    is no oscillator.
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
