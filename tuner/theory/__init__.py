"""The wind tunnel: SGD on diagonal linear networks, and theory that says before a training how its risk falls.

In reading order:

    problem        what is trained: types of coordinates
    stability      closed forms: critical learning rate, plateau, rate
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
