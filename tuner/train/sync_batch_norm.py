"""BatchNorm over a batch that is split among several processes.

There are N parts of m values per channel, with means mu_r and variances v_r (divided by m), and dL/dy = g::

    mu     =  1/N sum_r mu_r
    v      =  1/N sum_r (v_r + (mu_r - mu)^2)
    x^     =  (x - mu) / sqrt(v + eps)
    y      =  w x^ + b
    dL/dx  =  w / sqrt(v + eps) (g - E[g] - x^ E[g x^])     E is the mean over the whole batch
    dL/dw  =  sum of g x^ over the part                     DistributedDataParallel averages it over the parts
    dL/db  =  sum of g over the part                        DistributedDataParallel averages it over the parts

where L is the sum of all parts' losses.  Running statistics are those of BatchNorm on the whole batch, with a variance
divided by N m - 1.  torch's SyncBatchNorm computes the same, but only on GPUs.  This one uses BatchNorm's own kernels
and so runs on every device.

Source: Ioffe and Szegedy, ICML 2015, https://arxiv.org/abs/1502.03167.  The form for parts is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import batch_norm
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """BatchNorm of any dimension, (B / N, C, ...) -> the same shape; :func:`convert` makes it.

    In training mode all processes have to call it, each with the same number of values.
    """

    together = True
    """Whether statistics are those of the whole batch; if False, of this process's part alone."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any dimension."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.together):
            return super().forward(input)
        output: Tensor
        output, mean, variance = _Normalize.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            assert self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            num_values = distributed.get_world_size() * input.numel() // input.shape[1]
            self.num_batches_tracked.add_(1)
            newest = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, newest)
            self.running_var.lerp_(variance * (num_values / (num_values - 1)), newest)
        return output


class _Normalize(torch.autograd.Function):
    """x (B / N, C, ...), w, b (C,) or None -> y, mu, v."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor | None, b: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        # The kernel sums in the dtype of the running statistics that it is given.
        unused = x.new_zeros(2, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
        own = torch.stack(torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0))
        # One row per process: every number is added to zeros only, so the sum is exact.
        rows = own.new_zeros(distributed.get_world_size(), *own.shape)
        rows[distributed.get_rank()] = own
        distributed.all_reduce(rows)
        means, variances = rows.unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        ctx.eps = eps
        ctx.save_for_backward(x, w, mean, variance)
        ctx.mark_non_differentiable(mean, variance)
        return batch_norm(x, mean, variance, w, b, eps=eps), mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, w, mean, variance = ctx.saved_tensors
        scale = torch.rsqrt(variance + ctx.eps)
        # The kernel takes the part for the whole batch: its dL/dx has the part's E.
        dx, dw, db = torch.ops.aten.native_batch_norm_backward(
            grads[0], x, w, None, None, mean, scale, True, ctx.eps, [True, True, True]
        )
        own = torch.stack([db, dw]) / (x.numel() // x.shape[1])
        whole = own / distributed.get_world_size()
        distributed.all_reduce(whole)
        shift, slope = (own - whole) * (scale if w is None else w * scale)
        slope = slope * scale
        channels = (-1, *(1,) * (x.dim() - 2))
        dx.addcmul_(x, slope.view(channels)).add_((shift - slope * mean).view(channels))
        _, has_weight, has_bias, _ = ctx.needs_input_grad
        return dx, dw if has_weight else None, db if has_bias else None, None


def convert(model: nn.Module) -> nn.Module:
    """The model, with its BatchNorm layers changed to :class:`SyncBatchNorm` in place; names and weights stay."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = SyncBatchNorm
    return model


@contextmanager
def taken_alone(model: nn.Module) -> Iterator[None]:
    """A context in which the model's BatchNorm takes this process's part for the whole batch."""
    norms = [module for module in model.modules() if isinstance(module, SyncBatchNorm)]
    for norm in norms:
        norm.together = False
    yield
    for norm in norms:
        norm.together = True
