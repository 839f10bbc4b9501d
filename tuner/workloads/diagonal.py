"""The workload ``diagonal``: a diagonal linear network on Gaussian data, whose risk theory predicts.

The models have weights of shape (d,) and map inputs x (B, d) to <x, beta>, (B,)::

    diagonal            beta = u v
    diagonal-squares    beta = u^2 - v^2

With a = u + v and b = u - v the second model is beta = a b, which is the first model in a and b.  A step of SGD on the
second with the learning rate gamma is a step on the first with 2 gamma.  Nothing is drawn: u and v of the first model,
and a and b of the second, start as the problem's initial weights.

The parametrization is that of Garcia Malaxechebarria et al. (2026), arXiv 2605.17177.  The data comes from
:mod:`tuner.workloads.population`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from tuner.order import Batch
from tuner.theory.problem import Floats
from tuner.workloads.datasets import SPLITS_NOTES
from tuner.workloads.images import WHOLE, ModelArguments
from tuner.workloads.population import Population, make_population
from tuner.workloads.splits import refuse_sealed
from tuner.workloads.task import Regression


class DiagonalSamples:
    """Fresh samples for every batch, and the population itself for evaluation."""

    chance = 0.0
    loading_seconds = 0.0
    num_skipped = 0

    def __init__(self, population: Population, *, device: torch.device) -> None:
        self.sealed = True
        self.sizes = population.sizes
        self.splits_note = SPLITS_NOTES["diagonal"]
        self.digest = population.digest
        self.task = Regression(population.label_square)
        self.model_arguments: ModelArguments = {
            "dimension": population.dimension,
            "num_outputs": 1,
            "input_shape": (population.dimension,),
        }
        self._device = device
        self._target = torch.from_numpy(population.target)
        scale = torch.from_numpy(population.lam).sqrt()
        self._deviation = (scale / population.dimension**0.5).float()
        self._inputs, self._labels = torch.diag(scale).to(device), (scale * self._target).to(device)

    def train_batches(self, batches: Iterable[Batch], part: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (B, d), float32, and labels <x, beta*>, (B,), float64, in the order of the batches.

        Samples are drawn from the seed of their batch; only the number of its indices counts, since there is no set of
        samples to choose from.  The same batch gives the same bits at every call and on every device.  A ``part`` of a
        batch has the same bits as in the whole batch.
        """
        for batch in batches:
            generator = torch.Generator().manual_seed(batch.seed)
            inputs = torch.randn(len(batch.indices), len(self._target), generator=generator).mul_(self._deviation)
            # Labels of the whole batch, since the product of a part may be summed in another order.
            labels = inputs.double() @ self._target
            yield inputs[part].to(self._device), labels[part].to(self._device)

    def evaluation_batches(self, split: str, part: slice = WHOLE) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs sqrt(lambda_i) e_i, (B, d), and labels, (B,), both float64, in one batch: all d or a ``part`` of them.

        Raises :class:`SealedSplit` for the test split of sealed data, and ValueError for ``train``, which has no fixed
        samples.
        """
        refuse_sealed(split, self.sealed)
        if split == "train":
            raise ValueError("training samples are drawn batch by batch: there is no split of them to evaluate")
        yield self._inputs[part], self._labels[part]


class Diagonal(nn.Module):
    """beta = u v."""

    def __init__(self, u: Floats, v: Floats) -> None:
        """``u`` and ``v`` are the initial weights, (d,)."""
        super().__init__()
        self.u, self.v = _parameter(u), _parameter(v)

    def beta(self) -> Tensor:
        """The coefficients beta, (d,)."""
        return self.u * self.v

    def forward(self, x: Tensor) -> Tensor:
        # Not a matrix product, which autocast would compute in half precision.
        return (x * self.beta()).sum(1)


class DiagonalSquares(nn.Module):
    """beta = u^2 - v^2; u + v and u - v start as the initial weights of the product."""

    def __init__(self, u: Floats, v: Floats) -> None:
        """``u`` and ``v`` are the initial weights of the product, (d,)."""
        super().__init__()
        self.u, self.v = _parameter((u + v) / 2), _parameter((u - v) / 2)

    def beta(self) -> Tensor:
        """The coefficients beta, (d,)."""
        return self.u.square() - self.v.square()

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.beta()).sum(1)


def diagonal(*, dimension: int) -> Diagonal:
    """The model ``diagonal`` on ``dimension`` coordinates, with the problem's initial weights."""
    population = make_population(dimension)
    return Diagonal(population.u, population.v)


def diagonal_squares(*, dimension: int) -> DiagonalSquares:
    """The model ``diagonal-squares`` on ``dimension`` coordinates, with the problem's initial weights."""
    population = make_population(dimension)
    return DiagonalSquares(population.u, population.v)


def _parameter(values: Floats) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(values).float())
