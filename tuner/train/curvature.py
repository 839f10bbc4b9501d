"""Curvature of a loss: the largest and the mean eigenvalue of its Hessian.

Let H be the Hessian of a loss in its n parameters, with eigenvalues lambda_1 >= ... >= lambda_n.  Only products H v are
computed, each as the gradient of <gradient, v> (Pearlmutter, "Fast exact multiplication by the Hessian", Neural
Computation 6, 1994)::

    top    lambda_1               Lanczos: the largest eigenvalue of H within span(v, H v, H^2 v, ...), v random
    mean   sum_i lambda_i / n     Hutchinson: the mean of <z, H z> / n over random signs z

Power iteration would need two to four times as many products, and a shift if lambda_n is as far from 0 as lambda_1.
Lanczos keeps three vectors and does not reorthogonalize: the spurious copies of eigenvalues that then appear do not
change the largest one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Curvature:
    """What is known of the Hessian of a loss.

    All fields but ``num_products`` are in units of the loss over the square of the parameters'.
    """

    top: float
    """Estimate of the largest eigenvalue; it is never above the eigenvalue, except for rounding."""
    residual: float
    """||H v - top v|| for the unit vector v of the estimate: some eigenvalue is at most this far from ``top``."""
    mean: float
    """Estimate of the mean eigenvalue."""
    num_products: int
    """Number of Hessian-vector products that the estimates took, at least 2."""


def estimate_curvature(
    loss: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    *,
    seed: int,
    max_iterations: int = 100,
    tolerance: float = 1e-2,
    num_probes: int = 4,
) -> Curvature | None:
    """The curvature of ``loss`` at the present values of ``parameters``; None if the loss or an estimate is not finite.

    ``loss`` computes a twice differentiable scalar from the parameters.  It must use at least one of them; unused ones
    have curvature 0.  All parameters have one dtype and device and require gradients.  ``loss`` is called once, and the
    graph of its gradient is kept until the end.  The caller has to restore BatchNorm's buffers and the states of global
    generators.  Nothing else changes, gradients included.  A model from torch.compile has no second derivative.

    Lanczos ends when ||H v - lambda v|| <= ``tolerance`` |lambda|, when no direction is new, or after
    ``max_iterations`` products; ``residual`` tells which.  The error of ``top`` is of second order in the residual.  If
    several eigenvalues are close to the largest, ``top`` may estimate any of them.  The variance of ``mean`` over
    probes is 2 (||H||_F^2 - sum_i h_ii^2) / (``num_probes`` n^2), which is 0 for a diagonal H (Hutchinson, "A
    stochastic estimator of the trace of the influence matrix", Communications in Statistics 19, 1990).

    Start vectors and probes are drawn on the CPU from ``seed``, so that the same call gives the same bits on a CPU.

    Raises ValueError unless ``max_iterations`` and ``num_probes`` are at least 1 and ``tolerance`` is above 0 and
    finite.
    """
    for name, count in (("max_iterations", max_iterations), ("num_probes", num_probes)):
        if count < 1:
            raise ValueError(f"{name} = {count}: must be at least 1")
    if not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance = {tolerance}: must be above 0 and finite")
    hessian = _Hessian(loss, parameters)
    generator = torch.Generator().manual_seed(seed)
    mean = 0.0
    for _ in range(num_probes):
        signs = (2 * torch.randint(2, (hessian.size,), generator=generator) - 1).to(parameters[0])
        mean += float(signs @ hessian(signs)) / (num_probes * hessian.size)
    start = torch.randn(hessian.size, generator=generator).to(parameters[0])
    top, residual = _lanczos(hessian, start, max_iterations, tolerance)
    if not all(math.isfinite(value) for value in (hessian.loss, mean, top, residual)):
        return None
    return Curvature(top=top, residual=residual, mean=mean, num_products=hessian.num_products)


class _Hessian:
    """Products of a loss's Hessian with vectors of shape (n,)."""

    def __init__(self, loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.size = sum(self.sizes)
        self.num_products = 0
        with torch.enable_grad():
            value = loss()
            gradients = torch.autograd.grad(value, self.parameters, create_graph=True, materialize_grads=True)
        self.loss = value.item()
        # A gradient that depends on no parameter has no graph; its rows of the Hessian are 0.
        self.places = [place for place, gradient in enumerate(gradients) if gradient.requires_grad]
        self.gradients = [gradients[place] for place in self.places]

    def __call__(self, v: Tensor) -> Tensor:
        self.num_products += 1
        parts = v.split(self.sizes)
        products = torch.autograd.grad(
            self.gradients,
            self.parameters,
            [parts[place].view_as(self.parameters[place]) for place in self.places],
            retain_graph=True,
            materialize_grads=True,
        )
        return torch.cat([product.reshape(-1) for product in products])


def _lanczos(
    product: Callable[[Tensor], Tensor], start: Tensor, max_iterations: int, tolerance: float
) -> tuple[float, float]:
    """The largest Ritz value and its residual; both NaN if a product is not finite."""
    v, before = start / _norm(start), torch.zeros_like(start)
    diagonal: list[float] = []
    couplings = [0.0]
    top = residual = math.nan
    for _ in range(max_iterations):
        w = product(v) - couplings[-1] * before
        diagonal.append(float(v @ w))
        w -= diagonal[-1] * v
        couplings.append(_norm(w))
        if not math.isfinite(couplings[-1]):
            return math.nan, math.nan
        tridiagonal = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        tridiagonal += torch.diag(torch.tensor(couplings[1:-1], dtype=torch.float64), -1)
        values, vectors = torch.linalg.eigh(tridiagonal)  # reads the lower triangle only
        top, residual = float(values[-1]), couplings[-1] * abs(float(vectors[-1, -1]))
        # With few distinct eigenvalues there is soon no new direction, and w is nothing but rounding.
        exhausted = couplings[-1] <= 100 * torch.finfo(v.dtype).eps * float(values.abs().max())
        if exhausted or residual <= tolerance * abs(top):
            break
        v, before = w / couplings[-1], v
    return top, residual


def _norm(v: Tensor) -> float:
    # The square of a float32 above 1.8e19 is infinite in float32.
    return float(torch.linalg.vector_norm(v, dtype=torch.float64))
