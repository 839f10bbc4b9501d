"""The learning rate that is predicted to be too large for a training, from the curvature at its first weights.

The batch equation of a model that is linear in its weights (:func:`tuner.theory.linearised_critical_lr`)::

    sum_i h_i (1 + mu)/((1 - mu)(2 (1 + mu) - h_i)) = B/F,   h_i = eta kappa_i

===========  ==================================================================================================
symbol       what is put there
===========  ==================================================================================================
B            the batch size
eta, mu      learning rate and momentum of the step whose effective learning rate eta/(1 - mu) is the schedule's
             largest (:func:`tuner.optimizers.hyperparameters.longest_step`)
F            1 + Var[s] (1 - mu)/(1 + mu), s the random factor of that step, or what stands there for Nesterov's
             (:func:`tuner.theory.noise_factor`)
kappa        top, once, and (trace - top)/(n - 1), n - 1 times: the largest eigenvalue of the Hessian, and the rest
             of its trace, n times the mean eigenvalue, spread evenly over the other n - 1
===========  ==================================================================================================

The prediction is the peak of the schedule at which that step has the critical rate, other settings as they are::

    critical lr.peak = eta_c lr.peak / eta

so that lr.peak over it is eta/eta_c.  Where momentum follows the learning rate it is the one at the trial's own peak:
the ratio says on which side of the limit the trial is, and not exactly how far from it.

The equation is ours, checked against simulation where it is exact; that it says anything of other networks is what a
search measures.  What it leaves out: a Hessian of the first weights alone, which moves within a few steps; its negative
eigenvalues, so that where they outweigh the others and the rest of the trace is not above 0 only ``top`` stands, and
with it the limit of large batches; weight decay; rescaled buffers.  Nesterov's step has terms of its own, ours too.  A
random factor multiplies the mean gradient as well as its noise, which by itself sets a limit, that of the module
:mod:`tuner.optimizers.random_scaling`, to the mean square and not to a path.  Backward order composes the same random
maps the other way round, which have the same law as long as the knobs stand still.
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
"""Residual to which ``top`` is estimated, as a part of it: the error is about the square."""
NUM_REMEMBERED = 16
"""Estimates that a process keeps: trials of one number share their first weights over all variants."""

_REMEMBERED: OrderedDict[Hashable, Curvature | None] = OrderedDict()


def cached_prediction(
    spec: TrialSpec,
    estimate: Callable[[float], Curvature | None],
    num_parameters: int,
    num_steps: int,
    place: Hashable,
) -> float | None:
    """The prediction for a training, from what ``estimate`` says of the curvature at its first weights to a tolerance.

    None as :func:`predict_critical_lr` says, and where the curvature is not finite.  ``estimate`` is called only where
    this process remembers none of the same first weights: they follow from workload, seed and precision, and what is
    computed from them from the ``place`` of the computation too.
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
    """Whether the equation is of such steps: SGD's, of any momentum and order, and LPSGD's where p is always 2."""
    return optimizer.rule == "sgd" or (optimizer.rule == "lpsgd" and optimizer.norm.p_max == 2)


def predict_critical_lr(
    optimizer: OptimizerSpec, curvature: Curvature, num_parameters: int, batch_size: int, num_steps: int
) -> float | None:
    """The ``lr.peak``, above 0, from which on a training of ``num_steps`` iterates is predicted to diverge.

    None for an optimizer that is not covered and where no eigenvalue is above 0.  ``hybrid`` with a switch that waits
    for an accuracy is taken never to switch.  The three counts are at least 1; InvalidInput otherwise.
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
        critical /= 1 - momentum  # its buffer is an average of gradients, SGD's is their sum
    return critical * optimizer.lr.peak / lr


def spectrum(curvature: Curvature, num_parameters: int) -> tuple[list[float], list[float]]:
    """Eigenvalues and how often each is there: all that trace and top say.  InvalidInput is the equation's."""
    rest = curvature.mean * num_parameters - curvature.top
    if num_parameters == 1 or rest <= 0:
        return [curvature.top], [1.0]
    return [curvature.top, rest / (num_parameters - 1)], [1.0, num_parameters - 1.0]
