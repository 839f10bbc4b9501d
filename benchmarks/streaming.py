"""Images per second, loader's share of the time and peak memory of ResNet-50 trained on streamed JPEGs.

The benchmark makes the JPEGs, 224 pixels wide and as large on disk as photographs, for each of 1,000 classes.  Model,
optimizer and data are those of tuner.train.Trainer.  Steps are counted instead of epochs, since an epoch of 1,000
classes takes many minutes on a CPU.

The loader's share is the share of the time in which the loop waits for a batch.  Memory is the largest sum of the
resident sets of the training process and the reading processes, sampled ten times a second.  Shared pages count once
per process.  Memory must not grow with the number of images: compare runs with several --images-per-class.
"""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.peers.bare_loop import train_epoch
from benchmarks.programs import scratch
from benchmarks.recording import conditions, parser, record, show
from tuner.core.trial_spec import TrialSpec, WorkloadSpec
from tuner.order import Batch, shuffled_batches
from tuner.train.trainer import Trainer

SIDE = 224
NUM_PATTERNS = 16
COARSE_SIDE = 28
"""Side of the noise that is enlarged to an image; its JPEG is then about as large as that of a photograph."""


def make_folder(root: Path, classes: int, images_per_class: int) -> int:
    """Writes train, validation and test; returns the mean size of a file in bytes.

    Patterns repeat, since only the reading and decoding of the files matters here.
    """
    generator = np.random.default_rng(0)
    files: list[bytes] = []
    for _ in range(NUM_PATTERNS):
        coarse = generator.integers(256, size=(COARSE_SIDE, COARSE_SIDE, 3), dtype=np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
        files.append(encoded.getvalue())
    for label in range(classes):
        for split, count in (("train", images_per_class), ("validation", 1), ("test", 1)):
            folder = root / split / f"class-{label:04d}"
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.jpg").write_bytes(files[(label + number) % NUM_PATTERNS])
    return sum(map(len, files)) // NUM_PATTERNS


class MemoryWatch:
    """Samples the resident memory of this process and its children while it is open."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        own = psutil.Process()
        while not self._over.wait(0.1):
            total = 0
            for process in [own, *own.children(recursive=True)]:
                with suppress(psutil.Error):
                    total += process.memory_info().rss
            self.peak_mb = max(self.peak_mb, total / 1e6)


def endless_batches(num_images: int, batch_size: int) -> Iterator[Batch]:
    """The batches of epoch after epoch, without end."""
    for epoch in itertools.count():
        yield from shuffled_batches(num_images, batch_size, seed=0, epoch=epoch)


def main() -> None:
    """Makes the data, trains on it and prints the figures."""
    options = parser(__doc__, "streaming")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--model", default="resnet50")
    options.add_argument("--classes", type=int, default=1000)
    options.add_argument("--images-per-class", type=int, default=2, help="training images")
    options.add_argument("--batch-size", type=int, default=16)
    options.add_argument("--steps", type=int, default=4, help="timed steps")
    options.add_argument("--first-steps", type=int, default=1, help="untimed steps before them")
    options.add_argument("--loader-workers", type=int, default=1)
    options.add_argument("--threads", type=int, default=1, help="threads of the training process")
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    before, device = conditions(chosen.device), torch.device(chosen.device)
    with scratch() as root, MemoryWatch() as memory:
        started = time.perf_counter()
        file_bytes = make_folder(root, chosen.classes, chosen.images_per_class)
        made = time.perf_counter()
        workload = WorkloadSpec(
            data="imagefolder",
            model=chosen.model,
            data_dir=str(root),
            batch_size=chosen.batch_size,
            stream="always",
            loader_workers=chosen.loader_workers,
        )
        training = Trainer(TrialSpec(workload=workload), device)
        ready = time.perf_counter()
        batches = endless_batches(training.data.sizes["train"], chosen.batch_size)
        # One iteration over all steps: a second one would begin with no batches read ahead.
        steps = training.data.train_batches(itertools.islice(batches, chosen.first_steps + chosen.steps))
        network = training.network
        train_epoch(network.model, network.optimizer, itertools.islice(steps, chosen.first_steps), device)
        begun, waited = time.perf_counter(), training.data.loading_seconds
        train_epoch(network.model, network.optimizer, steps, device)
        seconds, waited = time.perf_counter() - begun, training.data.loading_seconds - waited
    num_images = chosen.steps * chosen.batch_size
    figures = {
        "images_per_second": num_images / seconds,
        "loading_share": waited / seconds,
        "peak_mb": memory.peak_mb,
        "mean_file_bytes": file_bytes,
        "seconds_until_ready": ready - made,
    }
    show(
        f"{chosen.model}, {chosen.classes:,} classes x {chosen.images_per_class} JPEGs of {file_bytes / 1000:.0f} kB, "
        f"{chosen.device}, {num_images:,} images in batches of {chosen.batch_size}",
        ["", "value"],
        [
            ["images per second", f"{num_images / seconds:.1f}"],
            ["loader's share of the time", f"{waited / seconds:.1%}"],
            ["peak memory, all processes, MB", f"{memory.peak_mb:.0f}"],
            ["files made in, s", f"{made - started:.1f}"],
            ["scanned, sampled and built in, s", f"{ready - made:.1f}"],
        ],
    )
    record(chosen.out, before, {"settings": {k: str(v) for k, v in vars(chosen).items()}, **figures})


if __name__ == "__main__":
    main()
