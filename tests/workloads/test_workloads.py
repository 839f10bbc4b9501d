"""Data in memory: splits, normalization, batches; and the checks before a start."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tuner.core.errors import InvalidInput
from tuner.core.trial_spec import WorkloadSpec
from tuner.order import Batch, shuffled_batches
from tuner.workloads.check import CHECKS, check_workload, prepare
from tuner.workloads.data import DATA, Images, load_data, require_images
from tuner.workloads.datasets import FASHION_MNIST_FILES, load_digits
from tuner.workloads.images import channel_statistics
from tuner.workloads.splits import split_off, stratified_mask

CPU = torch.device("cpu")

FASHION_MNIST = os.environ.get("TUNER_FASHION_MNIST")
needs_fashion_mnist = pytest.mark.skipif(
    FASHION_MNIST is None, reason="TUNER_FASHION_MNIST does not name the folder of Fashion-MNIST's files"
)


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def digits() -> Images:
    return require_images(load_data(WorkloadSpec(), CPU, sealed=False))


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 1.0])
def test_a_stratified_part_has_its_share_of_every_class(fraction: float) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(7), [1, 2, 3, 40, 41, 100, 500]))
    mask = stratified_mask(labels, fraction)
    assert mask.sum() == round(fraction * len(labels))
    for label in range(7):
        share = mask.sum() * (labels == label).sum() / len(labels)
        assert abs(mask[labels == label].sum() - share) < 1


def test_a_stratified_part_is_not_the_first_images() -> None:
    labels = np.zeros(1000, dtype=np.int64)
    taken = np.flatnonzero(stratified_mask(labels, 0.5))
    # The mean of half of 0..999, drawn without replacement, has a standard deviation of 9.13.
    assert abs(taken.mean() - 499.5) < 5 * 9.13
    assert len(np.unique(np.diff(taken))) > 3


def test_a_split_covers_all_and_shares_nothing() -> None:
    labels = np.arange(100) % 10
    positions = np.arange(20, 100)
    stay, leave = split_off(positions, labels, 0.25)
    assert len(leave) == 20
    assert np.array_equal(np.sort(np.concatenate([stay, leave])), positions)


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits as published

    bunch, ours = published(), load_digits(WorkloadSpec())
    assert np.array_equal(ours.labels, bunch.target)
    assert ours.pixels.shape == (1797, 8, 8, 1)
    assert np.array_equal(ours.pixels[..., 0], np.rint(bunch.images * (255 / 16)))


def test_digits_are_split_by_class() -> None:
    whole = load_digits(WorkloadSpec())
    assert {name: len(positions) for name, positions in whole.splits.items()} == {
        "train": 1078,
        "validation": 360,
        "test": 359,
    }
    assert np.array_equal(np.sort(np.concatenate(list(whole.splits.values()))), np.arange(1797))
    totals = np.bincount(whole.labels)
    for positions in whole.splits.values():
        shares = totals * len(positions) / 1797
        assert np.abs(np.bincount(whole.labels[positions]) - shares).max() < 2


def test_digits_are_what_scikit_learn_has(digits: Images) -> None:
    assert (digits.num_classes, digits.channels, digits.image_size) == (10, 1, 8)
    assert digits.loading_seconds == 0 and digits.num_skipped == 0
    pixels = load_digits(WorkloadSpec()).pixels
    assert pixels.dtype == np.uint8 and pixels.min() == 0 and pixels.max() == 255
    assert len(np.unique(pixels)) == 17


def test_the_split_is_the_same_in_another_process(digits: Images) -> None:
    code = (
        "import torch; from tuner.core.trial_spec import WorkloadSpec; from tuner.workloads.data import load_data;"
        "print(load_data(WorkloadSpec(batch_size=32, augment=False), torch.device('cpu')).digest)"
    )
    assert run(code) == digits.digest


def test_train_has_mean_0_and_deviation_1() -> None:
    data = load_data(WorkloadSpec(augment=False), CPU)
    order = [Batch(part, 0) for part in torch.split(torch.arange(data.sizes["train"]), 64)]
    images = torch.cat([images for images, _ in data.train_batches(order)]).double()
    assert abs(images.mean().item()) < 1e-6
    assert abs(images.std(correction=0).item() - 1) < 1e-6
    # Validation is scaled by train's statistics, not by its own.
    validation = torch.cat([images for images, _ in data.evaluation_batches("validation")]).double()
    assert abs(validation.mean().item()) > 1e-4


def test_statistics_are_those_of_each_channel() -> None:
    images = torch.randint(0, 256, (10, 3, 4, 5), dtype=torch.uint8)
    images[:, 1] = 7
    mean, deviation = channel_statistics(torch.split(images, 3))
    expected = images.double()
    assert torch.allclose(mean[:, 0, 0].double(), expected.mean(dim=(0, 2, 3)))
    assert torch.allclose(deviation[[0, 2], 0, 0].double(), expected.std(dim=(0, 2, 3), correction=0)[[0, 2]])
    assert deviation[1].item() == 1


def test_a_batch_gives_the_same_bits_again(digits: Images) -> None:
    batches = shuffled_batches(digits.sizes["train"], 64, seed=1, epoch=2)
    first = list(digits.train_batches(batches))
    torch.rand(1)
    # In another order, as backward-SGD asks for them.
    for (images, labels), (images_again, labels_again) in zip(
        first, reversed(list(digits.train_batches(reversed(batches)))), strict=True
    ):
        assert torch.equal(images, images_again) and torch.equal(labels, labels_again)


def test_parts_of_batches_and_splits_are_the_bits_of_the_whole(digits: Images) -> None:
    (batch,) = shuffled_batches(digits.sizes["train"], 64, seed=1, epoch=2)[:1]
    ((images, labels),) = digits.train_batches([batch])
    parts = [next(digits.train_batches([batch], part)) for part in (slice(0, 24), slice(24, 64))]
    assert torch.equal(torch.cat([x for x, _ in parts]), images)
    assert torch.equal(torch.cat([y for _, y in parts]), labels)
    parts = [*digits.evaluation_batches("test", slice(0, 300)), *digits.evaluation_batches("test", slice(300, None))]
    whole = list(digits.evaluation_batches("test"))
    assert torch.equal(torch.cat([x for x, _ in parts]), torch.cat([x for x, _ in whole]))
    assert torch.equal(torch.cat([y for _, y in parts]), torch.cat([y for _, y in whole]))


def test_the_seed_moves_the_images_and_not_the_labels(digits: Images) -> None:
    indices = torch.arange(64)
    (images, labels), (others, others_labels) = digits.train_batches([Batch(indices, 0), Batch(indices, 1)])
    assert not torch.equal(images, others)
    assert torch.equal(labels, others_labels)


def test_batches_are_float32_in_channels_last(digits: Images) -> None:
    images, labels = next(iter(digits.train_batches([Batch(torch.arange(5), 0)])))
    assert images.shape == (5, 1, 8, 8) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (5,) and labels.dtype == torch.int64


def test_indices_count_within_the_training_split(digits: Images) -> None:
    whole = load_digits(WorkloadSpec())
    _, labels = next(iter(digits.train_batches([Batch(torch.tensor([0, 500, 1077]), 0)])))
    assert labels.tolist() == whole.labels[whole.splits["train"]][[0, 500, 1077]].tolist()


def test_evaluation_gives_every_image_once(digits: Images) -> None:
    whole = load_digits(WorkloadSpec())
    for split, positions in whole.splits.items():
        labels = torch.cat([labels for _, labels in digits.evaluation_batches(split)])
        assert np.array_equal(labels.numpy(), whole.labels[positions])
    assert len({len(labels) for _, labels in digits.evaluation_batches("validation")}) == 2


def test_a_digit_is_not_mirrored() -> None:
    plain, moved = (load_data(WorkloadSpec(augment=augment), CPU) for augment in (False, True))
    indices = torch.zeros(200, dtype=torch.int64)
    image = next(iter(plain.train_batches([Batch(indices[:1], 0)])))[0][0, 0]
    frame = torch.nn.functional.pad(image, (1, 1, 1, 1), value=image.min().item())
    crops = [frame[row : row + 8, column : column + 8] for row in range(3) for column in range(3)]
    for moved_image in next(iter(moved.train_batches([Batch(indices, 0)])))[0][:, 0]:
        assert any(torch.equal(moved_image, crop) for crop in crops)


def test_a_batch_beyond_the_training_split_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--batch-size 2000: must be at most 1078"):
        load_data(WorkloadSpec(batch_size=2000), CPU)


def test_the_checks_and_the_loaders_know_the_same_data() -> None:
    assert set(CHECKS) == set(DATA)


def test_unknown_data_is_told_the_nearest() -> None:
    for ask in (check_workload, lambda spec: load_data(spec, CPU)):
        with pytest.raises(InvalidInput, match="unknown data 'cifar-10': did you mean 'cifar10'"):
            ask(WorkloadSpec(data="cifar-10"))


@pytest.mark.parametrize("data", ["fashion-mnist", "cifar10", "cifar100"])
def test_a_missing_data_set_is_told_how_to_get(data: str, tmp_path: Path) -> None:
    for folder in (None, str(tmp_path)):
        spec = WorkloadSpec(data=data, data_dir=folder)
        for ask in (check_workload, lambda spec: load_data(spec, CPU)):
            with pytest.raises(InvalidInput, match=r"--data-dir.*--download"):
                ask(spec)
    check_workload(WorkloadSpec(data=data, data_dir=str(tmp_path), download=True))


def test_only_folders_of_images_are_streamed() -> None:
    with pytest.raises(InvalidInput, match="--stream always"):
        check_workload(WorkloadSpec(stream="always"))
    assert "left out" not in prepare(WorkloadSpec()).note


def test_a_check_does_not_import_torch() -> None:
    code = (
        "import sys; from tuner.core.trial_spec import WorkloadSpec;"
        "from tuner.workloads.check import check_workload, prepare;"
        "spec = WorkloadSpec(data='digits', model='resnet8'); check_workload(spec); prepare(spec);"
        "print([name for name in ('torch', 'torchvision', 'sklearn') if name in sys.modules])"
    )
    assert run(code) == "[]"


def assert_known(spec: WorkloadSpec) -> None:
    """What is known of the data before a start is what the loaded data says."""
    prepared, data = prepare(spec), require_images(load_data(spec, CPU))
    assert (prepared.digest, prepared.sizes, prepared.num_classes) == (data.digest, data.sizes, data.num_classes)
    assert len(prepared.digest) == 64 and len(data.classes) == data.num_classes


@pytest.mark.parametrize("model", ["resnet8", "tests.train.test_trainer:linear"])
def test_the_data_is_known_before_a_start(model: str) -> None:
    """Read by the driver, or by the process that tries the model."""
    assert_known(WorkloadSpec(model=model))


def test_digits_and_resnet8_do_without_torchvision() -> None:
    code = (
        "import sys, torch; from tuner.core.trial_spec import WorkloadSpec; from tuner.workloads.data import load_data;"
        "from tuner.workloads.models import build_model; spec = WorkloadSpec();"
        "data = load_data(spec, torch.device('cpu'));"
        "build_model(spec, num_classes=data.num_classes, channels=data.channels, image_size=data.image_size);"
        "print([name for name in ('torchvision', 'ray', 'optuna', 'mlflow') if name in sys.modules])"
    )
    assert run(code) == "[]"


def write_idx(file: Path, array: np.ndarray[Any, np.dtype[np.uint8]], *, packed: bool) -> None:
    content = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()
    if packed:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
    else:
        file.write_bytes(content)


@pytest.mark.parametrize("place", ["", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_is_read_from_both_layouts(place: str, packed: bool, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    train = generator.integers(0, 256, (200, 28, 28), dtype=np.uint8)
    test = generator.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    arrays = (train, np.arange(200, dtype=np.uint8) % 10, test, np.arange(30, dtype=np.uint8) % 10)
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(FASHION_MNIST_FILES, arrays, strict=True):
        write_idx(folder / name, array, packed=packed)
    spec = WorkloadSpec(data="fashion-mnist", data_dir=str(tmp_path))
    check_workload(spec)
    assert_known(spec)
    data = require_images(load_data(spec, CPU, sealed=False))
    assert data.sizes == {"train": 180, "validation": 20, "test": 30}
    images = torch.cat([images for images, _ in data.evaluation_batches("test")])
    order = np.argsort(images.flatten().numpy(), kind="stable")
    assert np.all(np.diff(test.flatten()[order].astype(int)) >= 0)
    assert "10%" in data.splits_note


def test_a_damaged_idx_file_is_named(tmp_path: Path) -> None:
    for name in FASHION_MNIST_FILES:
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(bytes(100))[:40])
    with pytest.raises(InvalidInput, match=r"cannot read .*train-images-idx3-ubyte\.gz"):
        load_data(WorkloadSpec(data="fashion-mnist", data_dir=str(tmp_path)), CPU)


@needs_fashion_mnist
def test_the_real_fashion_mnist(tmp_path: Path) -> None:
    data = require_images(load_data(WorkloadSpec(data="fashion-mnist", data_dir=FASHION_MNIST), CPU, sealed=False))
    assert data.sizes == {"train": 54_000, "validation": 6_000, "test": 10_000}
    assert (data.num_classes, data.channels, data.image_size) == (10, 1, 28)
    labels = torch.cat([labels for _, labels in data.evaluation_batches("test")])
    # The first ten labels of the published test set.
    assert labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert torch.bincount(labels).tolist() == [1000] * 10


@needs_fashion_mnist
def test_unpacked_files_give_the_same_data(tmp_path: Path) -> None:
    assert FASHION_MNIST is not None
    for name in FASHION_MNIST_FILES:
        with gzip.open(Path(FASHION_MNIST) / f"{name}.gz") as packed, (tmp_path / name).open("wb") as file:
            shutil.copyfileobj(packed, file)
    digests = [
        load_data(WorkloadSpec(data="fashion-mnist", data_dir=folder), CPU).digest
        for folder in (FASHION_MNIST, str(tmp_path))
    ]
    assert digests[0] == digests[1]


def test_cifar_is_read_as_torchvision_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small set in CIFAR's format; torchvision compares checksums, so it is told those of this set."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name: str, count: int) -> list[str]:
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        pixels[0, :1024] = 255
        return write(name, {"data": pixels, "labels": [index % 10 for index in range(count)]})

    monkeypatch.setattr(CIFAR10, "train_list", [batch("data_batch_1", 100), batch("data_batch_2", 100)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", 50)])
    name, checksum = write("batches.meta", {"label_names": [str(label) for label in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": checksum})

    spec = WorkloadSpec(data="cifar10", data_dir=str(tmp_path))
    check_workload(spec)
    data = require_images(load_data(spec, CPU, sealed=False))
    assert data.sizes == {"train": 180, "validation": 20, "test": 50}
    assert (data.classes, data.channels, data.image_size) == (tuple("0123456789"), 3, 32)
    images, labels = next(iter(data.evaluation_batches("test")))
    assert labels.tolist() == [index % 10 for index in range(50)]
    # A file has all of an image's red first.
    assert len(images[0, 0].unique()) == 1 and len(images[0, 1].unique()) > 100
