"""Which way of running SGD trains this network fastest, and is the difference real?

Five commands; ``python -m tuner.NAME`` is ``NAME/__main__.py``:

    search/         argv -> SearchSpec, checks, one session over a search, progress, the end
    report/         what a search says: statistics, figures, pages
    diagnose/       which layers a trained model fails in, and retraining only those
    train/          train(spec): the loop in PyTorch
    theory/         SGD on diagonal linear networks: closed forms, PDE, SDE, simulation

Three services, each the only room that knows its library well:

    study/          Optuna: which trials there are, which is next, what happened; load_search
    cluster/        Ray: start or join it, one tune.run, the actor that trains, cluster.yaml
    tracking/       MLflow: runs, metrics, models

Libraries, each usable alone:

    workloads/      data and models by name
    optimizers/     LPSGD, Lion, RandomScaling; what a spec sets them to at each step
    core/           SearchSpec, TrialSpec, EpochMetrics, errors, retry, storage: what several rooms need
    schedules.py    learning rate, momentum and p as functions of time
    order.py        forward and backward iterates

Beside them, ``search_spaces/`` says what is searched: data only.  Imports go one way; lint-imports checks it:

    search | diagnose > report | cluster > study > tracking > train > workloads > theory
    > optimizers | order > core | schedules
"""

from __future__ import annotations

import importlib
import os
import runpy
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.core.search_spec import SearchSpec
    from tuner.core.trial_spec import TrialSpec
    from tuner.search.session import run_search
    from tuner.study.results import load_search

__all__ = ["SearchSpec", "TrialSpec", "load_search", "run_search"]

_HOMES = {
    "SearchSpec": "tuner.core.search_spec",
    "TrialSpec": "tuner.core.trial_spec",
    "load_search": "tuner.study.results",
    "run_search": "tuner.search.session",
}

COMMANDS = ("search", "report", "train", "diagnose", "theory")


def __getattr__(name: str) -> Any:
    # Not imported above: a training on a machine that has torch alone imports this package too.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> int:
    """The command ``sgd-tuner NAME ...``, which is ``python -m tuner.NAME ...``; returns its exit status."""
    usage = f"usage: sgd-tuner {'|'.join(COMMANDS)} ...    (sgd-tuner NAME --help shows the flags of one)"
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in ("-h", "--help"):
        print(usage)
        return 0
    if name not in COMMANDS:
        print(usage, file=sys.stderr)
        return 2
    # As python -m does: a user's own variants and models are found in the folder where the command is typed.
    sys.path.insert(0, os.getcwd())
    sys.argv = [sys.argv[0], *sys.argv[2:]]
    runpy.run_module(f"tuner.{name}", run_name="__main__", alter_sys=True)
    return 0
