"""The one Ray Tune run over all variants, so that no worker idles while any of them has trials left."""

from __future__ import annotations

import errno
import math
import os
import time
from collections.abc import Callable

from ray import tune
from ray.tune import Stopper

from tuner.cluster.ray_cluster import Resources, Slots
from tuner.cluster.trial_actor import TrialActor
from tuner.cluster.tune_adapters import EarlyStopping, TrialGenerator, TrialSearcher, TuneCallback
from tuner.core.errors import StorageFailed
from tuner.study.recorder import Recorder
from tuner.study.results import TrialRecord


class Deadline(Stopper):
    """Ends the whole run at a time; the trials that it cuts off stay unended, for a resumed search to go on with."""

    def __init__(self, seconds: float | None) -> None:
        self._end = time.time() + (math.inf if seconds is None else seconds)
        self.passed = False

    def __call__(self, trial_id: str, result: dict[str, object]) -> bool:
        return False

    def stop_all(self) -> bool:
        self.passed = self.passed or time.time() > self._end
        return self.passed


def tune_all(
    recorder: Recorder, resources: Resources, deadline: Deadline, *, on_end: Callable[[TrialRecord], None]
) -> None:
    """Runs the trials that are left to their ends, or to the deadline; ``on_end`` is called after each.

    Every program that works on a search starts a Tune run of its own over the same folder.  Tune's restoring would need
    its last snapshot whole and current, which a kill does not leave; the recorder does not need it.
    """
    # The searcher holds trials back; Tune would start actors one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(2**30)
    # Ctrl-C must not wait for Tune's slow farewell: what it would save is saved.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    spec, search = recorder.spec, recorder.search
    slots = Slots(spec, resources)

    def max_live() -> float:
        return min(spec.max_concurrent or math.inf, slots.now() + 1)

    try:
        tune.run(
            TrialActor,
            name=search.folder.name,
            storage_path=str(search.folder.parent),
            resources_per_trial=_bundles(resources, spec.workers_per_trial),
            num_samples=-1,
            search_alg=TrialGenerator(TrialSearcher(recorder.scheduler, resources, max_live=max_live)),
            scheduler=EarlyStopping(recorder.scheduler),
            stop=deadline,
            max_failures=spec.max_failures + 1,  # see TuneCallback
            raise_on_failed_trial=False,
            reuse_actors=True,
            verbose=0,
            trial_name_creator=_name,
            callbacks=[TuneCallback(recorder, on_end=on_end)],
        )
    except Exception as error:
        if failed := _storage_failure(error):
            raise failed from None
        raise


def _bundles(resources: Resources, workers: int) -> tune.PlacementGroupFactory:
    """A bundle for each process of a trial, on one machine where there is one that holds them all."""
    bundle = {"CPU": resources.cpus, "GPU": resources.gpus}
    return tune.PlacementGroupFactory([bundle] * workers, strategy="PACK")


def _name(trial: tune.experiment.Trial) -> str:
    return str(trial.config["trial"])


def _storage_failure(error: BaseException | None) -> StorageFailed | None:
    """What of the storage is behind an error: Tune raises another in its place."""
    while error is not None:
        if isinstance(error, StorageFailed):
            return error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            return StorageFailed(f"Tune cannot write its log ({error})")
        error = error.__cause__ or error.__context__
    return None
