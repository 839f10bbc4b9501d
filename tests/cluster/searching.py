"""A search on the cluster of test hosts: started, killed, resumed, and looked at when it has ended."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import torch

from tests.cluster.cluster import MLFLOW, STORAGE, Cluster
from tests.cluster.hosts import HOME, ROOT
from tests.command import epochs_logged, metrics_by_epoch
from tests.waiting import until
from tuner.core.metrics import is_finished
from tuner.core.serialization import from_dict
from tuner.core.store import Store
from tuner.core.trial_spec import TrialSpec
from tuner.train.final_weights import load_weights
from tuner.train.trainer import Trainer

VARIANTS = ("sgdm", "lpsgdm", "adamw")
MLFLOW_STORE = STORAGE.replace("optuna", "mlflow")
"""The database of the MLflow server, which is quicker to ask."""
RUN_FOLDER = f"{HOME}/runs"


class ClusterSearch:
    """A search of three variants over all workers, its driver on the head."""

    def __init__(self, cluster: Cluster, name: str, *, trials: int = 8, epochs: int = 10) -> None:
        self.cluster = cluster
        self.name = name
        self.trials = trials
        self._arguments = (
            f"--name {name} --experiment {name} --variants {' '.join(VARIANTS)} --epochs {epochs} --trials {trials} "
            # As many trials of each, whatever they find.
            "--round-size 1 --alpha 0 --refine-trials 0 "
            f"--confirm-seeds 1 --no-early-stopping --address auto --storage '{STORAGE}' --tracking-uri {MLFLOW} "
            "--checkpoints /srv/checkpoints --checkpoint-seconds 0"
        )
        # As the head sees it, with what is mounted there.
        self._home = Path(f"/proc/{cluster.hosts.head.pid}/root{HOME}")
        self._num_programs = 0
        self.interrupted: set[str] = set()
        """Folders of trainings that were under way when something was broken."""

    @property
    def folder(self) -> Path:
        """Its folder on the head, as this machine sees it."""
        return self._home / "runs" / self.name

    def start(self) -> None:
        """Starts it, or goes on with it, in the background on the head."""
        begun = (self.folder / "search.json").exists()
        arguments = f"--resume {self.name}" if begun else self._arguments
        self._num_programs += 1
        place = f"{HOME}/{self.name}-{self._num_programs}"
        program = (
            f"python -m tuner.search {arguments} > {place}.out 2>&1 & echo $! > {place}.pid; "
            f"wait $!; echo $? > {place}.status"
        )
        self.cluster.on_head(f"setsid --fork bash -c {shlex.quote(program)} > /dev/null 2>&1 < /dev/null")
        files = [Path(f"{self._home}/{self.name}-{self._num_programs}.{kind}") for kind in ("pid", "out")]
        until(lambda: all(file.exists() for file in files), "the driver starts")

    @property
    def status(self) -> int | None:
        """Exit status of its newest program; None while it runs."""
        try:
            return int((self._home / f"{self.name}-{self._num_programs}.status").read_text())
        except (FileNotFoundError, ValueError):
            return None

    @property
    def output(self) -> str:
        """What its newest program has said, and the end of its log."""
        said = (self._home / f"{self.name}-{self._num_programs}.out").read_text()
        log = self.folder / "ray.log"
        return said[-3000:] + (log.read_text()[-3000:] if log.exists() else "")

    def kill(self) -> None:
        """kill -9 of the driver."""
        pid = (self._home / f"{self.name}-{self._num_programs}.pid").read_text().strip()
        self.cluster.hosts.head.inside("kill", "-9", pid, check=False)
        until(lambda: self.status is not None, "the driver has ended")

    @property
    def num_epochs(self) -> int:
        """Epochs in its logs."""
        return sum(map(len, epochs_logged(self._home, self.name).values()))

    def wait_for_epochs(self, number: int) -> None:
        """Waits until so many more epochs are logged, or it has ended."""
        end = self.num_epochs + number
        until(lambda: self.num_epochs >= end or self.status is not None, f"{number} more epochs\n{self.output}")

    def wait(self) -> int:
        """Waits for the end of its newest program and returns the exit status."""
        until(lambda: self.status is not None, f"{self.name} ends\n{self.output}", every=0.5)
        assert self.status is not None
        return self.status

    @property
    def _stores(self) -> list[Path]:
        return list((self.cluster.hosts.shared / "checkpoints").glob(f"{self.name}-*/*"))

    def note_interrupted(self) -> None:
        """Whatever has a checkpoint now has not ended."""
        self.interrupted |= {store.name for store in self._stores if list(store.glob("checkpoint-*"))}

    def check_whole(self) -> None:
        """Exactly what was planned, each epoch once, nothing running: as tests/command.py checks it, on the head."""
        counts = dict.fromkeys(VARIANTS, self.trials)
        where = f"name={self.name!r}, experiment={self.name!r}, storage={STORAGE!r}, tracking_uri={MLFLOW_STORE!r}"
        program = (
            "from pathlib import Path; from tests.command import check_whole; "
            f"check_whole(Path.home(), {counts}, {where})"
        )
        self.cluster.on_head(f'PYTHONPATH={ROOT} python -W ignore -c "{program}"')

    def check_interrupted(self, most: int | None = None) -> int:
        """Compares what was interrupted, its final weights too, with trainings that nobody interrupts, bit for bit.

        Returns how many there were; ``most`` bounds them, confirmed runs first.
        """
        torch.set_num_threads(1)
        stores = {store.name: store for store in self._stores}
        chosen = sorted(self.interrupted, key=lambda name: (".confirm-" not in name, name))[:most]
        for name in chosen:
            spec = from_dict(TrialSpec, json.loads((self.folder / name / "spec.json").read_text()))
            training = Trainer(spec, torch.device("cpu"))
            while not is_finished(spec, training.history):
                training.train_to_evaluation()
            logged = metrics_by_epoch(self._home, name, self.name)
            for metrics, line in zip(training.history, logged, strict=True):
                told = (line["train/loss"], line["validation/loss"], line["validation/accuracy"])
                assert told == (metrics.train_loss, metrics.validation_loss, metrics.validation_accuracy), name
            if ".confirm-" in name:
                kept, expected = load_weights(Store(stores[name]), spec)["model"], training.network.evaluated_state()
                assert kept.keys() == expected.keys()
                assert all(torch.equal(kept[tensor], expected[tensor]) for tensor in kept), name
        return len(chosen)
