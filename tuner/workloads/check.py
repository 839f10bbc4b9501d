"""What can be known about a workload before anything starts.

A driver asks here, so torch is not imported: it would cost the driver seconds and some hundred MB for nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from tuner.errors import InvalidInput, unknown
from tuner.spec import WorkloadSpec, to_json
from tuner.workloads import decoding, folders
from tuner.workloads.datasets import CIFAR_FOLDERS, SPLITS_NOTES, data_folder, find_fashion_mnist, missing

KNOWN_MODELS = ("resnet8", "resnet18", "resnet20", "resnet32", "resnet34", "resnet50", "resnet56")
"""Keys of :data:`tuner.workloads.models.MODELS`, which cannot be read without torch."""

NUM_TRAIN = {"digits": 1078, "fashion-mnist": 54_000, "cifar10": 45_000, "cifar100": 45_000}
"""Images of the training split, known without reading the data."""

FIND_MODEL = """
import sys
from tuner.errors import InvalidInput
from tuner.workloads.models import find_model
try:
    find_model(sys.argv[1])
except InvalidInput as error:
    print(error)
    sys.exit(2)
"""
LOAD_DATA = """
import json, sys, torch
from tuner.errors import InvalidInput
from tuner.spec import WorkloadSpec, from_dict
from tuner.workloads.data import load_data
try:
    load_data(from_dict(WorkloadSpec, json.loads(sys.argv[1])), torch.device("cpu"))
except InvalidInput as error:
    print(error)
    sys.exit(2)
"""


def check_workload(spec: WorkloadSpec) -> None:
    """Raises :class:`InvalidInput` where the data or the model is not there; reads no image."""
    if spec.data not in CHECKS:
        raise unknown("data", spec.data, CHECKS)
    if spec.stream == "always" and spec.data != "imagefolder":
        raise InvalidInput(f"--stream always: {spec.data} is held in memory, only imagefolder can be streamed")
    CHECKS[spec.data](spec)
    if spec.model not in KNOWN_MODELS:
        _in_child(FIND_MODEL, spec.model, f"model {spec.model!r} cannot be imported")


def prepare(spec: WorkloadSpec) -> str:
    """Makes the data ready for the trials and says in one sentence how its splits are made.

    What is missing is fetched if ``download`` allows.  The images of an image folder are read: all of each where
    training would hold them in memory, which fills the cache that the workers read, the header alone of others.
    Raises :class:`InvalidInput` for an image that cannot be read, unless ``skip_corrupt``, and for a batch larger than
    the training split.
    """
    if spec.data != "imagefolder":
        _check_batch_size(spec, NUM_TRAIN[spec.data])
        if not is_there(spec):
            _in_child(LOAD_DATA, to_json(spec), f"{spec.data} cannot be fetched")
        return SPLITS_NOTES[spec.data]
    listing = folders.scan(spec.data_dir)
    splits, note = folders.split(listing)
    _check_batch_size(spec, len(splits["train"]))
    sizes = decoding.sample_sizes(listing)
    small = spec.stream != "always" and decoding.fits(listing, sizes, decoding.free_memory())
    decoded = decoding.decode(listing, sizes.square) if small and sizes.square is not None else None
    unreadable = decoding.unreadable_headers(listing) if decoded is None else decoded.unreadable
    decoding.require_readable(listing, unreadable, skip_corrupt=spec.skip_corrupt)
    return f"{note}; images that cannot be read, left out: {len(unreadable)}" if len(unreadable) else note


def _check_batch_size(spec: WorkloadSpec, num_train: int) -> None:
    if spec.batch_size > num_train:
        raise InvalidInput(f"--batch-size {spec.batch_size}: must be at most {num_train}, the training split")


def _in_child(program: str, argument: str, failure: str) -> None:
    """Runs a program in a process of its own, which may import torch and what the user wrote."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-c", program, argument]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        said = (ran.stdout if ran.returncode == 2 else ran.stderr).strip().splitlines()
        last = said[-1] if said else f"exit status {ran.returncode}"
        raise InvalidInput(last if ran.returncode == 2 else f"{failure}: {last}")


def is_there(spec: WorkloadSpec) -> bool:
    """Whether a data set known by name is where it is looked for."""
    if spec.data == "fashion-mnist":
        return find_fashion_mnist(data_folder(spec)) is not None
    return spec.data not in CIFAR_FOLDERS or (data_folder(spec) / CIFAR_FOLDERS[spec.data]).is_dir()


def _check_published(spec: WorkloadSpec) -> None:
    if not is_there(spec) and not spec.download:
        raise missing(spec)


def _check_image_folder(spec: WorkloadSpec) -> None:
    root = folders.require_folder(spec.data_dir)
    for folder in folders.split_folders(root).values():
        folders.class_folders(folder)


CHECKS: dict[str, Callable[[WorkloadSpec], None]] = {
    "digits": lambda spec: None,
    "fashion-mnist": _check_published,
    "cifar10": _check_published,
    "cifar100": _check_published,
    "imagefolder": _check_image_folder,
}
"""Name of the data -> what looks whether it is there; the keys of :data:`tuner.workloads.data.DATA`."""
