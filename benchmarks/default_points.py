"""Trains the default point of each variant on several seeds, without the service: the value of untuned settings.

A seed gives every variant the same initial weights and the same batches with the same augmentation.  Each training is a
process of one thread; ``--jobs`` run at a time.  Their seconds can be compared only if each has a core to itself.
Accuracies are on the validation split, which is split off the training images if the folder has none.  The test split
is not read.

A training that ended is kept under ``--folder``, named by its whole spec, and not repeated.  An interrupted training
resumes from its last epoch.  A training that diverged or crashed is shown as such and counts as a miss of every target.
The next run repeats a crashed training.

    python -m benchmarks.default_points --data-dir cifar10-jpeg --images 10000 --epochs 10 --targets 0.5 0.6
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.recording import conditions, parser, record, show, spread
from search_spaces import SPACES
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics, best_accuracy, error_area, target_label, time_to_target
from tuner.core.serialization import digest, from_dict, to_json, with_settings
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.core.variants import resolve_variants
from tuner.report.figures import styles
from tuner.workloads.data import load_data
from tuner.workloads.folders import IMAGE_EXTENSIONS, class_folders, require_folder, split_folders

POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True, slots=True)
class Trainer:
    """One variant on one seed, and its files."""

    variant: str
    spec: TrialSpec
    folder: Path

    def file(self, kind: str) -> Path:
        """A file of the training: ``result`` exists once the training has ended by itself, all others only before."""
        return self.folder / f"{self.variant}-{self.spec.seed}-{digest(self.spec)}.{kind}"

    def start(self) -> subprocess.Popen[bytes]:
        """Starts a process that writes one line per epoch."""
        self.file("spec").write_text(to_json(self.spec))
        paths = ["--spec", str(self.file("spec")), "--checkpoint", str(self.file("checkpoint"))]
        with self.file("epochs").open("w") as epochs, self.file("errors").open("w") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "tuner.train", *paths, "--json", "--threads", "1"],
                stdin=subprocess.DEVNULL,
                stdout=epochs,
                stderr=errors,
            )

    def end(self, status: int) -> None:
        """Keeps the epochs as the result, unless the process crashed."""
        lines = self.file("epochs").read_text().splitlines()
        # A divergence has the exit status of an uncaught exception.
        if status == 0 or (lines and json.loads(lines[-1])["diverged"]):
            self.file("epochs").rename(self.file("result"))
            for kind in ("spec", "checkpoint", "errors"):
                self.file(kind).unlink()

    @property
    def history(self) -> list[EpochMetrics]:
        """The epochs, if the training ended by itself; otherwise empty."""
        result = self.file("result")
        lines = result.read_text().splitlines() if result.exists() else []
        return [from_dict(EpochMetrics, json.loads(line)) for line in lines]

    @property
    def ending(self) -> str:
        """``finished``, or how the training ended otherwise."""
        if history := self.history:
            return f"diverged in epoch {history[-1].epoch}" if history[-1].diverged else "finished"
        return f"crashed: {(self.file('errors').read_text().splitlines() or ['killed'])[-1]}"


def run(trainings: Sequence[Trainer], jobs: int) -> None:
    """Runs the trainings that have not ended; when it is terminated it terminates their processes."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    waiting = [training for training in trainings if not training.history]
    running: dict[Trainer, subprocess.Popen[bytes]] = {}
    print(f"{len(waiting)} of {len(trainings)} trainings to run, {jobs} at a time.", flush=True)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                training = waiting.pop(0)
                running[training] = training.start()
            for training, process in list(running.items()):
                if (status := process.poll()) is not None:
                    del running[training]
                    training.end(status)
                    print(f"{training.variant}, seed {training.spec.seed}: {training.ending}", flush=True)
            time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def subset(data_dir: Path, num_images: int, folder: Path) -> Path:
    """A folder of links to the first training images of each class, by name, and to the other splits as a whole."""
    root = require_folder(str(data_dir)).resolve()
    parts = split_folders(root)
    classes = class_folders(parts["train"])
    num_each, rest = divmod(num_images, len(classes))
    if rest or num_each == 0:
        raise InvalidInput(f"--images {num_images}: must be a multiple of {len(classes)}, the number of classes")
    made = folder / f"{root.name}-{num_images}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:8]}"
    for name in classes:
        images = sorted(path for path in (parts["train"] / name).iterdir() if path.suffix.lower() in IMAGE_EXTENSIONS)
        if len(images) < num_each:
            raise InvalidInput(f"--images {num_images}: {name} has {len(images)} training images, not {num_each}")
        (made / "train" / name).mkdir(parents=True, exist_ok=True)
        for image in images[:num_each]:
            _link(made / "train" / name / image.name, image)
    for split in parts.keys() - {"train"}:
        _link(made / split, parts[split])
    return made


def _link(link: Path, target: Path) -> None:
    if not link.is_symlink():
        link.symlink_to(target)


