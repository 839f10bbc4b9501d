"""Retrains a few layer groups of a trained network while all others are frozen, and runs controls at the same cost.

The groups train on the training split, with the momentum that damps critically at each step's learning rate.  The state
of the best epoch on the validation split is kept; the state before the first epoch counts as epoch 0.  The result is
counted on the test split: images that were wrong and are now right are ``fixed``, and images that were right and are
now wrong are ``broken``.

Source: after Pasichnyk (2026), arXiv 2603.28921.  The separate splits for training, stopping and counting, the controls
and the intervals are ours.
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
    """The settings with which groups are retrained."""

    lr: float = 0.05
    """Peak of the cosine schedule of the learning rate, above 0.  Source: ours; the paper's value is not known."""
    epochs: int = 5
    """Number of epochs of the repair, at least 1."""
    seed: int = 0
    """Seed of the batches, the augmentation and the random groups."""

    def spec(self, trained: TrialSpec) -> TrialSpec:
        """The spec of the retraining: the workload of ``trained`` with the repair's optimizer.

        Raises InvalidInput for a setting outside its range.
        """
        optimizer = OptimizerSpec(lr=LearningRateSpec(peak=self.lr), momentum=MomentumSpec(schedule="critical"))
        # The prediction would be made at the seed's first weights, from which the retraining does not start.
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
    """The result of retraining some groups."""

    name: str
    """``repair``, or the name of a control."""
    groups: tuple[str, ...]
    """Names of the groups that were trained."""
    epochs: int
    """Number of epochs that the groups were trained for."""
    epoch: int
    """The epoch whose state was kept; 0 if no epoch was better than the network before."""
    validation_accuracy: float
    """Validation accuracy of the kept state, in [0, 1]."""
    parameter_share: float
    """Parameters that were trained as a part of all parameters, in (0, 1]."""
    compute_share: float
    """Floating-point operations of a step as a part of those of a step that trains all groups."""
    state: Mapping[str, Tensor]
    """Weights and buffers of the kept state, on the device."""

    @property
    def cost(self) -> float:
        """Floating-point operations, in epochs that train all groups, without evaluations."""
        return self.epochs * self.compute_share


@dataclass(frozen=True, slots=True)
class Outcome:
    """Compares a network before and after a repair on the same images."""

    num_images: int
    num_fixed: int
    """Number of images that only the repaired network gets right."""
    num_broken: int
    """Number of images that only the network before the repair gets right."""

    @property
    def net(self) -> int:
        return self.num_fixed - self.num_broken

    def net_interval(self, level: float = 0.95) -> tuple[float, float]:
        """The confidence interval of ``net`` at ``level``, in (0, 1), given the number of images that changed.

        Each changed image is assumed to be fixed with the same probability, independently.  The interval is exact
        (Clopper and Pearson, 1934); McNemar's test conditions in the same way.  It is (0, 0) if no image changed.
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
    """Repairs a network, runs the controls, and compares each with the network on the test split.

    The test split is opened last.  A control trains for the whole number of epochs, at least one, whose floating-point
    operations are nearest to the repair's.  Raises :class:`InvalidInput` as :func:`selections` does.
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
    """The groups of the repair and of its three controls, by name.

    The controls are all groups, as many random groups as are chosen, and as many of the other groups that rank last.
    Random groups are drawn from all groups, and drawn again if they are the chosen ones.

    Raises :class:`InvalidInput` if all groups are chosen: nothing would be frozen.
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

    ``state`` is that of the trained network.  The epoch with the best validation accuracy is kept.  If several have it,
    the one with the lowest validation loss is kept.  An epoch that diverges is the last and is not kept.
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
    """Freezes the weights and BatchNorm statistics of all other groups, bit for bit."""
    network.freeze(
        [name for group in groups for name in group.parameters], [path for group in groups for path in group.modules]
    )


def compute_share(network: TrainState, groups: Sequence[LayerGroup]) -> float:
    """Floating-point operations of a step that trains these groups, as a part of those of a step that trains all.

    Both count the forward and the backward pass.
    """
    everything = [name for name, _ in network.model.named_parameters()]
    batch = torch.arange(min(2, network.data.sizes["train"]))
    (images, labels), *_ = network.data.train_batches([Batch(batch, 0)])
    counts = []
    network.model.eval()  # two images are too few for BatchNorm's statistics
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not count its fused operation
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
    """Counts the images of a split that only one of two states of the network gets right."""
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
