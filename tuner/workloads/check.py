"""Checks of a workload before a search starts.

Nothing here imports torch: in the driver, which does not need it, torch would cost seconds and some hundred MB.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from tuner.core.errors import InvalidInput, unknown
from tuner.core.metrics import ACCURACY
from tuner.core.separate_process import answer, ask
from tuner.core.serialization import to_json
from tuner.core.trial_spec import DIAGONAL_MODELS, WorkloadSpec, check_model, is_own
from tuner.workloads import decoding, folders
from tuner.workloads.datasets import (
    CIFAR_FOLDERS,
    SPLITS_NOTES,
    data_folder,
    find_fashion_mnist,
    load_digits,
    load_fashion_mnist,
    missing,
    own_splits_note,
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


class Described(Protocol):
    """The properties of its data that a search needs."""

    @property
    def digest(self) -> str: ...

    @property
    def sizes(self) -> Mapping[str, int]: ...

    @property
    def num_classes(self) -> int | None: ...

    @property
    def score(self) -> str: ...


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
    """Number of classes; None for labels that are no classes."""
    score: str
    """Name of the task's score: ``accuracy``, ``R^2`` or that of a user's own task."""


def check_workload(spec: WorkloadSpec) -> None:
    """Raises :class:`InvalidInput` if the data is missing or the model is not for this data.

    Reads no image and calls no function of the user's.
    """
    if spec.data not in CHECKS and not is_own(spec.data):
        raise unknown("data", spec.data, CHECKS)
    check_model(spec.data, spec.model)
    if spec.stream == "always" and spec.data != "imagefolder":
        raise InvalidInput(f"--stream always: {spec.data} is held in memory, only imagefolder can be streamed")
    if not is_own(spec.data):
        CHECKS[spec.data](spec)


def prepare(spec: WorkloadSpec) -> Prepared:
    """Makes the data ready for the trials.

    - Missing data is downloaded if ``download`` is set.
    - Data known by name is read.
    - Images of an image folder are decoded if training would hold them in memory; this fills the cache that the workers
      read.  Otherwise only their headers are read.
    - A model that is not one of :data:`KNOWN_MODELS` is built for the data, in a process of its own.
    - The function of a user's own data is called in two processes, and its model takes one step in one of them.

    Raises :class:`InvalidInput` for an image that cannot be read, unless ``skip_corrupt`` is set; for a batch larger
    than the training split; for a model that is unknown or cannot be built; and for a user's own data that cannot be
    meant, that does not fit its model, or that is not the same in both processes.
    """
    if is_own(spec.data):
        return _prepare_own(spec)
    if spec.data != "imagefolder":
        return _prepare_known(spec)
    prepared = _prepare_folder(spec)
    if spec.model not in KNOWN_MODELS:
        _result(_start(replace(spec, stream=prepared.stream)), spec)
    return prepared


def _prepare_known(spec: WorkloadSpec) -> Prepared:
    _check_batch_size(spec, NUM_TRAIN[spec.data])
    if spec.data in WITHOUT_TORCH and spec.model in KNOWN_MODELS and is_there(spec):
        whole = WITHOUT_TORCH[spec.data](spec)
        return Prepared(SPLITS_NOTES[spec.data], spec.stream, whole.digest, whole.sizes, whole.num_classes, whole.score)
    return Prepared(SPLITS_NOTES[spec.data], spec.stream, **_result(_start(spec), spec))


def _prepare_own(spec: WorkloadSpec) -> Prepared:
    # Two processes, since sets have an order of their own in each; at once, since both import torch.
    with _start(spec) as probe, _start(spec, "--data-alone") as again:
        try:
            found = _result(probe, spec)
            same = _result(again, spec)["digest"] == found["digest"]
        finally:
            again.kill()
    if not same:
        raise InvalidInput(
            f"--workload {spec.data}: returns other data in each process; seed its random numbers, sort its sets"
        )
    return Prepared(own_splits_note(spec.data), spec.stream, **found)


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
    return Prepared(note, stream, folders.digest(listing, splits), left, len(listing.classes), ACCURACY)


def _check_batch_size(spec: WorkloadSpec, num_train: int) -> None:
    if spec.batch_size > num_train:
        raise InvalidInput(f"--batch-size {spec.batch_size}: must be at most {num_train}, the training split")


def _start(spec: WorkloadSpec, *options: str) -> subprocess.Popen[str]:
    return ask("tuner.workloads.probe:found", to_json(spec), *options)


def _result(started: subprocess.Popen[str], spec: WorkloadSpec) -> dict[str, Any]:
    """What a probe found.  Raises :class:`InvalidInput` with its sentence, or with its last line if it died."""
    found: dict[str, Any] = json.loads(answer(started, f"{spec.model} on {spec.data}"))
    return found


def source_of(spec: WorkloadSpec) -> str:
    """The folder, package, module or function that the data comes from."""
    return spec.data_dir or (spec.data if is_own(spec.data) else SOURCES[spec.data])


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
