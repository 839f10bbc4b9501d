"""Sharpness-aware minimization of SGD with momentum, by ``pytorch_optimizer``'s SAM.

g(w) is the mini-batch gradient and rho the radius::

    w' = w + rho g(w)/||g(w)||,   w <- SGD's step with g(w')

A step computes two gradients, and both are charged.  Source: Foret et al., ICLR 2021, https://arxiv.org/abs/2010.01412,
with the norm over all parameters together.
"""

from __future__ import annotations

import torch
from torch.optim.optimizer import Optimizer, ParamsT


def sam(
    parameters: ParamsT, lr: float, *, rho: float = 0.05, momentum: float = 0.9, weight_decay: float = 0.0
) -> Optimizer:
    """The optimizer; ``rho`` is above 0, ``momentum`` in [0, 1), ``weight_decay`` at least 0 and part of the gradient.

    Raises ModuleNotFoundError without the package ``pytorch_optimizer``.
    """
    from pytorch_optimizer import SAM

    optimizer: Optimizer = SAM(
        parameters, torch.optim.SGD, rho=rho, lr=lr, momentum=momentum, weight_decay=weight_decay
    )
    return optimizer
