"""The trainable: a Ray actor that runs one trial after another.

A trial's state is in its folder, not in Tune's checkpoints: written once, by the worker, before the epoch is told.
A trial that starts, for whatever reason, looks there first and tells the epochs it finds again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.tune import Trainable

from tuner.convergence import is_over
from tuner.errors import InvalidInput
from tuner.settings import from_dict
from tuner.spec import EpochMetrics, TrialSpec
from tuner.trial_folder import (
    CHECKPOINT,
    WEIGHTS,
    FinalScore,
    append_epoch,
    mend_log,
    read_test,
    write_spec,
    write_test,
)


class TrialActor(Trainable):
    """Runs the trial in ``config``: keys ``trial`` (its name), ``phase``, ``spec`` (as plain data), ``folder``,
    ``threads``.  In the phases ``explore`` and ``confirm`` it trains, in ``test`` it reads the test split."""

    def setup(self, config: dict[str, Any]) -> None:
        # Here, not above: the driver knows this class and has no use for torch's 500 MB.
        import torch

        torch.set_num_threads(config["threads"])
        folder, spec = Path(config["folder"]), from_dict(TrialSpec, config["spec"])
        self._results = _test(folder, spec) if config["phase"] == "test" else _train(folder, spec, config["phase"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            result = next(self._results)
        except InvalidInput as error:
            # Raised, it would be tried again, and be as wrong again.
            return {"failure": str(error), "done": True}
        return {**result, "busy_seconds": time.perf_counter() - started}


def _train(folder: Path, spec: TrialSpec, phase: str) -> Iterator[dict[str, Any]]:
    from tuner.train import train

    write_spec(folder, spec)
    logged = mend_log(folder)
    history: list[EpochMetrics] = []
    weights = folder / WEIGHTS if phase == "confirm" else None
    for metrics in train(spec, checkpoint=folder / CHECKPOINT, weights=weights):
        history.append(metrics)
        if metrics.epoch not in logged:
            append_epoch(folder, metrics)
        yield {"metrics": dataclasses.asdict(metrics), "done": is_over(spec, history)}


def _test(folder: Path, spec: TrialSpec) -> Iterator[dict[str, Any]]:
    from tuner.final_weights import score_on_test

    score = read_test(folder)
    if score is None:
        score = FinalScore(*score_on_test(spec, folder / WEIGHTS))
        write_test(folder, score)
    yield {"test": dataclasses.asdict(score), "done": True}
