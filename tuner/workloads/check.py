"""What can be known about a workload before anything starts.

A driver asks here, so torch is not imported: it would cost the driver seconds and some hundred MB for nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from tuner.errors import InvalidInput, unknown
from tuner.spec import WorkloadSpec
from tuner.workloads import decoding, folders
from tuner.workloads.datasets import CIFAR_FOLDERS, data_folder, find_fashion_mnist, missing

KNOWN_MODELS = ("resnet8", "resnet18", "resnet20", "resnet32", "resnet34", "resnet50", "resnet56")
"""Keys of :data:`tuner.workloads.models.MODELS`, which cannot be read without torch."""

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


def check_workload(spec: WorkloadSpec) -> None:
    """Raises :class:`InvalidInput` where the data or the model is not there; reads no image."""
    if spec.data not in CHECKS:
        raise unknown("data", spec.data, CHECKS)
    if spec.stream == "always" and spec.data != "imagefolder":
        raise InvalidInput(f"--stream always: {spec.data} is held in memory, only imagefolder can be streamed")
    CHECKS[spec.data](spec)
    if spec.model not in KNOWN_MODELS:
        _check_model(spec.model)


def verify_images(spec: WorkloadSpec) -> int:
    """How many images cannot be read; without ``skip_corrupt`` any such raises :class:`InvalidInput`.

    Images that training would hold in memory are decoded, which fills the cache that the workers read; of others the
    header alone is read.  Other data than ``imagefolder`` is not looked at.
    """
    if spec.data != "imagefolder":
        return 0
    listing = folders.scan(spec.data_dir)
    folders.split(listing)
    sizes = decoding.sample_sizes(listing)
    small = spec.stream != "always" and decoding.fits(listing, sizes, decoding.free_memory())
    decoded = decoding.decode(listing, sizes.square) if small and sizes.square is not None else None
    unreadable = decoding.unreadable_headers(listing) if decoded is None else decoded.unreadable
    decoding.require_readable(listing, unreadable, skip_corrupt=spec.skip_corrupt)
    return len(unreadable)


def _check_model(name: str) -> None:
    """Looks the model up in a process of its own, which may import torch and what the user wrote."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-c", FIND_MODEL, name]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        said = found.stdout if found.returncode == 2 else found.stderr
        last = said.strip().splitlines()[-1:] or [f"exit status {found.returncode}"]
        raise InvalidInput(last[0] if found.returncode == 2 else f"model {name!r} cannot be imported: {last[0]}")


def _check_fashion_mnist(spec: WorkloadSpec) -> None:
    if not spec.download and find_fashion_mnist(data_folder(spec)) is None:
        raise missing(spec)


def _check_cifar(spec: WorkloadSpec) -> None:
    if not spec.download and not (data_folder(spec) / CIFAR_FOLDERS[spec.data]).is_dir():
        raise missing(spec)


def _check_image_folder(spec: WorkloadSpec) -> None:
    root = folders.require_folder(spec.data_dir)
    for folder in folders.split_folders(root).values():
        folders.class_folders(folder)


CHECKS: dict[str, Callable[[WorkloadSpec], None]] = {
    "digits": lambda spec: None,
    "fashion-mnist": _check_fashion_mnist,
    "cifar10": _check_cifar,
    "cifar100": _check_cifar,
    "imagefolder": _check_image_folder,
}
"""Name of the data -> what looks whether it is there; the keys of :data:`tuner.workloads.data.DATA`."""
