"""``python -m tests.formula``: the search of ``python -m tuner.search``, its trainings formulas.

For tests of what is around a training: workers need no torch, and an epoch takes as long as the test says.

EPOCH_SECONDS    how long an epoch takes
HOLD             a file: no training goes beyond ``HELD_EPOCH`` before it is there
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.simulated_search import Truth, curve
from tests.command import HELD_EPOCH
from tuner.cluster import trial_actor, tune_run
from tuner.cluster.trial_actor import Results, TrialTask
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics, FinalScore, is_finished
from tuner.core.serialization import from_dict, to_json
from tuner.core.trial_spec import TrialSpec
from tuner.search import finish
from tuner.search.__main__ import main

EPOCH_SECONDS = float(os.environ.get("EPOCH_SECONDS", "0"))
HOLD = os.environ.get("HOLD")


class TrialActor(trial_actor.TrialActor):
    """Answers an order without a training."""

    def setup(self, config: dict[str, Any]) -> None:
        self._results = told(TrialTask(**config))


def told(task: TrialTask) -> Results:
    """What a worker tells of an task."""
    if task.failure is not None:
        raise InvalidInput(task.failure)
    if task.phase == "test":
        yield {"test": dataclasses.asdict(FinalScore(0.5, 0.9, "data")), "done": True}
        return
    spec = from_dict(TrialSpec, json.loads(task.spec))
    history: list[EpochMetrics] = []
    for metrics in curve(spec, Truth(speed=1.2)):
        time.sleep(EPOCH_SECONDS)
        while HOLD is not None and metrics.epoch > HELD_EPOCH and not Path(HOLD).exists():
            time.sleep(0.05)
        history.append(dataclasses.replace(metrics, finished_at=time.time()))
        yield {"metrics": to_json(history[-1]), "done": is_finished(spec, history)}


def install() -> None:
    """From here on this program's trainings are formulas; there is no model to save."""
    setattr(tune_run, "TrialActor", TrialActor)  # noqa: B010
    setattr(finish, "_save_model", lambda *_: None)  # noqa: B010


if __name__ == "__main__":
    install()
    status = main()
    sys.stdout.flush()
    os._exit(status)
