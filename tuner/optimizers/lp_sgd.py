"""LPSGD and LPSGDM: steepest descent in an l_p norm whose p may change during the training.

One step, elementwise, with the gradient g, the parameters theta and rho = (p - 2)/(p - 1)::

    m     <- beta m + (1 - beta) g          average of gradients, 0 at the start, no bias correction
    u     =  m / (|m| + eps)^rho            direction
    theta <- (1 - lr wd) theta - lr u       decoupled weight decay

=======  ==================  =====================================================================
symbol   argument
=======  ==================  =====================================================================
lr       ``lr``              learning rate, at least 0; a float or a 0-dim tensor
p        ``p``               exponent of the norm, in [2, inf]; 2 is SGD, inf is the sign of m
beta     ``momentum``        in [0, 1); at 0, m is g and the algorithm is LPSGD, above 0 LPSGDM
wd       ``weight_decay``    at least 0
eps      ``eps``             above 0, in units of the gradient
=======  ==================  =====================================================================

Apart from eps, u = sign(m) |m|^(1/(p - 1)): as p grows, small and large coordinates move by more equal amounts.  The
paper lowers p from p_max to 2 along a cosine, epoch by epoch.  :func:`tuner.schedules.norm_exponent` computes such a p;
write it into the parameter groups before each step::

    optimizer = LPSGD(model.parameters(), lr=1e-3, p=6, momentum=0.9, weight_decay=1e-2)
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["p"] = norm_exponent(step, num_steps, p_max=6)
        ...                                 # zero_grad(), backward(), optimizer.step()

m is an average, while the buffer of ``torch.optim.SGD`` is a sum.  At p = 2, with constant beta and without weight
decay, torch's SGD takes the same steps at the learning rate (1 - beta) lr.

Where this leaves the paper, and why:

- ``scale`` separates the direction from its length.  Steepest descent in l_p is u times the dual norm ||m||_q^rho, with
  1/p + 1/q = 1.  The paper drops this factor into the learning rate.  Then the length of u depends on p: at |m| = 1e-3,
  |u| is 1e-3 for p = 2 and .25 for p = 6, so lowering p also shortens the step.  ``none`` is the paper.  ``dual`` puts
  the factor back.  ``rms`` gives u the root mean square of m.
- ``scope`` chooses the norms of ``scale``: ``tensor`` takes each tensor's own, ``global`` those of all tensors of a
  parameter group together.  With ``global`` the split of the parameters into tensors does not matter.
- p = inf is allowed and sets rho = 1.  p = 2 takes u = m, bit for bit, whatever eps and ``scale`` are.
- ``nesterov`` computes u from beta m + (1 - beta) g with the new m.
- Parameters in half precision keep m in their own dtype.  Everything after m is computed in float32, since eps = 1e-8
  is 0 in float16.

Source: Xu and Yang, 2026, https://arxiv.org/abs/2606.02078
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias, cast, get_args, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

Scale: TypeAlias = Literal["none", "dual", "rms"]
Scope: TypeAlias = Literal["tensor", "global"]

_HALF = (torch.float16, torch.bfloat16)
_Batch: TypeAlias = tuple[bool, list[Tensor], Iterable[Tensor]]
"""Whether ``torch._foreach`` operations update the parameters; parameters of one device and dtype; m of each."""


def lp_direction(m: Tensor, p: float, *, eps: float = 1e-8, scale: Scale = "none") -> Tensor:
    """The direction u = m/(|m| + eps)^rho of steepest descent in l_p, with rho = (p - 2)/(p - 1).

    ``m`` has any shape and is float32 or float64.  u has the same shape and dtype.  Its unit is
    (unit of m)^(1/(p - 1)), or the unit of m if ``scale`` is ``dual`` or ``rms``.  ``scale`` is explained in
    :mod:`tuner.optimizers.lp_sgd`; its norms are taken over m.  ``p`` is in [2, inf] and ``eps`` above 0; neither is
    checked here.  At p = 2 the result is m itself, not a copy.  Zeros give zeros.
    """
    if p == 2:
        return m
    rho = _rho(p)
    u = m / _power_(m.abs().add_(eps), rho)
    if scale == "dual":
        u *= torch.linalg.vector_norm(m, 1 / (1 - 1 / p)) ** rho
    elif scale == "rms":
        u *= torch.linalg.vector_norm(m) / torch.linalg.vector_norm(u).clamp_min(torch.finfo(u.dtype).tiny)
    return u


class LPSGD(Optimizer):
    """LPSGD, and with momentum LPSGDM; equations and symbols are in the docstring of :mod:`tuner.optimizers.lp_sgd`.

    ``lr``, ``p`` and ``momentum`` are read from ``param_groups`` at every step, so a schedule may change them.  If the
    momentum begins at 0, m is created, as zeros, at the first step whose momentum is above 0.  From then on every step
    updates m, at momentum 0 too.  ``nesterov`` needs a momentum above 0 at construction; a schedule may lower it to 0.

    ``foreach=False`` updates one tensor after the other, ``foreach=True`` all tensors by ``torch._foreach`` operations.
    None chooses False on a CPU, where it is faster, and True on other devices.  Both give the same numbers to rounding.

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
        scope: Scope = "tensor",
        nesterov: bool = False,
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
            "scope": scope,
            "nesterov": nesterov,
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
        """One update of every parameter that has a gradient; returns the closure's loss if a closure is given."""
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
        batches: list[_Batch] = []
        for (device, _, _), (params, grads, buffers) in alike.items():
            foreach = device.type != "cpu" if group["foreach"] is None else group["foreach"]
            batches.append((foreach, params, (_multi_momenta if foreach else _momenta)(grads, buffers, group)))
        if group["scope"] == "global" and group["scale"] != "none" and group["p"] != 2 and batches:
            # u is final here, and p = 2 makes the update below subtract it as it is
            batches, group = _scaled_together(batches, group), {**group, "p": 2.0}
        for foreach, params, m in batches:
            (_multi_tensor if foreach else _single_tensor)(params, m, group)


