"""What users import and type, and what a process loads for it."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

import tuner

PUBLIC = {
    "tuner": ("SearchSpec", "TrialSpec", "load_search", "run_search"),
    "tuner.optimizers": ("LPSGD", "Lion", "RandomScaling"),
    "tuner.schedules": ("critical_momentum", "learning_rate", "norm_exponent"),
    "tuner.order": ("backward_iterates", "forward_iterates"),
    "tuner.theory": ("closure", "critical_lr", "pde", "sde", "sgd"),
    "tuner.train": ("train",),
    "tuner.workloads": ("map_style", "tensors"),
    "tuner.cluster.autoscaling": ("prefer_available",),
}


@pytest.mark.parametrize(("module", "names"), PUBLIC.items(), ids=list(PUBLIC))
def test_what_users_import_is_there(module: str, names: tuple[str, ...]) -> None:
    for name in names:
        exec(f"from {module} import {name}", {})


@pytest.mark.parametrize("name", [*tuner.COMMANDS, "cluster.local_provider", "tracking.served_model"])
def test_what_users_type_is_there(name: str) -> None:
    where = f"tuner.{name}.__main__" if name in tuner.COMMANDS else f"tuner.{name}"
    assert importlib.util.find_spec(where), where
    assert callable(importlib.import_module(where).main)


@pytest.mark.parametrize(
    ("code", "unloaded"),
    [
        ("import tuner", {"numpy", "optuna", "ray", "torch", "mlflow"}),
        ("import tuner.train, tuner.optimizers, tuner.order", {"optuna", "ray", "mlflow", "sqlalchemy"}),
        ("import tuner.cluster.trial_actor", {"optuna", "mlflow", "torch", "sqlalchemy"}),
        ("import tuner.search.__main__", {"ray", "mlflow", "torch", "matplotlib"}),
        ("import tuner.search.trials", {"torch"}),
        ("import tuner.study.results", {"ray", "mlflow", "torch", "pandas"}),
        ("import tuner.theory", {"optuna", "ray", "mlflow", "torch"}),
    ],
)
def test_a_process_loads_no_more_than_it_needs(code: str, unloaded: set[str]) -> None:
    program = f"import sys; {code}; print(*sorted({unloaded!r} & set(sys.modules)))"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.split() == []
