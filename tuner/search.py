"""The command ``python -m tuner.search``, and the same from Python: SearchSpec -> run -> table."""

from __future__ import annotations

import getpass
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import ray
from rich.console import Console

from search_spaces import Variant
from tuner import preflight, run_folder
from tuner.cluster import Resources, start_ray, warm_up
from tuner.command_line import PROGRAM, parse
from tuner.console import only_display
from tuner.display import Display
from tuner.errors import InvalidInput, masked
from tuner.leaderboard import Row, as_table, best_settings, rows, write_files
from tuner.ledger import Ledger
from tuner.plan import CHANGEABLE_ON_RESUME, SearchSpec, seconds
from tuner.spec import flatten
from tuner.study import VariantStudy, open_storage
from tuner.tracking import Tracking
from tuner.tuning import Deadline, tune_all

OK, NOTHING_FINISHED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
FLUSH_SECONDS, INTERRUPTED_FLUSH_SECONDS = 120.0, 6.0
"""How long MLflow may take over what is left, at the end and after Ctrl-C."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A search as it stands."""

    spec: SearchSpec
    ledger: Ledger
    rows: tuple[Row, ...]
    """A line a variant, the best first."""
    exit_status: int


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    try:
        spec, search_id = parse(sys.argv[1:] if argv is None else argv)
        if spec.dry_run:
            from tuner.dry_run import print_plan  # loads the data, so torch

            print_plan(spec, preflight.check(spec)[0])
            return OK
        return run_search(spec, search_id).exit_status
    except InvalidInput as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED


def run_search(spec: SearchSpec, search_id: str | None = None) -> SearchResult:
    """Runs a search, or goes on with the one of this id, and shows it on the terminal.

    Raises :class:`InvalidInput` before anything is created.
    """
    spec = spec if spec.name else run_folder.with_name(spec)
    assert spec.name is not None
    if search_id is None:
        run_folder.check_new(spec)
    variants, splits = preflight.check(spec)
    folder = Path(spec.output).absolute() / spec.name
    with run_folder.claimed(folder), only_display(folder / run_folder.LOG) as console:
        if search_id is not None:
            ledger = _open(spec, search_id, variants, splits, folder)
            if ledger.is_complete():
                return _conclude(ledger, console)
        try:
            resources = start_ray(spec)
            loading = warm_up(resources)  # noqa: F841  a task whose reference is dropped may be cancelled
            if search_id is None:
                search_id = run_folder.new_id()
                run_folder.save(folder, spec, search_id)
                ledger = _open(spec, search_id, variants, splits, folder)
            else:
                run_folder.save(folder, spec, search_id)
            return _train(ledger, resources, console)
        except KeyboardInterrupt:
            if (folder / run_folder.SPEC_FILE).exists():
                _say_how_to_go_on(console, spec, folder, "Stopped.")
            raise
        finally:
            ray.shutdown()


def _open(spec: SearchSpec, search_id: str, variants: tuple[Variant, ...], splits: str, folder: Path) -> Ledger:
    tracking = Tracking(
        uri=spec.tracking_uri or preflight.DEFAULT_TRACKING_URI,
        experiment=spec.experiment,
        search=folder.name,
        search_id=search_id,
        parameters={
            name: masked(value) if isinstance(value, str) else value
            for name, value in flatten(spec).items()
            if name not in CHANGEABLE_ON_RESUME and value is not None
        },
        tags={**_provenance(folder.name), "splits": splits},
    )
    storage = open_storage(spec.storage or f"sqlite:///{folder / 'optuna.db'}")
    studies = {
        variant.name: VariantStudy(
            storage=storage,
            search=folder.name,
            variant=variant,
            objective=spec.objective,
            targets=spec.targets,
            num_trials=spec.trials,
            seed=spec.seed,
        )
        for variant in variants
    }
    return Ledger(spec, variants, studies, tracking, folder, splits)


