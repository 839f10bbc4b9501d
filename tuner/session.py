"""One program's work on a search: opens what there is, trains what is left, writes the end."""

from __future__ import annotations

import getpass
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from optuna import get_all_study_names
from rich.console import Console

from search_spaces import Variant
from tuner.cluster import Resources
from tuner.command_line import PROGRAM, how_to_go_on
from tuner.display import Display
from tuner.errors import InvalidInput, masked
from tuner.leaderboard import as_table, best_settings, rows, write_files
from tuner.ledger import Ledger
from tuner.plan import CHANGEABLE_ON_RESUME, DEFAULT_TRACKING_URI, SearchResult, SearchSpec, seconds
from tuner.provenance import commit, hardware, versions
from tuner.results import Search
from tuner.run_folder import LOG, note_end, programs_of, splits_of
from tuner.settings import flatten
from tuner.study import open_storage, open_studies, study_name
from tuner.tracking import Tracking
from tuner.tuning import Deadline, tune_all

FLUSH_SECONDS, INTERRUPTED_FLUSH_SECONDS = 120.0, 6.0
"""How long MLflow may take over what is left, at the end and after Ctrl-C."""


def check_storage(spec: SearchSpec) -> None:
    """Refuses the name of a new search that the given storage already holds studies of."""
    if spec.storage is not None:
        assert spec.name is not None
        prefix = study_name(spec.name, "")
        if any(name.startswith(prefix) for name in get_all_study_names(open_storage(spec.storage))):
            raise InvalidInput(f"--name {spec.name}: {masked(spec.storage)} already holds a search of this name")


def open_ledger(spec: SearchSpec, search_id: str, variants: tuple[Variant, ...], folder: Path) -> Ledger:
    """The search's trials, from its studies and folders; makes them where there are none."""
    splits = splits_of(folder)
    tracking = Tracking(
        uri=_with_login_apart(spec.tracking_uri or DEFAULT_TRACKING_URI),
        experiment=spec.experiment,
        search=folder.name,
        search_id=search_id,
        parameters={
            name: masked(value) if isinstance(value, str) else value
            for name, value in flatten(spec).items()
            if name not in CHANGEABLE_ON_RESUME | {"name", "output"} and value is not None
        },
        tags={**_provenance(folder.name), "splits": splits},
    )
    storage = open_storage(spec.storage or f"sqlite:///{folder / 'optuna.db'}")
    studies = open_studies(spec, variants, storage, search=folder.name)
    by_variant = {name: study.study for name, study in studies.items()}
    search = Search(spec, search_id, variants, folder, by_variant, programs_of(folder), splits)
    return Ledger(search, studies, tracking)


def train(ledger: Ledger, resources: Resources, console: Console) -> SearchResult:
    """Runs the trials that are left, until they are done, the time budget is, or Ctrl-C comes."""
    deadline = Deadline(seconds(ledger.spec.time_budget))
    try:
        with _sigterm_as_ctrl_c(), Display(console, ledger) as display:
            tune_all(ledger, resources, deadline, [display])
    except KeyboardInterrupt:
        note_end(ledger.search.folder, time.time())
        return conclude(ledger, console, resources=resources, interrupted=True)
    note_end(ledger.search.folder, time.time())
    return conclude(ledger, console, resources=resources, cut_off=deadline.passed)


def conclude(
    ledger: Ledger,
    console: Console,
    *,
    resources: Resources | None = None,
    interrupted: bool = False,
    cut_off: bool = False,
) -> SearchResult:
    """Writes the files, tells MLflow the end and prints the table."""
    search, spec, folder = ledger.search, ledger.spec, ledger.search.folder
    unfinished = interrupted or cut_off
    search.programs = programs_of(folder)
    table_rows = rows(search)
    paths = write_files(search, table_rows)
    # Of a cluster that grows and shrinks nobody knows the slots.
    share = ledger.busy_share(resources.slots) if resources and spec.address is None else None
    in_mlflow = ledger.tracking.finish(
        "interrupted" if unfinished else "finished",
        {"search/train_share": share} if share else {},
        paths,
        timeout=INTERRUPTED_FLUSH_SECONDS if interrupted else FLUSH_SECONDS,
    )
    console.print(as_table(search, table_rows))
    best = table_rows[0].best
    lines = [f"Best: {best.name}, {spec.objective}" if best else "No trial finished."]
    if best:
        for name, value in best_settings(table_rows[0], search.variants).items():
            lines.append(f"  {name} = {value:.4g}" if isinstance(value, float) else f"  {name} = {value}")
    if share:
        lines.append(f"{share:.0%} of the workers' time was spent training.")
    lines += [f"Data: {spec.workload}; {search.splits}.", f"Files: {folder}", f"MLflow: {_browse(spec.tracking_uri)}"]
    if unfinished or not in_mlflow:
        why = "Stopped." if unfinished else f"MLflow has not taken everything yet, see {folder / LOG}."
        lines.append(f"{why} {how_to_go_on(spec)}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    return SearchResult(folder, best.name if best else None, interrupted)


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


def _with_login_apart(uri: str) -> str:
    """A server's URI without user and password, which go where MLflow's client looks for them and shows nobody."""
    parts = urlsplit(uri) if uri.startswith("http") else None
    if parts is None or parts.username is None:
        return uri
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _browse(uri: str | None) -> str:
    if uri is None or uri == f"sqlite:///{Path(DEFAULT_TRACKING_URI.removeprefix('sqlite:///')).absolute()}":
        return "mlflow ui"
    return masked(uri) if uri.startswith("http") else f"mlflow ui --backend-store-uri {masked(uri)}"


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
