"""How often a diagnosis finds a planted fault: noise in one layer group of a network trained on digits.

python -m benchmarks.planted_faults           ResNet-8 and ResNet-20, noise of half, once and twice the weights' size
python -m benchmarks.planted_faults --models resnet8 --repair 5 20 --repair-lr 0.05 0.2
                                              also the test accuracy that retraining the group restores

A planting counts if it costs at least five points of validation accuracy.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.stats import binomtest
from torch import Tensor, nn

from benchmarks.recording import conditions, parser, record, show
from search_spaces import SPACES
from tuner.core.metrics import is_finished
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec, TrialSpec, WorkloadSpec
from tuner.diagnose.attribution import SCORES, Score, diagnose
from tuner.diagnose.layer_groups import LayerGroup, layer_groups
from tuner.diagnose.repair import RepairSettings, retrain
from tuner.train.final_weights import trained_network, unsealed_data
from tuner.train.train_state import TrainState
from tuner.train.trainer import Trainer

LEAST_DAMAGE = 0.05
CPU = torch.device("cpu")


@dataclass
class Planting:
    """The result of one planted fault."""

    noise: float
    group: str
    places: dict[Score, int]
    """Score -> position of the faulty group in the ranking by that score, from 0."""
    restored: dict[str, float] = field(default_factory=dict)
    """Settings of the retraining -> share of the lost test accuracy that it restores."""


def main() -> int:
    made = parser(__doc__, "planted_faults")
    made.add_argument("--models", nargs="+", default=["resnet8", "resnet20"])
    made.add_argument("--noise", nargs="+", type=float, default=[0.5, 1.0, 2.0])
    made.add_argument("--seeds", type=int, default=3, help="trained networks of each model")
    made.add_argument("--draws", type=int, default=3, help="plantings per group, network and noise")
    made.add_argument("--epochs", type=int, default=10)
    made.add_argument(
        "--repair", nargs="+", type=int, default=[], help="numbers of epochs for which the group is retrained"
    )
    made.add_argument("--repair-lr", nargs="+", type=float, default=[RepairSettings().lr])
    options = made.parse_args()
    torch.set_num_threads(1)
    before, figures = conditions(), {}
    for model in options.models:
        repairs = [RepairSettings(lr, epochs) for lr, epochs in itertools.product(options.repair_lr, options.repair)]
        found = list(_plantings(model, options.noise, options.seeds, options.draws, options.epochs, repairs))
        for noise in options.noise:
            some = [planting for planting in found if planting.noise == noise]
            figures[f"{model} {noise:g}"] = [vars(planting) for planting in some]
            if some:
                title = f"{model}, noise {noise:g} of the weights' size: {len(some)} plantings"
                _show(title, some)
                _show_repairs(title, some)
    record(options.out, before, figures)
    return 0


def _plantings(
    model: str, noises: Sequence[float], num_seeds: int, draws: int, epochs: int, repairs: Sequence[RepairSettings]
) -> Iterator[Planting]:
    """The plantings that count: those that cost at least LEAST_DAMAGE of validation accuracy."""
    for seed in range(num_seeds):
        optimizer = with_settings(OptimizerSpec(), SPACES["sgdm"].default_settings())
        spec = TrialSpec(workload=WorkloadSpec(model=model), optimizer=optimizer, epochs=epochs, seed=seed)
        training = Trainer(spec, CPU)
        while not is_finished(spec, training.history):
            metrics = training.train_to_evaluation()
        network = training.network
        groups = layer_groups(network.model)
        for noise, (number, group), draw in itertools.product(noises, enumerate(groups), range(draws)):
            planted = (seed * len(groups) + number) * draws + draw
            before = plant_fault(network.model, group, noise=noise, seed=planted)
            if metrics.validation_accuracy - network.evaluate("validation")[1] >= LEAST_DAMAGE:
                diagnosis = diagnose(network, groups)
                places = {score: diagnosis.top(len(groups), score).index(group) for score in SCORES}
                faulty = network.evaluated_state()
                network.model.load_state_dict(before, strict=False)
                yield Planting(noise, group.name, places, _restored(network, faulty, group, repairs))
            network.model.load_state_dict(before, strict=False)


def _restored(
    network: TrainState, faulty: Mapping[str, Tensor], group: LayerGroup, repairs: Sequence[RepairSettings]
) -> dict[str, float]:
    """Settings of the retraining -> share of the accuracy lost by the fault that retraining the group restores."""
    if not repairs:
        return {}
    spec, sound = network.spec, network.evaluated_state()
    repaired = {
        f"{one.epochs} at {one.lr:g}": retrain(spec, faulty, "repair", [group], one, CPU).state for one in repairs
    }
    opened = trained_network(spec, sound, unsealed_data(spec, CPU), CPU)

    def accuracy(state: Mapping[str, Tensor]) -> float:
        opened.model.load_state_dict(state)
        return opened.evaluate("test")[1]

    low, high = accuracy(faulty), accuracy(sound)
    return {way: (accuracy(state) - low) / (high - low) for way, state in repaired.items()}


def _show(title: str, found: Sequence[Planting]) -> None:
    groups = list(dict.fromkeys(planting.group for planting in found))
    lines = []
    for score in SCORES:
        first = sum(planting.places[score] == 0 for planting in found)
        interval = binomtest(first, len(found)).proportion_ci()
        among = sum(planting.places[score] < 3 for planting in found)
        each = [[planting.places[score] == 0 for planting in found if planting.group == group] for group in groups]
        lines.append(
            [
                score,
                f"{first / len(found):.0%} [{interval.low:.0%}, {interval.high:.0%}]",
                f"{among / len(found):.0%}",
                " ".join(f"{sum(hits)}/{len(hits)}" for hits in each),
            ]
        )
    show(title, ["score", "first", "among three", f"first, by group: {' '.join(groups)}"], lines)


def _show_repairs(title: str, found: Sequence[Planting]) -> None:
    lines = []
    for group in dict.fromkeys(planting.group for planting in found):
        some = [planting.restored for planting in found if planting.group == group]
        shares = ([restored[way] for restored in some] for way in found[0].restored)
        lines.append([group, str(len(some)), *(f"{np.median(share):.0%} ({min(share):.0%})" for share in shares)])
    if found[0].restored:
        show(
            f"{title}; accuracy restored by epochs at lr, median (least)",
            ["group", "plantings", *found[0].restored],
            lines,
        )


def plant_fault(model: nn.Module, group: LayerGroup, *, noise: float, seed: int) -> dict[str, Tensor]:
    """Adds Gaussian noise to the weights of a group; returns name -> weights before.

    Each tensor becomes ``w + noise * rms(w) * n``, n standard normal, so the noise has the same size relative to the
    weights in every layer.  BatchNorm's statistics stay, as for a fault that comes after the training.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    before = {}
    with torch.no_grad():
        for name in group.parameters:
            weight = parameters[name]
            before[name] = weight.detach().clone()
            draw = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.add_(noise * weight.square().mean().sqrt() * draw.to(weight))
    return before


if __name__ == "__main__":
    sys.exit(main())
