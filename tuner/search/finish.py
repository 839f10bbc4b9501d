"""Ends a process's work on a search: writes the report, saves the model, updates MLflow, prints the result."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table as TerminalTable

from tuner.cluster.ray_cluster import Resources
from tuner.core.errors import ExitStatus, StorageFailed, masked
from tuner.core.metrics import target_label
from tuner.core.search_spec import DEFAULT_TRACKING_URI
from tuner.core.serialization import digest
from tuner.report.document import Report, Table
from tuner.report.leaderboard import best_settings, leaderboard, metrics_and_tags
from tuner.report.page import as_markdown, write_report
from tuner.report.verdict import answer
from tuner.search.arguments import how_to_go_on
from tuner.study.recorder import Recorder
from tuner.study.results import Search
from tuner.study.search_folder import LOG, processes_of
from tuner.study.trial_record import TrialRecord
from tuner.tracking.tracker import WinningModel

FLUSH_SECONDS, INTERRUPTED_FLUSH_SECONDS = 120.0, 6.0
"""Seconds that MLflow has to receive what is left, at the end and after Ctrl-C."""
DESCRIPTION_TAG = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run."""


def finish_search(
    recorder: Recorder,
    console: Console,
    *,
    resources: Resources | None = None,
    interrupted: bool = False,
    cut_off: bool = False,
    storage_failed: str | None = None,
) -> SearchResult:
    """Writes the report, saves the winning model, ends the search in MLflow; prints the answer and the leaderboard.

    Skips the report and the model after Ctrl-C, and if the storage failed; ``storage_failed`` is its message.
    Raises :class:`StorageFailed` if the report cannot be written.
    """
    search, spec, folder = recorder.search, recorder.spec, recorder.search.folder
    unfinished = interrupted or cut_off or storage_failed is not None
    quick = interrupted or storage_failed is not None
    search.processes = processes_of(folder)
    table = leaderboard(search)
    first = table.rows[0][0]
    paths: list[Path] = []
    sentences = answer(search)
    model, tags = None, {"targets": " ".join(map(target_label, spec.training.targets))}
    if not quick:
        try:
            saving = None if cut_off else _save_model(search, first)
            report, paths = write_report(search)
        except OSError as error:
            raise StorageFailed(f"the report cannot be written ({error})") from None
        sentences = report.sections[0].sentences
        tags[DESCRIPTION_TAG] = as_markdown(Report(report.title, report.sections[:1]))
        model = saving.wait() if saving else None
        if saving and model is None:
            sentences += (f"The winning model could not be saved for MLflow; see {folder / LOG}.",)
        recorder.amend()
        recorder.tracking.log_variants(metrics_and_tags(search))
    # A cluster that grows and shrinks has no fixed number of slots.
    share = recorder.busy_share(resources.slots) if resources and spec.address is None else None
    in_mlflow = recorder.tracking.finish(
        "interrupted" if unfinished else "finished",
        {"search/train_share": share} if share else {},
        paths,
        timeout=INTERRUPTED_FLUSH_SECONDS if quick else FLUSH_SECONDS,
        tags=tags,
        model=model,
    )
    recorder.close(wait=not quick)
    for sentence in sentences:
        console.print(sentence, highlight=False, soft_wrap=True)
    console.print(_for_terminal(table))
    best = search.best(first)
    lines = [f"Best settings of {first}, from trial {best.name}:" if best else "No trial finished."]
    for name, value in best_settings(search, first).items():
        lines.append(f"  {name} = {value:.4g}" if isinstance(value, float) else f"  {name} = {value}")
    if share:
        lines.append(f"{share:.0%} of the workers' time was spent training.")
    lines += [f"Data: {spec.training.workload.data}; {search.splits}."]
    lines += [f"Report: {path}" for path in paths if path.suffix == ".html"]
    lines += [f"Files: {folder}", f"MLflow: {_browse(spec.tracking_uri)}"]
    if unfinished or not in_mlflow:
        why = f"Stopped: {storage_failed}." if storage_failed else "Stopped."
        why = why if unfinished else f"MLflow has not received everything yet; see {folder / LOG}."
        lines.append(f"{why} {how_to_go_on(spec)}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
    return SearchResult(folder, best.name if best else None, interrupted, storage_failed is not None)


@dataclass(frozen=True, slots=True)
class _Saving:
    """A process that saves the winning model; the driver itself loads no torch."""

    program: subprocess.Popen[bytes] | None
    model: WinningModel

    def wait(self) -> WinningModel | None:
        """The model; None if it could not be saved, for which the log has the reason."""
        return self.model if self.program is None or self.program.wait() == 0 else None


def _save_model(search: Search, winner: str) -> _Saving | None:
    """Starts to save the model of the winner's first tested run, unless it is saved; None if there is no such run."""
    run = next((run for run in search.confirmed(winner).values() if run.test), None)
    if run is None:
        return None
    out = search.folder / "model"
    model = WinningModel(out, run.name, digest(run.spec))
    if _holds(out, model.spec_digest):
        return _Saving(None, model)
    shutil.rmtree(out, ignore_errors=True)
    return _Saving(_start(search, run, out), model)


def _start(search: Search, run: TrialRecord, out: Path) -> subprocess.Popen[bytes]:
    with (search.folder / LOG).open("ab") as log:
        folder, weights = search.folder / run.folder_name, search.store(run).place
        command = [sys.executable, "-m", "tuner.tracking.served_model", str(folder), str(out), "--weights", weights]
        # A user's own model is then found as in this process.
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _holds(out: Path, spec_digest: str) -> bool:
    with suppress(OSError):
        return spec_digest in (out / "MLmodel").read_text()
    return False


def _for_terminal(table: Table) -> TerminalTable:
    shown = TerminalTable(caption=table.note, caption_justify="left")
    for index, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if index else "left", overflow="fold", no_wrap=index == 0)
    for index, row in enumerate(table.rows):
        shown.add_row(*row, style="" if index else "bold")
    return shown


def _browse(uri: str | None) -> str:
    if uri is None or uri == f"sqlite:///{Path(DEFAULT_TRACKING_URI.removeprefix('sqlite:///')).absolute()}":
        return "mlflow ui"
    return masked(uri) if uri.startswith("http") else f"mlflow ui --backend-store-uri {masked(uri)}"


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The state in which this process left a search."""

    folder: Path
    best_trial: str | None
    """Name of the trial whose settings lead the leaderboard; None where no trial finished."""
    interrupted: bool
    storage_failed: bool = False
    """Whether it stopped because a database or a disk stayed unreachable, or a disk full."""

    @property
    def exit_status(self) -> int:
        """0 done, 1 no trial finished, 3 the storage failed, 130 interrupted."""
        if self.interrupted:
            return ExitStatus.INTERRUPTED
        if self.storage_failed:
            return ExitStatus.STORAGE_FAILED
        return ExitStatus.OK if self.best_trial else ExitStatus.NOTHING_FINISHED
