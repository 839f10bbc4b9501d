"""Which way of running SGD trains this network fastest, and is the difference real?

In reading order, from argv to the table.  Imports go down the list; a rule that lint-imports holds.

    search           the command, and run_search for Python
    session          one program's work on a search: opens, trains, concludes
    conclusion       its end: report, model, MLflow, what the terminal says
    dry_run          what is shown with nothing started: all variants, or the plan and its cost
    command_line     argv -> SearchSpec, and every mistake in one line
    tuning           the one Ray Tune run
    display          the live display
    console          the terminal for the display, all else into a file
    report           what a search says: statistics, pictures, pages; python -m tuner.report
    diagnose         the command: which layers a trained network fails in, and retraining only those
    diagnosis_tables, diagnosis_files        what it says and leaves
    trained          a trained network by its name
    nested_run       what is said of it, in MLflow
    preflight        everything that can be wrong, found before anything exists
    searcher         Tune's questions, answered from the ledger
    ledger           what happens to trials and confirmed runs: planned, run, judged, ended, tested
    results          what a search has come to, and load_search for Python
    cluster          starts or joins Ray
    study            one Optuna study a variant
    optuna_storage   the database behind it, and what its outages look like
    tracking         everything into MLflow, once
    mlflow_runs      the runs of one search in MLflow
    logged_model     a trained model in MLflow, whole and once
    mlflow_database  MLflow's SQLite file, made whole or not at all
    system_load      this machine's load
    trial            the Ray actor that trains and tests
    replica_actor    its other processes, where a trial has several
    train_command    python -m tuner.train
    served_model     a confirmed run as a model that MLflow loads and serves
    variants         names, a user's own variants, changed ranges
    sampling         where trials are placed: a random arm, enqueued points, then TPE
    objectives       what is optimized
    rungs            who is stopped early
    run_folder       the search's folder: its spec and its lock
    trial_folder     a training's spec, log, score
    plan             SearchSpec: what a search is
    gpu_share        several trainings on one GPU
    diagnosis        layer groups, their scores, repairs, agreement of several trainings
    train            train(spec): pure PyTorch, like everything below
    checkpoints      what a training continues from
    final_weights    final weights, and the one place where the test split is opened
    network          model, optimizer and average: what a step changes
    replicas         several processes that train one network
    batch_norm       BatchNorm over a batch that they share
    knobs            what the knobs stand at in each step
    workloads        data and models
    critical_lr      the learning rate that is predicted to be too large
    theory           SGD on diagonal linear networks, in theory and simulated
    optimizers       update rules: the direction and the length of a step
    schedules        learning rate, momentum and p as functions of time
    order            which batches, and how their steps are composed
    curvature        the loss's largest and mean curvature
    convergence      how fast and how steadily a curve converged
    damping          under-, critically or over-damped
    spec             what one training is
    optimizer_spec   how SGD's knobs are turned
    settings         specs by dotted names and as plain data
    store            a folder or object storage, for checkpoints and weights
    exit_status      how a command ends
    outage           waiting while a database or a disk is away
    provenance       versions, hardware, commit
    errors           bad input

Beside the list, autoscaling tells a cluster which machine to start next, and local_provider makes cluster.yaml into one
for machines of one's own.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.search.__main__ import run_search
    from tuner.study.results import load_search

__all__ = ["load_search", "run_search"]

_HOMES = {"load_search": "tuner.study.results", "run_search": "tuner.search.__main__"}


def __getattr__(name: str) -> Any:
    # Not imported above: a training on a machine that has torch alone imports this package too.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
