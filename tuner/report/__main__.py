"""The command ``python -m tuner.report NAME [NAME ...]``: the report of a search, or of several together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tuner.errors import InvalidInput
from tuner.plan import BAD_INPUT, OK
from tuner.preflight import check_folder
from tuner.report.writing import write_joint_report, write_report
from tuner.results import load_search

LONGEST_NAME = 200
"""Characters of the name of a folder."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit status 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m tuner.report",
        description="Write the report of a search into its folder; of several, side by side, into another.",
    )
    parser.add_argument("names", nargs="+", metavar="NAME", help="a search, as it was named or as its folder is called")
    parser.add_argument("--output", default="runs", help="folder that holds the searches' folders (default: runs)")
    parser.add_argument("--storage", help="Optuna storage URL, where the one that was kept lacks its password")
    parser.add_argument("--folder", type=Path, help="where to write, instead of the search's own folder")
    arguments = parser.parse_args(argv)
    try:
        names: list[str] = arguments.names
        if twice := [name for name in names if names.count(name) > 1]:
            raise InvalidInput(f"{twice[0]}: is named twice")
        if len(joint := "-".join(["report", *names])) > LONGEST_NAME and not arguments.folder:
            raise InvalidInput("--folder: so many searches need one to be given")
        searches = [load_search(name, output=arguments.output, storage=arguments.storage) for name in names]
        folder = arguments.folder or (searches[0].folder if len(names) == 1 else Path(arguments.output) / joint)
        check_folder("--folder", folder)
        report, paths = write_report(searches[0], folder) if len(names) == 1 else write_joint_report(searches, folder)
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    print("\n".join([*report.sections[0].sentences, *(str(path) for path in paths)]))
    return OK


if __name__ == "__main__":
    sys.exit(main())
