"""Folders of images: scan, split, cache, unreadable files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tuner.core.errors import InvalidInput
from tuner.core.trial_spec import WorkloadSpec
from tuner.order import Batch
from tuner.workloads import decoding, folders
from tuner.workloads.check import check_workload, prepare
from tuner.workloads.data import load_data, require_images
from tuner.workloads.images import ResidentImages
from tuner.workloads.streaming import StreamedImages

CPU = torch.device("cpu")

CIFAR10_JPEG = os.environ.get("TUNER_CIFAR10_JPEG")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tuner"


def write_image(path: Path, seed: int, size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def pixels_of(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of 20 training and 5 test images."""
    folder = tmp_path / "images"
    for number in range(50):
        split = "train" if number < 40 else "test"
        write_image(folder / split / ("cat", "dog")[number % 2] / f"{number:02}.png", number)
    return folder


def spec_of(root: Path, **changes: object) -> WorkloadSpec:
    values: dict[str, object] = {"data": "imagefolder", "data_dir": str(root), "batch_size": 4, **changes}
    return WorkloadSpec(**values)  # type: ignore[arg-type]


def truncate(path: Path) -> None:
    """Leaves the header whole and cuts the pixels."""
    path.write_bytes(path.read_bytes()[:-60])


def test_classes_are_the_sorted_folder_names(root: Path) -> None:
    write_image(root / "train" / "dog" / "deeper" / "99.JPG", 99)
    (root / "train" / "dog" / "README.txt").write_text("not an image")
    (root / "train" / ".hidden").mkdir()
    listing = folders.scan(str(root))
    assert listing.classes == ("cat", "dog")
    assert len(listing.parts["train"]) == 41 and len(listing.parts["test"]) == 10
    for position in range(51):
        assert listing.path(position).is_file()
        assert listing.classes[listing.labels[position]] in listing.path(position).parts


def test_pixels_and_labels_belong_together(root: Path) -> None:
    data = load_data(spec_of(root, augment=False), CPU, sealed=False)
    assert isinstance(data, ResidentImages)
    assert (data.num_classes, data.channels, data.image_size) == (2, 3, 8)
    listing = folders.scan(str(root))
    splits, _ = folders.split(listing)
    train = np.stack([pixels_of(listing.path(position)) for position in splits["train"].tolist()]).astype(np.float64)
    mean, deviation = train.mean(axis=(0, 1, 2)), train.std(axis=(0, 1, 2))
    for split in ("train", "validation", "test"):
        batches = list(data.evaluation_batches(split))
        images = torch.cat([images for images, _ in batches])
        labels = torch.cat([labels for _, labels in batches])
        for image, label, position in zip(images, labels.tolist(), splits[split].tolist(), strict=True):
            expected = (pixels_of(listing.path(position)) - mean) / deviation
            assert np.allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-5)
            assert listing.path(position).parent.name == listing.classes[label]


def test_what_has_no_folder_is_split_off_train(root: Path) -> None:
    listing = folders.scan(str(root))
    splits, note = folders.split(listing)
    assert "validation (10%) split off train" in note and "test is the folder's own" in note
    assert np.array_equal(np.bincount(listing.labels[splits["validation"]]), [2, 2])
    assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(50))
    assert np.array_equal(splits["test"], listing.parts["test"])

    shutil.rmtree(root / "test")
    splits, note = folders.split(folders.scan(str(root)))
    assert {name: len(positions) for name, positions in splits.items()} == {"train": 32, "validation": 4, "test": 4}
    assert np.array_equal(np.sort(np.concatenate(list(splits.values()))), np.arange(40))
    assert "validation (10%) and test (10%) split off train" in note


@pytest.mark.parametrize("name", ["validation", "val"])
def test_a_validation_folder_is_taken_as_it_is(root: Path, name: str) -> None:
    for number, kind in ((60, "cat"), (61, "dog")):
        write_image(root / name / kind / f"{number}.png", number)
    splits, note = folders.split(folders.scan(str(root)))
    assert {name: len(positions) for name, positions in splits.items()} == {"train": 40, "validation": 2, "test": 10}
    assert "own" in note and "split off" not in note