def _train(ledger: Ledger, resources: Resources, console: Console) -> SearchResult:
    deadline = Deadline(seconds(ledger.spec.time_budget))
    try:
        with _sigterm_as_ctrl_c(), Display(console, ledger) as display:
            tune_all(ledger, resources, deadline, [display])
    except KeyboardInterrupt:
        return _conclude(ledger, console, resources=resources, interrupted=True)
    return _conclude(ledger, console, resources=resources, cut_off=deadline.passed)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Batch systems end a program by SIGTERM; it deserves the same farewell as Ctrl-C.

    To be entered when Ray has started: it sets a handler of its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _conclude(
    ledger: Ledger,
    console: Console,
    *,
    resources: Resources | None = None,
    interrupted: bool = False,
    cut_off: bool = False,
) -> SearchResult:
    """Writes the files, tells MLflow the end and prints the table."""
    spec, folder = ledger.spec, ledger.folder
    unfinished = interrupted or cut_off
    if not unfinished:
        ledger.list_all()
    table_rows = rows(ledger)
    paths = write_files(ledger, table_rows)
    share = ledger.busy_share(resources.slots) if resources else None
    status = "interrupted" if unfinished else "finished"
    timeout = INTERRUPTED_FLUSH_SECONDS if interrupted else FLUSH_SECONDS
    in_mlflow = ledger.tracking.finish(status, {"search/train_share": share} if share else {}, paths, timeout=timeout)
    console.print(as_table(ledger, table_rows))
    winner = table_rows[0]
    if winner.best:
        console.print(f"Best: {winner.best.name}, {spec.objective}")
        for name, value in best_settings(winner, ledger.variants).items():
            console.print(
                f"  {name} = {value:.4g}" if isinstance(value, float) else f"  {name} = {value}", highlight=False
            )
    else:
        console.print("No trial finished.")
    if share:
        console.print(f"{share:.0%} of the workers' time was spent training.", highlight=False)
    console.print(f"Data: {spec.workload}; {ledger.splits}.", highlight=False)
    console.print(f"Files: {folder}", highlight=False, soft_wrap=True)
    console.print(f"MLflow: {_browse(spec.tracking_uri)}", highlight=False, soft_wrap=True)
    if unfinished or not in_mlflow:
        why = "Stopped." if unfinished else f"MLflow has not taken everything yet, see {folder / run_folder.LOG}."
        _say_how_to_go_on(console, spec, folder, why)
    if interrupted:
        return SearchResult(spec, ledger, tuple(table_rows), INTERRUPTED)
    return SearchResult(spec, ledger, tuple(table_rows), OK if winner.best else NOTHING_FINISHED)


def _say_how_to_go_on(console: Console, spec: SearchSpec, folder: Path, why: str) -> None:
    output = f" --output {spec.output}" if spec.output != SearchSpec().output else ""
    console.print(f"{why} Go on with: {PROGRAM} --resume {folder.name}{output}", highlight=False, soft_wrap=True)


def _browse(uri: str | None) -> str:
    if uri is None:
        return "mlflow ui"
    return masked(uri) if uri.startswith("http") else f"mlflow ui --backend-store-uri {masked(uri)}"


def _provenance(search: str) -> dict[str, str]:
    """Tags that every run of a search carries: who, what code, which versions, on what."""
    tags = {
        "tuner.search": search,
        "mlflow.user": getpass.getuser(),
        "mlflow.source.name": PROGRAM,
        "mlflow.source.type": "LOCAL",
        "hardware": f"{platform.machine()}, {platform.processor() or platform.system()}",
        "version.python": platform.python_version(),
    }
    for package in ("torch", "torchvision", "ray", "optuna", "mlflow", "sgd-tuner"):
        with suppress(PackageNotFoundError):
            tags[f"version.{package}"] = version(package)
    commit = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return tags | ({"mlflow.source.git.commit": commit.stdout.strip()} if commit.returncode == 0 else {})


if __name__ == "__main__":
    sys.exit(main())
