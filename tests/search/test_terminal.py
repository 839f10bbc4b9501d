"""The terminal is the display's; what else is printed is in the log, and is not worth a search."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import HANG_SECONDS
from tuner.search.terminal import redirect_output

PROGRAM = """
import logging, os, sys
from pathlib import Path
from tuner.search.terminal import redirect_output
with redirect_output(Path(sys.argv[1])) as console:
    for stream in (sys.stdout, sys.stderr):
        print("x" * 100_000, file=stream)
    logging.getLogger("tuner.x").warning("y")
    os.system("echo z")
    console.print("shown")
print("after")
"""


def run(log: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-c", PROGRAM, log]
    return subprocess.run(program, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=HANG_SECONDS)


def test_a_full_disk_takes_the_log_and_not_the_program() -> None:
    done = run("/dev/full")
    assert (done.returncode, done.stdout, done.stderr) == (0, "shown\nafter\n", "")


def test_the_log_has_all_that_is_no_display(tmp_path: Path) -> None:
    done = run(str(tmp_path / "log"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "shown\nafter\n", "")
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines[:2] == ["x" * 100_000] * 2 and lines[2].endswith("tuner.x WARNING y") and lines[3] == "z"


def test_a_display_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = run(str(tmp_path / "log"), full.fileno())
    # What the program prints itself, after, fails as it always does.
    assert "redirect_output" not in done.stderr and "console.print" not in done.stderr


def test_what_took_hold_of_the_streams_inside_can_write_after(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with redirect_output(tmp_path / "log"):
        handler = logging.StreamHandler()
    handler.emit(logging.makeLogRecord({"msg": "late"}))
    assert capfd.readouterr().err == "late\n"
