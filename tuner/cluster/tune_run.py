"""One Ray Tune run for all variants, so that no worker idles while any variant has trials left."""

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
from tuner.study.trial_record import TrialRecord


class Deadline(Stopper):
    """Ends the whole Tune run after ``seconds``; None sets no limit.

    The trials that it interrupts are not marked as ended, so that a resumed search continues them.
    """

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
    """Runs the remaining trials to their ends or to the deadline; ``on_end`` is called after each that ends.

    Every program that works on a search starts a Tune run of its own over the same folder.  Tune could restore its run
    only from a complete and current snapshot, which a killed program does not leave.  The recorder needs no snapshot.

    Raises StorageFailed if Tune cannot write to the disk.
    """
    # The searcher limits the trials that wait.  By this limit Tune would start actors one after the other.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(2**30)
    # Ctrl-C must not wait for Tune's slow shutdown: the recorder has saved everything already.
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
            scheduler=EarlyStopping(recorder.scheduler, slots=slots.now),
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
    """One bundle for each process of a trial, all on one machine if one has room for all."""
    bundle = {"CPU": resources.cpus, "GPU": resources.gpus}
    return tune.PlacementGroupFactory([bundle] * workers, strategy="PACK")


def _name(trial: tune.experiment.Trial) -> str:
    return str(trial.config["trial"])


def _storage_failure(error: BaseException | None) -> StorageFailed | None:
    """The storage failure that caused an error, or None: Tune raises an error of its own in its place."""
    while error is not None:
        if isinstance(error, StorageFailed):
            return error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS):
            return StorageFailed(f"Tune cannot write its log ({error})")
        error = error.__cause__ or error.__context__
    return None