def test_the_split_does_not_depend_on_the_place_or_the_process(root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    # Not copy2: another machine's copy has other modification times.
    shutil.copytree(root, copy, copy_function=shutil.copy)
    code = (
        "import sys, torch; from tuner.core.trial_spec import WorkloadSpec; from tuner.workloads.data import load_data;"
        "spec = WorkloadSpec(data='imagefolder', data_dir=sys.argv[1], batch_size=4);"
        "print(load_data(spec, torch.device('cpu')).digest)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(copy)], capture_output=True, text=True, check=True)
    digest = load_data(spec_of(root), CPU).digest
    assert found.stdout.strip() == digest
    assert load_data(spec_of(root, stream="always"), CPU).digest == digest
    write_image(root / "train" / "cat" / "more.png", 70)
    assert load_data(spec_of(root), CPU).digest != digest


def test_decoded_images_are_cached_and_shared(root: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "left out" not in prepare(spec_of(root)).note
    (cached,) = own_cache.glob("*/*.npy")
    assert not list(own_cache.glob("*/unfinished*"))
    opened: list[Path] = []
    real_open = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or real_open(path))  # type: ignore[func-returns-value]
    before = cached.stat()
    first, second = (decoding.decode(folders.scan(str(root)), 8) for _ in range(2))
    assert first is not None and second is not None
    assert opened == [] and cached.stat().st_mtime_ns == before.st_mtime_ns
    # Both map the file, and a write by one is not seen by the other.
    assert isinstance(first.pixels, np.memmap)
    first.pixels[0] = 0
    assert second.pixels[0].any()


def test_the_cache_is_written_anew_when_a_file_changes(root: Path, own_cache: Path) -> None:
    file = root / "train" / "cat" / "00.png"
    listing = folders.scan(str(root))
    earlier = decoding.decode(listing, 8)
    (cached,) = own_cache.glob("*/*.npy")
    write_image(file, 1234)
    os.utime(file, ns=(0, int(listing.modified[0]) + 1))
    later = decoding.decode(folders.scan(str(root)), 8)
    assert earlier is not None and later is not None
    assert np.array_equal(later.pixels[0], pixels_of(file)) and not np.array_equal(earlier.pixels[0], later.pixels[0])
    assert np.array_equal(earlier.pixels[1:], later.pixels[1:])
    (cached_later,) = own_cache.glob("*/*.npy")
    assert cached_later != cached


def test_an_interrupted_write_leaves_nothing_that_is_read(
    root: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "_decode_into", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoding.decode(folders.scan(str(root)), 8)
    decoded = decoding.decode(folders.scan(str(root)), 8)
    assert decoded is not None
    assert np.array_equal(decoded.pixels[0], pixels_of(root / "train" / "cat" / "00.png"))
    assert len(list(own_cache.glob("*/*.npy"))) == 1


def test_a_cache_that_cannot_be_written_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InvalidInput, match="set XDG_CACHE_HOME"):
        load_data(spec_of(root), CPU)


@pytest.mark.parametrize("damage", [truncate, lambda path: path.write_bytes(b""), lambda path: path.write_text("no")])
def test_an_unreadable_image_is_named_or_left_out(root: Path, damage: object) -> None:
    bad = root / "train" / "dog" / "01.png"
    whole = {split: size for split, size in load_data(spec_of(root), CPU).sizes.items()}
    damage(bad)  # type: ignore[operator]
    for ask in (prepare, lambda spec: load_data(spec, CPU)):
        with pytest.raises(InvalidInput, match=r"cannot read image .*train/dog/01\.png.*--skip-corrupt"):
            ask(spec_of(root))
    prepared = prepare(spec_of(root, skip_corrupt=True))
    assert prepared.note.endswith("left out: 1")
    data = require_images(load_data(spec_of(root, skip_corrupt=True), CPU))
    assert (prepared.digest, prepared.sizes, prepared.num_classes) == (data.digest, data.sizes, data.num_classes)
    assert data.num_skipped == 1
    assert sum(data.sizes.values()) == sum(whole.values()) - 1


def test_an_unreadable_image_moves_no_other_from_its_split(root: Path) -> None:
    listing = folders.scan(str(root))
    splits, _ = folders.split(listing)
    kept = folders.without(splits, splits["train"][:1])
    assert np.array_equal(kept["train"], splits["train"][1:])
    assert np.array_equal(kept["validation"], splits["validation"])


def test_large_images_are_verified_by_their_headers(root: Path, own_cache: Path) -> None:
    for number, path in enumerate(sorted(root.glob("*/*/*.png"))):
        write_image(path, number, (80, 70))
    truncate(root / "train" / "cat" / "00.png")
    assert "left out" not in prepare(spec_of(root)).note
    assert not list(own_cache.glob("*/*.npy"))
    (root / "train" / "cat" / "02.png").write_bytes(b"nothing")
    with pytest.raises(InvalidInput, match=r"train/cat/02\.png"):
        prepare(spec_of(root))
    (notes,) = own_cache.glob("*/*-headers.json")
    assert len(json.loads(notes.read_text())["unreadable"]) == 1
    data = load_data(spec_of(root, skip_corrupt=True), CPU)
    assert isinstance(data, StreamedImages) and data.num_skipped >= 1
    assert data.image_size == 70


def test_images_of_several_sizes_are_streamed(root: Path) -> None:
    write_image(root / "train" / "cat" / "00.png", 0, (9, 8))
    data = load_data(spec_of(root), CPU)
    assert isinstance(data, StreamedImages) and data.image_size == 8
    with pytest.raises(InvalidInput, match="--stream never: needs square images of one size"):
        load_data(spec_of(root, stream="never"), CPU)


def test_a_size_that_no_sample_saw_is_met_in_decoding(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(root / "train" / "cat" / "02.png", 0, (9, 8))
    monkeypatch.setattr(decoding, "SAMPLE", 2)
    listing = folders.scan(str(root))
    assert decoding.sample_sizes(listing).square == 8
    for _ in range(2):
        assert isinstance(load_data(spec_of(root), CPU), StreamedImages)


def test_images_that_do_not_fit_are_streamed(root: Path) -> None:
    listing = folders.scan(str(root))
    sizes = decoding.sample_sizes(listing)
    needed = 50 * 8 * 8 * 3
    assert decoding.fits(listing, sizes, int(needed / decoding.RESIDENT_FRACTION))
    assert not decoding.fits(listing, sizes, int(needed / decoding.RESIDENT_FRACTION) - 4)
    assert decoding.free_memory() > 2**20


def test_grey_and_palette_images_become_color(root: Path) -> None:
    path = root / "train" / "cat" / "00.png"
    for mode in ("L", "P", "RGBA", "1"):
        with Image.open(path) as image:
            converted = image.convert(mode)
        converted.save(path)
        assert require_images(load_data(spec_of(root), CPU)).channels == 3


def test_training_batches_are_replayed(root: Path) -> None:
    data = load_data(spec_of(root), CPU)
    batch = Batch(torch.arange(16), 5)
    (first, labels), (again, labels_again), (other, _) = data.train_batches([batch, batch, Batch(batch.indices, 6)])
    assert torch.equal(first, again) and torch.equal(labels, labels_again) and not torch.equal(first, other)
    assert first.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "train"), r"has no folder train/"),
        (lambda root: shutil.rmtree(root / "train" / "dog"), r"test has a class 'dog', but train does not"),
        (lambda root: shutil.rmtree(root / "test" / "dog"), r"test has no class 'dog', but train has"),
        (lambda root: (root / "train" / "emu").mkdir(), r"train/emu has no image"),
        (lambda root: [path.unlink() for path in root.glob("test/cat/*")], r"test/cat has no image"),
        (lambda root: [path.rename(root / path.name) for path in root.glob("train/*")], r"train has no class folders"),
        (
            lambda root: [shutil.copytree(root / "test", root / name) for name in ("val", "validation")],
            r"has both validation/ and val/",
        ),
        (lambda root: [path.write_text("") for path in root.glob("*/*/*")], r"has no readable image"),
    ],
)
def test_a_folder_that_is_not_as_it_must_be(root: Path, spoil: object, message: str) -> None:
    spoil(root)  # type: ignore[operator]
    for ask in (prepare, lambda spec: load_data(spec, CPU)):
        with pytest.raises(InvalidInput, match=message) as caught:
            ask(spec_of(root))
        assert "\n" not in str(caught.value)


