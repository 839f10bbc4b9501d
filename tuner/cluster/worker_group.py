"""The processes of a trial that trains on several: its own actor, and one worker per further bundle of its resources.

The workers live as long as the trial's actor and run one training after another.  The actor asks all workers for an
epoch at the same time.  So no worker waits for another between epochs, whatever Tune asks of the actor next.
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

if TYPE_CHECKING:  # the driver does not need torch's 500 MB
    from tuner.train.data_parallel import Replicas

LOOKING_SECONDS = 60.0
"""Longest wait, after a process failed, for the report of which process died first.

Ray reports a dead process at once, but may need this long to notice a lost machine.
"""

EXPLAINED = (InvalidInput, StorageFailed)
"""Errors that a process raises for a reason of its own, and not because another process failed."""

Training: TypeAlias = "Callable[[Replicas], Iterator[dict[str, Any]]]"


def see_own_gpus() -> None:
    """Hides all GPUs from an actor that was given none, because Ray leaves them visible.

    Has to be called before torch looks for GPUs.
    """
    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


class WorkerGroup:
    """The workers of the actor that makes the group.  The actor itself is rank 0."""

    def __init__(self, size: int) -> None:
        """Starts ``size`` - 1 workers and waits until all are connected.  Raises as :meth:`results` does.

        Each worker gets one further bundle of this actor's placement group, equal to the actor's own.
        """
        from tuner.train.data_parallel import rendezvous

        self.ended = False
        """Whether a process has failed and all workers were ended."""
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
        """Yields what ``training`` yields on rank 0 while all processes run it together.

        If one process fails, all workers are ended.  The error that is raised is that of a process that died, or else
        one of :data:`EXPLAINED`, or else rank 0's own.  An error of rank 0 in :data:`EXPLAINED` comes before all.
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
        # In a thread, because the wait for a process that has died may never end.
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
    """The actor of one further process of a trial."""

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

    # gloo would take the interface to which the host name resolves, which other machines often cannot reach.
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
    """The error that caused the others: a process that dies makes those connected to it fail too."""
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
