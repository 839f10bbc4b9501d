"""The cost of a checkpoint: ``python -m benchmarks.checkpoints``.

A checkpoint is saved into a folder and into object storage on this machine, a server of the package moto over loopback.
Its time stands beside that of the epoch before it.  The last column is the share of the training's time that
checkpoints after every epoch would take.  By default a training saves less often if that share is above 5%.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from search_spaces import SPACES
from tests.object_storage import BUCKET, serving
from tuner.core.serialization import with_settings
from tuner.core.store import Store
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.train.checkpoints import Checkpoints
from tuner.train.trainer import Trainer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet8", "resnet20", "resnet18"])
    parser.add_argument("--saves", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network (sgdm, digits) | checkpoint | epoch | to a folder | to object storage | share |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in options.models:
        print(_row(model, options.saves), flush=True)
    return 0


def _row(model: str, saves: int) -> str:
    optimizer = with_settings(OptimizerSpec(), SPACES["sgdm"].default_settings())
    spec = TrialSpec(workload=WorkloadSpec(model=model), optimizer=optimizer, epochs=2)
    training = Trainer(spec, torch.device("cpu"))
    epoch = training.train_to_evaluation().seconds
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch, serving(patch):
        times = [_seconds(training, store, saves) for store in (Store(folder), Store(f"{BUCKET}/x"))]
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    shares = " and ".join(f"{seconds / (seconds + epoch):.1%}" for seconds in times)
    shown = " | ".join(f"{1000 * seconds:.1f} ms" for seconds in times)
    return f"| {model} | {size / 2**20:.1f} MiB | {epoch:.2f} s | {shown} | {shares} |"


def _seconds(training: Trainer, store: Store, saves: int) -> float:
    """Median seconds of a save."""
    checkpoints = Checkpoints(store, spec_digest="")
    taken = []
    for epoch in range(1, saves + 1):
        started = time.perf_counter()
        checkpoints.save(epoch, training.state())
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


if __name__ == "__main__":
    sys.exit(main())
