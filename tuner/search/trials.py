"""A search's studies, folder and runs in MLflow, opened or made; and its trials, run to their ends."""

from __future__ import annotations

import getpass
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna import get_all_study_names
from rich.console import Console

from search_spaces import Variant
from tuner.cluster.ray_cluster import Resources
from tuner.cluster.tune_run import Deadline, tune_all
from tuner.core.environment import commit, hardware, versions
from tuner.core.errors import InvalidInput, StorageFailed, masked
from tuner.core.retry import retry
from tuner.core.search_spec import DEFAULT_TRACKING_URI, SearchSpec, seconds
from tuner.search.arguments import PROGRAM
from tuner.search.finish import SearchResult, finish_search
from tuner.search.progress import Display
from tuner.study.optuna_study import close_storage, open_storage, open_studies, study_name
from tuner.study.recorder import Recorder
from tuner.study.results import Search
from tuner.study.scheduler import TrialScheduler
from tuner.study.search_folder import CHANGEABLE_ON_RESUME, note_end, processes_of, seconds_of
from tuner.tracking.client import with_login_apart
from tuner.tracking.tracker import DataSet, Tracker
from tuner.workloads.check import Prepared, source_of


def check_storage(spec: SearchSpec) -> None:
    """Raises :class:`InvalidInput` if the given storage already holds studies of a new search's name."""
    if spec.storage is not None:
        assert spec.name is not None
        prefix, storage = study_name(spec.name, ""), open_storage(spec.storage)
        names = retry("Optuna's storage", lambda: get_all_study_names(storage))
        close_storage(storage)
        if any(name.startswith(prefix) for name in names):
            raise InvalidInput(f"--name {spec.name}: {masked(spec.storage)} already holds a search of this name")


def open_recorder(
    spec: SearchSpec, search_id: str, variants: tuple[Variant, ...], data: Prepared, folder: Path
) -> Recorder:
    """The recorder of a search, with its studies, folders and runs in MLflow; creates those that are missing."""
    storage = open_storage(spec.storage or f"sqlite:///{folder / 'optuna.db'}")
    # First, because it may find that the storage is not this search's.
    studies = open_studies(spec, variants, storage, search=folder.name)
    tracking = Tracker(
        uri=with_login_apart(spec.tracking_uri or DEFAULT_TRACKING_URI),
        experiment=spec.experiment,
        search=folder.name,
        search_id=search_id,
        parameters={
            name: masked(value) if isinstance(value, str) else value
            for name, value in spec.flags().items()
            if name not in CHANGEABLE_ON_RESUME | {"name", "output"} and value is not None
        },
        tags={**_provenance(folder.name), "splits": data.note},
        dataset=DataSet(
            name=spec.training.workload.data,
            digest=data.digest,
            source=source_of(spec.training.workload),
            sizes=data.sizes,
            num_classes=data.num_classes,
        ),
        system_metrics=spec.system_metrics,
    )
    by_variant = {name: study.study for name, study in studies.items()}
    joined = {name: study.joined for name, study in studies.items()}
    search = Search(
        spec,
        search_id,
        variants,
        folder,
        by_variant,
        processes_of(folder),
        data.note,
        data.score,
        joined=joined,
        seconds=seconds_of(folder),
        steps_per_epoch=data.sizes["train"] // spec.training.workload.batch_size,
    )
    retry("--checkpoints", search.root.make)
    return Recorder(TrialScheduler(search, studies), tracking, storage)


def train(recorder: Recorder, resources: Resources, console: Console) -> SearchResult:
    """Runs the trials that are left, until they are done, the time budget is spent, or Ctrl-C or SIGTERM comes."""
    deadline = Deadline(seconds(recorder.spec.time_budget))
    try:
        try:
            with _sigterm_as_ctrl_c(), Display(console, recorder.scheduler) as display:
                tune_all(recorder, resources, deadline, on_end=display.print_end)
        except KeyboardInterrupt:
            note_end(recorder.search.folder, time.time())
            return finish_search(recorder, console, resources=resources, interrupted=True)
        note_end(recorder.search.folder, time.time())
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


def _provenance(search: str) -> dict[str, str]:
    """Tags of every run of a search: user, code, versions, hardware."""
    source = commit()
    return {
        "tuner.search": search,
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": PROGRAM,
        "mlflow.source.type": "LOCAL",
        "hardware": hardware(),
        **{f"version.{package}": number for package, number in versions().items()},
        **({"mlflow.source.git.commit": source} if source else {}),
    }
