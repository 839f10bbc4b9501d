"""The files of a trial's folder, ``<output>/<search>/<trial>``: its spec, a log of epochs, a checkpoint.

The checkpoint is there while the trial runs.  The log has the name and form of Ray Tune's, one JSON object a line, so
that Tune's own tools read it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tuner.convergence import epoch_metrics
from tuner.settings import from_dict
from tuner.spec import EpochMetrics

LOG, CHECKPOINT, SPEC = "result.json", "checkpoint.pt", "spec.json"
"""``python -m tuner.train --spec .../spec.json`` trains the trial again."""


def append_epoch(folder: Path, metrics: EpochMetrics) -> None:
    """Adds an epoch to the log."""
    with (folder / LOG).open("a") as log:
        log.write(_line(metrics))


def mend_log(folder: Path) -> set[int]:
    """Takes out of the log what a kill cut short or two workers wrote twice; returns the epochs that are there."""
    history = read_epochs(folder)
    kept = "".join(_line(metrics) for metrics in history)
    log = folder / LOG
    if log.exists() and log.read_text() != kept:
        draft = log.with_name(f"{LOG}.new")
        draft.write_text(kept)
        draft.replace(log)
    return {metrics.epoch for metrics in history}


def _line(metrics: EpochMetrics) -> str:
    line = {
        "training_iteration": metrics.epoch,
        **epoch_metrics(metrics),
        "metrics": dataclasses.asdict(metrics),
    }
    return json.dumps(line) + "\n"


def read_epochs(folder: Path) -> list[EpochMetrics]:
    """The epochs in the log, in order; a line cut short by a kill, and anything after it, is left out."""
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
