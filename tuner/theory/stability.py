"""Closed forms: the critical learning rate, the plateau of the risk above it, and the rate of the fall below it.

Symbols are those of :mod:`tuner.theory.problem`.  gamma is the learning rate, B the batch size, mu the momentum, s the
random factor of a step, of mean 1, and avg the mean over coordinates::

    nu = E[s^2]/B                      noise factor, time in steps/d
    gamma_e = gamma/(1 - mu)           effective learning rate under heavy-ball momentum

    gamma_c = 1/(nu avg lambda |beta*|)                                            critical, whatever the start
    gamma_f = 2/(nu avg lambda S),  S = u^2 + v^2                                  local, S frozen
    2 P = sigma^2 + avg lambda f(beta*, gamma nu P)                                plateau, the largest root
        f(b, x) = 2 x |b| - x^2 where |b| > x, else b^2
    avg[nu gamma^2 lambda^2 S^2/(2 gamma lambda S - rho)] = 1                      rate rho of P ~ exp(-rho t)
    sum_i h_i (1 + mu)/((1 - mu)(2 (1 + mu) - h_i)) = B/E[s^2],  h = eta kappa     critical eta of a linearised model
        with Nesterov's step  h_i N_i/((1 - mu (1 - h_i))(2 (1 + mu) - (1 + 2 mu) h_i)),
        N_i = (1 + 2 mu + 2 mu^2)(1 + mu (1 - h_i)) - 2 mu (1 + mu)^2 (1 - h_i)

With momentum, the factor of a step also multiplies the rest of earlier gradients.  So a gradient moves the weights by
gamma sum_k mu^k s_k, whose square has the mean gamma_e^2 (1 + Var[s] (1 - mu)/(1 + mu)).  The bracket then takes the
place of E[s^2].  Nesterov's step weights a gradient by 1 + mu, mu^2, mu^3, ..., which multiplies Var[s] in the bracket
by 1 + 2 mu - 2 mu^3.

All formulas are ours and checked against simulation.  That SGD on diagonal linear networks has such a limit is shown by
Garcia Malaxechebarria, Paquette, Fazel and Drusvyatskiy, 2026, https://arxiv.org/abs/2605.17177.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tuner.core.errors import InvalidInput
from tuner.core.optimizer_spec import Law
from tuner.theory.problem import Floats, Numbers, Problem, make_problem, require_spectrum


def critical_lr(lam: Numbers, target: Numbers, *, nu: float = 1.0) -> float:
    """gamma_c, above which the risk no longer goes to 0; inf if lambda |beta*| is 0 everywhere.

    ``lam`` and ``target`` have one value per type, in equal shares; ``nu`` is above 0 and finite.  Raises
    :class:`InvalidInput` otherwise.
    """
    return critical_lr_of(make_problem(lam, target), nu=nu)


def critical_lr_of(problem: Problem, *, nu: float = 1.0) -> float:
    """gamma_c of a problem: :func:`critical_lr` with the shares of its types."""
    _require_noise_factor(nu)
    strength = nu * float(problem.share @ (problem.lam * np.abs(problem.target)))
    return 1 / strength if strength > 0 else math.inf


def frozen_critical_lr(problem: Problem, size: Floats, *, nu: float = 1.0) -> float:
    """gamma_f for fixed ``size``, S of each type (K,): above gamma_f the risk rises; inf if lambda S is 0."""
    _require_noise_factor(nu)
    strength = nu * float(problem.share @ (problem.lam * size))
    return 2 / strength if strength > 0 else math.inf


def plateau(problem: Problem, lr: float, *, nu: float = 1.0) -> float:
    """The final risk: 0 up to the critical rate if the labels have no noise.

    ``lr`` is the effective learning rate gamma_e, above 0; ``nu`` is above 0.  Raises :class:`InvalidInput` otherwise.
    Runs that do not diverge end at the plateau.  From the standard start, the risk of the limit explodes first from
    about 1.8 times the critical rate on.  At a finite d, single runs diverge below that.
    """
    _require_lr(lr)
    _require_noise_factor(nu)
    sizes, strength = np.abs(problem.target), lr * nu

    def excess(risk: float) -> float:
        reach = np.minimum(strength * risk, sizes)
        return problem.noise**2 + float(problem.share @ (problem.lam * (2 * reach * sizes - reach**2))) - 2 * risk

    largest = problem.risk(np.zeros_like(sizes))  # the plateau if the noise holds all weights at 0
    # excess is concave with excess(0) >= 0, so it has at most one root above 0, where it falls.
    if problem.noise == 0 and lr <= critical_lr_of(problem, nu=nu):
        return 0.0
    lowest = largest
    while excess(lowest) <= 0:
        lowest /= 2
        if lowest < 1e-300:  # at the critical rate, but for rounding
            return 0.0
    return largest if lowest == largest else _root(excess, lowest, 2 * lowest)


def convergence_rate(problem: Problem, size: Floats, lr: float, *, nu: float = 1.0) -> float:
    """rho of P ~ exp(-rho t) at late times, when ``size``, S of each type (K,), no longer moves.

    ``lr`` is gamma_e.  At the end q = u^2 - v^2 is constant and S = sqrt(q^2 + 4 beta*^2) (:func:`final_size`).  Types
    with lambda S = 0 do not contribute.  For one type, rho = 2 gamma lambda S - nu (gamma lambda S)^2, which is within
    18% of the true rate from early on.  With several types, rho holds once only the slowest is left; before that the
    risk falls faster.

    Raises :class:`InvalidInput` if ``lr`` is not below the rate at which the risk rises, and if the labels have noise.
    """
    _require_lr(lr)
    if problem.noise > 0:
        raise InvalidInput(f"noise = {problem.noise}: with noise in the labels the risk stays at its plateau")
    limit = frozen_critical_lr(problem, size, nu=nu)
    if lr >= limit:
        raise InvalidInput(f"lr = {lr:g}: the risk does not fall from {limit:.4g} on")
    moves = problem.lam * size > 0
    share, drift = problem.share[moves], lr * (problem.lam * size)[moves]

    def excess(rho: float) -> float:
        return float(share @ (nu * drift**2 / (2 * drift - rho))) - 1

    slowest = 2 * float(drift.min()) * (1 - 1e-12)
    # With very little noise, rounding cannot tell the root from the drift of the slowest type.
    return slowest if excess(slowest) <= 0 else _root(excess, 0.0, slowest)


def final_size(target: Floats, q: Floats) -> Floats:
    """S = u^2 + v^2 = sqrt(q^2 + 4 beta*^2) for u v = beta* and u^2 - v^2 = q."""
    return np.hypot(q, 2 * target)


def effective_lr(lr: float, momentum: float = 0.0) -> float:
    """gamma_e = gamma/(1 - mu): SGD without momentum moves alike with it, if d is much larger than 1/(1 - mu).

    ``lr`` is gamma, above 0 and finite; ``momentum`` is mu, in [0, 1).  Raises :class:`InvalidInput` otherwise.
    """
    _require_lr(lr)
    _require_momentum(momentum)
    return lr / (1 - momentum)


def noise_factor(
    batch: float = 1, *, law: Law = "none", shape: float = 2.0, momentum: float = 0.0, nesterov: bool = False
) -> float:
    """nu = (1 + Var[s] (1 - mu)/(1 + mu))/B; with ``nesterov``, Var[s] is multiplied by 1 + 2 mu - 2 mu^3.

    ``batch`` is B, at least 1; ``momentum`` is mu, in [0, 1).  ``law`` and ``shape`` are those of
    :class:`tuner.optimizers.RandomScaling`.  Raises :class:`InvalidInput` for values out of range.
    """
    if not batch >= 1:
        raise InvalidInput(f"batch = {batch}: must be at least 1")
    if not 0 < shape < math.inf:
        raise InvalidInput(f"shape = {shape}: must be above 0 and finite")
    _require_momentum(momentum)
    variance = {"none": 0.0, "exponential": 1.0, "uniform": 1 / 3, "gamma": 1 / shape}[law]
    newest = 1 + 2 * momentum - 2 * momentum**3 if nesterov else 1.0
    return (1 + variance * newest * (1 - momentum) / (1 + momentum)) / batch


def linearised_critical_lr(
    kappa: Numbers,
    *,
    batch: float,
    momentum: float = 0.0,
    factor: float = 1.0,
    counts: Numbers | None = None,
    nesterov: bool = False,
) -> float:
    """The critical learning rate of a model that is linear in its weights, with batches of any size and momentum.

    ``kappa``, (n,), are the eigenvalues of its Hessian, at least 0 and at least one above 0; each occurs ``counts``
    times.  ``factor`` is E[s^2], or what takes its place under momentum, at least 1.

    For small batches the result is about 2 B (1 - mu)/(E[s^2] sum kappa).  For infinite batches (``batch = math.inf``)
    it is 2 (1 + mu)/max kappa, with ``nesterov`` 1/(1 + 2 mu) of that.  Each term of the equation is kappa^2 times the
    variance of a coordinate whose gradients have noise of variance 1.

    The equation leaves out the effect of ``factor`` on the mean gradient and, at small batches, its square over B: h is
    taken as small.  So the result is too high.  Beside the exact recursion of second moments on Gaussian inputs, at
    B = 1 to 4, it is too high by 2% for 60 equal eigenvalues, by 7% for 20, and by 21% if one is five times as large.
    With Exp(1) factors it is too high by 6 to 31%, and with both it is twice as large.  At B = 1000 it is too high by
    2%.

    Raises :class:`InvalidInput` for values out of range.
    """
    eigenvalues = np.array(kappa, dtype=np.float64)
    require_spectrum(eigenvalues, eigenvalues)
    weights = np.ones_like(eigenvalues) if counts is None else np.array(counts, dtype=np.float64)
    if weights.shape != eigenvalues.shape or not (weights >= 0).all():
        raise InvalidInput("counts: must be at least 0, one for each eigenvalue")
    if not batch >= 1:
        raise InvalidInput(f"batch = {batch}: must be at least 1")
    if not factor >= 1:
        raise InvalidInput(f"factor = {factor}: must be at least 1, the mean square of a factor of mean 1")
    _require_momentum(momentum)
    reach = 1 + 2 * momentum if nesterov else 1.0
    stable = 2 * (1 + momentum) / (reach * float(eigenvalues[weights > 0].max()))
    if math.isinf(batch):
        return stable

    def excess(lr: float) -> float:
        h = lr * eigenvalues
        memory, steps = 1 - momentum + 0 * h, 1 + momentum + 0 * h
        if nesterov:
            memory = 1 - momentum * (1 - h)
            steps = (reach + 2 * momentum**2) * (1 + momentum * (1 - h)) - 2 * momentum * (1 + momentum) ** 2 * (1 - h)
        return float(weights @ (h * steps / (memory * (2 * (1 + momentum) - reach * h)))) - batch / factor

    highest = stable * (1 - 1e-12)
    return stable if excess(highest) <= 0 else _root(excess, 0.0, highest)


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import brentq  # slow to import

    return float(brentq(function, low, high, xtol=1e-300, rtol=1e-12))


def _require_lr(lr: float) -> None:
    if not 0 < lr < math.inf:
        raise InvalidInput(f"lr = {lr}: must be above 0 and finite")


def _require_momentum(momentum: float) -> None:
    if not 0 <= momentum < 1:
        raise InvalidInput(f"momentum = {momentum}: must be in [0, 1); above, no learning rate is stable")


def _require_noise_factor(nu: float) -> None:
    if not 0 < nu < math.inf:
        raise InvalidInput(f"nu = {nu}: must be above 0 and finite; without gradient noise no rate is critical")
