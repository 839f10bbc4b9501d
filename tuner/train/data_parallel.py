"""Several processes that train one network, each on its part of every batch.

Every replica holds all weights.  With B a batch, B_r its N equal parts, r = 0 ... N - 1, and L the mean of a loss over
images, which a model takes one by one::

    grad L(B)  =  1/N  sum_r  grad L(B_r)

The right-hand side is what torch's DistributedDataParallel leaves on every replica, so that all of them take the same
step.  A model whose BatchNorm takes the images together needs :mod:`tuner.train.sync_batch_norm` as well.

Replicas work in lockstep: what one asks of the others, all have to ask, in the same order.  Rank 0 is the one that
reads and writes files.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from tuner.train.sync_batch_norm import convert

TIMEOUT = timedelta(minutes=30)
"""How long a replica waits for the others, who may be compiling, or waiting for a disk; for one that has died it does
not wait."""


@dataclass(frozen=True, slots=True)
class Replicas:
    """A replica's place among those of its training; alone, it is asked for nothing that costs time."""

    rank: int = 0
    world_size: int = 1

    def part(self, num: int) -> slice:
        """This replica's part of ``num`` things; all parts are equal where ``num`` is a multiple of ``world_size``."""
        return slice(num * self.rank // self.world_size, num * (self.rank + 1) // self.world_size)

    def all_reduce(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The sums over the replicas of values of one shape and device: float64, and the same bits on each."""
        if self.world_size == 1:
            return values
        both = torch.stack([value.double() for value in values])
        distributed.all_reduce(both)
        return both.unbind()

    def broadcast(self, content: Any) -> Any:
        """What rank 0 has, on every replica: anything that pickle takes, its tensors on the CPU."""
        if self.world_size == 1:
            return content
        contents = [content]
        distributed.broadcast_object_list(contents, src=0)
        return contents[0]

    def sync_batch_norm(self, model: nn.Module) -> nn.Module:
        """The model, its BatchNorm layers changed into those that take the statistics of the whole batch."""
        return model if self.world_size == 1 else convert(model)

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """The same model for training: after a backward pass each gradient is the mean over the replicas."""
        if self.world_size == 1:
            return model
        # Buffers are the same on all replicas already.  A search for unused parameters leaves them without a gradient,
        # as alone; and without it torch would reorder gradients after the first step, and sum them in another order
        # than a training that goes on from a checkpoint.
        return DistributedDataParallel(model, forward_sync_buffers=False, find_unused_parameters=True)


SINGLE_PROCESS = Replicas()
"""A training of one process."""


def rendezvous(host: str, port: int | None = None) -> TCPStore:
    """Where replicas find each other: rank 0 opens it on a free port of its ``host``, others come to that ``port``."""
    return TCPStore(host, port or 0, is_master=port is None, timeout=TIMEOUT, wait_for_workers=False)


def join(store: TCPStore, rank: int, size: int, device: torch.device) -> Replicas:
    """Waits until all ``size`` replicas are there: NCCL connects those on GPUs, one each, gloo those on CPUs."""
    if distributed.is_initialized():  # with others, of whom one has failed
        distributed.destroy_process_group()
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return Replicas(rank, size)
