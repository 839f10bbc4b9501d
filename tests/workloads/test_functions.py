"""A user's own functions: found by name, and called with what they ask for."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tuner.core.errors import InvalidInput
from tuner.core.import_path import said
from tuner.workloads.functions import arguments_of, find_function

OFFERED = {"num_outputs": 3, "input_shape": (2,)}
NUMBERS = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes a module and returns its name, which is new each time."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> str:
        name = f"written_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    return write


@pytest.mark.parametrize(
    ("text", "function", "said"),
    [
        ("def load(): pass", "laod", "unknown name in written_.* 'laod': did you mean 'load'"),
        ("load = {}", "load", "is a dict, not a function"),
        ("x = 3", "load", "unknown name in written_.* 'load': choose from x"),
        ("x = 3\n1 / 0", "load", r"cannot be imported: ZeroDivisionError: division by zero \(written_\d+.py, line 2\)"),
        ("x = (3", "load", r"cannot be imported: SyntaxError: '\(' was never closed \(written_\d+.py, line 1\)"),
        ("import nothing_of_this_name", "load", "No module named 'nothing_of_this_name'"),
        ("raise SystemExit(3)", "load", "cannot be imported: SystemExit: 3"),
    ],
)
def test_a_function_that_is_not_there_is_told_in_a_sentence(
    module: Callable[[str], str], text: str, function: str, said: str
) -> None:
    name = f"{module(text)}:{function}"
    with pytest.raises(InvalidInput, match=said) as refused:
        find_function("--workload", name)
    assert str(refused.value).startswith(f"--workload {name}: ") and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["a:", ":b", ":"])
def test_half_a_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"must be package\.module:name"):
        find_function("--workload", name)


def test_an_error_is_told_with_the_users_own_line(module: Callable[[str], str]) -> None:
    name = module("import json\n\ndef load():\n    return json.loads('{')\n")
    load = find_function("--workload", f"{name}:load")
    with pytest.raises(ValueError) as error:
        load()
    text = said(error.value, load)
    assert text.startswith("JSONDecodeError: ") and text.endswith(f"({name}.py, line 4)")


class Module(nn.Module):
    def __init__(self, input_shape: tuple[int, ...], *, width: int = 4) -> None:
        super().__init__()


def of_all(**values: Any) -> None: ...


def of_one(num_outputs: int, width: int = 3) -> None: ...


def of_more(num_outputs: int, depth: int) -> None: ...


def by_place(num_outputs: int, /) -> None: ...


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (of_all, ["num_outputs", "input_shape"]),
        (of_one, ["num_outputs"]),
        (functools.partial(of_more, depth=3), ["num_outputs"]),
        (Module, ["input_shape"]),
        (lambda: None, []),
    ],
)
def test_a_function_gets_what_its_signature_names(function: Callable[..., Any], names: list[str]) -> None:
    assert list(arguments_of(function, OFFERED, "x")) == names


def test_an_argument_that_there_is_not_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--model x: needs 'depth', and there is num_outputs, input_shape"):
        arguments_of(of_more, OFFERED, "--model x")
    with pytest.raises(InvalidInput, match="needs 'num_outputs'"):
        arguments_of(by_place, OFFERED, "--model x")
    with pytest.raises(InvalidInput, match="there is nothing to give it"):
        arguments_of(of_one, {}, "--model x")
