"""The trainable: a Ray actor that runs one trial after another.

A trial's checkpoints are in the trial's own store, not in Tune's.  Every start of a trial, on any machine, first looks
for a checkpoint there and reports its epochs again.  The actor writes nothing else: the driver records what it reports.
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

if TYPE_CHECKING:  # the driver imports this module and does not need torch's 500 MB
    from tuner.train.data_parallel import Replicas

Results = Iterator[dict[str, Any]]

MOUNT_SECONDS = 15.0
"""Seconds for which a shared folder may be missing on a machine before it counts as not shared."""


class TrialActor(Trainable):
    """Runs the trial in ``config``, whose keys are the fields of :class:`TrialTask`.

    It evaluates on the test split in the phase ``test``, and trains in all others.
    """

    _group: WorkerGroup | None = None
    """The other workers of a trial of several; the next trial uses them again."""

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
        # Tune would retry a trial that raises, and these errors would come again.
        except InvalidInput as error:
            return {"failure": str(error), "done": True}
        except StorageFailed as error:
            return {"storage_failed": str(error), "done": True}
        return {**result, "busy_seconds": time.perf_counter() - started}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrialTask:
    """What an actor has to do."""

    trial: str
    """Name of the trial, confirmed run or test."""
    phase: str
    """A phase of :mod:`tuner.study.trial_record`."""
    spec: str
    """The TrialSpec as JSON text.  Tune would copy every number of nested data, into its tables too."""
    root: str
    """Place of the search's stores: a URI, or a folder that all machines share."""
    folder: str
    """Name of the training's store in ``root``."""
    checkpoint_seconds: float | None
    """Least number of seconds between two checkpoints; None lets checkpoints take at most 5% of the time."""
    workers: int
    """Number of processes that train the network together, at least 1."""
    threads: int
    """CPU threads of each process, at least 1."""
    gpu_share: float
    """Part of a GPU's memory that each process may use, in [0, 1]: 0 without a GPU, 1 for whole GPUs."""
    failure: str | None = None
    """The reason for which the trial has to end as failed at once; None for a trial that may run."""


def work(task: TrialTask, replicas: Replicas | None = None) -> Results:
    """Yields what one process of a trial reports; ``replicas`` is its place among several processes.

    Raises :class:`InvalidInput` and :class:`StorageFailed`, which a retry would not help.
    """
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
        retry(f"folder {task.root} on {socket.gethostname()}", store.parent.require, seconds=MOUNT_SECONDS)
    try:
        yield from _test(spec, store) if task.phase == "test" else _train(spec, store, task, replicas)
        return
    except torch.OutOfMemoryError:
        if task.gpu_share in (0, 1):
            raise
    # Raised outside the handler, because the caught error keeps the training's tensors on the GPU.
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
