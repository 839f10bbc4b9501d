"""The trainable: a Ray actor that runs one trial after another.

A trial's state is in its folder, not in Tune's checkpoints: written once, by the worker, before the epoch is told.
A trial that starts, for whatever reason, looks there first and tells the epochs it finds again.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from ray.tune import Trainable

from tuner.convergence import is_over
from tuner.errors import InvalidInput
from tuner.settings import from_dict, to_json
from tuner.spec import EpochMetrics, TrialSpec
from tuner.trial_folder import CHECKPOINT, SPEC, append_epoch, mend_log


class TrialActor(Trainable):
    """Runs the trial in ``config``: keys ``trial`` (its name), ``spec`` (as plain data), ``folder``, ``threads``."""

    def setup(self, config: dict[str, Any]) -> None:
        # Here, not above: the driver knows this class and has no use for torch's 500 MB.
        import torch

        from tuner.train import train

        torch.set_num_threads(config["threads"])
        self._folder = Path(config["folder"])
        self._folder.mkdir(parents=True, exist_ok=True)
        self._spec = from_dict(TrialSpec, config["spec"])
        (self._folder / SPEC).write_text(to_json(self._spec) + "\n")
        self._history: list[EpochMetrics] = []
        self._logged = mend_log(self._folder)
        self._epochs = train(self._spec, checkpoint=self._folder / CHECKPOINT)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            metrics = next(self._epochs)
        except InvalidInput as error:
            # Raised, it would be tried again, and be as wrong again.
            return {"failure": str(error), "done": True}
        busy_seconds = time.perf_counter() - started
        self._history.append(metrics)
        done = is_over(self._spec, self._history)
        if metrics.epoch not in self._logged:
            append_epoch(self._folder, metrics)
        return {"metrics": dataclasses.asdict(metrics), "busy_seconds": busy_seconds, "done": done}
