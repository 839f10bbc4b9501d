"""Images read batch by batch: order, replays, bounds on memory, unreadable files."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from tuner.core.errors import InvalidInput
from tuner.core.trial_spec import WorkloadSpec
from tuner.order import Batch, shuffled_batches
from tuner.workloads import streaming
from tuner.workloads.cropping import AREA, ASPECT, CENTER, center_box, random_box, read_square
from tuner.workloads.data import load_data
from tuner.workloads.models import build_model
from tuner.workloads.streaming import StreamedImages

pytestmark = pytest.mark.usefixtures("memory_given_back")

CPU = torch.device("cpu")

NUM_CLASSES = 1000


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_image(path: Path, generator: np.random.Generator, size: tuple[int, int]) -> None:
    """A smooth picture, as photographs are: noise of a few pixels, enlarged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    small.resize(size, Image.Resampling.BILINEAR).save(path, quality=70)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 images of 224 pixels in 1,000 classes, and a few to evaluate."""
    root = tmp_path_factory.mktemp("large")
    generator = np.random.default_rng(0)
    for label in range(NUM_CLASSES):
        for number in range(2):
            write_image(root / "train" / f"{label:04}" / f"{number}.jpg", generator, (224, 224))
    return root


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """40 training images of several sizes in two classes, and 10 to test."""
    root = tmp_path / "small"
    generator = np.random.default_rng(1)
    for number in range(50):
        split = "train" if number < 40 else "test"
        size = (40, 48) if number % 5 == 0 else (32, 36)
        write_image(root / split / ("cat", "dog")[number % 2] / f"{number:02}.jpg", generator, size)
    return root


def load(root: Path, **changes: object) -> StreamedImages:
    values: dict[str, object] = {"data": "imagefolder", "data_dir": str(root), "batch_size": 4, "loader_workers": 0}
    data = load_data(WorkloadSpec(**{**values, **changes}), CPU, sealed=False)  # type: ignore[arg-type]
    assert isinstance(data, StreamedImages)
    return data


def test_a_thousand_classes_train_a_resnet50(large: Path) -> None:
    spec = WorkloadSpec(data="imagefolder", data_dir=str(large), model="resnet50", batch_size=4)
    data = load_data(spec, CPU, sealed=False)
    assert isinstance(data, StreamedImages)
    assert (data.num_classes, data.channels, data.image_size) == (NUM_CLASSES, 3, 224)
    assert data.sizes == {"train": 1600, "validation": 200, "test": 200}
    torch.manual_seed(0)
    model = build_model(spec, num_classes=data.num_classes, channels=data.channels, image_size=data.image_size)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels in data.train_batches(shuffled_batches(data.sizes["train"], 4, seed=0, epoch=0)[:2]):
        assert images.shape == (4, 3, 224, 224) and images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert math.isfinite(loss.item())
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert data.loading_seconds > 0


def test_memory_does_not_grow_with_the_batches(large: Path) -> None:
    """80 batches are 3 GB as float32: were they kept, or read far ahead, the bound would be crossed many times."""
    data = load(large, batch_size=64, loader_workers=2)
    process = psutil.Process()

    def resident_bytes() -> int:
        return sum(member.memory_info().rss for member in (process, *process.children(recursive=True)))

    batches = shuffled_batches(data.sizes["train"], 64, seed=0, epoch=0)[:10]
    after: list[int] = []
    for _ in range(8):
        for _ in data.train_batches(batches):
            pass
        after.append(resident_bytes())
    assert after[-1] - after[1] < 200 * 2**20


@pytest.mark.parametrize("num_workers", [1, 2])
def test_batches_are_read_ahead_by_a_bounded_number(small: Path, num_workers: int) -> None:
    data = load(small, loader_workers=num_workers)
    asked = 0

    def endless() -> Iterator[Batch]:
        nonlocal asked
        while True:
            asked += 1
            yield Batch(torch.arange(4), asked)

    taken = data.train_batches(endless())
    for count in range(1, 30):
        next(taken)
        assert count <= asked <= count + num_workers * (streaming.AHEAD + 1)


def test_replays_are_the_same_bits_with_any_number_of_workers(small: Path) -> None:
    batches = shuffled_batches(36, 4, seed=3, epoch=1)
    expected = list(load(small).train_batches(batches))
    for num_workers in (0, 2):
        data = load(small, loader_workers=num_workers)
        for order in (batches, batches[::-1], batches):
            got = list(data.train_batches(order))
            for (images, labels), (expected_images, expected_labels) in zip(
                got if order is batches else got[::-1], expected, strict=True
            ):
                assert torch.equal(images, expected_images) and torch.equal(labels, expected_labels)


def test_parts_of_batches_and_splits_are_the_bits_of_the_whole_and_the_rest_is_not_read(small: Path) -> None:
    data = load(small)
    (batch,) = shuffled_batches(36, 10, seed=3, epoch=1)[:1]
    ((images, labels),) = data.train_batches([batch])
    halves = [next(data.train_batches([batch], part)) for part in (slice(0, 5), slice(5, 10))]
    assert torch.equal(torch.cat([x for x, _ in halves]), images)
    assert torch.equal(torch.cat([y for _, y in halves]), labels)
    evaluated = [y for part in (slice(0, 3), slice(3, 10)) for _, y in data.evaluation_batches("test", part)]
    assert torch.equal(torch.cat(evaluated), torch.cat([y for _, y in data.evaluation_batches("test")]))
    unreadable_body(data._files._listing.path(int(data._files._splits["train"][int(batch.indices[2])])))
    assert torch.equal(next(data.train_batches([batch], slice(5, 10)))[0], halves[1][0])
    with pytest.raises(InvalidInput, match="cannot read image"):
        next(data.train_batches([batch], slice(0, 5)))


def test_the_seed_moves_the_crops(small: Path) -> None:
    indices = torch.zeros(3, dtype=torch.int64)
    for augment in (True, False):
        data = load(small, augment=augment)
        (first, _), (second, _) = data.train_batches([Batch(indices, 0), Batch(indices, 1)])
        # Three times the same image in a batch: each has a crop of its own.
        assert torch.equal(first, second) is not augment
        assert torch.equal(first[0], first[1]) is not augment


def test_loading_leaves_the_global_generator_alone(small: Path) -> None:
    data = load(small, loader_workers=1)
    before = torch.get_rng_state()
    list(data.train_batches([Batch(torch.arange(4), 0)]))
    list(data.evaluation_batches("test"))
    assert torch.equal(before, torch.get_rng_state())


def test_evaluation_in_the_middle_of_an_epoch(small: Path) -> None:
    data = load(small, loader_workers=1)
    batches = shuffled_batches(36, 4, seed=0, epoch=0)
    expected = [labels.tolist() for _, labels in data.train_batches(batches)]
    got: list[list[int]] = []
    for _, labels in data.train_batches(batches):
        got.append(labels.tolist())
        assert sum(len(labels) for _, labels in data.evaluation_batches("test")) == 10
    assert got == expected


def test_an_iteration_that_is_overtaken_says_so(small: Path) -> None:
    data = load(small)
    batches = shuffled_batches(36, 4, seed=0, epoch=0)
    first = data.train_batches(batches)
    next(first)
    assert len(list(data.train_batches(batches))) == len(batches)
    with pytest.raises(RuntimeError, match="later iteration"):
        next(first)


def test_processes_end_with_the_data(small: Path) -> None:
    """Also where an iteration was left early and a cycle, as a traceback makes, holds the data."""
    data = load(small, loader_workers=2)
    taken = data.train_batches(shuffled_batches(36, 4, seed=0, epoch=0))
    next(taken)
    cycle: list[object] = [data, taken]
    cycle.append(cycle)
    # A loader that had to kill its processes has left them with the status of a signal.
    iterator = data._training._loader[0]._iterator
    processes = iterator._workers  # type: ignore[union-attr]
    del data, taken, iterator, cycle
    gc.collect()
    assert [process.exitcode for process in processes] == [0, 0]


def test_evaluation_is_whole_and_in_order(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "EVALUATION_BATCH", 4)
    batches = list(load(small).evaluation_batches("test"))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0] * 5 + [1] * 5


def test_normalization_is_that_of_the_sample(small: Path) -> None:
    # The sample is as large as the split here, so the statistics are those of all centers.
    data = load(small)
    images = torch.cat([images for images, _ in data.evaluation_batches("train")]).double()
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (images.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def unreadable_body(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_stops_the_training_in_one_line(
    small: Path, num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "STATISTICS_SAMPLE", 1)
    data = load(small, loader_workers=num_workers)
    bad = data._files._listing.path(int(data._files._splits["train"][20]))
    unreadable_body(bad)
    assert len(list(data.train_batches([Batch(torch.arange(4), 0)]))) == 1
    with pytest.raises(InvalidInput) as caught:
        list(data.train_batches([Batch(torch.tensor([0, 20]), 0)]))
    assert str(bad) in str(caught.value) and "--skip-corrupt" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_unreadable_image_is_replaced(small: Path, num_workers: int) -> None:
    whole = load(small)
    splits, listing = whole._files._splits, whole._files._listing
    unreadable_body(listing.path(int(splits["train"][20])))
    listing.path(int(splits["train"][3])).write_bytes(b"")
    unreadable_body(listing.path(int(splits["test"][0])))
    data = load(small, loader_workers=num_workers, skip_corrupt=True)
    # Headers were read before, so one is out of the split already.
    assert data.sizes == {"train": 35, "validation": 4, "test": 10}
    batch = Batch(torch.arange(17, 22), 7)
    (images, labels), (again, labels_again) = data.train_batches([batch, batch])
    assert len(labels) == 5 and torch.equal(images, again) and torch.equal(labels, labels_again)
    assert data.num_skipped == 2
    assert len(torch.cat([labels for _, labels in data.evaluation_batches("test")])) == 9
    assert data.num_skipped == 3


def test_the_others_of_a_batch_keep_their_crops(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "STATISTICS_SAMPLE", 1)
    data = load(small, skip_corrupt=True)
    batch = Batch(torch.arange(10, 14), 0)
    ((before, _),) = data.train_batches([batch])
    unreadable_body(data._files._listing.path(int(data._files._splits["train"][11])))
    ((after, _),) = data.train_batches([batch])
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [True, False, True, True]


def test_a_folder_of_nothing_but_unreadable_images_ends(small: Path) -> None:
    data = load(small, skip_corrupt=True)
    for path in small.glob("train/*/*"):
        unreadable_body(path)
    with pytest.raises(InvalidInput, match="11 images in a row cannot be read"):
        list(data.train_batches([Batch(torch.arange(4), 0)]))


@pytest.mark.parametrize("size", [(300, 200), (50, 400), (1, 1)])
def test_boxes_lie_inside_the_image(size: tuple[int, int]) -> None:
    width, height = size
    generator = np.random.default_rng(0)
    boxes = np.array([random_box(width, height, generator) for _ in range(2000)] + [center_box(width, height)])
    left, top, box_width, box_height = boxes.T
    assert left.min() >= 0 and (left + box_width).max() <= width * (1 + 1e-12)
    assert top.min() >= 0 and (top + box_height).max() <= height * (1 + 1e-12)
    aspects = (box_width / box_height)[:-1]
    assert aspects.min() >= ASPECT[0] * (1 - 1e-9) and aspects.max() <= ASPECT[1] * (1 + 1e-9)
    assert boxes[-1].tolist() == pytest.approx(
        [(width - CENTER * min(size)) / 2, (height - CENTER * min(size)) / 2, CENTER * min(size), CENTER * min(size)]
    )


def test_boxes_have_the_stated_law() -> None:
    # In a square, a crop of up to 3/4 of the area fits whatever its aspect: there the law of the area shows.
    generator = np.random.default_rng(0)
    areas = np.array([math.prod(random_box(1000, 1000, generator)[2:]) / 1e6 for _ in range(20_000)])
    assert areas.min() >= AREA[0] and areas.max() <= AREA[1]
    inside = areas[areas < 0.75]
    # Uniform on [.08, .75]: the mean is .415, of deviation .193 / sqrt(n).
    assert abs(inside.mean() - (AREA[0] + 0.75) / 2) < 5 * 0.193 / math.sqrt(len(inside))


def test_both_sides_are_seen_alike(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    mirrored = 0
    for seed in range(200):
        square = read_square(tmp_path / "ramp.png", 16, np.random.default_rng(seed)).astype(int)
        steps = np.diff(square[0, :, 0])
        assert np.all(steps >= 0) or np.all(steps <= 0)
        mirrored += int(square[0, -1, 0] < square[0, 0, 0])
    assert abs(mirrored - 100) < 5 * math.sqrt(200) / 2


def test_a_reduced_jpeg_shows_the_same_part(tmp_path: Path) -> None:
    """A JPEG that is decoded at a fraction of its size, against the same picture decoded whole."""
    generator = np.random.default_rng(0)
    write_image(tmp_path / "picture.jpg", generator, (1000, 800))
    with Image.open(tmp_path / "picture.jpg") as image:
        image.save(tmp_path / "picture.png")
    for seed in (None, 0, 1, 2, 3):
        reduced, whole = (
            read_square(tmp_path / name, 32, None if seed is None else np.random.default_rng(seed)).astype(int)
            for name in ("picture.jpg", "picture.png")
        )
        # A shift by one of 32 pixels would change this picture by ten times as much.
        assert np.abs(reduced - whole).mean() < 1.0