def test_too_few_images_to_split(root: Path) -> None:
    for path in root.glob("train/*/[123]*"):
        path.unlink()
    splits, _ = folders.split(folders.scan(str(root)))
    assert len(splits["validation"]) == 1
    for path in root.glob("train/*/0[4-9]*"):
        path.unlink()
    with pytest.raises(InvalidInput, match="too few images to split validation off"):
        prepare(spec_of(root))


def test_the_folder_itself_is_checked(root: Path) -> None:
    check_workload(spec_of(root))
    with pytest.raises(InvalidInput, match="imagefolder needs --data-dir"):
        check_workload(WorkloadSpec(data="imagefolder"))
    with pytest.raises(InvalidInput, match=f"did you mean {root}"):
        check_workload(spec_of(root.with_name("imgaes")))
    with pytest.raises(InvalidInput, match="no such folder"):
        check_workload(spec_of(root / "quite" / "elsewhere"))
    with pytest.raises(InvalidInput, match="is a file"):
        check_workload(spec_of(root / "train" / "cat" / "00.png"))
    with pytest.raises(InvalidInput, match="has no folder train/"):
        check_workload(spec_of(root / "test"))


def test_verification_does_not_import_torch(root: Path) -> None:
    code = (
        "import sys; from tuner.core.trial_spec import WorkloadSpec; from tuner.workloads.check import prepare;"
        "prepare(WorkloadSpec(data='imagefolder', data_dir=sys.argv[1], batch_size=2)); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.skipif(CIFAR10_JPEG is None, reason="TUNER_CIFAR10_JPEG does not name the folder of CIFAR-10 as JPEG")
def test_the_real_cifar10_as_jpeg() -> None:
    assert CIFAR10_JPEG is not None
    spec = spec_of(Path(CIFAR10_JPEG), augment=False)
    assert "left out" not in prepare(spec).note
    data = load_data(spec, CPU, sealed=False)
    assert isinstance(data, ResidentImages)
    assert data.sizes == {"train": 45_000, "test": 10_000, "validation": 5_000}
    assert (data.num_classes, data.channels, data.image_size) == (10, 3, 32)
    for split, each in (("validation", 500), ("test", 1000)):
        labels = torch.cat([labels for _, labels in data.evaluation_batches(split)])
        assert torch.bincount(labels).tolist() == [each] * 10
    images = torch.cat([images for images, _ in data.evaluation_batches("train")])
    for channel in range(3):
        assert abs(images[:, channel].double().mean().item()) < 1e-5
        assert abs(images[:, channel].double().std().item() - 1) < 1e-5
