"""A search as one writes it today with Ray Tune, OptunaSearch (TPE) and MLflowLoggerCallback, everything in SQLite.

Trains ResNet-8 on the digits with SGD and momentum; learning rate, momentum and weight decay are searched.  Tune is
used as it comes: a function trainable, a new process for each trial.  ``--reuse-actors`` is what its documentation
offers against that: a class trainable with ``reset_config``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import optuna
import ray
import torch
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.search.optuna import OptunaSearch

from benchmarks.peers.bare_loop import CPU, accuracy, new_model, sgd, train_digits, train_epoch
from tuner.core.trial_spec import WorkloadSpec
from tuner.optimizers.rules import make_optimizer
from tuner.order import shuffled_batches
from tuner.workloads.data import load_data

SPACE = {
    "lr": tune.loguniform(1e-2, 1.0),
    "momentum": tune.uniform(0.8, 0.98),
    "weight_decay": tune.loguniform(1e-5, 1e-2),
}
SEED = 0


def train_function(config: dict[str, float]) -> None:
    """Function trainable: one training of one epoch."""
    torch.set_num_threads(1)
    tune.report({"accuracy": train_digits(sgd(**config), seed=SEED)})


class TrainClass(tune.Trainable):
    """Class trainable whose process, and data, serve one trial after another; a step is an epoch."""

    def setup(self, config: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self.workload = WorkloadSpec()
        self.data = load_data(self.workload, CPU)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.model = new_model(self.data, self.workload, CPU, SEED)
        self.optimizer = make_optimizer(self.model.parameters(), sgd(**new_config))
        return True

    def step(self) -> dict[str, Any]:
        batches = shuffled_batches(self.data.sizes["train"], self.workload.batch_size, seed=SEED, epoch=self.iteration)
        train_epoch(self.model, self.optimizer, self.data.train_batches(batches), CPU)
        return {"accuracy": accuracy(self.model, self.data, "validation"), "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        # Tune asks a class trainable for one at the end of each trial.
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(state, Path(checkpoint_dir) / "checkpoint.pt")

    def load_checkpoint(self, checkpoint: Any) -> None:
        state = torch.load(Path(checkpoint) / "checkpoint.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def main() -> int:
    """Runs the search and prints its best result; 1 where a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--folder", type=Path, default=Path("."), help="where everything is written")
    parser.add_argument("--reuse-actors", action="store_true")
    options = parser.parse_args()
    folder = options.folder.absolute()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ray.init(address="local", include_dashboard=False)
    trainable = TrainClass if options.reuse_actors else train_function
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1}),
        param_space=SPACE,
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            num_samples=options.trials,
            search_alg=OptunaSearch(
                study_name="digits", storage=optuna.storages.RDBStorage(f"sqlite:///{folder / 'optuna.db'}")
            ),
            reuse_actors=options.reuse_actors,
        ),
        run_config=tune.RunConfig(
            name="digits",
            storage_path=str(folder),
            verbose=0,
            callbacks=[
                MLflowLoggerCallback(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", experiment_name="digits")
            ],
        ),
    )
    results = tuner.fit()
    best = results.get_best_result().metrics or {}
    print(f"{len(results)} trials, {results.num_errors} failed, best accuracy {best['accuracy']:.4f}")
    ray.shutdown()
    return int(results.num_errors > 0)


if __name__ == "__main__":
    sys.exit(main())
