"""The command ``python -m tuner.diagnose``: finds the layers to which a network's errors point, and retrains them.

python -m tuner.diagnose digits/sgdm/confirm-1              prints the errors and ranks the layer groups
python -m tuner.diagnose digits/sgdm/confirm-1 --repair     also retrains the first groups, and runs three controls
python -m tuner.diagnose --compare digits/sgdm/confirm-1 digits/adamw/confirm-1
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch.nn.modules.batchnorm import _BatchNorm

from tuner.core.environment import PLAIN_WIDTH
from tuner.core.errors import ExitStatus, InvalidInput, command, masked, unknown
from tuner.core.search_spec import DEFAULT_TRACKING_URI
from tuner.core.store import check_folder
from tuner.core.trial_spec import TrialSpec
from tuner.diagnose.agreement import agreement
from tuner.diagnose.attribution import DEFAULT_SCORE, SCORES, Diagnosis, diagnose
from tuner.diagnose.files import as_metrics, write_files
from tuner.diagnose.layer_groups import LayerGroup, layer_groups, num_named
from tuner.diagnose.repair import RepairSettings, repairs
from tuner.diagnose.tables import agreement_table, confusions, damping_line, ranking_table, repair_table
from tuner.diagnose.trained_model import TrainedModel, load_trained_model
from tuner.tracking.client import check_tracking_uri
from tuner.tracking.nested_runs import SearchRuns, TrainedRun
from tuner.train.final_weights import trained_network
from tuner.train.train_state import TrainState
from tuner.workloads.data import are_images, cached_data

DEFAULTS = RepairSettings()


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit status 0, 2 for bad input, 3 if a storage stays unreachable, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
    _check(options)
    torch.set_num_threads(options.threads)
    if options.compare:
        _compare(options, console)
    else:
        _diagnose(options, console)
    return ExitStatus.OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tuner.diagnose", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="SEARCH/RUN, an MLflow run's id, or a file of weights")
    parser.add_argument("--compare", nargs="+", default=[], metavar="RUN", help="runs whose rankings are compared")
    parser.add_argument(
        "--repair", action="store_true", help="retrain the chosen groups and three controls; reads the test split"
    )
    parser.add_argument(
        "--groups", default="auto", metavar="NAME,...", help="groups to retrain. Default: auto, the first ones"
    )
    parser.add_argument("--num-groups", type=int, metavar="K", help="number of groups to name. Default: 3 of 7")
    parser.add_argument(
        "--score", choices=SCORES, default=DEFAULT_SCORE, help=f"score that ranks the groups. Default: {DEFAULT_SCORE}"
    )
    parser.add_argument(
        "--lr", type=float, default=DEFAULTS.lr, help="peak learning rate of the repair. Default: %(default)s"
    )
    parser.add_argument(
        "--epochs", type=int, default=DEFAULTS.epochs, help="epochs of the repair. Default: %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of batches and random groups. Default: 0")
    parser.add_argument(
        "--spec", type=Path, metavar="FILE", help="JSON TrialSpec of a file of weights. Default: spec.json beside it"
    )
    parser.add_argument("--output", default="runs", help="folder that holds the searches' folders. Default: runs")
    parser.add_argument("--storage", help="Optuna storage URL, if the saved one lacks its password")
    parser.add_argument("--tracking-uri", help="MLflow's URI, if the saved one lacks its password or has changed")
    parser.add_argument("--no-mlflow", action="store_true", help="log nothing to MLflow")
    parser.add_argument("--folder", type=Path, help="folder for pictures and numbers. Default: in the run's folder")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads. Default: 1, as in trials")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises InvalidInput for everything that is known to be wrong before anything is read."""
    if bool(options.run) == bool(options.compare):
        raise InvalidInput("name one RUN, or several with --compare")
    if options.compare and options.repair:
        raise InvalidInput("--repair: applies to one RUN, not to --compare")
    if options.compare and len(set(options.compare)) < max(len(options.compare), 2):
        raise InvalidInput("--compare: needs at least two runs, each named once")
    if options.tracking_uri is not None:
        check_tracking_uri(options.tracking_uri)
    if options.threads < 1:
        raise InvalidInput(f"--threads {options.threads}: must be at least 1")
    if options.folder is not None:
        check_folder("--folder", options.folder)
    _settings(options).spec(TrialSpec())


def _settings(options: argparse.Namespace) -> RepairSettings:
    return RepairSettings(options.lr, options.epochs, options.seed)


