"""The trainable: a Ray actor that runs one trial after another.

A trial's checkpoints are in its store, not Tune's: a trial that starts, for whatever reason and on whatever machine,
looks there first and tells the epochs it finds again.  It writes nothing else: what it tells, the driver keeps.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from ray.tune import Trainable

from tuner.cluster.worker_group import WorkerGroup, see_own_gpus
from tuner.core.errors import InvalidInput, StorageFailed
from tuner.core.metrics import EpochMetrics, is_finished
from tuner.core.retry import retry
from tuner.core.serialization import from_dict, to_json
from tuner.core.store import Store
from tuner.core.trial_spec import TrialSpec

if TYPE_CHECKING:  # the driver knows this module and has no use for torch's 500 MB
    from tuner.train.data_parallel import Replicas

Results = Iterator[dict[str, Any]]

MOUNT_SECONDS = 15.0
"""How long a folder that all machines share may be away on one of them before it counts as not shared."""


class TrialActor(Trainable):
    """Runs the trial in ``config``, whose keys are the fields of :class:`TrialTask`.

    In the phases ``explore`` and ``confirm`` it trains, in ``test`` it reads the test split.
    """

    _group: WorkerGroup | None = None
    """The other processes of a trial that has some, for the next one too."""

    def setup(self, config: dict[str, Any]) -> None:
        see_own_gpus()
        task = TrialTask(**config)
        alone = task.workers == 1 or task.phase == "test"
        self._results = work(task) if alone else self._work_in_group(task)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def _work_in_group(self, task: TrialTask) -> Results:
        if self._group is None or self._group.ended:
            self._group = WorkerGroup(task.workers)
        yield from self._group.results(partial(work, task))

    def step(self) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            result = next(self._results)
        # Raised, they would be tried again, and be as wrong again.
        except InvalidInput as error:
            return {"failure": str(error), "done": True}
        except StorageFailed as error:
            return {"storage_failed": str(error), "done": True}
        return {**result, "busy_seconds": time.perf_counter() - started}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrialTask:
    """What a worker is to do."""

    trial: str
    """Name of the trial, confirmed run or test."""
    phase: str
    spec: str
    """A TrialSpec as JSON: of data Tune would copy every number, into its tables too."""
    root: str
    """Place of the search's stores; a folder must be one that all machines see."""
    folder: str
    """Name of the training's store in it."""
    checkpoint_seconds: float | None
    workers: int
    """Processes that train it."""
    threads: int
    """Of each."""
    gpu_share: float
    """Part of a GPU that this process may use, 0 for none and 1 for whole ones."""
    failure: str | None = None
    """Why it is to end at once as failed."""


def work(task: TrialTask, replicas: Replicas | None = None) -> Results:
    """What a worker tells of an task, in one of its processes; ``replicas`` where there are several."""
    if task.failure is not None:
        raise InvalidInput(task.failure)
    import torch

    from tuner.cluster.gpu_memory import limit_gpu_memory, why_out_of_memory
    from tuner.train.data_parallel import SINGLE_PROCESS

    replicas = replicas or SINGLE_PROCESS
    torch.set_num_threads(task.threads)
    limit_gpu_memory(task.gpu_share)
    spec = from_dict(TrialSpec, json.loads(task.spec))
    store = retry(task.root, lambda: Store(task.root)) / task.folder
    if replicas.rank == 0:
        retry(f"On {socket.gethostname()} the folder {task.root}", store.parent.require, seconds=MOUNT_SECONDS)
    try:
        yield from _test(spec, store) if task.phase == "test" else _train(spec, store, task, replicas)
        return
    except torch.OutOfMemoryError:
        if task.gpu_share in (0, 1):
            raise
    # Outside the handler: the error holds what the training had on the GPU.
    raise InvalidInput(why_out_of_memory(spec, task.gpu_share))


def _train(spec: TrialSpec, store: Store, task: TrialTask, replicas: Replicas) -> Results:
    from tuner.train import train

    history: list[EpochMetrics] = []
    for metrics in train(
        spec,
        store=store,
        checkpoint_seconds=task.checkpoint_seconds,
        keep_weights=task.phase == "confirm",
        replicas=replicas,
    ):
        history.append(metrics)
        yield {"metrics": to_json(metrics), "done": is_finished(spec, history)}


def _test(spec: TrialSpec, store: Store) -> Results:
    from tuner.train.final_weights import score_on_test

    yield {"test": dataclasses.asdict(score_on_test(spec, store)), "done": True}
