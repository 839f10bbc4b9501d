"""Replicas in processes of their own, connected by gloo, that a test gives functions to run."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import torch

from tests.waiting import HANG_SECONDS
from tuner.train.data_parallel import join, rendezvous

CPU = torch.device("cpu")


class Processes:
    """``size`` replicas; called with a function, which takes a :class:`Replicas` first, it returns their answers."""

    def __init__(self, size: int = 2) -> None:
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(size)]
        self._pipes = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=_serve, args=(theirs, rank, size), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(self.processes, pipes, strict=True):
            process.start()
            theirs.close()
        port = self.answer(0)
        for pipe in self._pipes[1:]:
            pipe.send(port)

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Their answers, or what the first to fail has raised."""
        self.begin(function, *arguments)
        answers = [self._answer(rank) for rank in range(len(self._pipes))]
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Calls it on all replicas, for :meth:`answer`."""
        for pipe in self._pipes:
            pipe.send((function, arguments))

    def answer(self, rank: int) -> Any:
        """What the replica has returned; raises what it raised, EOFError where it died."""
        answer = self._answer(rank)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def _answer(self, rank: int) -> Any:
        assert self._pipes[rank].poll(HANG_SECONDS), f"no answer from rank {rank}"
        return self._pipes[rank].recv()

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self.processes:
            process.join(HANG_SECONDS)
            assert process.exitcode is not None, "it goes on after its test"


def _serve(pipe: Connection, rank: int, size: int) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    store = rendezvous("127.0.0.1") if rank == 0 else rendezvous("127.0.0.1", pipe.recv())
    if rank == 0:
        pipe.send(store.port)
    replicas = join(store, rank, size, CPU)
    while True:
        try:
            function, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(replicas, *arguments))
        except Exception as error:
            pipe.send(error)
