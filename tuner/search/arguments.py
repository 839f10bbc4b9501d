"""Parses argv into a SearchSpec; every mistake is reported in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import io
import re
from collections.abc import Sequence
from typing import Annotated, Any, get_type_hints

import tyro
from docstring_parser import parse_from_object

from tuner.core.errors import InvalidInput, masked
from tuner.core.search_spec import LEAVES, SearchSpec, flag
from tuner.study import search_folder

PROGRAM = "python -m tuner.search"
RULE = "─"


def parse(argv: Sequence[str]) -> tuple[SearchSpec, str | None]:
    """The search asked for, and its id if it exists already.

    A resumed search keeps its saved settings; argv may change those that change no result.
    Raises InvalidInput; exits with status 0 for ``--help``.
    """
    flags = _given(argv, None)
    if flags.get("resume") is None:
        return search_folder.with_name(SearchSpec.from_flags(**flags)), None
    # The other flags need only agree with the saved ones, not with the defaults.
    asked = SearchSpec.from_flags(**{name: flags[name] for name in ("name", "resume", "output") if name in flags})
    saved, search_id = search_folder.load(asked.output, flags["resume"])
    start = dataclasses.replace(saved, resume=asked.resume, dry_run=False, time_budget=None)
    spec = SearchSpec.from_flags(**_given(argv, start))
    for name in ("storage", "tracking_uri"):
        kept, given = getattr(saved, name), getattr(spec, name)
        if kept != given and given is not None and masked(given) == kept:
            saved = dataclasses.replace(saved, **{name: given})
        elif kept is not None and "***" in kept and given == kept:
            raise InvalidInput(f"{flag(name)}: give {kept} again, its password is not kept")
    search_folder.refuse_changes(spec.located(), saved.located())
    if spec.targets == "auto":
        spec = spec.with_targets(saved.training.targets)  # measured by an earlier process
    return spec, search_id


def how_to_go_on(spec: SearchSpec) -> str:
    """The command that resumes a search."""
    output = f" --output {spec.output}" if spec.output != SearchSpec().output else ""
    return f"Resume with: {PROGRAM} --resume {spec.name}{output}"


def _given(argv: Sequence[str], start: SearchSpec | None) -> dict[str, Any]:
    """The flags of ``start`` changed by argv; without ``start``, the defaults that depend on no other flag."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            given = tyro.cli(_flags(start), args=list(argv), prog=PROGRAM, description=SearchSpec.__doc__)
        # None is the default of every flag that may be None.
        return {name: value for name, value in vars(given).items() if value is not None}
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise InvalidInput(_one_line(printed.getvalue(), argv)) from None


def _flags(start: SearchSpec | None) -> type[Any]:
    """A flat class with one field per flag: its type, its help, and its value in ``start`` or else its default."""
    made: list[tuple[str, Any, Any]] = []
    values = start.flags() if start else {}
    for name, (*path, leaf) in LEAVES.items():
        owner: Any = SearchSpec
        for part in path:
            owner = get_type_hints(owner)[part]
        default = next(item.default for item in dataclasses.fields(owner) if item.name == leaf)
        kind, value = get_type_hints(owner)[leaf], values.get(name, default)
        if default == "":  # no default to show: the help says what is taken in its place
            kind, value = kind | None, value or None
        annotated: Any = Annotated[kind, tyro.conf.arg(help=_helps(owner).get(leaf))]
        made.append((name, annotated, dataclasses.field(default=value)))
    return dataclasses.make_dataclass("SearchSpec", made)


@functools.cache  # reads and parses the source of the class
def _helps(owner: type[Any]) -> dict[str, str]:
    """Field -> the docstring under it, in one line."""
    return {text.arg_name: " ".join((text.description or "").split()) for text in parse_from_object(owner).params}


def _one_line(box: str, argv: Sequence[str]) -> str:
    """The parser's framed message as one sentence; an unknown flag gets the nearest known one."""
    flags = [flag(name) for name in LEAVES]
    for word in argv:
        name = word.partition("=")[0].replace("_", "-")
        if name.startswith("--") and name.replace("--no-", "--") not in flags and name not in flags:
            near = difflib.get_close_matches(name, flags, n=1)
            return f"unknown flag {name}: {f'did you mean {near[0]}?' if near else f'see {PROGRAM} --help'}"
    lines = [line.strip("│╭╮╰╯ ") for line in box.splitlines()[1:]]
    message: list[str] = []
    for line in lines:
        if line.startswith(RULE):
            break
        message.append(line)
    text = re.sub(r"^Error parsing (SearchSpec|--[\w-]+): (?=--)", "", " ".join(message)).strip()
    return text.replace("Error parsing ", "").replace("Unrecognized options:", "not understood:") or box.strip()