def _momenta(grads: list[Tensor], buffers: list[Tensor], group: Mapping[str, Any]) -> Iterator[Tensor]:
    """m of each tensor, with ``nesterov`` beta m + (1 - beta) g, in the precision that u is computed in.

    ``buffers`` is empty without momentum.
    """
    weight = 1 - group["momentum"]
    for index, grad in enumerate(grads):
        g = -grad if group["maximize"] else grad
        m = buffers[index].lerp_(g, weight) if buffers else g
        if m.dtype in _HALF:
            m = m.float()
        yield m.lerp(g.to(m.dtype), weight) if buffers and group["nesterov"] else m


def _single_tensor(params: list[Tensor], momenta: Iterable[Tensor], group: Mapping[str, Any]) -> None:
    """The update as the module's docstring writes it."""
    for theta, m in zip(params, momenta, strict=True):
        u = lp_direction(m, group["p"], eps=group["eps"], scale=group["scale"])
        if group["weight_decay"]:
            theta *= 1 - group["lr"] * group["weight_decay"]
        theta -= group["lr"] * u


def _multi_momenta(grads: list[Tensor], buffers: list[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
    """The same values as :func:`_momenta`; each operation runs over all tensors at once."""
    weight = 1 - group["momentum"]
    m = g = list(torch._foreach_neg(grads)) if group["maximize"] else grads
    if buffers:
        torch._foreach_lerp_(buffers, g, weight)
        m = buffers
    if m[0].dtype in _HALF:
        m = [x.float() for x in m]
    if buffers and group["nesterov"]:
        m = list(torch._foreach_lerp(m, [x.to(m[0].dtype) for x in g], weight))
    return m


def _multi_tensor(params: list[Tensor], momenta: Iterable[Tensor], group: Mapping[str, Any]) -> None:
    """The same update as :func:`_single_tensor`, with all of u in one denominator, so u is never written to memory."""
    m, lr = list(momenta), group["lr"]
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


def _scaled_together(batches: list[_Batch], group: Mapping[str, Any]) -> list[_Batch]:
    """The batches with scaled directions u in place of m; the norms are those of all tensors together."""
    p, eps = group["p"], group["eps"]
    momenta = [list(m) for _, _, m in batches]
    directions = [
        list(torch._foreach_div(m, _denominators(m, p, eps, "none")))
        if foreach
        else [lp_direction(x, p, eps=eps) for x in m]
        for (foreach, _, _), m in zip(batches, momenta, strict=True)
    ]

    def norm(lists: list[list[Tensor]], order: float) -> Tensor:
        norms = [x for tensors in lists for x in torch._foreach_norm(tensors, order)]
        total: Tensor = torch.linalg.vector_norm(torch.stack([x.to(norms[0].device) for x in norms]), order)
        return total

    if group["scale"] == "dual":
        factor = norm(momenta, 1 / (1 - 1 / p)) ** _rho(p)
    else:
        length = norm(directions, 2)
        factor = norm(momenta, 2) / length.clamp_min(torch.finfo(length.dtype).tiny)
    for u in directions:
        torch._foreach_mul_(u, factor.to(u[0]))
    return [(foreach, params, u) for (foreach, params, _), u in zip(batches, directions, strict=True)]


def _denominators(m: list[Tensor], p: float, eps: float, scale: Scale) -> list[Tensor]:
    """The divisors of m that give u; inf for a tensor of zeros if ``scale`` is set, so that its u is 0."""
    rho = _rho(p)
    denominators = list(torch._foreach_abs(m))
    torch._foreach_add_(denominators, eps)
    if rho != 1:
        torch._foreach_pow_(denominators, rho)
    if scale == "dual":
        norms = torch._foreach_norm(m, 1 / (1 - 1 / p))
        torch._foreach_div_(denominators, list(torch._foreach_pow(norms, rho)))
    elif scale == "rms":
        lengths = list(torch._foreach_norm(torch._foreach_div(m, denominators)))
        torch._foreach_clamp_min_(lengths, torch.finfo(m[0].dtype).tiny)
        torch._foreach_div_(denominators, list(torch._foreach_div(torch._foreach_norm(m), lengths)))
    return denominators


def _power_(x: Tensor, rho: float) -> Tensor:
    """x^rho in place, for x above 0."""
    # On a CPU exp(rho log x) takes half of pow's time.  In float32 it is within 2e-6 of the value, pow within 3e-7.
    return x.log_().mul_(rho).exp_() if x.device.type == "cpu" and rho != 1 else x.pow_(rho)


def _rho(p: float) -> float:
    return 1.0 if math.isinf(p) else (p - 2) / (p - 1)


def _check_scheduled(group: Mapping[str, Any]) -> None:
    if not 2 <= group["p"] <= math.inf:
        raise ValueError(f"p = {group['p']}: must be in [2, inf]")
    if not 0 <= group["momentum"] < 1:
        raise ValueError(f"momentum = {group['momentum']}: must be in [0, 1)")


def check_lr_and_decay(group: Mapping[str, Any]) -> None:
    """Raises ValueError for a learning rate or a weight decay out of its range."""
    lr = group["lr"]
    if isinstance(lr, Tensor) and lr.dim() != 0:
        raise ValueError(f"lr is a tensor of shape {tuple(lr.shape)}: must be a float or a 0-dim tensor")
    if not 0 <= lr < math.inf:
        raise ValueError(f"lr = {cast(float, lr)}: must be at least 0 and finite")
    if not 0 <= group["weight_decay"] < math.inf:
        raise ValueError(f"weight_decay = {group['weight_decay']}: must be at least 0 and finite")


def _check_settings(group: Mapping[str, Any]) -> None:
    _check_scheduled(group)
    check_lr_and_decay(group)
    if not 0 < group["eps"] < math.inf:
        raise ValueError(f"eps = {group['eps']}: must be above 0 and finite")
    for name, choices in (("scale", get_args(Scale)), ("scope", get_args(Scope))):
        if group[name] not in choices:
            raise ValueError(f"{name} = {group[name]!r}: must be one of {', '.join(choices)}")
    if group["nesterov"] and not group["momentum"]:
        raise ValueError("nesterov = True: needs a momentum above 0")
