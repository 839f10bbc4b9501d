"""Retraining a few layer groups of a trained network while all else is frozen, beside controls at its cost.

The groups train on the training split, with the momentum that damps critically at each step's learning rate; the state
of the best epoch on the validation split is kept, the one before the first among them.  What it is worth is counted on
the test split: images that were wrong and are right now are ``fixed``, the other way round ``broken``.  After Pasichnyk
(2026), arXiv 2603.28921; that groups, stopping and score each have a split, the controls and the intervals are ours.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from tuner.core.errors import InvalidInput
from tuner.core.optimizer_spec import LearningRateSpec, MomentumSpec, OptimizerSpec
from tuner.core.trial_spec import TrialSpec
from tuner.diagnose.layer_groups import LayerGroup
from tuner.order import Batch
from tuner.train.final_weights import trained_network, unsealed_data
from tuner.train.train_state import TrainState
from tuner.train.trainer import Trainer

FULL, RANDOM, LOWEST = "all groups", "random groups", "lowest groups"


@dataclass(frozen=True, slots=True)
class RepairSettings:
    """How groups are retrained."""

    lr: float = 0.05
    """Peak of a cosine schedule; ours, the paper's is not known."""
    epochs: int = 5
    seed: int = 0
    """Draws batches, augmentation and the random groups."""

    def spec(self, trained: TrialSpec) -> TrialSpec:
        """The retraining as a training: the workload of what was trained, another optimizer.  InvalidInput where a
        setting is outside its range."""
        optimizer = OptimizerSpec(lr=LearningRateSpec(peak=self.lr), momentum=MomentumSpec(schedule="critical"))
        # Its first weights are not those of its seed: nothing is to be predicted from them.
        return replace(
            trained,
            optimizer=optimizer,
            epochs=self.epochs,
            seed=self.seed,
            stop_at_target=False,
            curvature=0,
            predict_critical_lr=False,
        )


@dataclass(frozen=True, slots=True)
class Retrained:
    """What came of retraining some groups."""

    name: str
    groups: tuple[str, ...]
    epochs: int
    """For which it was trained."""
    epoch: int
    """The one that was kept; 0 where none was better than before."""
    validation_accuracy: float
    parameter_share: float
    """Parameters that were trained, of all."""
    compute_share: float
    """Floating-point operations of a step, of those of a step that trains everything."""
    state: Mapping[str, Tensor]
    """Weights and buffers, on the device."""

    @property
    def cost(self) -> float:
        """Floating-point operations, in epochs that train everything; evaluations apart."""
        return self.epochs * self.compute_share


