"""The command ``python -m tuner.search``.

Slow imports are made where they are needed, so that ``--help`` and ``--list`` answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from tuner.core.errors import ExitStatus, command
from tuner.search.arguments import parse
from tuner.search.session import run_search
from tuner.study import search_folder


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    spec, search_id = parse(sys.argv[1:] if argv is None else argv)
    if spec.list:
        from tuner.search.dry_run import print_variants

        print_variants()
        return ExitStatus.OK
    if spec.dry_run:
        from tuner.search import preflight
        from tuner.search.dry_run import print_plan

        if search_id is None:
            search_folder.check_new(spec)
        print_plan(spec, *preflight.check(spec, download=False))
        return ExitStatus.OK
    return run_search(spec, search_id).exit_status


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written and Ray has ended; a regular exit of the interpreter would take another second and a half.
    os._exit(status)
