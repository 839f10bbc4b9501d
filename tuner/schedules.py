"""Learning rate, momentum and norm exponent as functions of the step.

Steps count from 0 to num_steps - 1.  The first argument of each function is a float or a tensor.  A float gives a
float; a tensor gives a tensor of the same shape, device and floating dtype, elementwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def critical_momentum(
    lr: Number,
    *,
    zeta: float = 1.0,
    form: Literal["linear", "square", "exponential"] = "linear",
    floor: float = 0.0,
    cap: float = 1.0,
) -> Number:
    """The momentum at which SGD with momentum is critically damped at its learning rate.

    With r = zeta sqrt(lr); the result is clipped to [floor, cap]::

        linear       1 - 2 r          zeta = 1: Pasichnyk, 2026, https://arxiv.org/abs/2603.28921
        square       (1 - r)^2        0 from r = 1 on; zeta = 1: exactly critical at curvature 1 (ours)
        exponential  exp(-2 r)        never 0 (ours)

    The damping ratio zeta (ours) also absorbs the square root of the curvature.  All three forms are for the buffer of
    ``torch.optim.SGD``, v = mu v + g.  In the averaging form m = mu m + (1 - mu) g the critical momentum of the same
    oscillator is about 1 - 4 lr.  There these formulas are a choice, not critical damping.

    ``lr`` is at least 0, ``zeta`` above 0 and finite, ``floor`` at most ``cap``; raises ValueError otherwise.  As lr
    goes to 0 the momentum goes to 1, which optimizers may refuse: pass a cap below 1.
    """
    if form not in _DAMPING:
        raise ValueError(f"form = {form!r}: must be one of {', '.join(_DAMPING)}")
    if not _within(lr, 0, math.inf):
        raise ValueError(f"lr = {lr}: must be at least 0")
    if not 0 < zeta < math.inf:
        raise ValueError(f"zeta = {zeta}: must be above 0 and finite")
    if not floor <= cap:
        raise ValueError(f"floor = {floor}: must be at most cap = {cap}")
    momentum: Number = _DAMPING[form](zeta * lr**0.5)
    return _clip(momentum, floor, cap)


def norm_exponent(
    step: Number,
    num_steps: int,
    *,
    p_max: float,
    p_end: float = 2.0,
    shape: Literal["constant", "cosine", "linear", "step", "exponential"] = "cosine",
    hold: float = 0.0,
    variable: Literal["p", "alpha"] = "p",
) -> Number:
    """The p of l_p-norm descent: exactly p_max at the first step, exactly p_end at the last, and it never rises.

    With x = step/(num_steps - 1) and t = (x - hold)/(1 - hold), p stays at p_max until t = 0.  From there on a quantity
    v goes from v_max, its value at p_max, to v_end, its value at p_end::

        cosine       v = v_max + (v_end - v_max) (1 - cos(pi t))/2
        linear       v = v_max + (v_end - v_max) t
        step         v = v_max before t = 1/2, v_end from there on
        exponential  v = v_max (v_end/v_max)^t
        constant     v = v_max at every step, the last one too

    ``variable`` chooses v: p, or alpha = 1/(p - 1), the power of the gradient in the step.  No finite path in p leads
    down from p_max = inf.  There v is 1 + alpha, the exponent of the dual norm, whatever ``variable`` is.  This differs
    from v = alpha for ``exponential`` only.
    The cosine in p with hold = 0 is from Xu and Yang, 2026, https://arxiv.org/abs/2606.02078; their epoch s is step
    s - 1 here.  The rest is ours.  A run of one step has p_max.

    ``step`` is in [0, num_steps - 1], ``num_steps`` at least 1, 2 <= p_end <= p_max <= inf with p_end finite unless
    both are infinite, ``hold`` in [0, 1); raises ValueError otherwise.
    """
    _require_step(step, num_steps)
    if shape not in _NORM_PATHS:
        raise ValueError(f"shape = {shape!r}: must be one of {', '.join(_NORM_PATHS)}")
    if variable not in ("p", "alpha"):
        raise ValueError(f"variable = {variable!r}: must be one of p, alpha")
    if not p_max >= 2:
        raise ValueError(f"p_max = {p_max}: must be in [2, inf]")
    if not 2 <= p_end <= p_max:
        raise ValueError(f"p_end = {p_end}: must be in [2, p_max = {p_max}]")
    if not 0 <= hold < 1:
        raise ValueError(f"hold = {hold}: must be in [0, 1)")
    progress = _clip((step / max(num_steps - 1, 1) - hold) / (1 - hold), 0.0, 1.0)
    if shape == "constant":
        progress = 0 * progress
    path: Callable[[Number, float, float], Number] = _NORM_PATHS[shape]
    if variable == "p" and math.isfinite(p_max):
        p = path(progress, p_max, p_end)
    else:
        shift = 1.0 if math.isinf(p_max) else 0.0
        alpha = path(progress, shift + 1 / (p_max - 1), shift + 1 / (p_end - 1)) - shift
        # At alpha = 0 a float would raise; the inverse of the smallest float is inf.
        p = 1 + 1 / _clip(alpha, math.ulp(0.0), 1.0)
    p = _where_below(progress, 1.0, _clip(p, p_end, p_max), float(p_end))
    return _where_below(-progress, 0.0, p, float(p_max))


def learning_rate(
    step: Number,
    num_steps: int,
    *,
    peak: float,
    schedule: Literal["constant", "cosine", "linear", "step", "one-cycle"] = "cosine",
    warmup: float = 0.0,
    end: float = 0.0,
) -> Number:
    """The learning rate: a linear rise over the first W steps, exactly ``peak`` at step W, then a fall.

    W is warmup times num_steps, rounded, and at most num_steps - 1.  With s = step and t = (s - W)/(num_steps - W),
    which is below 1 at the last step, so that step still moves the weights if ``end`` is 0::

        rise       peak (s + 1)/(W + 1)                                     one-cycle: peak (1/25 + (24/25) s/W)
        constant   peak
        cosine     peak (1 - (1 - end) (1 - cos(pi t))/2)                   without restarts; arXiv 1608.03983
        linear     peak (1 - (1 - end) t)
        step       peak, from t = 1/2 on peak/10, from t = 3/4 on peak/100  He et al., section 4.2, arXiv 1512.03385
        one-cycle  as cosine                                                Smith and Topin, arXiv 1708.07120

    ``one-cycle`` rises over ``warmup`` of the run, or over .3 of it if ``warmup`` is 0.  These fractions, the 1/25
    and the cosine after a linear rise are ours.  :mod:`tuner.optimizers.hyperparameters` has the cycle of the momentum.
    ``constant`` and ``step`` do not use ``end``.

    ``step`` is in [0, num_steps - 1], ``num_steps`` at least 1, ``peak`` at least 0 and finite, ``warmup`` in [0, 1),
    ``end``, a fraction of the peak, in [0, 1]; raises ValueError otherwise.
    """
    _require_step(step, num_steps)
    if schedule not in _LR_PATHS:
        raise ValueError(f"schedule = {schedule!r}: must be one of {', '.join(_LR_PATHS)}")
    if not 0 <= peak < math.inf:
        raise ValueError(f"peak = {peak}: must be at least 0 and finite")
    if not 0 <= warmup < 1:
        raise ValueError(f"warmup = {warmup}: must be in [0, 1)")
    if not 0 <= end <= 1:
        raise ValueError(f"end = {end}: must be in [0, 1]")
    one_cycle = schedule == "one-cycle"
    rising = min(round((0.3 if one_cycle and warmup == 0 else warmup) * num_steps), num_steps - 1)
    first = 1 / 25 if one_cycle else 1 / (rising + 1)
    rise = first + (1 - first) * step / max(rising, 1)
    fall: Number = _LR_PATHS[schedule](_clip((step - rising) / (num_steps - rising), 0.0, 1.0), 1.0, end)
    return peak * _where_below(step, rising, rise, fall)


def _constant(t: Number, first: float, last: float) -> Number:
    return first + 0 * t


def _cosine(t: Number, first: float, last: float) -> Number:
    return first + (last - first) * (1 - _cos(math.pi * t)) / 2


def _linear(t: Number, first: float, last: float) -> Number:
    return first + (last - first) * t


def _geometric(t: Number, first: float, last: float) -> Number:
    path: Number = first * (last / first) ** t
    return path


def _halves(t: Number, first: float, last: float) -> Number:
    return _where_below(t, 0.5, first, last)


def _tenths(t: Number, first: float, last: float) -> Number:
    return _where_below(t, 0.5, first, _where_below(t, 0.75, first / 10, first / 100))


_DAMPING: dict[str, Callable[[Any], Any]] = {
    "linear": lambda r: 1 - 2 * r,
    "square": lambda r: _clip(1 - r, 0.0, 1.0) ** 2,
    "exponential": lambda r: _exp(-2 * r),
}

_NORM_PATHS: dict[str, Callable[[Any, float, float], Any]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "step": _halves,
    "exponential": _geometric,
}

_LR_PATHS: dict[str, Callable[[Any, float, float], Any]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "step": _tenths,
    "one-cycle": _cosine,
}


def _cos(x: Number) -> Number:
    return torch.cos(x) if isinstance(x, Tensor) else math.cos(x)


def _exp(x: Number) -> Number:
    return torch.exp(x) if isinstance(x, Tensor) else math.exp(x)


def _clip(x: Number, low: float, high: float) -> Number:
    return torch.clamp(x, low, high) if isinstance(x, Tensor) else min(max(x, low), high)


def _where_below(x: Number, bound: float, then: Number | float, otherwise: Number | float) -> Number:
    if isinstance(x, Tensor):
        # Adding 0 x gives a plain number the dtype and device of x.
        return torch.where(x < bound, then + 0 * x, otherwise + 0 * x)
    return then if x < bound else otherwise


def _within(x: float | Tensor, low: float, high: float) -> bool:
    return bool(((x >= low) & (x <= high)).all()) if isinstance(x, Tensor) else low <= x <= high


def _require_step(step: float | Tensor, num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: must be at least 1")
    if not _within(step, 0, num_steps - 1):
        raise ValueError(f"step = {step}: must be in [0, num_steps - 1 = {num_steps - 1}]")
