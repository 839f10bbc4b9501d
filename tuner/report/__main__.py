"""The command ``python -m tuner.report NAME [NAME ...]``: the report of a search, or of several together."""

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
"""Characters of the name of a folder."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit status 0, 2 for bad input, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m tuner.report",
        description="Write the report of a search into its folder; of several, side by side, into another.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a search, as its folder is called")
    parser.add_argument("--output", default="runs", help="folder that holds the searches' folders (default: runs)")
    parser.add_argument("--storage", help="Optuna storage URL, where the one that was kept lacks its password")
    parser.add_argument("--folder", type=Path, help="where to write, instead of the search's own folder")
    arguments = parser.parse_args(argv)
    # A shell completes a folder's name with a slash.
    names = [str(Path(name)) for name in arguments.names]
    if "" in arguments.names or {".", "..", "/"} & set(names):
        raise InvalidInput("NAME: must be the name of a search")
    if apart := [name for name in names if name != Path(name).name]:
        name = Path(apart[0])
        raise InvalidInput(f"{name}: name the search alone, {name.name}, and its folder by --output {name.parent}")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InvalidInput(f"{twice[0]}: is named twice")
    joint = "-".join(["report", *names])
    if len(names) > 1 and len(joint) > LONGEST_NAME and not arguments.folder:
        raise InvalidInput("--folder: so many searches need one to be given")
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
