"""The files of a trial's folder, ``<output>/<search>/<trial>``: its spec, a log of epochs, a checkpoint.

The checkpoint is there while the trial runs.  The log has the name and form of Ray Tune's, one JSON object a line, so
that Tune's own tools read it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from tuner.convergence import epoch_metrics
from tuner.spec import EpochMetrics, from_dict

LOG, CHECKPOINT, SPEC = "result.json", "checkpoint.pt", "spec.json"
"""``python -m tuner.train --spec .../spec.json`` trains the trial again."""


def append_epoch(folder: Path, metrics: EpochMetrics, *, done: bool) -> None:
    """Adds an epoch to the log; the first epoch begins the log anew."""
    line = {
        "training_iteration": metrics.epoch,
        "done": done,
        **epoch_metrics(metrics),
        "metrics": dataclasses.asdict(metrics),
    }
    with (folder / LOG).open("w" if metrics.epoch == 1 else "a") as log:
        log.write(json.dumps(line) + "\n")


def read_epochs(folder: Path) -> list[EpochMetrics]:
    """The epochs in the log; a line cut short by a kill, and anything after it, is left out."""
    history: list[EpochMetrics] = []
    try:
        lines = (folder / LOG).read_text().splitlines()
    except FileNotFoundError:
        return history
    for line in lines:
        try:
            metrics = from_dict(EpochMetrics, json.loads(line)["metrics"])
        except (json.JSONDecodeError, KeyError):
            break
        if not history or metrics.epoch > history[-1].epoch:
            history.append(metrics)
    return history
