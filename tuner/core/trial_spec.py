"""What one training is: frozen dataclasses of plain data, without torch.

:class:`OptimizerSpec` is a part of it.  Names are dotted and values are checked, as in
:mod:`tuner.core.optimizer_spec`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from tuner.core.errors import InvalidInput, first_line
from tuner.core.optimizer_spec import OptimizerSpec, require, require_choice
from tuner.core.serialization import from_dict

__all__ = ["OptimizerSpec", "Precision", "TrialSpec", "WorkloadSpec"]

Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "float64"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadSpec:
    """What is trained: data, model, batch."""

    data: str = "digits"
    """Data: digits, fashion-mnist, cifar10, cifar100, imagefolder (images of your own), diagonal (Gaussian samples for
    a network with two weights per coordinate), or data of your own: package.module:function, whose function returns
    what tuner.workloads.tensors makes."""
    model: str = ""
    """Model: resnet8/20/32/56, resnet18/34/50, a torchvision classifier, or package.module:function; for the workload
    diagonal: diagonal or diagonal-squares. Default: resnet8, or diagonal for the workload diagonal."""
    data_dir: str | None = None
    """Folder of the data; digits and diagonal need none. A function of your own is given it if it names data_dir."""
    download: bool = False
    """Fetch the data set into the data folder if it is missing."""
    batch_size: int = 64
    """Images or samples per gradient evaluation, at least 1."""
    augment: bool = True
    """Random crops and flips, as far as the data set allows them."""
    skip_corrupt: bool = False
    """Leave out images that cannot be read."""
    stream: Literal["auto", "always", "never"] = "auto"
    """Read images from disk batch by batch; auto does so if they do not fit in memory, and decides once per search."""
    loader_workers: int = 2
    """Processes that read images when streaming, at least 0."""

    def __post_init__(self) -> None:
        if not self.model:
            # Set here, so that the model that is saved, shown and compared is the one that is trained.
            object.__setattr__(self, "model", default_model(self.data))
        require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        require(self.loader_workers >= 0, "loader_workers", self.loader_workers, "at least 0")
        require_choice("stream", self.stream, Literal["auto", "always", "never"])


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialSpec:
    """One complete training: the same spec gives the same numbers on the same machine."""

    workload: WorkloadSpec = field(default_factory=WorkloadSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    epochs: int = 10
    """Largest number of epochs per trial, at least 1; epochs times steps per epoch is the budget."""
    targets: tuple[float, ...] = ()
    """Validation scores in (0, 1), such as accuracies, increasing; the cost to reach each for the first time is
    measured."""
    stop_at_target: bool = False
    """End a trial once it reaches the highest target, instead of training to the end of its budget."""
    max_loss: float = 1e3
    """A training loss above this, or one that is not finite, is a divergence; above 0."""
    seed: int = 0
    """Seed of the initial weights, the batches and their augmentation, in [0, 2^62)."""
    precision: Precision = "auto"
    """Precision of the training; auto is bfloat16 autocast on a GPU and float32 elsewhere."""
    compile: bool = False
    """Compile the models with torch.compile."""
    curvature: int = 0
    """Estimate the loss's curvature and the damping class once in this many evaluations, at least 0; 0 is never. Each
    estimate takes time."""
    predict_critical_lr: bool = False
    """Predict from the curvature at the initial weights the smallest lr.peak at which a trial diverges, and report how
    accurate that was. Stops no trial unless --prune-above-critical is given."""

    def __post_init__(self) -> None:
        require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        require(bool(self.targets) or not self.stop_at_target, "targets", self.targets, "given with stop_at_target")
        for target in self.targets:
            require(0 < target < 1, "targets", target, "in (0, 1)")
        require(list(self.targets) == sorted(set(self.targets)), "targets", self.targets, "increasing")
        require(self.max_loss > 0, "max_loss", self.max_loss, "above 0")
        require(0 <= self.seed < 2**62, "seed", self.seed, "in [0, 2^62)")
        require_choice("precision", self.precision, Precision)
        require(self.curvature >= 0, "curvature", self.curvature, "at least 0")


USUAL_TARGETS = (0.9, 0.95)
"""Targets of the workload digits, and of a single training whose targets are not given."""
DIAGONAL = "diagonal"
"""Name of the data that has samples in place of images."""


DIAGONAL_MODELS = ("diagonal", "diagonal-squares")
"""Names of the models for the data ``diagonal``; a user's own ``package.module:function`` may take it too."""


def is_own(data: str) -> bool:
    """Whether the data is named as ``package.module:function``: that of a user's own function."""
    return ":" in data


def default_model(data: str) -> str:
    """The model that is trained if none is named."""
    return DIAGONAL_MODELS[0] if data == DIAGONAL else "resnet8"


def check_model(data: str, model: str) -> None:
    """Raises :class:`InvalidInput` if a model known by name does not take this data."""
    if ":" in model or (model in DIAGONAL_MODELS) == (data == DIAGONAL):
        return
    if data == DIAGONAL:
        raise InvalidInput(
            f"--model {model}: takes images, and diagonal has none; give {' or '.join(DIAGONAL_MODELS)}, or none"
        )
    has = "" if is_own(data) else f", and {data} has images"
    raise InvalidInput(f"--model {model}: takes the workload diagonal alone{has}; give another")


def load_spec(path: Path) -> TrialSpec:
    """The spec in a file, as :func:`tuner.core.serialization.to_json` writes it.

    Raises :class:`OSError` if the file cannot be read, and :class:`InvalidInput` if it holds no spec.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise InvalidInput("must be a JSON object of settings")
        return from_dict(TrialSpec, values)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"--spec {path}: {first_line(error)}") from None


SPEC = "spec.json"
"""Name of the spec's file in a training's folder; ``python -m tuner.train --spec .../spec.json`` trains it again."""
