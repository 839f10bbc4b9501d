"""Several processes (replicas) that train one network, each on its part of every batch.

Every replica holds all weights.  Let B be a batch, B_r its N equal parts, r = 0 ... N - 1, and L the mean loss over the
images of a batch, for a model that treats each image by itself::

    grad L(B)  =  1/N  sum_r  grad L(B_r)

torch's DistributedDataParallel leaves the right-hand side on every replica, so that all replicas take the same step.
BatchNorm does not treat each image by itself: such a model also needs :mod:`tuner.train.sync_batch_norm`.

Replicas work in lockstep: all of them have to call the same collective operations in the same order.  Only rank 0
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
"""Longest wait of a replica for the others, which may be compiling or waiting for a disk.

A replica that has died is not waited for, because its connection ends.
"""


@dataclass(frozen=True, slots=True)
class Replicas:
    """A replica's place among the replicas of its training; with one replica no method costs time."""

    rank: int = 0
    """This replica's number, in [0, world_size)."""
    world_size: int = 1
    """Number of replicas, at least 1."""

    def part(self, num: int) -> slice:
        """This replica's part of ``num`` items; all parts are equal if ``num`` is a multiple of ``world_size``."""
        return slice(num * self.rank // self.world_size, num * (self.rank + 1) // self.world_size)

    def all_reduce(self, *values: Tensor) -> tuple[Tensor, ...]:
        """The sums of each value over the replicas: float64, with the same bits on all.

        The values have one shape and device.  With one replica they are returned as they are.
        """
        if self.world_size == 1:
            return values
        both = torch.stack([value.double() for value in values])
        distributed.all_reduce(both)
        return both.unbind()

    def broadcast(self, content: Any) -> Any:
        """Returns rank 0's ``content`` on every replica.  It has to be picklable, with tensors on the CPU."""
        if self.world_size == 1:
            return content
        contents = [content]
        distributed.broadcast_object_list(contents, src=0)
        return contents[0]

    def sync_batch_norm(self, model: nn.Module) -> nn.Module:
        """The model, with its BatchNorm layers changed in place to use the statistics of the whole batch."""
        return model if self.world_size == 1 else convert(model)

    def wrap_ddp(self, model: nn.Module) -> nn.Module:
        """The model for training: a backward pass leaves in each gradient the mean over the replicas."""
        if self.world_size == 1:
            return model
        # Buffers are the same on all replicas already.  find_unused_parameters leaves unused parameters without a
        # gradient, as with one process.  Without it torch would also reorder gradients after the first step, and would
        # sum them in another order than a training that continues from a checkpoint.
        return DistributedDataParallel(model, forward_sync_buffers=False, find_unused_parameters=True)


SINGLE_PROCESS = Replicas()
"""A training of one process."""


def rendezvous(host: str, port: int | None = None) -> TCPStore:
    """The store through which replicas find each other.

    Rank 0 calls this without a port and opens the store on a free port of its ``host``.  The others connect to that
    ``port``.
    """
    return TCPStore(host, port or 0, is_master=port is None, timeout=TIMEOUT, wait_for_workers=False)


def join(store: TCPStore, rank: int, size: int, device: torch.device) -> Replicas:
    """Connects ``size`` replicas and waits until all have joined: by NCCL with one GPU each, by gloo on CPUs."""
    if distributed.is_initialized():  # as part of an earlier group, in which a process has failed
        distributed.destroy_process_group()
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return Replicas(rank, size)
