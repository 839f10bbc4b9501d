"""The files in a training's folder: its spec and a log of its epochs; for a confirmed run also its test score.

Only the driver writes them.  The log has the name and form of Ray Tune's, one JSON object per line, so that Tune's own
tools read it.  A confirmed run exists if its folder does; nothing else lists it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics, FinalScore, epoch_metrics
from tuner.core.serialization import from_dict, to_json
from tuner.core.trial_spec import SPEC, TrialSpec, load_spec

LOG = "result.json"
"""A training's epochs, one JSON object per line."""
TEST, FAILURE = "test.json", "failure.txt"
"""Files of a confirmed run: the score of its final weights on the test split, and why it failed if it did."""
RunPhase: TypeAlias = Literal["timing", "pilot", "confirm"]
OUTSIDE_STUDIES: tuple[RunPhase, ...] = get_args(RunPhase)
"""Phases whose trainings are no trials of Optuna: they exist if their folders do."""


def run_name(variant: str, phase: str, number: int) -> str:
    """Name of a training of these phases, such as ``sgdm/confirm-1``, in Tune and MLflow; numbers count from 1."""
    return f"{variant}/{phase}-{number}"


def folder_name(name: str) -> str:
    """Name of the folder of a trial or confirmed run; a test has the folder of its confirmed run."""
    return name.removesuffix("/test").replace("/", ".")


def write_spec(folder: Path, spec: TrialSpec) -> None:
    """Makes the folder and writes the spec, whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SPEC, to_json(spec) + "\n")


def read_spec(folder: Path) -> TrialSpec | None:
    """The spec; None if it is missing or cannot be read."""
    try:
        return load_spec(folder / SPEC)
    except (OSError, InvalidInput):
        return None


def write_test(folder: Path, score: FinalScore) -> None:
    """Writes the score, whole or not at all."""
    write_atomically(folder / TEST, to_json(score) + "\n")


def read_test(folder: Path) -> FinalScore | None:
    """The score; None if the test split has not been read, or the file cannot be."""
    try:
        return from_dict(FinalScore, json.loads((folder / TEST).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(text)
    draft.replace(path)


def append_epoch(folder: Path, metrics: EpochMetrics) -> None:
    """Adds an epoch to the log; if the disk is full, raises OSError and leaves the log as it was."""
    with (folder / LOG).open("ab", buffering=0) as log:
        end = log.tell()
        line = _line(metrics).encode()
        try:
            # A nearly full disk writes a part of the line, and only the next write fails.
            written = log.write(line)
            while written < len(line):
                written += log.write(line[written:])
        except OSError:
            log.truncate(end)
            raise


def repair_log(folder: Path) -> set[int]:
    """Removes what a kill left incomplete from the log; returns the numbers of its epochs."""
    history = read_epochs(folder)
    kept = "".join(_line(metrics) for metrics in history)
    log = folder / LOG
    if log.exists() and log.read_text() != kept:
        write_atomically(log, kept)
    return {metrics.epoch for metrics in history}


def _line(metrics: EpochMetrics) -> str:
    line = {
        "training_iteration": metrics.epoch,
        **epoch_metrics(metrics),
        "metrics": dataclasses.asdict(metrics),
    }
    return json.dumps(line) + "\n"


def read_epochs(folder: Path) -> list[EpochMetrics]:
    """The epochs in the log, in order, up to the first line that a kill left incomplete."""
    history: dict[int, EpochMetrics] = {}
    try:
        lines = (folder / LOG).read_text().splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            metrics = from_dict(EpochMetrics, json.loads(line)["metrics"])
        except (ValueError, KeyError, TypeError):
            break
        history.setdefault(metrics.epoch, metrics)
    return [history[epoch] for epoch in sorted(history)]