def _open(options: argparse.Namespace, name: str) -> tuple[TrainedModel, TrainState, tuple[LayerGroup, ...]]:
    """A trained network and its layer groups.

    Raises InvalidInput if the data is missing, has changed since the training, or is not images.
    """
    trained = load_trained_model(
        name, output=options.output, storage=options.storage, tracking_uri=options.tracking_uri, spec_file=options.spec
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = cached_data(trained.spec.workload, device)
    if trained.data not in (None, data.digest):
        raise InvalidInput(f"{name}: the data is not what these weights were trained on")
    if not are_images(data):
        raise InvalidInput(
            f"{name}: a diagnosis needs the images of a workload that is known by name, and "
            f"{trained.spec.workload.data} is none"
        )
    network = trained_network(trained.spec, trained.state, data, device)
    return trained, network, layer_groups(network.model)


def _num_named(options: argparse.Namespace, num_groups: int) -> int:
    number = options.num_groups
    if number is None:
        return num_named(num_groups)
    if not 1 <= number < num_groups:
        raise InvalidInput(
            f"--num-groups {number}: must be in [1, {num_groups - 1}], because the model has {num_groups} groups"
        )
    return int(number)


def _chosen(options: argparse.Namespace, diagnosis: Diagnosis) -> tuple[LayerGroup, ...]:
    groups = {scores.group.name: scores.group for scores in diagnosis.groups}
    number = _num_named(options, len(groups))
    if options.groups == "auto":
        return diagnosis.top(number, options.score)
    names = dict.fromkeys(options.groups.split(","))
    for name in names:
        if name not in groups:
            raise unknown("layer group", name, groups)
    return tuple(groups[name] for name in names)


def _diagnose(options: argparse.Namespace, console: Console) -> None:
    trained, network, groups = _open(options, options.run)
    tracked = _tracked(options, trained)
    folder = options.folder or trained.folder
    check_folder("--folder", folder)
    if Path(options.run).is_file() and folder.resolve() == Path(options.run).resolve().parent:
        raise InvalidInput(f"--folder {folder}: contains the file of weights; choose another folder")
    diagnosis = diagnose(network, groups)
    chosen = _chosen(options, diagnosis)
    names = [group.name for group in chosen]
    for line in (*confusions(diagnosis), damping_line(trained.history)):
        if line:
            console.print(line, highlight=False, markup=False)
    console.print(ranking_table(diagnosis, options.score, names))
    if not any(isinstance(module, _BatchNorm) for module in network.model.modules()):
        console.print("The model has no BatchNorm. The invariant score is made for models with BatchNorm.")
    ranking = [scores.group for scores in diagnosis.ranking(options.score)]
    repaired = repairs(network, groups, chosen, ranking, _settings(options)) if options.repair else []
    if repaired:
        before = 1 - diagnosis.num_errors / int(diagnosis.confusion.sum())
        console.print(repair_table(before, repaired))
    try:
        files = write_files(folder, trained, network, diagnosis, options.score, names, repaired)
    except OSError as error:
        raise InvalidInput(f"--folder {folder}: cannot be written ({error.strerror})") from None
    console.print(f"Files: {folder}", highlight=False, markup=False, soft_wrap=True)
    if tracked:
        client, run = tracked
        metrics = as_metrics(diagnosis, repaired)
        parameters = {"score": options.score, "groups": ",".join(names), "lr": options.lr, "epochs": options.epochs}
        run_id = client.log_nested(run, "diagnosis", parameters=parameters, metrics=metrics, files=files)
        console.print(f"MLflow: run {run_id}, under {run.name}", highlight=False, markup=False)


def _tracked(options: argparse.Namespace, trained: TrainedModel) -> tuple[SearchRuns, TrainedRun] | None:
    """The training's run in MLflow; None for a file of weights, and with ``--no-mlflow``."""
    if trained.search is None or trained.run is None or options.no_mlflow:
        return None
    spec = trained.search.spec
    uri = options.tracking_uri or spec.tracking_uri or DEFAULT_TRACKING_URI
    check_tracking_uri(uri)
    tracked = SearchRuns(uri)
    run = tracked.by_name(spec.experiment, trained.search.search_id, trained.run)
    if run is None:
        raise InvalidInput(f"{masked(uri)}: has no run of {trained.name}; use --no-mlflow to log nothing")
    return tracked, run


def _compare(options: argparse.Namespace, console: Console) -> None:
    rankings = []
    for name in options.compare:
        _, network, groups = _open(options, name)
        rankings.append([scores.group.name for scores in diagnose(network, groups).ranking(options.score)])
    number = _num_named(options, len(rankings[0]))
    console.print(agreement_table(options.compare, rankings, number, agreement(rankings, number)))


if __name__ == "__main__":
    sys.exit(main())
