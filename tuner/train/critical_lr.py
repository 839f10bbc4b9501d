"""Predicts the learning rate from which on a training diverges, from the curvature at its first weights.

It solves the batch equation of a model that is linear in its weights (:func:`tuner.theory.linearised_critical_lr`)::

    sum_i h_i (1 + mu)/((1 - mu)(2 (1 + mu) - h_i)) = B/F,   h_i = eta kappa_i

===========  ==================================================================================================
symbol       value
===========  ==================================================================================================
B            the batch size
eta, mu      learning rate and momentum of the step whose effective learning rate eta/(1 - mu) is the schedule's
             largest (:func:`tuner.optimizers.hyperparameters.longest_step`)
F            1 + Var[s] (1 - mu)/(1 + mu) with the random factor s of that step; Nesterov's step has another
             formula (:func:`tuner.theory.noise_factor`)
kappa        top, once, and (trace - top)/(n - 1), n - 1 times: the largest eigenvalue of the Hessian, and the rest
             of its trace, n times the mean eigenvalue, spread evenly over the other n - 1
===========  ==================================================================================================

Let eta_c be the eta that solves the equation.  The prediction is the peak of the schedule at which that step has the
learning rate eta_c, with all other settings unchanged::

    critical lr.peak = eta_c lr.peak / eta

so that the ratio of lr.peak to the critical one is eta/eta_c.  If momentum follows the learning rate, mu is the
momentum at the trial's own peak.  The ratio then tells on which side of the limit the trial is, but not exactly how far
from it.

The equation and its form for Nesterov's step are ours.  They are checked against simulation where they are exact.  A
search measures whether they predict anything for other networks.  The prediction leaves out:

- changes of the Hessian, which is that of the first weights and moves within a few steps;
- negative eigenvalues: if they make the rest of the trace 0 or less, only ``top`` is used, and the prediction is the
  limit of large batches;
- weight decay and rescaled buffers.

A random factor multiplies the mean gradient as well as its noise.  The factor on the mean gradient sets a limit of its
own, for the mean square and not for a single path (:mod:`tuner.optimizers.random_scaling`).  The prediction leaves this
limit out too.  Backward order composes the same random maps in reverse.  Their law is the same as long as the
hyperparameters are constant.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

from tuner.core.optimizer_spec import OptimizerSpec, ScalingSpec
from tuner.core.trial_spec import TrialSpec
from tuner.optimizers.hyperparameters import longest_step, switch_step
from tuner.theory import linearised_critical_lr, noise_factor
from tuner.train.curvature import Curvature

TOLERANCE = 0.1
"""Residual to which ``top`` is estimated, relative to ``top``; the relative error of ``top`` is about its square."""
NUM_REMEMBERED = 16
"""Estimates that a process keeps: trials of different variants with the same number share their first weights."""

_REMEMBERED: OrderedDict[Hashable, Curvature | None] = OrderedDict()


def cached_prediction(
    spec: TrialSpec,
    estimate: Callable[[float], Curvature | None],
    num_parameters: int,
    num_steps: int,
    place: Hashable,
) -> float | None:
    """:func:`predict_critical_lr` for a training; the curvature at its first weights is remembered.

    ``estimate`` takes a tolerance and returns the curvature, None where it is not finite.  It is called only if this
    process remembers no curvature for the same workload, seed and precision, which determine the first weights, and the
    same ``place`` of the computation, on which rounding depends.

    Returns None where :func:`predict_critical_lr` does, and where the curvature is not finite.
    """
    if not is_covered(spec.optimizer):
        return None
    key = spec.workload, spec.seed, spec.precision, place
    if key not in _REMEMBERED:
        _REMEMBERED[key] = estimate(TOLERANCE)
        if len(_REMEMBERED) > NUM_REMEMBERED:
            _REMEMBERED.popitem(last=False)
    curvature, batch_size = _REMEMBERED[key], spec.workload.batch_size
    if curvature is None:
        return None
    return predict_critical_lr(spec.optimizer, curvature, num_parameters, batch_size, num_steps)


def is_covered(optimizer: OptimizerSpec) -> bool:
    """Whether the equation describes the optimizer: SGD of any momentum and order, and LPSGD if p is always 2."""
    return optimizer.rule == "sgd" or (optimizer.rule == "lpsgd" and optimizer.norm.p_max == 2)


def predict_critical_lr(
    optimizer: OptimizerSpec, curvature: Curvature, num_parameters: int, batch_size: int, num_steps: int
) -> float | None:
    """The ``lr.peak``, above 0, from which on a training of ``num_steps`` iterates is predicted to diverge.

    Returns None for an optimizer that is not covered, and if ``curvature.top`` is not above 0.  A ``hybrid`` whose
    switch waits for an accuracy is assumed never to switch.  Raises InvalidInput unless ``num_parameters``,
    ``batch_size`` and ``num_steps`` are at least 1.
    """
    if not is_covered(optimizer) or not curvature.top > 0:
        return None
    step, lr, momentum = longest_step(optimizer, num_steps, switch_step(optimizer, num_steps, ()))
    scaling = optimizer.scaling if step < round(optimizer.scaling.active * num_steps) else ScalingSpec()
    kappa, counts = spectrum(curvature, num_parameters)
    nesterov = optimizer.momentum.nesterov
    critical = linearised_critical_lr(
        kappa,
        counts=counts,
        batch=batch_size,
        momentum=momentum,
        factor=noise_factor(law=scaling.law, shape=scaling.shape, momentum=momentum, nesterov=nesterov),
        nesterov=nesterov,
    )
    if optimizer.rule == "lpsgd":
        critical /= 1 - momentum  # its buffer averages gradients, and SGD's sums them
    return critical * optimizer.lr.peak / lr


def spectrum(curvature: Curvature, num_parameters: int) -> tuple[list[float], list[float]]:
    """The eigenvalues kappa of the module's docstring, and how often each occurs."""
    rest = curvature.mean * num_parameters - curvature.top
    if num_parameters == 1 or rest <= 0:
        return [curvature.top], [1.0]
    return [curvature.top, rest / (num_parameters - 1)], [1.0, num_parameters - 1.0]
