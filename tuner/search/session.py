"""One process's session over a search: opens what exists, trains what is left, and finishes.

Slow imports are made where they are needed, so that a mistake is reported at once.  A search makes most of them while
Ray starts, which is mostly waiting.
"""

from __future__ import annotations

import importlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tuner.core.environment import hardware, versions
from tuner.core.errors import StorageFailed
from tuner.core.search_spec import SearchSpec, seconds
from tuner.search.arguments import how_to_go_on
from tuner.search.terminal import redirect_output
from tuner.study import search_folder

if TYPE_CHECKING:  # slow to import
    from tuner.cluster.ray_cluster import Resources
    from tuner.search.finish import SearchResult
    from tuner.study.recorder import Recorder

SLOW_IMPORTS = ("mlflow.tracking", "scipy.stats", "matplotlib.figure")
"""Modules that a thread imports while Ray starts; none of Ray's own, which the main thread imports at that time."""


def run_search(spec: SearchSpec, search_id: str | None = None) -> SearchResult:
    """Runs a search, or resumes the one with this id, and shows its progress on the terminal.

    Raises :class:`tuner.core.errors.InvalidInput` before anything is created.
    """
    from tuner.cluster.ray_cluster import running_ray
    from tuner.search import preflight

    spec = spec if spec.name else search_folder.with_name(spec)
    assert spec.name is not None
    folder = Path(spec.output).absolute() / spec.name
    if search_id is None:
        search_folder.check_new(spec)
    variants, data = preflight.check(spec)
    # Decided once: a search resumed in any folder has the same databases and reads its images in the same way.
    workload = replace(spec.training.workload, stream=data.stream)
    spec = replace(spec, training=replace(spec.training, workload=workload)).located()
    with search_folder.locked(folder), redirect_output(folder / search_folder.LOG) as console:
        importing = threading.Thread(target=lambda: list(map(importlib.import_module, SLOW_IMPORTS)), daemon=True)
        importing.start()
        content = search_folder.content_of(variants, data.digest)
        if search_id is not None:
            search_folder.check_same(folder, content)
            importing.join()  # a package that is half imported by another thread cannot be used
            from tuner.search.finish import finish_search
            from tuner.search.opening import open_recorder

            recorder = open_recorder(spec, search_id, variants, data, folder)
            if recorder.scheduler.is_complete():
                search_folder.save(folder, spec, search_id, content, splits=data.note)
                return finish_search(recorder, console)
        try:
            with running_ray(spec) as resources:
                importing.join()
                from tuner.search.opening import check_storage, open_recorder

                if search_id is None:
                    check_storage(spec)
                known_id = search_id or search_folder.new_id()
                program = search_folder.Process(time.time(), None, versions(), hardware(), resources.slots)
                search_folder.save(folder, spec, known_id, content, splits=data.note, program=program)
                if search_id is None:
                    recorder = open_recorder(spec, known_id, variants, data, folder)
                return train(recorder, resources, console)
        except KeyboardInterrupt:
            if (folder / search_folder.SPEC_FILE).exists():
                console.print(f"Stopped. {how_to_go_on(spec)}", highlight=False, soft_wrap=True)
            raise


def train(recorder: Recorder, resources: Resources, console: Console) -> SearchResult:
    """Runs the trials that are left, until they are done, the time budget is spent, or Ctrl-C or SIGTERM comes."""
    from tuner.cluster.tune_run import Deadline, tune_all
    from tuner.search.finish import finish_search
    from tuner.search.progress import Display

    deadline = Deadline(seconds(recorder.spec.time_budget))
    try:
        try:
            with _sigterm_as_ctrl_c(), Display(console, recorder.scheduler) as display:
                tune_all(recorder, resources, deadline, on_end=display.print_end)
        except KeyboardInterrupt:
            search_folder.note_end(recorder.search.folder, time.time())
            return finish_search(recorder, console, resources=resources, interrupted=True)
        search_folder.note_end(recorder.search.folder, time.time())
        return finish_search(recorder, console, resources=resources, cut_off=deadline.passed)
    except StorageFailed as error:
        return finish_search(recorder, console, resources=resources, storage_failed=str(error))


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Handles SIGTERM, by which batch systems end a program, like Ctrl-C.

    Must be entered after Ray has started, because Ray sets its own handler of SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
