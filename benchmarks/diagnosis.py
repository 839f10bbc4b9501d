"""The cost of a diagnosis: ``python -m benchmarks.diagnosis``.

The table has one row per number of misclassified images.  It compares the seconds of a diagnosis with those of
classifying the split, and with those of the row before, in proportion to the number of errors.
"""

from __future__ import annotations

import statistics
import sys
import time

import numpy as np
import torch

from benchmarks.recording import conditions, parser, record, show
from tuner.core.trial_spec import TrialSpec, WorkloadSpec
from tuner.diagnose.attribution import diagnose
from tuner.diagnose.layer_groups import layer_groups
from tuner.train.train_state import TrainState
from tuner.workloads.augmentation import Augmentation
from tuner.workloads.images import ResidentImages

NUM_CLASSES, SIDE = 10, 28
CPU = torch.device("cpu")


def main() -> int:
    made = parser(__doc__, "diagnosis")
    made.add_argument("--errors", nargs="+", type=int, default=[1000, 10_000])
    made.add_argument("--model", default="resnet8")
    made.add_argument("--repeats", type=int, default=3)
    options = made.parse_args()
    torch.set_num_threads(1)
    before, figures, lines = conditions(), {}, []
    earlier = (0, 0.0)
    for number in options.errors:
        network = _network(options.model, number)
        groups = layer_groups(network.model)
        seconds = {"diagnosis": [], "classification": []}  # type: dict[str, list[float]]
        for _ in range(options.repeats):
            started = time.perf_counter()
            network.evaluate("validation")
            between = time.perf_counter()
            found = diagnose(network, groups)
            seconds["classification"].append(between - started)
            seconds["diagnosis"].append(time.perf_counter() - between)
        assert found.num_errors == found.num_compared == number
        cost, scan = (statistics.median(seconds[what]) for what in ("diagnosis", "classification"))
        growth = f"{cost / earlier[1] / (number / earlier[0]):.2f}" if earlier[0] else ""
        lines.append([f"{number:,}", f"{cost:.2f} s", f"{cost / scan:.1f}", growth])
        figures[str(number)] = seconds
        earlier = (number, cost)
    columns = ["errors", "diagnosis", "in classifications of the split", "growth, of linear"]
    show(f"{options.model}, {SIDE}x{SIDE}, one core; half of the split is misclassified", columns, lines)
    record(options.out, before, figures)
    return 0


def _network(model: str, num_errors: int) -> TrainState:
    """An untrained network and random images; half of their labels differ from the network's predictions."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (2 * num_errors, SIDE, SIDE, 1), dtype=np.uint8)
    labels = np.zeros(len(pixels), dtype=np.int64)
    everything = np.arange(len(pixels), dtype=np.int64)
    splits = {"train": everything, "validation": everything, "test": everything}
    classes = tuple(map(str, range(NUM_CLASSES)))

    def images() -> ResidentImages:
        return ResidentImages(
            pixels, labels, splits, classes=classes, splits_note="", digest="",
            augmentation=Augmentation(), batch_size=64, device=CPU,
        )  # fmt: skip

    network = TrainState(TrialSpec(workload=WorkloadSpec(model=model)), images(), CPU, num_steps=1)
    network.model.eval()
    with torch.inference_mode():
        said = torch.cat([network.model(batch).argmax(1) for batch, _ in network.data.evaluation_batches("validation")])
    labels[:] = (said.numpy() + everything % 2) % NUM_CLASSES
    network.data = images()
    return network


if __name__ == "__main__":
    sys.exit(main())
