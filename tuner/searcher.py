"""What Ray Tune asks of a search, answered from the ledger: which trial next, does it go on, what did it say."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher, SearchGenerator

from tuner.ledger import Ledger
from tuner.results import Record
from tuner.settings import from_dict
from tuner.spec import EpochMetrics
from tuner.trial_folder import FinalScore


class LedgerSearcher(Searcher):
    """Suggests the ledger's trials.  Its state is the ledger's, so Tune has none to save."""

    def __init__(self, ledger: Ledger, *, threads: int, max_live: int) -> None:
        super().__init__()
        self.ledger = ledger
        self.threads = threads
        self.max_live = max_live
        """Most trials at a time that run or wait: one more than run, so that no worker waits for its next."""
        self.suggested: Record | None = None

    def suggest(self, trial_id: str) -> dict[str, Any] | Any:
        if self.ledger.num_live >= self.max_live:
            return None
        self.suggested = self.ledger.next_trial()
        if self.suggested is None:
            return Searcher.FINISHED if self.ledger.all_planned else None
        return {
            "trial": self.suggested.name,
            "phase": self.suggested.phase,
            "spec": dataclasses.asdict(self.suggested.spec),
            "folder": str(self.ledger.search.folder / self.suggested.folder_name),
            "threads": self.threads,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback ends trials: it knows their names."""

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class LedgerGenerator(SearchGenerator):
    """Makes Tune's trials; those that had ended before this program enter its list as they ended, and do not run."""

    def __init__(self, searcher: LedgerSearcher) -> None:
        super().__init__(searcher)
        self.ledger_searcher = searcher

    def create_trial_if_possible(self, experiment_spec: dict[str, Any]) -> Trial | None:
        trial = super().create_trial_if_possible(experiment_spec)
        record = self.ledger_searcher.suggested
        if trial is None or record is None:
            return trial
        # The folder where Tune's tools look for the log.  Named by Tune, a test's would not be that of its training.
        assert trial.storage is not None
        trial.relative_logdir = trial.storage.trial_dir_name = record.folder_name  # type: ignore[assignment]
        trial.init_local_path()
        if record.ended:
            trial.set_status(Trial.ERROR if record.status == "failed" else Trial.TERMINATED)
            if record.history:
                trial.update_last_result({"metrics": dataclasses.asdict(record.history[-1]), "done": True})
        return trial

    def save_to_dir(self, dirpath: str, session_str: str) -> None:  # type: ignore[override]
        pass


class RungScheduler(FIFOScheduler):
    """Stops the trials that the ledger's rungs do not let through."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        if trial.config["phase"] == "test":
            return str(TrialScheduler.CONTINUE)
        goes_on = self.ledger.goes_on(trial.config["trial"], _metrics(trial, result))
        return str(TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP)


class LedgerCallback(Callback):
    """Tells the ledger what Tune hears."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.ledger.start(trial.config["trial"])

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        name = trial.config["trial"]
        if "failure" in result:
            self.ledger.end(name, failure=result["failure"])
        elif "test" in result:
            self.ledger.record_test(name, from_dict(FinalScore, result["test"]), result["busy_seconds"])
        else:
            self.ledger.record(name, from_dict(EpochMetrics, result["metrics"]), result["busy_seconds"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.ledger.end(trial.config["trial"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.ledger.end(trial.config["trial"], failure=_reason(trial))


def _metrics(trial: Trial, result: dict[str, Any]) -> EpochMetrics:
    # Schedulers are handed results flattened with slashes.
    prefix = "metrics/"
    return from_dict(
        EpochMetrics, {key.removeprefix(prefix): value for key, value in result.items() if key.startswith(prefix)}
    )


def _reason(trial: Trial) -> str:
    """The last line of what Ray says of a failure, which names the exception."""
    # The driver's own copy: the one that trial.get_error() reads is brought to the search's folder later.
    try:
        lines = [line for line in Path(trial.error_file or "").read_text().splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1].strip()[:500] if lines else "the worker died"
