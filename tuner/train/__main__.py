"""The command ``python -m tuner.train``: one training without the service; it prints one line per epoch.

``--spec FILE.json`` needs only torch, torchvision and scikit-learn.  ``--variant`` reads a default point from
search_spaces and so needs Optuna's distributions too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from tuner.core.errors import ExitStatus, InvalidInput, command
from tuner.core.metrics import EpochMetrics, speed_metrics
from tuner.core.serialization import Setting, to_json, with_settings
from tuner.core.store import Store, check_place
from tuner.core.trial_spec import USUAL_TARGETS, OptimizerSpec, TrialSpec, default_model, load_spec
from tuner.train import train
from tuner.train.tryout import try_out
from tuner.workloads.data import cached_data


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; exit status 0 if the training ended, 1 if it diverged, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m tuner.train", description="Train one network.")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--variant", help="start from this variant's default point, or variant@point")
    start.add_argument("--spec", type=Path, metavar="FILE", help="start from a TrialSpec in JSON")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="settings by dotted name: lr.peak=0.003, workload.data=cifar10, epochs=20",
    )
    parser.add_argument("--checkpoints", metavar="PLACE", help="folder or URI to continue from and to write to")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads; small ResNets gain nothing from more than one"
    )
    parser.add_argument("--json", action="store_true", help="print each epoch as a JSON object")
    parser.add_argument("--print-spec", action="store_true", help="print the spec as JSON and train nothing")
    arguments = parser.parse_args(argv)
    spec = _with_settings(_start(arguments.variant, arguments.spec), arguments.set)
    if arguments.print_spec:
        print(to_json(spec))
        return ExitStatus.OK
    if arguments.threads < 1:
        raise InvalidInput(f"--threads {arguments.threads}: must be at least 1")
    store = None
    if arguments.checkpoints is not None:
        check_place("--checkpoints", arguments.checkpoints)
        store = Store(arguments.checkpoints)
        store.make()
    torch.set_num_threads(arguments.threads)
    if spec.optimizer.is_tried_first:
        try_out(spec, check_resume=store is not None)
    history = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for metrics in train(spec, store=store, device=device):
        history.append(metrics)
        score = cached_data(spec.workload, device).task.name  # the training's own copy
        print(json.dumps(dataclasses.asdict(metrics)) if arguments.json else _line(metrics, score), flush=True)
    if not arguments.json:
        print("  ".join(f"{name} {value:.4g}" for name, value in speed_metrics(history, spec.targets).items()))
    return ExitStatus.NOTHING_FINISHED if history[-1].diverged else ExitStatus.OK


def _start(variant: str | None, file: Path | None) -> TrialSpec:
    if file is not None:
        try:
            return load_spec(file)
        except OSError as error:
            raise InvalidInput(f"--spec {file}: {error}") from None
    if variant is None:
        return TrialSpec(targets=USUAL_TARGETS)
    from tuner.core.variants import resolve_variant

    optimizer = with_settings(OptimizerSpec(), resolve_variant(variant).default_settings())
    return TrialSpec(optimizer=optimizer, targets=USUAL_TARGETS)


def _with_settings(spec: TrialSpec, given: Sequence[str]) -> TrialSpec:
    """The spec with ``given`` settings, NAME=VALUE each; an optimizer's may be named without ``optimizer.``.

    Without ``optimizer.`` these are the names of the search spaces.  Raises InvalidInput for a bad setting.
    """
    of_trial = {item.name for item in dataclasses.fields(TrialSpec)}
    settings: dict[str, Setting] = {}
    for text in given:
        name, separator, value = text.partition("=")
        if not separator:
            raise InvalidInput(f"--set {text}: must be NAME=VALUE")
        settings[name if name.partition(".")[0] in of_trial else f"optimizer.{name}"] = value
    if spec.workload.model == default_model(spec.workload.data) and "workload.data" in settings:
        settings.setdefault("workload.model", default_model(str(settings["workload.data"])))
    try:
        return with_settings(spec, settings)
    except InvalidInput as error:
        raise InvalidInput(str(error).replace("'optimizer.", "'")) from None


def _line(metrics: EpochMetrics, score: str) -> str:
    note = "  diverged" if metrics.diverged else ""
    return (
        f"epoch {metrics.epoch}  gradient evaluations {metrics.gradient_evaluations}  "
        f"train loss {metrics.train_loss:.4f}  validation {score} {metrics.validation_accuracy:.4f}  "
        f"lr {metrics.lr:.3g}  momentum {metrics.momentum:.3g}  p {metrics.p:.3g}  {metrics.seconds:.1f} s{note}"
    )


if __name__ == "__main__":
    sys.exit(main())
