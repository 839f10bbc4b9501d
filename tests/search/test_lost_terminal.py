"""A search goes on when its terminal is lost: a window closed, a connection cut."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest

from tests.command import ALONE, FORMULA, HELD_EPOCH, NUM_ALONE, check_whole, environment
from tests.waiting import HANG_SECONDS


@pytest.mark.slow
def test_a_search_outlives_its_terminal(tmp_path: Path) -> None:
    small = ["--name", "a", "--epochs", str(HELD_EPOCH + 1), *ALONE]
    small += ["--confirm-seeds", "0"]
    go = tmp_path / "go"
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, *FORMULA, *small], environment(HOLD=str(go)))
    shown, end = b"", time.monotonic() + HANG_SECONDS
    while not list(tmp_path.glob("runs/a/*/result.json")):
        assert time.monotonic() < end, shown.decode()
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 2**16)
    os.close(terminal)
    go.touch()
    _, status = os.waitpid(child, 0)
    log = (tmp_path / "runs/a/ray.log").read_text()
    assert os.waitstatus_to_exitcode(status) == 0, log
    assert "Best settings of sgdm" in log, "the end is shown there"
    check_whole(tmp_path, {"sgdm": NUM_ALONE})
