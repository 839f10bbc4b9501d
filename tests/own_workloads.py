"""Data, tasks and models as users write them; tests name them as ``tests.own_workloads:...``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from tuner.workloads.own_data import OwnData, tensors

NUM_TOKENS = 7
SIZES = (80, 30, 20)


def drawn(*shape: int) -> list[Tensor]:
    """Numbers of train, validation and test."""
    generator = torch.Generator().manual_seed(0)
    return list(torch.randn(sum(SIZES), *shape, generator=generator).split(SIZES))


def line() -> OwnData:
    """Two linear functions of five numbers, with some noise."""
    inputs, noise = drawn(5), drawn(2)
    labels = [torch.stack([x.sum(1), 3 * x[:, 0]], 1) + 0.1 * e + 2 for x, e in zip(inputs, noise, strict=True)]
    train, validation, test = zip(inputs, labels, strict=True)
    return tensors(train=train, validation=validation, test=test, task="regression")


def tokens() -> OwnData:
    """Rows of ids that go round; the label of an id is the next one."""
    rows = [(10 * x).long().remainder(NUM_TOKENS) + torch.arange(12) for x in drawn(1)]
    train, validation, test = ((r[:, :-1] % NUM_TOKENS, r[:, 1:] % NUM_TOKENS) for r in rows)
    return tensors(train=train, validation=validation, test=test, task="classification")


def images() -> OwnData:
    """Grey images of 8 by 8: the label is the half that is brighter."""
    pairs = []
    for x in drawn(1, 8, 8):
        labels = (x[:, 0, :4].sum((1, 2)) > x[:, 0, 4:].sum((1, 2))).long()
        pairs.append((x, labels))
    train, validation, test = pairs
    return tensors(train=train, validation=validation, test=test, task="classification")


class Margin:
    """Labels of -1 and 1."""

    name = "share on the right side"

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return softplus(-labels * outputs).mean()

    def score(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs * labels > 0).float().mean()


def margins() -> OwnData:
    """Five numbers, labelled by the sign of their sum."""
    train, validation, test = ((x, x.sum(1).sign()) for x in drawn(5))
    return tensors(train=train, validation=validation, test=test, task=Margin())


class Recurrent(nn.Module):
    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_outputs, 8)
        self.recurrent = nn.GRU(8, 16, batch_first=True)
        self.outputs = nn.Linear(16, num_outputs)

    def forward(self, ids: Tensor) -> Tensor:
        hidden, _ = self.recurrent(self.embedding(ids))
        logits: Tensor = self.outputs(hidden).transpose(1, 2)
        return logits


def linear(input_shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    """One output per component of a label; for labels (N,), outputs (B,)."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_outputs))
    return layers.append(nn.Flatten(0)) if num_outputs == 1 else layers
