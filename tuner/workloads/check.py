"""Checks of a workload before a search starts.

Nothing here imports torch: in the driver, which does not need it, torch would cost seconds and some hundred MB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from tuner.core.errors import InvalidInput, unknown
from tuner.core.serialization import to_json
from tuner.core.trial_spec import DIAGONAL_MODELS, WorkloadSpec, check_model
from tuner.workloads import decoding, folders
from tuner.workloads.datasets import (
    CIFAR_FOLDERS,
    SPLITS_NOTES,
    data_folder,
    find_fashion_mnist,
    load_digits,
    load_fashion_mnist,
    missing,
)
from tuner.workloads.population import NUM_TRAIN as NUM_DRAWN
from tuner.workloads.population import describe_diagonal

KNOWN_MODELS = ("resnet8", "resnet18", "resnet20", "resnet32", "resnet34", "resnet50", "resnet56", *DIAGONAL_MODELS)
"""Keys of :data:`tuner.workloads.models.MODELS`, which cannot be read without torch."""

NUM_TRAIN = {
    "digits": 1078,
    "fashion-mnist": 54_000,
    "cifar10": 45_000,
    "cifar100": 45_000,
    "diagonal": NUM_DRAWN,
}
"""Size of the training split, known without reading the data."""

SOURCES = {"digits": "scikit-learn", "diagonal": "tuner.theory.problem"}
"""Name of data that needs no folder -> the package or module that provides it."""

TRY = """
import json, sys, torch
from tuner.core.errors import InvalidInput, first_line
from tuner.core.serialization import from_dict
from tuner.core.trial_spec import WorkloadSpec
from tuner.workloads.data import load_data
from tuner.workloads.models import build_model, find_model
spec = from_dict(WorkloadSpec, json.loads(sys.argv[1]))
try:
    find_model(spec.model)
    data = load_data(spec, torch.device("cpu"))
    try:
        build_model(spec, **data.model_arguments)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"--model {spec.model}: cannot be built for this data: {first_line(error)}")
except InvalidInput as error:
    print(error)
    sys.exit(2)
num_classes = data.model_arguments.get("num_classes")
print(json.dumps({"digest": data.digest, "sizes": data.sizes, "num_classes": num_classes}))
"""
"""A program that downloads missing data, builds the model for it, and prints digest, sizes and number of classes."""


class Described(Protocol):
    """The properties of its data that a search needs."""

    @property
    def digest(self) -> str: ...

    @property
    def sizes(self) -> Mapping[str, int]: ...

    @property
    def num_classes(self) -> int | None: ...


WITHOUT_TORCH: dict[str, Callable[[WorkloadSpec], Described]] = {
    "digits": load_digits,
    "fashion-mnist": load_fashion_mnist,
    "diagonal": describe_diagonal,
}
"""Name of the data -> function that reads it without torch, once it is on disk."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Properties of the data, known before a search starts."""

    note: str
    """One sentence on how the splits are made and which images were left out."""
    stream: Literal["auto", "always", "never"]
    """Whether images are read batch by batch; decided once, since free memory differs from trial to trial."""
    digest: str
    """SHA-256 of data and splits, equal to ``digest`` of the loaded :class:`tuner.workloads.data.Data`."""
    sizes: Mapping[str, int]
    """Split -> number of samples."""
    num_classes: int | None
    """Number of classes; None for regression."""


def check_workload(spec: WorkloadSpec) -> None:
    """Raises :class:`InvalidInput` if the data is missing or the model is not for this data; reads no image."""
    if spec.data not in CHECKS:
        raise unknown("data", spec.data, CHECKS)
    check_model(spec.data, spec.model)
    if spec.stream == "always" and spec.data != "imagefolder":
        raise InvalidInput(f"--stream always: {spec.data} is held in memory, only imagefolder can be streamed")
    CHECKS[spec.data](spec)


