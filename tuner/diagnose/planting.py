"""A fault put into one layer group of a trained network, to see whether a diagnosis finds it.  Ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tuner.diagnose.layer_groups import LayerGroup


def plant_fault(model: nn.Module, group: LayerGroup, *, noise: float, seed: int) -> dict[str, Tensor]:
    """Adds Gaussian noise to a group's weights and returns what they were, by name.

    ``w <- w + noise * rms(w) * n`` for each tensor, n standard normal: the same size beside the weights in every layer.
    BatchNorm's statistics stay, as for a fault that comes after the training.
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