def plan(chosen: argparse.Namespace) -> list[Trainer]:
    """The trainings of every variant on every seed, seed by seed, so that one full comparison is complete early."""
    if chosen.jobs < 1:
        raise InvalidInput(f"--jobs {chosen.jobs}: must be at least 1")
    folder = chosen.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    data_dir = chosen.data_dir
    if chosen.images is not None:
        if data_dir is None:
            raise InvalidInput("--images needs --data-dir: the folder that holds train/<class>/*")
        data_dir = subset(data_dir, chosen.images, folder)
    workload = WorkloadSpec(
        data=chosen.workload,
        model=chosen.model,
        data_dir=str(data_dir.resolve()) if data_dir else None,
        batch_size=chosen.batch_size,
    )
    # Loaded here, bad input is an error of one line, and images are decoded once for all processes.
    data = load_data(workload, torch.device("cpu"))
    print(f"{', '.join(f'{size:,} {split}' for split, size in data.sizes.items())}: {data.splits_note}.", flush=True)
    return [
        Trainer(
            variant.name,
            TrialSpec(
                workload=workload,
                optimizer=with_settings(OptimizerSpec(), variant.default_settings()),
                epochs=chosen.epochs,
                targets=tuple(chosen.targets),
                seed=seed,
            ),
            folder,
        )
        for seed in dict.fromkeys(chosen.seeds)
        for variant in resolve_variants(chosen.variants, [])
    ]


def tables(trainings: Sequence[Trainer], targets: Sequence[float]) -> None:
    """Prints the tables, the best mean of final accuracies first."""
    lines: list[tuple[float, list[str], list[str]]] = []
    for name in dict.fromkeys(training.variant for training in trainings):
        own = [training for training in trainings if training.variant == name]
        ended = [training.history for training in own if training.history]
        finished = [history for history in ended if not history[-1].diverged]
        finals = [history[-1].validation_accuracy for history in finished]
        mean = statistics.mean(finals) if finals else 0.0
        what = [
            name,
            f"{mean:.4f} ({min(finals):.4f} to {max(finals):.4f})" if finals else "-",
            f"{max(map(best_accuracy, finished)):.4f}" if finished else "-",
            spread([error_area(history) for history in ended], ".3f") if ended else "-",
            spread([history[-1].seconds for history in finished], ".1f") if finished else "-",
            "; ".join(f"seed {t.spec.seed} {t.ending}" for t in own if t.ending != "finished"),
        ]
        to_targets = [", ".join(_cost(training.history, target) for training in own) for target in targets]
        lines.append((mean, what, [name, *to_targets]))
    lines.sort(key=lambda line: -line[0])
    columns = ["variant", "final accuracy", "best", "error area", "seconds", "not finished"]
    show(
        "Default points: mean (range) of final accuracies, best of any epoch, then medians (range)",
        columns,
        [what for _, what, _ in lines],
    )
    columns = ["variant", *(f"to {target_label(target)}%" for target in targets)]
    show("Gradient evaluations (epochs) to a target, seed by seed", columns, [costs for _, _, costs in lines])


def _cost(history: Sequence[EpochMetrics], target: float) -> str:
    """Cost to the target; a training that diverged later counts as a miss."""
    reached = time_to_target(history, target) if history and not history[-1].diverged else None
    return f"{reached.gradient_evaluations:.0f} ({reached.epoch})" if reached else "-"


def draw(trainings: Sequence[Trainer], title: str, path: Path) -> None:
    """Draws validation accuracy against gradient evaluations, one line per seed."""
    looks = styles(training.variant for training in trainings)
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.add_subplot()
    labeled: set[str] = set()
    for training in trainings:
        if not (history := training.history):
            continue
        colour, dashes = looks[training.variant]
        axes.plot(
            [metrics.gradient_evaluations for metrics in history],
            [metrics.validation_accuracy for metrics in history],
            color=colour,
            linestyle=dashes,
            linewidth=0.9,
            marker=".",
            markersize=3,
            label=training.variant if training.variant not in labeled else None,
        )
        labeled.add(training.variant)
    axes.set_xlabel("gradient evaluations")
    axes.set_ylabel("validation accuracy")
    axes.set_title(title)
    if labeled:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
    axes.grid(alpha=0.2)
    figure.savefig(path, dpi=130)


def figures(training: Trainer) -> dict[str, Any]:
    """The figures of one training for the JSON file."""
    history = training.history
    return {
        "variant": training.variant,
        "seed": training.spec.seed,
        "ending": training.ending,
        "error_area": error_area(history) if history else None,
        "epochs": [dataclasses.asdict(metrics) for metrics in history],
    }


def main() -> None:
    """Runs the remaining trainings and prints the tables."""
    options = parser(__doc__, "default_points")
    options.add_argument("--workload", default="imagefolder", help="data by name, as in tuner.search")
    options.add_argument("--data-dir", type=Path, help="folder that holds train/<class>/* and test/<class>/*")
    options.add_argument("--images", type=int, help="training images, the same number per class. Default: all")
    options.add_argument("--model", default="resnet8")
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--variants", nargs="+", default=list(SPACES))
    options.add_argument("--targets", type=float, nargs="+", default=[0.9, 0.95])
    options.add_argument("--jobs", type=int, default=2, help="trainings at a time")
    options.add_argument("--folder", type=Path, default=Path("default_points"), help="where trainings are kept")
    options.add_argument("--picture", type=Path, default=Path("default_points.png"))
    chosen = options.parse_args()
    before = conditions()
    try:
        trainings = plan(chosen)
    except InvalidInput as error:
        options.error(str(error))
    run(trainings, chosen.jobs)
    tables(trainings, chosen.targets)
    data = chosen.data_dir.name if chosen.data_dir else chosen.workload
    images = f", {chosen.images:,} images" if chosen.images else ""
    draw(trainings, f"{chosen.model} on {data}{images}: default points, one line per seed", chosen.picture)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(chosen).items()}
    record(chosen.out, before, {"settings": settings, "trainings": [figures(training) for training in trainings]})


if __name__ == "__main__":
    main()