@dataclass(frozen=True, slots=True)
class Outcome:
    """Two networks on the same images, the second after a repair of the first."""

    num_images: int
    num_fixed: int
    num_broken: int

    @property
    def net(self) -> int:
        return self.num_fixed - self.num_broken

    def net_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Of ``net``, given how many images changed; they are fixed with one probability, independently.

        Exact (Clopper and Pearson, 1934), as McNemar's test conditions; (0, 0) where no image changed.
        """
        changed = self.num_fixed + self.num_broken
        if changed == 0:
            return 0.0, 0.0
        share = binomtest(self.num_fixed, changed).proportion_ci(level)
        return changed * (2 * float(share.low) - 1), changed * (2 * float(share.high) - 1)


def repairs(
    network: TrainState,
    groups: Sequence[LayerGroup],
    chosen: Sequence[LayerGroup],
    ranking: Sequence[LayerGroup],
    settings: RepairSettings,
) -> list[tuple[Retrained, Outcome]]:
    """The repair of a network, its controls, and what each is worth on the test split, which is opened last.

    A control trains for the whole number of epochs, at least one, that comes nearest to the repair's floating-point
    operations.  Raises :class:`InvalidInput` as :func:`selections` does.
    """
    state, device = _copy(network), network.device
    made: list[Retrained] = []
    for name, some in selections(groups, chosen, ranking, settings.seed):
        epochs = max(1, round(made[0].cost / compute_share(network, some))) if made else settings.epochs
        made.append(retrain(network.spec, state, name, some, replace(settings, epochs=epochs), device))
    opened = trained_network(network.spec, state, unsealed_data(network.spec, device), device)
    return [(one, compare(opened, state, one.state, "test")) for one in made]


def selections(
    groups: Sequence[LayerGroup], chosen: Sequence[LayerGroup], ranking: Sequence[LayerGroup], seed: int
) -> Iterator[tuple[str, tuple[LayerGroup, ...]]]:
    """The repair and its three controls: everything, as many random groups, and as many of the others that rank last.

    Random groups are drawn among all; where that gives the chosen ones, again.
    Raises :class:`InvalidInput` where all groups are chosen: nothing would be frozen.
    """
    if len(chosen) >= len(groups):
        raise InvalidInput(f"{len(chosen)} groups are all that the model has: nothing would be frozen")
    yield "repair", tuple(chosen)
    yield FULL, tuple(groups)
    draw = random.Random(seed)
    while set(drawn := draw.sample(list(groups), len(chosen))) == set(chosen):
        pass
    yield RANDOM, tuple(group for group in groups if group in drawn)
    yield LOWEST, tuple([group for group in ranking if group not in chosen][-len(chosen) :])


def retrain(
    spec: TrialSpec,
    state: Mapping[str, Tensor],
    name: str,
    groups: Sequence[LayerGroup],
    settings: RepairSettings,
    device: torch.device,
) -> Retrained:
    """Retrains some groups of a network and freezes all others, bit for bit.  Seeds torch's global generators.

    ``state`` is the trained network's.  Of epochs with the best validation accuracy the one with the lowest validation
    loss is kept.  An epoch that diverges is the last.
    """
    training = Trainer(settings.spec(spec), device)
    network = training.network
    network.model.load_state_dict(state)
    share = compute_share(network, groups)
    freeze_all_but(network, groups)
    loss, accuracy = network.evaluate("validation")
    best, epoch, kept = (accuracy, -loss), 0, _copy(network)
    for number in range(1, settings.epochs + 1):
        metrics = training.train_to_evaluation()
        if metrics.diverged:
            break
        if (found := (metrics.validation_accuracy, -metrics.validation_loss)) > best:
            best, epoch, kept = found, number, _copy(network)
    parameters = dict(network.model.named_parameters())
    trained = sum(parameters[name].numel() for group in groups for name in group.parameters)
    return Retrained(
        name,
        tuple(group.name for group in groups),
        settings.epochs,
        epoch,
        best[0],
        trained / sum(parameter.numel() for parameter in parameters.values()),
        share,
        kept,
    )


def freeze_all_but(network: TrainState, groups: Sequence[LayerGroup]) -> None:
    """Weights and BatchNorm's statistics of all other groups stay as they are, bit for bit."""
    network.freeze(
        [name for group in groups for name in group.parameters], [path for group in groups for path in group.modules]
    )


def compute_share(network: TrainState, groups: Sequence[LayerGroup]) -> float:
    """Floating-point operations, forward and backward, of a step that trains these groups, of one that trains all."""
    everything = [name for name, _ in network.model.named_parameters()]
    batch = torch.arange(min(2, network.data.sizes["train"]))
    (images, labels), *_ = network.data.train_batches([Batch(batch, 0)])
    counts = []
    network.model.eval()  # two images are no statistics
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation, which is not counted
    for names in ([name for group in groups for name in group.parameters], everything):
        for name, parameter in network.model.named_parameters():
            parameter.requires_grad_(name in names)
        with FlopCounterMode(display=False) as counter:
            cross_entropy(network.logits(images), labels).backward()
        counts.append(counter.get_total_flops())
        network.optimizer.zero_grad(set_to_none=True)
    torch.backends.mha.set_fastpath_enabled(fast)
    network.model.train()
    return float(counts[0] / counts[1])


def compare(network: TrainState, before: Mapping[str, Tensor], after: Mapping[str, Tensor], split: str) -> Outcome:
    """Counts the images of a split that one of two states of the network gets right and the other wrong."""
    was, now = (_correct(network, state, split) for state in (before, after))
    return Outcome(len(was), int((now & ~was).sum()), int((was & ~now).sum()))


def _correct(network: TrainState, state: Mapping[str, Tensor], split: str) -> Tensor:
    network.model.load_state_dict(state)
    network.model.eval()
    with torch.inference_mode():
        return torch.cat(
            [network.logits(images).argmax(1) == labels for images, labels in network.data.evaluation_batches(split)]
        )


def _copy(network: TrainState) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.model.state_dict().items()}
