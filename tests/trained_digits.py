"""A small network trained on digits, for tests of what is said of trained networks."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from search_spaces import SPACES
from tuner.core.metrics import is_finished
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec, TrialSpec
from tuner.train.final_weights import trained_network
from tuner.train.train_state import TrainState
from tuner.train.trainer import Trainer

CPU = torch.device("cpu")
SPEC = TrialSpec(
    optimizer=with_settings(OptimizerSpec(), SPACES["sgdm"].default_settings()), epochs=4, seed=1, precision="float64"
)


@cache
def trained_state() -> dict[str, Tensor]:
    """Its weights and buffers, in float64, one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    training = Trainer(SPEC, CPU)
    while not is_finished(SPEC, training.history):
        training.train_to_evaluation()
    torch.set_num_threads(before)
    return training.network.evaluated_state()


def trained() -> TrainState:
    """A copy of its own."""
    data = Trainer(SPEC, CPU).data
    return trained_network(SPEC, trained_state(), data, CPU)


def linear(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """One group of layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))


def two_layers(*, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Two groups, no BatchNorm and no convolution."""
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, 32), nn.ReLU(), nn.Linear(32, num_classes))
