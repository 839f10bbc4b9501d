"""The command ``python -m tuner.search``, and the same from Python.

What takes long to import is imported where it is needed: what only looks is answered at once, and a search imports most
of it while Ray starts, which is mostly waiting.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tuner.core.environment import hardware, versions
from tuner.core.exit_status import OK, says_why
from tuner.core.search_spec import SearchResult, SearchSpec
from tuner.search.arguments import how_to_go_on, parse
from tuner.search.terminal import only_display
from tuner.study import search_folder

SLOW_IMPORTS = ("mlflow.tracking", "scipy.stats", "matplotlib.figure")
"""Not of Ray: its own modules are being imported by the main thread at that time."""


@says_why
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    spec, search_id = parse(sys.argv[1:] if argv is None else argv)
    if spec.list:
        from tuner.search.dry_run import print_variants

        print_variants()
        return OK
    if spec.dry_run:
        from tuner.search import preflight
        from tuner.search.dry_run import print_plan

        if search_id is None:
            search_folder.check_new(spec)
        print_plan(spec, preflight.check(replace(spec, download=False))[0])
        return OK
    return run_search(spec, search_id).exit_status


def run_search(spec: SearchSpec, search_id: str | None = None) -> SearchResult:
    """Runs a search, or goes on with the one of this id, and shows it on the terminal.

    Raises :class:`InvalidInput` before anything is created.
    """
    import ray

    from tuner.cluster.ray_cluster import start_ray
    from tuner.search import preflight

    spec = spec if spec.name else search_folder.with_name(spec)
    assert spec.name is not None
    folder = Path(spec.output).absolute() / spec.name
    if search_id is None:
        search_folder.check_new(spec)
    variants, data = preflight.check(spec)
    # What is decided once: a resumed search, from wherever, has the same databases and reads its images the same way.
    spec = replace(spec, stream=data.stream).located()
    with search_folder.claimed(folder), only_display(folder / search_folder.LOG) as console:
        importing = threading.Thread(target=lambda: list(map(importlib.import_module, SLOW_IMPORTS)), daemon=True)
        importing.start()
        content = search_folder.content_of(variants, data.digest)
        if search_id is not None:
            search_folder.check_same(folder, content)
            importing.join()  # who imports parts of a package beside another thread may find them half made
            from tuner.search import session
            from tuner.search.finish import conclude

            ledger = session.open_ledger(spec, search_id, variants, data, folder)
            if ledger.is_complete():
                search_folder.save(folder, spec, search_id, content, splits=data.note)
                return conclude(ledger, console)
        try:
            resources = start_ray(spec)
            importing.join()
            from tuner.search import session

            if search_id is None:
                session.check_storage(spec)
            known_id = search_id or search_folder.new_id()
            program = search_folder.Program(time.time(), None, versions(), hardware(), resources.slots)
            search_folder.save(folder, spec, known_id, content, splits=data.note, program=program)
            if search_id is None:
                ledger = session.open_ledger(spec, known_id, variants, data, folder)
            return session.train(ledger, resources, console)
        except KeyboardInterrupt:
            if (folder / search_folder.SPEC_FILE).exists():
                console.print(f"Stopped. {how_to_go_on(spec)}", highlight=False, soft_wrap=True)
            raise
        finally:
            ray.shutdown()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # All is written and Ray has been ended; to take the interpreter apart would take another second and a half.
    os._exit(status)
