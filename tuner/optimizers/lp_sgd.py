"""LPSGD and LPSGDM: steepest descent in an l_p norm whose p may change while training.

With the gradient g, the parameters theta, and rho = (p - 2)/(p - 1), elementwise::

    m     <- beta m + (1 - beta) g          m_0 = 0, no bias correction; beta = 0 gives m = g (LPSGD)
    u     =  m / (|m| + eps)^rho
    theta <- (1 - lr wd) theta - lr u       decoupled weight decay

=======  ==================  =================================================================
symbol   argument
=======  ==================  =================================================================
lr       ``lr``              learning rate, at least 0; a float or a 0-dim tensor
p        ``p``               exponent of the norm, in [2, inf]; 2 is SGD, inf is the sign of m
beta     ``momentum``        in [0, 1); above 0 the algorithm is LPSGDM
wd       ``weight_decay``    at least 0
eps      ``eps``             above 0, in units of the gradient
=======  ==================  =================================================================

Steepest descent in l_p carries a further factor, the dual norm ||m||_q^rho with 1/p + 1/q = 1, which the paper drops
into the learning rate.  Without it the length of u depends on p: at m = 1e-3 it is 1e-3 for p = 2 and .25 for
p = 6, so an annealed p anneals the step as well.  ``scale`` (ours) takes that apart, tensor by tensor: ``dual`` puts
the factor back, ``rms`` gives u the root mean square of m, ``none`` is the paper.

Ours as well: p = inf sets rho = 1, and p = 2 leaves m as it is, bit for bit, whatever the scale; parameters in half
precision keep m in their own dtype and compute everything after it in float32, where eps = 1e-8 is not 0.

Source: Xu and Yang, 2026, https://arxiv.org/abs/2606.02078
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, cast, get_args, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

Scale: TypeAlias = Literal["none", "dual", "rms"]

_HALF = (torch.float16, torch.bfloat16)


def lp_direction(m: Tensor, p: float, *, eps: float = 1e-8, scale: Scale = "none") -> Tensor:
    """The direction u of steepest descent in l_p, as the module's docstring defines it.

    m of any shape, float32 or float64; u has its shape and unit (unit of m)^(1/(p-1)), or the unit of m where scaled.
    At p = 2 it is m itself, not a copy.  Zeros give zeros.
    """
    if p == 2:
        return m
    rho = _rho(p)
    u = m / m.abs().add_(eps).pow_(rho)
    if scale == "dual":
        u *= torch.linalg.vector_norm(m, 1 / (1 - 1 / p)) ** rho
    elif scale == "rms":
        u *= torch.linalg.vector_norm(m) / torch.linalg.vector_norm(u).clamp_min(torch.finfo(u.dtype).tiny)
    return u


class LPSGD(Optimizer):
    """LPSGD, and with momentum LPSGDM; equations and symbols are in the docstring of :mod:`tuner.optimizers.lp_sgd`.

    ``lr``, ``p`` and ``momentum`` are read from ``param_groups`` at every step, so a schedule may change them.  Under a
    momentum that begins at 0, m starts (from 0) at the first step whose momentum is above 0; from then on m is kept
    up at momentum 0 too.

    ``foreach`` chooses between one pass over each tensor and ``torch._foreach`` passes over all; None takes the latter
    for tensors that are not on a CPU, where it would be the slower one.  The two agree to rounding.

    Raises ValueError for a setting out of its range and for complex parameters, RuntimeError for sparse gradients.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        p: float = 2.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        scale: Scale = "none",
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "p": p,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eps": eps,
            "scale": scale,
            "maximize": maximize,
            "foreach": foreach,
        }
        _check_settings(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own; see :meth:`torch.optim.Optimizer.add_param_group`."""
        _check_settings({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if any(torch.is_complex(parameter) for parameter in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise ValueError("LPSGD does not support complex parameters: pass torch.view_as_real of them")

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
        """One update of every parameter that has a gradient; returns the closure's loss, where one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            _check_scheduled(group)
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: Mapping[str, Any]) -> None:
        alike: dict[tuple[torch.device, torch.dtype, bool], tuple[list[Tensor], list[Tensor], list[Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if parameter.grad.is_sparse:
                raise RuntimeError("LPSGD does not support sparse gradients")
            state = self.state[parameter]
            if group["momentum"] > 0 and not state:
                state["momentum_buffer"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            key = (parameter.device, parameter.dtype, bool(state))
            params, grads, buffers = alike.setdefault(key, ([], [], []))
            params.append(parameter)
            grads.append(parameter.grad)
            if state:
                buffers.append(state["momentum_buffer"])
        for (device, _, _), lists in alike.items():
            foreach = device.type != "cpu" if group["foreach"] is None else group["foreach"]
            (_multi_tensor if foreach else _single_tensor)(*lists, group)


def _single_tensor(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], group: Mapping[str, Any]) -> None:
    """The update as the module's docstring writes it; ``buffers`` is empty without momentum."""
    for index, (theta, grad) in enumerate(zip(params, grads, strict=True)):
        m = -grad if group["maximize"] else grad
        if buffers:
            m = buffers[index].lerp_(m, 1 - group["momentum"])
        if m.dtype in _HALF:
            m = m.float()
        u = lp_direction(m, group["p"], eps=group["eps"], scale=group["scale"])
        if group["weight_decay"]:
            theta *= 1 - group["lr"] * group["weight_decay"]
        theta -= group["lr"] * u


def _multi_tensor(params: list[Tensor], grads: list[Tensor], buffers: list[Tensor], group: Mapping[str, Any]) -> None:
    """The same with every factor of u in one denominator, so that u is never written to memory."""
    m = list(torch._foreach_neg(grads)) if group["maximize"] else grads
    if buffers:
        torch._foreach_lerp_(buffers, m, 1 - group["momentum"])
        m = buffers
    if m[0].dtype in _HALF:
        m = [x.float() for x in m]
    lr = group["lr"]
    if group["weight_decay"]:
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    if group["p"] == 2:
        if isinstance(lr, Tensor):
            torch._foreach_sub_(params, torch._foreach_mul(m, lr))
        else:
            torch._foreach_add_(params, m, alpha=-lr)
        return
    denominators = _denominators(m, group["p"], group["eps"], group["scale"])
    if isinstance(lr, Tensor):
        torch._foreach_div_(denominators, lr)
        lr = 1.0
    torch._foreach_addcdiv_(params, m, denominators, value=-lr)


def _denominators(m: list[Tensor], p: float, eps: float, scale: Scale) -> list[Tensor]:
    """What m is divided by to give u; inf for a tensor of zeros that is scaled, so that its u is 0."""
    rho = _rho(p)
    denominators = list(torch._foreach_abs(m))
    torch._foreach_add_(denominators, eps)
    if rho != 1:
        # exp(rho log x) is 4 times as fast as this pow on a CPU, but up to 19 units in the last place away from it
        torch._foreach_pow_(denominators, rho)
    if scale == "dual":
        norms = torch._foreach_norm(m, 1 / (1 - 1 / p))
        torch._foreach_div_(denominators, list(torch._foreach_pow(norms, rho)))
    elif scale == "rms":
        tiny = torch.finfo(m[0].dtype).tiny
        directions = torch._foreach_div(m, denominators)
        ratios = [
            torch.linalg.vector_norm(x) / torch.linalg.vector_norm(u).clamp_min(tiny)
            for x, u in zip(m, directions, strict=True)
        ]
        torch._foreach_div_(denominators, ratios)
    return denominators


def _rho(p: float) -> float:
    return 1.0 if math.isinf(p) else (p - 2) / (p - 1)


def _check_scheduled(group: Mapping[str, Any]) -> None:
    if not 2 <= group["p"] <= math.inf:
        raise ValueError(f"p = {group['p']}: must be in [2, inf]")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum = {group['momentum']}: must be in [0, 1)")


def _check_settings(group: Mapping[str, Any]) -> None:
    _check_scheduled(group)
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.dim() != 0:
        raise ValueError(f"lr is a tensor of shape {tuple(lr.shape)}: must be a float or a 0-dim tensor")
    if not 0 <= lr < math.inf:
        raise ValueError(f"lr = {cast(float, lr)}: must be at least 0 and finite")
    if not 0 <= group["weight_decay"] < math.inf:
        raise ValueError(f"weight_decay = {group['weight_decay']}: must be at least 0 and finite")
    if not 0 < group["eps"] < math.inf:
        raise ValueError(f"eps = {group['eps']}: must be above 0 and finite")
    if group["scale"] not in get_args(Scale):
        raise ValueError(f"scale = {group['scale']!r}: must be one of {', '.join(get_args(Scale))}")