def prepare(spec: WorkloadSpec) -> Prepared:
    """Makes the data ready for the trials.

    - Missing data is downloaded if ``download`` is set.
    - Data known by name is read.
    - Images of an image folder are decoded if training would hold them in memory; this fills the cache that the workers
      read.  Otherwise only their headers are read.
    - A model that is not one of :data:`KNOWN_MODELS` is built for the data, in a process of its own.

    Raises :class:`InvalidInput` for an image that cannot be read, unless ``skip_corrupt`` is set; for a batch larger
    than the training split; and for a model that is unknown or cannot be built.
    """
    if spec.data != "imagefolder":
        return _prepare_known(spec)
    prepared = _prepare_folder(spec)
    if spec.model not in KNOWN_MODELS:
        _try(replace(spec, stream=prepared.stream))
    return prepared


def _prepare_known(spec: WorkloadSpec) -> Prepared:
    _check_batch_size(spec, NUM_TRAIN[spec.data])
    if spec.data in WITHOUT_TORCH and spec.model in KNOWN_MODELS and is_there(spec):
        whole = WITHOUT_TORCH[spec.data](spec)
        return Prepared(SPLITS_NOTES[spec.data], spec.stream, whole.digest, whole.sizes, whole.num_classes)
    return Prepared(SPLITS_NOTES[spec.data], spec.stream, **_try(spec))


def _prepare_folder(spec: WorkloadSpec) -> Prepared:
    listing = folders.scan(spec.data_dir)
    splits, note = folders.split(listing)
    _check_batch_size(spec, len(splits["train"]))
    sizes = decoding.sample_sizes(listing)
    small = spec.stream != "always" and (
        spec.stream == "never" or decoding.fits(listing, sizes, decoding.free_memory())
    )
    decoded = decoding.decode(listing, sizes.square) if small and sizes.square is not None else None
    unreadable = decoding.unreadable_headers(listing) if decoded is None else decoded.unreadable
    decoding.require_readable(listing, unreadable, skip_corrupt=spec.skip_corrupt)
    if len(unreadable):
        note = f"{note}; images that cannot be read, left out: {len(unreadable)}"
    stream = spec.stream if spec.stream != "auto" else ("always" if decoded is None else "never")
    splits = folders.without(splits, unreadable)
    left = {split: len(positions) for split, positions in splits.items()}
    return Prepared(note, stream, folders.digest(listing, splits), left, len(listing.classes))


def _check_batch_size(spec: WorkloadSpec, num_train: int) -> None:
    if spec.batch_size > num_train:
        raise InvalidInput(f"--batch-size {spec.batch_size}: must be at most {num_train}, the training split")


def _try(spec: WorkloadSpec) -> dict[str, Any]:
    """Runs :data:`TRY` in a process of its own, which may import torch and the user's code."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-c", TRY, to_json(spec)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        said = (ran.stdout if ran.returncode == 2 else ran.stderr).strip().splitlines()
        last = said[-1] if said else f"exit status {ran.returncode}"
        raise InvalidInput(last if ran.returncode == 2 else f"{spec.model} on {spec.data} cannot be tried: {last}")
    described: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return described


def is_there(spec: WorkloadSpec) -> bool:
    """Whether a data set known by name is in the folder where it is looked for."""
    if spec.data == "fashion-mnist":
        return find_fashion_mnist(data_folder(spec)) is not None
    if spec.data not in CIFAR_FOLDERS:
        return True
    folder = data_folder(spec) / CIFAR_FOLDERS[spec.data]
    return any((folder / last).is_file() for last in ("test_batch", "test"))


def _check_published(spec: WorkloadSpec) -> None:
    if not is_there(spec) and not spec.download:
        raise missing(spec)


def _check_image_folder(spec: WorkloadSpec) -> None:
    root = folders.require_folder(spec.data_dir)
    for folder in folders.split_folders(root).values():
        folders.class_folders(folder)


CHECKS: dict[str, Callable[[WorkloadSpec], None]] = {
    "digits": lambda spec: None,
    "diagonal": lambda spec: None,
    "fashion-mnist": _check_published,
    "cifar10": _check_published,
    "cifar100": _check_published,
    "imagefolder": _check_image_folder,
}
"""Name of the data -> function that checks that it is there; same keys as :data:`tuner.workloads.data.DATA`."""
