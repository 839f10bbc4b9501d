"""Update rules: :class:`LPSGD`, :class:`Lion` and :class:`RandomScaling`, for any torch program."""

from tuner.optimizers.lion import Lion
from tuner.optimizers.lp_sgd import LPSGD, lp_direction
from tuner.optimizers.random_scaling import RandomScaling

__all__ = ["LPSGD", "Lion", "RandomScaling", "lp_direction"]
