"""A trial of several processes on Ray: they go on together, and where one ends, none is left waiting."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError
from ray.util import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tests.command import ALONE, NUM_ALONE, Running, check_whole, epochs_logged
from tuner.cluster.worker_group import WorkerGroup
from tuner.core.errors import InvalidInput
from tuner.train.data_parallel import Replicas

EPOCHS = 3


def counting(replicas: Replicas, end: str = "") -> Iterator[dict[str, Any]]:
    """Three epochs, in the second of which rank 1 may end."""
    for epoch in range(EPOCHS):
        if epoch == 1 and replicas.rank == 1:
            if end.startswith("dies"):
                os._exit(1)
            if end == "bad input":
                raise InvalidInput("an image is torn")
            if end == "a mistake":
                raise ZeroDivisionError("by nothing")
        if epoch == 1 and replicas.rank == 0:
            if end == "bad input here":
                raise InvalidInput("an image here is torn")
            if end == "dies unseen":
                threading.Event().wait()
        (ranks,) = replicas.all_reduce(torch.tensor(replicas.rank + 1.0))
        yield {"epoch": epoch, "sum": float(ranks), "process": os.getpid()}


class Head:
    """What a trial's actor does with its company."""

    def __init__(self) -> None:
        self.company: WorkerGroup | None = None

    def run(self, end: str = "", num_epochs: int | None = None) -> tuple[list[dict[str, Any]], list[str]]:
        """What rank 0 told, and the other processes there were."""
        if self.company is None or self.company.ended:
            self.company = WorkerGroup(2)
        told = list(itertools.islice(self.company.results(partial(counting, end=end)), num_epochs))
        return told, [str(actor) for actor in self.company._actors]


@pytest.fixture(scope="module")
def head() -> Iterator[Any]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    group = placement_group([{"CPU": 1}] * 2)
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    yield ray.remote(Head).options(num_cpus=1, scheduling_strategy=strategy).remote()
    ray.shutdown()


def ended(head: Any, end: str) -> BaseException:
    with pytest.raises((RayTaskError, RayActorError)) as raised:
        ray.get(head.run.remote(end))
    error: BaseException = raised.value.cause if isinstance(raised.value, RayTaskError) else raised.value
    return error


@pytest.mark.slow
def test_processes_stay_for_the_next_training_even_where_one_was_left_in_the_middle(head: Any) -> None:
    whole, others = ray.get(head.run.remote())
    assert [(told["epoch"], told["sum"]) for told in whole] == [(epoch, 3.0) for epoch in range(EPOCHS)]
    begun, same = ray.get(head.run.remote(num_epochs=2))
    again, and_again = ray.get(head.run.remote())
    assert begun == whole[:2] and again == whole
    assert same == and_again == others


@pytest.mark.slow
@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        ("dies", RayActorError, "died"),
        ("dies unseen", RayActorError, "died"),  # by no collective, as with NCCL
        ("bad input", InvalidInput, "^an image is torn$"),
        ("bad input here", InvalidInput, "^an image here is torn$"),
        ("a mistake", ZeroDivisionError, "^by nothing$"),
    ],
)
def test_the_end_of_one_is_the_end_of_all_and_told_as_its_own(head: Any, end: str, error: Any, message: str) -> None:
    _, others = ray.get(head.run.remote())
    with pytest.raises(error, match=message):
        raise ended(head, end)
    whole, new = ray.get(head.run.remote())
    assert len(whole) == EPOCHS and new != others


@pytest.mark.slow
def test_a_search_whose_replica_is_killed_ends_whole(tmp_path: Path) -> None:
    running = Running(
        tmp_path,
        *["--name", "a", *ALONE, "--epochs", "5", "--confirm-seeds", "1"],
        *["--workers-per-trial", "2", "--cpus-per-trial", "1", "--no-early-stopping"],
    )
    running.wait_until(lambda: any(2 <= len(epochs) < 5 for epochs in epochs_logged(tmp_path).values()))
    companions = [
        process
        for process in psutil.Process(running.process.pid).children(recursive=True)
        if any(word.startswith("ray::Worker") for word in process.cmdline())  # not the raylet, which names Java's
    ]
    assert companions
    companions[0].kill()
    assert running.wait() == 0, running.output()
    check_whole(tmp_path, {"sgdm": NUM_ALONE})
