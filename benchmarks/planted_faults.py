"""How often a diagnosis finds a fault: noise in one layer group of a network trained on digits.

python -m benchmarks.planted_faults           ResNet-8 and ResNet-20, noise half, once and twice the weights' size

A planting counts where it takes at least five points of validation accuracy.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence

import torch
from scipy.stats import binomtest

from benchmarks.recording import conditions, parser, record, show
from search_spaces import SPACES
from tuner.convergence import is_over
from tuner.diagnosis.attribution import SCORES, Score, diagnose
from tuner.diagnosis.groups import layer_groups
from tuner.diagnosis.planting import plant_fault
from tuner.settings import with_settings
from tuner.spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.train import Training

LEAST_DAMAGE = 0.05


def main() -> int:
    made = parser(__doc__, "planted_faults")
    made.add_argument("--models", nargs="+", default=["resnet8", "resnet20"])
    made.add_argument("--noise", nargs="+", type=float, default=[0.5, 1.0, 2.0])
    made.add_argument("--seeds", type=int, default=3, help="trained networks of each model")
    made.add_argument("--draws", type=int, default=3, help="plantings in each group of each network at each noise")
    made.add_argument("--epochs", type=int, default=10)
    options = made.parse_args()
    torch.set_num_threads(1)
    before, figures = conditions(), {}
    for model in options.models:
        found = list(_plantings(model, options.noise, options.seeds, options.draws, options.epochs))
        for noise in options.noise:
            some = [(group, places) for size, group, places in found if size == noise]
            figures[f"{model} {noise:g}"] = [{"group": group, "places": places} for group, places in some]
            if some:
                _show(f"{model}, noise {noise:g} of the weights' size: {len(some)} plantings", some)
    record(options.out, before, figures)
    return 0


def _plantings(
    model: str, noises: Sequence[float], num_seeds: int, draws: int, epochs: int
) -> Iterator[tuple[float, str, dict[Score, int]]]:
    """Noise and group of each planting that counts, and its place, from 0, in the ranking by each score."""
    for seed in range(num_seeds):
        optimizer = with_settings(OptimizerSpec(), SPACES["sgdm"].default_settings())
        spec = TrialSpec(workload=WorkloadSpec(model=model), optimizer=optimizer, epochs=epochs, seed=seed)
        training = Training(spec, torch.device("cpu"))
        while not is_over(spec, training.history):
            metrics = training.run_leg()
        network = training.network
        groups = layer_groups(network.model)
        for noise, (number, group), draw in itertools.product(noises, enumerate(groups), range(draws)):
            planted = (seed * len(groups) + number) * draws + draw
            before = plant_fault(network.model, group, noise=noise, seed=planted)
            if metrics.validation_accuracy - network.evaluate("validation")[1] >= LEAST_DAMAGE:
                diagnosis = diagnose(network, groups)
                yield noise, group.name, {score: diagnosis.top(len(groups), score).index(group) for score in SCORES}
            network.model.load_state_dict(before, strict=False)


def _show(title: str, found: list[tuple[str, dict[Score, int]]]) -> None:
    groups = list(dict.fromkeys(group for group, _ in found))
    lines = []
    for score in SCORES:
        first = sum(places[score] == 0 for _, places in found)
        interval = binomtest(first, len(found)).proportion_ci()
        among = sum(places[score] < 3 for _, places in found)
        each = [[places[score] == 0 for name, places in found if name == group] for group in groups]
        lines.append(
            [
                score,
                f"{first / len(found):.0%} [{interval.low:.0%}, {interval.high:.0%}]",
                f"{among / len(found):.0%}",
                " ".join(f"{sum(hits)}/{len(hits)}" for hits in each),
            ]
        )
    show(title, ["score", "first", "among three", f"first, by group: {' '.join(groups)}"], lines)


if __name__ == "__main__":
    sys.exit(main())
