"""Random scaling: every step of an optimizer is multiplied by one random scalar of mean 1.

d_n is the displacement that the wrapped optimizer would add to the parameters theta::

    s_n   ~  law, independent, E s = 1
    theta <- theta + s_n d_n

All parameters and groups share one scalar per step.  It never enters the optimizer's state or momentum.  For
s ~ Exp(1), and for no other of these laws, every smooth f has E[f(theta + s d)] - f(theta) = E<grad f(theta + s d), d>.
The paper derives its rates from this identity.  One scalar per coordinate would break it.

===========  ================  =======  ==========================
law          s                 E s^2    source
===========  ================  =======  ==========================
none         1                 1        the wrapped optimizer
exponential  Exp(1)            2        the paper
uniform      U(0, 2)           4/3      ours
gamma        Gamma(k), over k  1 + 1/k  ours; k = 1 is exponential
===========  ================  =======  ==========================

SGD's learning rate must be tuned again.  On a quadratic of curvature a, with momentum zeta, the mean of theta_n is
that of the run without scaling.  Its variance stays bounded only for
lr a < 2 (1 - zeta) (1 + zeta)/(m (1 + zeta) - 2 zeta), where m = E s^2 (ours).  The bound is 1 - zeta^2 for Exp(1) and
2 (1 + zeta) without scaling.

Source: Zhang and Cutkosky, ICML 2024, https://arxiv.org/abs/2405.09742.  Its learner multiplies weight decay by s too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from tuner.optimizers.lion import Lion
from tuner.optimizers.lp_sgd import LPSGD

Law: TypeAlias = Literal["none", "exponential", "uniform", "gamma"]

LAWS: dict[Law, Callable[[float, torch.Generator], float]] = {
    "none": lambda shape, generator: 1.0,
    "exponential": lambda shape, generator: _zero().exponential_(generator=generator).item(),
    "uniform": lambda shape, generator: _zero().uniform_(0, 2, generator=generator).item(),
    "gamma": lambda shape, generator: torch._standard_gamma(_zero() + shape, generator).item() / shape,
}
"""Name -> draw, given the gamma law's shape k and a generator on the CPU."""

_SCALED: tuple[str, ...] = ("lr", "weight_decay")
_SETTINGS = ("law", "shape", "num_active_steps", "scale_decay", "next_step")


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.float64, device="cpu")


def draw_scale(law: Law, shape: float, generator: torch.Generator) -> float:
    """A draw of s from a law of :data:`LAWS`; ``shape`` is k, above 0, for ``gamma``.  ``none`` gives 1, undrawn."""
    # Gamma laws of small k come close to 0: the bound keeps a weight decay divided by s finite in float32.
    return max(LAWS[law](shape, generator), 1e-30)


