"""One program's work on a search: opens what there is, trains what is left, writes the end."""

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
from tuner.core.errors import InvalidInput, masked
from tuner.core.retry import StorageFailed, patiently
from tuner.core.search_spec import CHANGEABLE_ON_RESUME, DEFAULT_TRACKING_URI, SearchResult, SearchSpec, seconds
from tuner.core.serialization import flatten
from tuner.search.arguments import PROGRAM
from tuner.search.finish import conclude
from tuner.search.progress import Display
from tuner.study.optuna_study import close_storage, open_storage, open_studies, study_name
from tuner.study.recorder import Ledger
from tuner.study.results import Search
from tuner.study.search_folder import note_end, programs_of
from tuner.tracking.runs import with_login_apart
from tuner.tracking.tracker import DataSet, Tracking
from tuner.workloads.check import SOURCES, Prepared


def check_storage(spec: SearchSpec) -> None:
    """Refuses the name of a new search that the given storage already holds studies of."""
    if spec.storage is not None:
        assert spec.name is not None
        prefix, storage = study_name(spec.name, ""), open_storage(spec.storage)
        names = patiently("Optuna's storage", lambda: get_all_study_names(storage))
        close_storage(storage)
        if any(name.startswith(prefix) for name in names):
            raise InvalidInput(f"--name {spec.name}: {masked(spec.storage)} already holds a search of this name")


def open_ledger(
    spec: SearchSpec, search_id: str, variants: tuple[Variant, ...], data: Prepared, folder: Path
) -> Ledger:
    """The search's trials, from its studies and folders; makes them where there are none."""
    storage = open_storage(spec.storage or f"sqlite:///{folder / 'optuna.db'}")
    # First, as it may find that the storage is not this search's.
    studies = open_studies(spec, variants, storage, search=folder.name)
    tracking = Tracking(
        uri=with_login_apart(spec.tracking_uri or DEFAULT_TRACKING_URI),
        experiment=spec.experiment,
        search=folder.name,
        search_id=search_id,
        parameters={
            name: masked(value) if isinstance(value, str) else value
            for name, value in flatten(spec).items()
            if name not in CHANGEABLE_ON_RESUME | {"name", "output"} and value is not None
        },
        tags={**_provenance(folder.name), "splits": data.note},
        dataset=DataSet(
            name=spec.workload,
            digest=data.digest,
            source=spec.data_dir or SOURCES[spec.workload],
            sizes=data.sizes,
            num_classes=data.num_classes,
        ),
        system_metrics=spec.system_metrics,
    )
    by_variant = {name: study.study for name, study in studies.items()}
    search = Search(spec, search_id, variants, folder, by_variant, programs_of(folder), data.note)
    patiently("--checkpoints", search.root.make)
    return Ledger(search, studies, tracking, storage)


def train(ledger: Ledger, resources: Resources, console: Console) -> SearchResult:
    """Runs the trials that are left, until they are done, the time budget is, or Ctrl-C comes."""
    deadline = Deadline(seconds(ledger.spec.time_budget))
    try:
        try:
            with _sigterm_as_ctrl_c(), Display(console, ledger) as display:
                tune_all(ledger, resources, deadline, [display])
        except KeyboardInterrupt:
            note_end(ledger.search.folder, time.time())
            return conclude(ledger, console, resources=resources, interrupted=True)
        note_end(ledger.search.folder, time.time())
        return conclude(ledger, console, resources=resources, cut_off=deadline.passed)
    except StorageFailed as error:
        return conclude(ledger, console, resources=resources, storage_failed=str(error))


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Batch systems end a program by SIGTERM; it deserves the same farewell as Ctrl-C.

    To be entered when Ray has started: Ray answers SIGTERM in its own way.
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
    """Tags that every run of a search carries: who, what code, which versions, on what."""
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
