"""The command ``python -m tuner.report NAME [NAME ...]``: the report of a search, or one report over several."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from tuner.core.errors import ExitStatus, InvalidInput, command, masked
from tuner.report.page import write_joint_report, write_report
from tuner.study.results import Search, load_search

LONGEST_NAME = 200
"""Most characters of a folder's name."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit status 0, 2 for bad input, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m tuner.report",
        description="Write the report of a search into its folder; of several searches together, into a new folder.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="name of a search, which is the name of its folder")
    parser.add_argument("--output", default="runs", help="folder that holds the searches' folders (default: runs)")
    parser.add_argument("--storage", help="Optuna storage URL, if the stored one lacks its password")
    parser.add_argument("--folder", type=Path, help="folder to write to, instead of the search's own")
    arguments = parser.parse_args(argv)
    # A shell completes a folder's name with a slash.
    names = [str(Path(name)) for name in arguments.names]
    if "" in arguments.names or {".", "..", "/"} & set(names):
        raise InvalidInput("NAME: must be the name of a search")
    if apart := [name for name in names if name != Path(name).name]:
        name = Path(apart[0])
        raise InvalidInput(f"{name}: give its name alone, {name.name}, and its folder with --output {name.parent}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidInput(f"{twice[0]}: is given twice")
    joint = "-".join(["report", *names])
    if len(names) > 1 and len(joint) > LONGEST_NAME and not arguments.folder:
        raise InvalidInput("--folder: is required for so many searches")
    searches = [_load(name, arguments.output, arguments.storage) for name in names]
    folder = arguments.folder or (searches[0].folder if len(names) == 1 else Path(arguments.output) / joint)
    try:
        written = write_report(searches[0], folder) if len(names) == 1 else write_joint_report(searches, folder)
    except OSError as error:
        raise InvalidInput(f"--folder {folder}: cannot be written ({error.strerror})") from None
    report, paths = written
    print("\n".join([*report.sections[0].sentences, *(str(path) for path in paths)]))
    return ExitStatus.OK


def _load(name: str, output: str, storage: str | None) -> Search:
    try:
        search = load_search(name, output=output, storage=storage)
    except (SQLAlchemyError, StorageInternalError, ImportError) as error:
        why = masked(str(error.__cause__ or error).splitlines()[0])
        raise InvalidInput(f"--storage: the studies of {name} cannot be read ({why})") from None
    if storage and not search.studies:
        raise InvalidInput(f"--storage {masked(storage)}: holds no study of {name}")
    return search


if __name__ == "__main__":
    sys.exit(main())