class RandomScaling(Optimizer):
    """Any torch optimizer with random step lengths; equations are in :mod:`tuner.optimizers.random_scaling`.

    The wrapped optimizer takes its step with every group's learning rate multiplied by s.  The scaling is exact if the
    step is proportional to the learning rate, as in SGD, AdamW, LPSGD and Lion.  ``param_groups``, ``state``,
    ``defaults`` and the hooks on state dicts are those of the wrapped optimizer, which may still be used directly.

    Scalars come from a generator of this object's own, on the CPU.  Replicas on several workers draw the same scalars
    from the same ``seed``, of which torch takes the lowest 32 bits.  A step that ``torch.amp.GradScaler`` skips draws
    nothing; a step that raises has drawn.  The state dict holds the generator and the settings; loading restores both.

    ====================  ==========================================================================================
    ``law``, ``shape``    law of s, and k, above 0, for ``gamma``
    ``num_active_steps``  from this step on (counted from 0) s = 1 and nothing is drawn; None for never; at least 0
    ``scale_decay``       False takes s out of weight decay, which must then be decoupled: AdamW, LPSGD, Lion
    ``last_scale``        s of the last step
    ``next_step``         number of the next step, from 0
    ====================  ==========================================================================================

    Raises ValueError for a setting out of its range, and for ``scale_decay=False`` if decay is part of the gradient.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        law: Law = "exponential",
        *,
        shape: float = 2.0,
        seed: int = 0,
        num_active_steps: int | None = None,
        scale_decay: bool = True,
    ) -> None:
        if law not in LAWS:
            raise ValueError(f"law = {law!r}: must be one of {', '.join(LAWS)}")
        if not 0 < shape < math.inf:
            raise ValueError(f"shape = {shape}: must be above 0 and finite")
        if num_active_steps is not None and num_active_steps < 0:
            raise ValueError(f"num_active_steps = {num_active_steps}: must be at least 0")
        self.optimizer = optimizer
        self.law: Law = law
        self.shape = shape
        self.num_active_steps = num_active_steps
        self.scale_decay = scale_decay
        self.generator = torch.Generator(device="cpu").manual_seed(seed)
        self.next_step = 0
        self.last_scale = 1.0
        self._check_decay(self.param_groups)
        # makes the hooks' tables; Optimizer.__init__ would make parameter groups too
        self.__setstate__({})

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.optimizer.defaults

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Draws s, takes the wrapped optimizer's step, with ``closure`` if given, and returns what that returns."""
        groups = self.param_groups
        self._check_decay(groups)
        before = [{name: group[name] for name in _SCALED if name in group} for group in groups]
        active = self.num_active_steps is None or self.next_step < self.num_active_steps
        self.last_scale = draw_scale(self.law, self.shape, self.generator) if active else 1.0
        self.next_step += 1
        try:
            for group in groups:
                group["lr"] = group["lr"] * self.last_scale
                if not self.scale_decay and "weight_decay" in group:
                    group["weight_decay"] = group["weight_decay"] / self.last_scale
            return self.optimizer.step(closure)
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)

    def seek(self, step: int, seed: int) -> None:
        """Makes ``step`` (from 0) the next step and draws from ``seed``, so a step can be repeated with the same s."""
        self.next_step = step
        self.generator.manual_seed(seed)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters to the wrapped optimizer; see :meth:`torch.optim.Optimizer.add_param_group`."""
        self._check_decay([{**self.defaults, **param_group}])
        self.optimizer.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state dict; its key ``random_scaling`` holds the generator and the settings."""
        own = {name: getattr(self, name) for name in _SETTINGS}
        return {**self.optimizer.state_dict(), "random_scaling": {**own, "generator": self.generator.get_state()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a state, settings included.  Raises ValueError for a state dict that is not of a RandomScaling."""
        if "random_scaling" not in state_dict:
            raise ValueError("the state dict has no 'random_scaling': load it into the wrapped optimizer")
        wrapped = dict(state_dict)
        own = wrapped.pop("random_scaling")
        self.optimizer.load_state_dict(wrapped)
        for name in _SETTINGS:
            setattr(self, name, own[name])
        self.generator.set_state(own["generator"].cpu())

    def __getstate__(self) -> dict[str, Any]:
        # Hooks are left out, as in torch's optimizers, and so is the step that a learning rate scheduler has wrapped.
        return {name: getattr(self, name) for name in ("optimizer", "generator", "last_scale", *_SETTINGS)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, hooks in vars(self.optimizer).items():
            if name.endswith(("state_dict_pre_hooks", "state_dict_post_hooks")):
                setattr(self, name, hooks)

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in _SETTINGS)
        return f"{type(self).__name__}({self.optimizer!r}, {settings})"

    def _check_decay(self, groups: Iterable[Mapping[str, Any]]) -> None:
        if self.scale_decay or isinstance(self.optimizer, LPSGD | Lion):
            return
        for group in groups:
            if group.get("weight_decay", 0) > 0 and not group.get("decoupled_weight_decay", False):
                rule = type(self.optimizer).__name__
                raise ValueError(f"scale_decay = False: weight decay in {rule} is not decoupled, so it must be 0")
