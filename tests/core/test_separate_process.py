"""A process of its own: what a user's code prints, and how it ends, is told apart from the answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tuner.core.errors import InvalidInput
from tuner.core.separate_process import answer, ask

GOOD = "def make(parameters, lr=0.1): pass\n"


@pytest.mark.parametrize(
    "text",
    [
        "print('hello', end='')",
        "import os; os.write(1, b'raw')",
        "import atexit; atexit.register(print, 'bye')",
        "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()",
        "import sys; sys.stdout = None",
    ],
)
def test_only_the_answer_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "mine.py").write_text(f"{text}\n{GOOD}")
    monkeypatch.syspath_prepend(tmp_path)
    with ask("tuner.core.import_path:description", "mine:make") as process:
        found = answer(process, "mine")
    assert found.startswith('{"mine:make": {"kind": "callable"')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os; os._exit(0)", "mine cannot be tried: its process ended with status 0"),
        ("import os; os._exit(2)", "mine cannot be tried: its process ended with status 2"),
        ("import os; os.kill(os.getpid(), 9)", "mine cannot be tried: its process ended with status -9"),
    ],
)
def test_an_end_without_an_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    (tmp_path / "mine.py").write_text(f"{text}\n{GOOD}")
    monkeypatch.syspath_prepend(tmp_path)
    with ask("tuner.core.import_path:description", "mine:make") as process, pytest.raises(InvalidInput, match=said):
        answer(process, "mine")


def test_a_module_that_asks_for_input_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(f"input('name? ')\n{GOOD}")
    monkeypatch.syspath_prepend(tmp_path)
    with ask("tuner.core.import_path:description", "mine:make") as process:
        assert "EOFError" in answer(process, "mine")
