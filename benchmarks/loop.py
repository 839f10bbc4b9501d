"""Images per second of tuner.train.train against a hand-written PyTorch loop, on the same model and data.

bare            peers/bare_loop.py: channels_last, zero_grad(set_to_none=True), torch.optim.SGD with its defaults,
                losses summed, our batches and so our augmentation
bare, no crops  the same loop on images that were normalized beforehand and are not augmented: an upper bound

The loops take turns epoch by epoch in one process, on one thread of a CPU.  The first epoch of each is not counted, and
only training steps are timed.  On a GPU all run in bfloat16 autocast.  Workloads: ResNet-8 on the digits in batches of
64, ResNet-20 on random 32x32 color images in batches of 128.  Target: a ratio of ours to bare of at least 0.95.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.bare_loop import new_model, sgd, train_epoch
from benchmarks.recording import conditions, parser, record, show, spread
from tuner.core.trial_spec import TrialSpec, WorkloadSpec
from tuner.optimizers.rules import make_optimizer
from tuner.order import shuffled_batches
from tuner.train import train
from tuner.workloads.augmentation import Augmentation
from tuner.workloads.data import DATA, Data, load_data
from tuner.workloads.images import ResidentImages

OURS, BARE, FLOOR = "ours", "bare", "bare, no crops"
TARGET = 0.95
SEED = 0
OPTIMIZER = sgd(lr=0.01, momentum=0.9, weight_decay=5e-4)
Batches = Iterator[tuple[Tensor, Tensor]]


def register_random_images(num_images: int) -> None:
    """Adds ``random-32`` to the data known by name: uint8 noise with CIFAR's size and augmentation, 10 classes."""
    generator = np.random.default_rng(SEED)
    pixels = generator.integers(256, size=(num_images, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(10, size=num_images)
    # All images are in train; the other splits only have to exist.
    splits = {"train": np.arange(num_images), "validation": np.arange(1), "test": np.arange(1)}

    def load(spec: WorkloadSpec, device: torch.device) -> Data:
        return ResidentImages(
            pixels,
            labels,
            splits,
            classes=tuple("0123456789"),
            splits_note="random",
            digest="random",
            augmentation=Augmentation(padding=4, flip=True),
            batch_size=spec.batch_size,
            device=device,
        )

    DATA["random-32"] = load


def our_epochs(workload: WorkloadSpec, device: torch.device, epochs: int) -> Iterator[float]:
    """Images per second of each epoch, as train reports them."""
    spec = TrialSpec(workload=workload, optimizer=OPTIMIZER, epochs=epochs, seed=SEED, max_loss=float("inf"))
    for metrics in train(spec, device=device):
        yield metrics.images_per_second


def bare_epochs(
    workload: WorkloadSpec, device: torch.device, epochs: int, batches_of: Callable[[Data, int], Batches]
) -> Iterator[float]:
    """Images per second of each epoch of the hand-written loop."""
    data = load_data(workload, device)
    model = new_model(data, workload, device, SEED)
    optimizer = make_optimizer(model.parameters(), OPTIMIZER)
    num_images = data.sizes["train"] // workload.batch_size * workload.batch_size
    for epoch in range(epochs):
        started = time.perf_counter()
        train_epoch(model, optimizer, batches_of(data, epoch), device)
        yield num_images / (time.perf_counter() - started)


def augmented(workload: WorkloadSpec) -> Callable[[Data, int], Batches]:
    """The batches of our loop, with our augmentation."""

    def batches(data: Data, epoch: int) -> Batches:
        order = shuffled_batches(data.sizes["train"], workload.batch_size, seed=SEED, epoch=epoch)
        return data.train_batches(order)

    return batches


def prepared(workload: WorkloadSpec, device: torch.device) -> Callable[[Data, int], Batches]:
    """Batches of a fresh permutation of images prepared as float32, normalized, channels_last."""
    data = load_data(workload, device)
    parts = [*data.train_batches(shuffled_batches(data.sizes["train"], workload.batch_size, seed=SEED, epoch=0))]
    images = torch.cat([part for part, _ in parts]).contiguous(memory_format=torch.channels_last)
    labels = torch.cat([part for _, part in parts])

    def batches(data: Data, epoch: int) -> Batches:
        for positions in torch.randperm(len(images), device=device).split(workload.batch_size):
            yield images[positions], labels[positions]

    return batches


def compare(workload: WorkloadSpec, device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Images per second of each loop in each of its counted epochs."""
    epochs = repeats + 1
    loops = {
        OURS: our_epochs(workload, device, epochs),
        BARE: bare_epochs(workload, device, epochs, augmented(workload)),
        FLOOR: bare_epochs(workload, device, epochs, prepared(workload, device)),
    }
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for turn in range(epochs):
        # The loop that starts a turn finds cold caches, so each loop starts in turn.
        for name in itertools.islice(itertools.cycle(loops), turn, turn + len(loops)):
            speeds[name].append(next(loops[name]))
    return {name: values[1:] for name, values in speeds.items()}


def main() -> None:
    """Runs both workloads and prints the ratios."""
    options = parser(__doc__, "loop")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--repeats", type=int, default=30, help="counted epochs of each loop on the digits")
    options.add_argument("--random-repeats", type=int, default=3, help="counted epochs of each loop on random images")
    options.add_argument("--images", type=int, help="number of random images. Default: 1,024, on a GPU 50,000")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    before, device = conditions(chosen.device), torch.device(chosen.device)
    register_random_images(chosen.images or (50_000 if chosen.device == "cuda" else 1024))
    digits = WorkloadSpec()
    noise = WorkloadSpec(data="random-32", model="resnet20", batch_size=128)
    figures = {}
    for workload, repeats in ((digits, chosen.repeats), (noise, chosen.random_repeats)):
        speeds = compare(workload, device, repeats)
        ratio = {
            name: statistics.median(ours / other for ours, other in zip(speeds[OURS], speeds[name], strict=True))
            for name in speeds
        }
        show(
            f"{workload.model} on {workload.data}, batches of {workload.batch_size}, {chosen.device}, {repeats} epochs",
            ["", "images per second", "ours over it"],
            [[name, spread(values, ",.0f"), f"{ratio[name]:.3f}"] for name, values in speeds.items()],
        )
        verdict = "met" if ratio[BARE] >= TARGET else "missed"
        print(f"Target of {TARGET}: {verdict}.")
        figures[workload.data] = {"images_per_second": speeds, "ours_over": ratio}
    record(chosen.out, before, figures)


if __name__ == "__main__":
    main()
