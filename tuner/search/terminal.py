"""Keeps the terminal for the display: what libraries print goes to a file."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console

from tuner.core.environment import PLAIN_WIDTH

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12 on


@contextmanager
def redirect_output(log: Path) -> Iterator[Console]:
    """A console on the real standard output; the output of this process and its children goes to ``log``.

    The redirection is of file descriptors: Ray's daemons and C++ libraries write past Python's ``sys.stdout``.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    to_log = logging.StreamHandler()
    try:
        with (
            # Not closed at the end, because libraries may keep these streams.
            redirect_stdout(_text(1, closefd=False)),
            redirect_stderr(_text(2, closefd=False)) as errors,
            _text(os.dup(saved[0])) as terminal,
            _outliving(terminal, log),
        ):
            to_log.setStream(errors)
            to_log.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
            logging.getLogger("tuner").addHandler(to_log)
            yield Console(file=terminal, width=None if terminal.isatty() else PLAIN_WIDTH)
    finally:
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        logging.getLogger("tuner").removeHandler(to_log)


class _Lossy(io.FileIO):
    """Drops output that a full disk, or a pipe without a reader, does not take, so that no search ends for it."""

    def write(self, data: Buffer) -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def _text(descriptor: int, *, closefd: bool = True) -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(_Lossy(descriptor, "w", closefd)), line_buffering=True)


@contextmanager
def _outliving(terminal: TextIO, log: Path) -> Iterator[None]:
    """The program continues when its terminal is lost (window closed, connection cut); the log gets further output."""
    if threading.current_thread() is not threading.main_thread() or not terminal.isatty():
        yield
        return

    def hang_up(*_: object) -> None:
        with log.open("a") as file:
            for descriptor in (0, terminal.fileno()):
                os.dup2(file.fileno(), descriptor)

    before = signal.signal(signal.SIGHUP, hang_up)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)
