"""One process's session over a search: opens what exists, trains what is left, and finishes.

Slow imports are made where they are needed, so that a mistake is reported at once.  A search makes most of them while
Ray starts, which is mostly waiting.
"""

from __future__ import annotations

import importlib
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.core.environment import hardware, versions
from tuner.core.search_spec import SearchSpec
from tuner.search.arguments import how_to_go_on
from tuner.search.terminal import redirect_output
from tuner.study import search_folder

if TYPE_CHECKING:  # slow to import
    from tuner.search.finish import SearchResult

SLOW_IMPORTS = ("mlflow.tracking", "scipy.stats", "matplotlib.figure")
"""Modules that a thread imports while Ray starts; none of Ray's own, which the main thread imports at that time."""


def run_search(spec: SearchSpec, search_id: str | None = None) -> SearchResult:
    """Runs a search, or resumes the one with this id, and shows its progress on the terminal.

    Raises :class:`tuner.core.errors.InvalidInput` before anything is created.
    """
    from tuner.cluster.ray_cluster import ray_shut_down, start_ray
    from tuner.search import preflight

    spec = spec if spec.name else search_folder.with_name(spec)
    assert spec.name is not None
    folder = Path(spec.output).absolute() / spec.name
    if search_id is None:
        search_folder.check_new(spec)
    variants, data = preflight.check(spec)
    # Decided once: a resumed search has the same baseline and databases, and reads its images in the same way.
    workload = replace(spec.training.workload, stream=data.stream)
    baseline = spec.baseline_among([variant.name for variant in variants])
    spec = replace(spec, baseline=baseline, training=replace(spec.training, workload=workload)).located()
    with search_folder.locked(folder), redirect_output(folder / search_folder.LOG) as console:
        importing = threading.Thread(target=lambda: list(map(importlib.import_module, SLOW_IMPORTS)), daemon=True)
        importing.start()
        content = search_folder.content_of(variants, data.digest)
        kept: dict[str, Any] = {"variants": variants, "splits": data.note, "score": data.score}
        if search_id is not None:
            search_folder.check_same(folder, content)
            importing.join()  # a package that is half imported by another thread cannot be used
            from tuner.search.finish import finish_search
            from tuner.search.trials import open_recorder

            recorder = open_recorder(spec, search_id, variants, data, folder)
            if recorder.scheduler.is_complete():
                search_folder.save(folder, spec, search_id, content, **kept)
                return finish_search(recorder, console)
        with ray_shut_down():
            try:
                resources = start_ray(spec)
                importing.join()
                from tuner.search.trials import check_storage, open_recorder, train

                if search_id is None:
                    check_storage(spec)
                known_id = search_id or search_folder.new_id()
                process = search_folder.Process(time.time(), None, versions(), hardware(), resources.slots)
                search_folder.save(folder, spec, known_id, content, **kept, process=process)
                if search_id is None:
                    recorder = open_recorder(spec, known_id, variants, data, folder)
                return train(recorder, resources, console)
            except KeyboardInterrupt:
                if (folder / search_folder.SPEC_FILE).exists():
                    console.print(f"Stopped. {how_to_go_on(spec)}", highlight=False, soft_wrap=True)
                raise
