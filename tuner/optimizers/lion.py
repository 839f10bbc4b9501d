"""Lion: steps along the sign of an average of gradients; one weight makes the step, another updates the average.

One step, elementwise, with the gradient g, the parameters theta and the average m (0 at the start, no bias
correction)::

    c     =  beta_1 m + (1 - beta_1) g
    theta <- (1 - lr wd) theta - lr sign(c)     decoupled weight decay
    m     <- beta_2 m + (1 - beta_2) g

==============  ================  =====================================================
symbol          argument
==============  ================  =====================================================
lr              ``lr``            learning rate, at least 0; a float or a 0-dim tensor
beta_1, beta_2  ``betas``         each in [0, 1); if equal, Lion is LPSGDM at p = inf
wd              ``weight_decay``  at least 0
==============  ================  =====================================================

Source: Chen et al., NeurIPS 2023, Algorithm 2, https://arxiv.org/abs/2302.06675
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from tuner.optimizers.lp_sgd import check_lr_and_decay


class Lion(Optimizer):
    """Lion; equations and symbols are in the docstring of :mod:`tuner.optimizers.lion`.

    ``lr`` and ``betas`` are read from ``param_groups`` at every step, so a schedule may change them.

    ``foreach=False`` updates one tensor after the other, ``foreach=True`` all tensors by ``torch._foreach`` operations.
    None chooses False on a CPU, where it is faster, and True on other devices.

    Raises ValueError for a setting out of its range and for complex parameters, RuntimeError for sparse gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own; see :meth:`torch.optim.Optimizer.add_param_group`."""
        group = {**self.defaults, **param_group}
        _check_betas(group)
        check_lr_and_decay(group)
        super().add_param_group(param_group)
        if any(torch.is_complex(parameter) for parameter in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise ValueError("Lion does not support complex parameters: pass torch.view_as_real of them")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of every parameter that has a gradient; returns the closure's loss if a closure is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            _check_betas(group)
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: Mapping[str, Any]) -> None:
        alike: dict[tuple[torch.device, torch.dtype], tuple[list[Tensor], list[Tensor], list[Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise RuntimeError("Lion does not support sparse gradients")
            state = self.state[parameter]
            if not state:
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            lists = alike.setdefault((parameter.device, parameter.dtype), ([], [], []))
            for values, value in zip(lists, (parameter, parameter.grad, state["exp_avg"]), strict=True):
                values.append(value)
        for (device, _), lists in alike.items():
            foreach = device.type != "cpu" if group["foreach"] is None else group["foreach"]
            (_multi_tensor if foreach else _single_tensor)(*lists, group)


def _single_tensor(params: list[Tensor], grads: list[Tensor], averages: list[Tensor], group: Mapping[str, Any]) -> None:
    """The update as the module's docstring writes it."""
    beta_1, beta_2 = group["betas"]
    for theta, grad, m in zip(params, grads, averages, strict=True):
        g = -grad if group["maximize"] else grad
        if group["weight_decay"]:
            theta *= 1 - group["lr"] * group["weight_decay"]
        theta -= m.lerp(g, 1 - beta_1).sign_().mul_(group["lr"])
        m.lerp_(g, 1 - beta_2)


def _multi_tensor(params: list[Tensor], grads: list[Tensor], averages: list[Tensor], group: Mapping[str, Any]) -> None:
    """The same update as :func:`_single_tensor`; each operation runs over all tensors at once."""
    beta_1, beta_2 = group["betas"]
    g = list(torch._foreach_neg(grads)) if group["maximize"] else grads
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
    signs = torch._foreach_lerp(averages, g, 1 - beta_1)
    torch._foreach_sign_(signs)
    torch._foreach_mul_(signs, group["lr"])
    torch._foreach_sub_(params, signs)
    torch._foreach_lerp_(averages, g, 1 - beta_2)


def _check_betas(group: Mapping[str, Any]) -> None:
    for number, beta in enumerate(group["betas"], 1):
        if not 0 <= beta < 1:
            raise ValueError(f"beta_{number} = {beta}: must be in [0, 1)")
