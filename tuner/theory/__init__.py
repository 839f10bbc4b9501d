"""The wind tunnel: SGD on diagonal linear networks, and theory that says before a training how its risk falls.

In reading order:

    __main__       the command: what theory says of a way of running SGD
    pictures       the risk as it falls, and what is left of it
    coverage       an OptimizerSpec as the limit sees it, and what it does not cover
    prediction     critical rate, plateau, rate and time to a goal, of one way of running SGD
    closure        the limit with Gaussian densities: fast, for moderate learning rates
    sde            the limit as stochastic differential equations
    pde            the limit as densities, whose equations densities solves
    sgd            SGD itself, many runs at a time
    steps          how SGD is run, and what of it is left in the limit
    trajectory     what all of them give: risk, curvature and norms over time
    stability      closed forms: critical learning rate, plateau, rate
    problem        what is trained: types of coordinates

Imports go down the list.  The closed forms are here; sgd, sde and coverage need torch, and are imported by their names.
"""

from tuner.theory.problem import Problem, grid_problem, make_problem, standard_problem
from tuner.theory.stability import (
    convergence_rate,
    critical_lr,
    critical_lr_of,
    effective_lr,
    final_size,
    frozen_critical_lr,
    linearised_critical_lr,
    noise_factor,
    plateau,
)

__all__ = [
    "Problem",
    "convergence_rate",
    "critical_lr",
    "critical_lr_of",
    "effective_lr",
    "final_size",
    "frozen_critical_lr",
    "grid_problem",
    "linearised_critical_lr",
    "make_problem",
    "noise_factor",
    "plateau",
    "standard_problem",
]
