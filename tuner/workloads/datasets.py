"""Data sets known by name, as arrays in memory.  Nothing here imports torch before data is asked for."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.core.errors import InvalidInput
from tuner.core.metrics import ACCURACY
from tuner.core.trial_spec import WorkloadSpec
from tuner.workloads.splits import Labels, Splits, split_off

VALIDATION_FRACTION = 0.1
"""Part of a published training set that becomes the validation split; 5,000 of CIFAR's 50,000 images."""

FASHION_MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_PUBLISHED = f"test is as published; validation is {VALIDATION_FRACTION:.0%} of train, split off by class, fixed seed"
SPLITS_NOTES = {
    "digits": "one set, split 60/20/20 by class with a fixed seed",
    "fashion-mnist": _PUBLISHED,
    "cifar10": _PUBLISHED,
    "cifar100": _PUBLISHED,
    "diagonal": "train is drawn afresh for every batch; validation and test are both the whole population, not a "
    "sample of it, so no model is fitted to them; R^2 is 1 - (mean r^2) / (mean y^2), at least 0",
}
"""Name of the data -> sentence on how its splits are made."""
CIFAR_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@dataclass(frozen=True, slots=True)
class LabeledImages:
    """A whole data set."""

    pixels: NDArray[np.uint8]
    """Shape (N, H, W, C)."""
    labels: Labels
    """Shape (N,); each label is a position in ``classes``."""
    classes: tuple[str, ...]
    """Names of the classes."""
    splits: Splits
    splits_note: str
    """One sentence on how the splits were made."""

    @property
    def sizes(self) -> dict[str, int]:
        """Split -> number of images."""
        return {split: len(positions) for split, positions in self.splits.items()}

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def score(self) -> str:
        """Name of the task's score."""
        return ACCURACY

    @property
    def digest(self) -> str:
        """SHA-256 over the splits, the labels and the pixels."""
        state = hashlib.sha256()
        for name, positions in sorted(self.splits.items()):
            state.update(f"{name} {len(positions)} ".encode())
            state.update(np.ascontiguousarray(positions).data)
        for content in (self.labels, self.pixels):
            state.update(f"{content.shape} {content.dtype} ".encode())
            state.update(np.ascontiguousarray(content).view(np.uint8).data)
        return state.hexdigest()


def load_digits(spec: WorkloadSpec) -> LabeledImages:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, split 60/20/20.

    The pixels, 0 to 16 as published, are scaled to 0 to 255.
    """
    # The file that sklearn.datasets.load_digits reads; importing that takes two seconds in every worker.
    package = find_spec("sklearn")
    assert package is not None and package.submodule_search_locations is not None
    with gzip.open(Path(package.submodule_search_locations[0]) / "datasets/data/digits.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",")
    pixels = np.rint(table[:, :64].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    labels = table[:, 64].astype(np.int64)
    rest, test = split_off(np.arange(len(labels)), labels, 0.2)
    train, validation = split_off(rest, labels, 0.25)
    splits = {"train": train, "validation": validation, "test": test}
    return LabeledImages(pixels, labels, tuple("0123456789"), splits, SPLITS_NOTES["digits"])


def load_fashion_mnist(spec: WorkloadSpec) -> LabeledImages:
    """Fashion-MNIST (Xiao et al., 2017): 60,000 and 10,000 images, 28x28 grey, from the four published IDX files."""
    folder = data_folder(spec)
    files = find_fashion_mnist(folder)
    if files is None and spec.download:
        from torchvision.datasets import FashionMNIST

        with _downloading(spec.data, folder):
            FashionMNIST(str(folder), download=True)
        files = find_fashion_mnist(folder)
    if files is None:
        raise missing(spec)
    train_pixels, train_labels, test_pixels, test_labels = (_read_idx(file) for file in files)
    return _published(
        np.concatenate([train_pixels, test_pixels])[..., None],
        np.concatenate([train_labels, test_labels]).astype(np.int64),
        num_train=len(train_labels),
        classes=FASHION_MNIST_CLASSES,
    )


def load_cifar(spec: WorkloadSpec) -> LabeledImages:
    """CIFAR-10 or CIFAR-100 (Krizhevsky, 2009): 50,000 and 10,000 images, 32x32 color, as torchvision reads them."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[spec.data]
    folder = data_folder(spec)
    if spec.download:
        with _downloading(spec.data, folder):
            kind(str(folder), download=True)
    try:
        train, test = (kind(str(folder), train=part) for part in (True, False))
    except RuntimeError:
        raise missing(spec) from None
    return _published(
        np.concatenate([train.data, test.data]),
        np.array([*train.targets, *test.targets], dtype=np.int64),
        num_train=len(train.targets),
        classes=tuple(train.classes),
    )


def find_fashion_mnist(folder: Path) -> list[Path] | None:
    """The four IDX files, compressed or not, in the folder itself (Debian's layout) or where torchvision puts them.

    None if one of them is missing.
    """
    for place in (folder, folder / "FashionMNIST" / "raw"):
        found = [
            path for name in FASHION_MNIST_FILES for path in (place / name, place / f"{name}.gz") if path.is_file()
        ]
        by_name = {path.name.removesuffix(".gz"): path for path in found}
        if len(by_name) == len(FASHION_MNIST_FILES):
            return [by_name[name] for name in FASHION_MNIST_FILES]
    return None


def missing(spec: WorkloadSpec) -> InvalidInput:
    """The error for a data set that is missing from its folder or incomplete."""
    return InvalidInput(
        f"{spec.data} is not in {spec.data_dir}: give its folder with --data-dir, or fetch it there with --download"
    )


def own_splits_note(data: str) -> str:
    """The sentence on the splits of a user's own data."""
    return f"as {data} returns them"


def data_folder(spec: WorkloadSpec) -> Path:
    """The folder ``data_dir``.  Raises :class:`InvalidInput` if it is not given."""
    if spec.data_dir is None:
        raise InvalidInput(f"{spec.data} needs --data-dir: the folder that holds it, or into which --download puts it")
    return Path(spec.data_dir)


def _published(pixels: NDArray[np.uint8], labels: Labels, *, num_train: int, classes: tuple[str, ...]) -> LabeledImages:
    train, validation = split_off(np.arange(num_train), labels, VALIDATION_FRACTION)
    test = np.arange(num_train, len(labels))
    splits = {"train": train, "validation": validation, "test": test}
    return LabeledImages(pixels, labels, classes, splits, _PUBLISHED)


def _read_idx(file: Path) -> NDArray[np.uint8]:
    # MNIST's own page describes the format: two zero bytes, type code, rank, big-endian sizes.
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        zeros, code, rank = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{rank}I", content, 4)
        if zeros != 0 or code != 0x08:
            raise ValueError("not an IDX file of bytes")
        return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error) as error:
        raise InvalidInput(f"cannot read {file} ({error}): fetch it again with --download") from None


@contextmanager
def _downloading(name: str, folder: Path) -> Iterator[None]:
    # Without the lock, workers that share a folder would write the same archive at once.
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
    except (OSError, RuntimeError) as error:
        raise InvalidInput(f"cannot download {name} into {folder}: {error}") from None
