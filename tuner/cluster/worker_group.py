"""The processes of a trial that trains on several: its own actor and further ones, one a bundle of its resources.

They live as long as the trial's actor and take up one training after another.  Every epoch is asked of all of them at
once, so between epochs none waits for another, whatever the trial's actor is told to do next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, as_completed, wait
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias

import psutil
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util import get_current_placement_group, get_node_ip_address
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tuner.core.errors import InvalidInput, StorageFailed

if TYPE_CHECKING:  # the driver has no use for torch's 500 MB
    from tuner.train.data_parallel import Replicas

LOOKING_SECONDS = 60.0
"""Longest time to find out which process died when those that were connected to it fail: Ray may need that to miss a
machine, and says at once that a process is gone."""

EXPLAINED = (InvalidInput, StorageFailed)
"""Errors that a process comes to by itself, whatever the others do."""

Training: TypeAlias = "Callable[[Replicas], Iterator[dict[str, Any]]]"


def see_own_gpus() -> None:
    """Hides all GPUs from an actor that was given none, before torch looks: Ray leaves them visible."""
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class WorkerGroup:
    """Further processes for the actor that makes it, which is rank 0."""

    def __init__(self, size: int) -> None:
        """Starts them in the further bundles of this actor's placement group, which are like its own, and waits until
        all are connected.  Raises as :meth:`results` does."""
        from tuner.train.data_parallel import rendezvous

        self.ended = False
        """Whether one has failed, and all are gone."""
        group = get_current_placement_group()
        assert group is not None
        bundle = group.bundle_specs[0]
        self._actors: list[Any] = [
            ray.remote(Worker)
            .options(
                num_cpus=bundle.get("CPU", 0),
                num_gpus=bundle.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place),
            )
            .remote()
            for place in range(1, size)
        ]
        address = get_node_ip_address()
        store = rendezvous(address)
        joining = [
            actor.join.remote(address, store.port, rank, size) for rank, actor in enumerate(self._actors, start=1)
        ]
        self._replicas: Replicas = self._together(lambda: _join(store, 0, size), joining)

    def results(self, training: Training) -> Iterator[dict[str, Any]]:
        """What ``training`` yields on rank 0, all processes going on with it together.

        Where one fails, all the others are ended.  The error is that of the process that died, or else one that
        explains itself, or else rank 0's own.
        """
        own = training(self._replicas)
        begin: Training | None = training
        while True:
            going_on = [actor.go_on.remote(begin) for actor in self._actors]
            result = self._together(lambda: next(own, None), going_on)
            if result is None:
                return
            begin = None
            yield result

    def _together(self, own: Callable[[], Any], others: list[ray.ObjectRef[Any]]) -> Any:
        here: Future[Any] = Future()
        # A thread, since a process that waits for one that is gone may wait for ever.
        Thread(target=_fulfil, args=(here, own), daemon=True).start()
        elsewhere = [other.future() for other in others]
        done, waiting = wait([here, *elsewhere], return_when=FIRST_EXCEPTION)
        if not waiting and not any(future.exception() for future in done):
            return here.result()
        error = _first_cause(here, elsewhere)
        self.ended = True
        for actor in self._actors:
            ray.kill(actor)
        raise error


class Worker:
    """The actor of a further process."""

    def join(self, host: str, port: int, rank: int, size: int) -> None:
        see_own_gpus()
        from tuner.train.data_parallel import rendezvous

        self._replicas = _join(rendezvous(host, port), rank, size)

    def go_on(self, begin: Training | None) -> None:
        if begin is not None:
            self._results = begin(self._replicas)
        next(self._results, None)


def _join(store: Any, rank: int, size: int) -> Replicas:
    import torch

    from tuner.train.data_parallel import join

    # gloo would take the interface of this machine's name, which on many is that of no other machine.
    own = get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    return join(store, rank, size, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _fulfil(future: Future[Any], function: Callable[[], Any]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)


def _first_cause(here: Future[Any], elsewhere: list[Future[Any]]) -> BaseException:
    """Why some of these have failed: one that dies takes those along that are connected to it."""
    own = here.exception() if here.done() else None
    if isinstance(own, EXPLAINED):
        return own
    errors: list[BaseException] = []
    with suppress(TimeoutError):
        for other in as_completed(elsewhere, timeout=LOOKING_SECONDS):
            error = other.exception()
            if isinstance(error, RayActorError):
                return error
            if isinstance(error, RayTaskError):
                errors.append(error.cause)
    explained = [error for error in errors if isinstance(error, EXPLAINED)]
    return next(iter([*explained, *([own] if own else []), *errors]))
