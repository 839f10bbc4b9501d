"""SGD on diagonal linear networks: simulation, and theory that predicts before a training how its risk falls.

In reading order:

    __main__       the command that prints the predictions for given settings of SGD
    pictures       plots of the risk over time and of the final risk over the learning rate
    coverage       an OptimizerSpec as a setting of the limit, and the specs that the limit does not cover
    prediction     critical learning rate, plateau, rate and time to a goal for given settings of SGD
    closure        the limit with Gaussian densities: fast, for moderate learning rates
    sde            the limit as stochastic differential equations
    pde            the limit as partial differential equations for densities
    densities      the numerical solution of these equations
    sgd            SGD itself, many runs at a time
    steps          the settings of SGD, and the settings that remain in the limit
    trajectory     the result of every simulation and solver: risk, curvature and norms over time
    stability      closed forms: critical learning rate, plateau, rate
    problem        the network and its data: types of coordinates

A module imports only from modules below it in the list.  This package exports the closed forms.  sgd, sde and coverage
need torch; import them by their names.
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
