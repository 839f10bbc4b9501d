"""Questions to a process of its own, which may import torch and run a user's code.

The process finds the modules that this one finds, has no input, and answers on its standard output alone: what a user's
code prints goes to its standard error.  It ends with its answer, whatever threads that code has started.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import traceback
from typing import NoReturn

from tuner.core.errors import ExitStatus, InvalidInput

PROGRAM = "import sys; from tuner.core.separate_process import reply; reply(*sys.argv[1:])"


def ask(function: str, *arguments: str) -> subprocess.Popen[str]:
    """Starts a process that calls ``package.module:function``, which takes texts and returns one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, function, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str], what: str) -> str:
    """What the process answers.

    Raises :class:`InvalidInput` with the sentence of an :class:`InvalidInput` there.  If the process ended in another
    way, ``what`` begins the sentence, and the last line of its errors follows.
    """
    printed, errors = process.communicate()
    if process.returncode == ExitStatus.OK and printed:
        return printed
    if process.returncode == ExitStatus.BAD_INPUT and printed:
        raise InvalidInput(printed)
    lines = errors.strip().splitlines()
    ended = f"its process ended with status {process.returncode}"
    raise InvalidInput(f"{what} cannot be tried: {lines[-1] if lines and process.returncode > 0 else ended}")


def reply(function: str, *arguments: str) -> NoReturn:
    """Ends this process with what the function returns; called in the process that :func:`ask` starts."""
    out = os.dup(1)
    os.dup2(2, 1)
    try:
        module, _, name = function.partition(":")
        text, status = getattr(importlib.import_module(module), name)(*arguments), ExitStatus.OK
    except InvalidInput as error:
        text, status = str(error), ExitStatus.BAD_INPUT
    except BaseException:  # a user's code may exit, too
        traceback.print_exc()
        text, status = "", ExitStatus.NOTHING_FINISHED
    with os.fdopen(out, "w") as answered:
        answered.write(text)
    os._exit(status)
