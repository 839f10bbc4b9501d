"""Which batches are taken, and how their steps are composed.

A batch is identified by its image indices and a seed, never by its pixels.  Replaying it gives the same images with
the same augmentation and the same dropout masks.

T_k is the step on the k-th batch, a map of the whole state of a training; x_0 is the initial state::

    forward     x_n     = T_n o ... o T_1 (x_0)                       each iterate is one step from the one before
    backward    x_n     = T_1 o ... o T_n (x_0)                       each n starts from x_0, the newest batch first
    in blocks   x_{c+k} = T_{c+1} o ... o T_{c+k} (x_c),  1 <= k <= W,  c = 0, W, 2W, ...

If the maps contract, the backward iterates converge to a point, which is random: the oldest batches decide it.  The
forward iterates converge in distribution only.

=========  ================  ========================================================================================
symbol     argument
=========  ================  ========================================================================================
W          ``window``        batches after which the anchor c moves, at least 1; 1 is forward, None keeps c = 0
n          ``at``            iterates that are evaluated, counted from 1; all by default
=========  ================  ========================================================================================

The iterate x_n costs n - c gradient evaluations, so N backward iterates cost N (N + 1) / 2.  In blocks, a batch costs
(W + 1) / 2 gradient evaluations if every iterate is evaluated, and 1 if only the anchors are.

Forward and backward are the paper's, which suggests windows to save cost.  Two things are ours.  The first is the block
form with its moving anchors.  The second is this: if the T_k are independent draws of one law, x_n has the same law in
either order, so the orders differ along the path and not at a single step.

Source: Dherin et al., TMLR 2025, https://arxiv.org/abs/2502.01557
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tuner.core.optimizer_spec import OrderSpec

State = TypeVar("State")
Data = TypeVar("Data")


@dataclass(frozen=True, slots=True)
class Batch:
    """The data of one gradient evaluation."""

    indices: Tensor
    """Positions in the training split, int64, shape (batch,), on the CPU."""
    seed: int
    """Seeds everything random about the batch: augmentation, dropout."""


def shuffled_batches(num_images: int, batch_size: int, *, seed: int, epoch: int) -> list[Batch]:
    """The batches of one epoch (counted from 0): a fresh permutation, cut into batches without a short last one.

    They depend only on the arguments, so a resumed training needs no generator state.
    """
    words = torch.Generator().manual_seed(seed)
    epoch_seed = int(torch.randint(2**62, (epoch + 1,), generator=words)[epoch])
    generator = torch.Generator().manual_seed(epoch_seed)
    permutation = torch.randperm(num_images, generator=generator)
    num_steps = num_images // batch_size
    seeds = torch.randint(2**62, (num_steps,), generator=generator).tolist()
    return [
        Batch(indices, batch_seed)
        for indices, batch_seed in zip(permutation[: num_steps * batch_size].split(batch_size), seeds, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Replay:
    """The steps that lead from the anchor to one iterate."""

    n: int
    """The iterate that the replay leads to, counted from 1."""
    numbers: range
    """Numbers of the batches, counted from 0, in the order in which their steps are taken."""
    evaluated: bool
    """Whether the caller asked for the iterate; if not, it is only an anchor on the way."""
    moves_anchor: bool
    """Whether the iterate becomes the anchor of the replays after it."""


def backward_replays(
    num_batches: int, *, window: int | None = None, at: Sequence[int] | None = None
) -> Iterator[Replay]:
    """The plan of backward SGD: the replays that lead to the iterates ``at``, and to the anchors on the way there.

    :func:`backward_iterates` carries the plan out on any state.  The training loop carries it out on a network, by
    :func:`legs`.  The plan costs the sum of ``len(replay.numbers)`` gradient evaluations.

    Raises ValueError if ``window`` is below 1, or if ``at`` does not increase strictly within [1, num_batches].
    """
    for before, n in itertools.pairwise((0, *(at or ()))):
        if not before < n <= num_batches:
            raise ValueError(f"at has {n} after {before}: must increase strictly within [1, {num_batches}]")
    return _replays(range(1, num_batches + 1) if at is None else at, _block(window, num_batches))


def _replays(at: Sequence[int], block: int) -> Iterator[Replay]:
    anchor = end = 0
    for n in at:
        while end < n:
            end = min(n, anchor + block)
            moves_anchor = end == anchor + block
            yield Replay(end, range(end - 1, anchor - 1, -1), end == n, moves_anchor)
            anchor = end if moves_anchor else anchor


def _block(window: int | None, num_batches: int) -> int:
    """Batches between two anchors; more than there are if the anchor never moves."""
    if window is not None:
        _require_positive("window", window)
    return window or num_batches + 1


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} = {value}: must be at least 1")


def evaluation_points(num_epochs: int, steps_per_epoch: int, *, window: int | None, interval: int) -> list[int]:
    """The iterates at which a backward phase of num_epochs * steps_per_epoch gradient evaluations is evaluated.

    They are multiples of interval * steps_per_epoch, as many as the budget covers with their replays.  The rest of the
    budget is added to the last.  So ``backward_replays(..., window=window, at=points)`` costs exactly the budget.  If
    the budget does not cover the first multiple, the one point is the budget itself.

    Raises ValueError if an argument is below 1.
    """
    _require_positive("num_epochs", num_epochs)
    _require_positive("steps_per_epoch", steps_per_epoch)
    _require_positive("interval", interval)
    left = num_epochs * steps_per_epoch
    block = _block(window, left)
    stride = interval * steps_per_epoch
    points: list[int] = []
    anchor, n = 0, stride
    while n - anchor <= left:
        points.append(n)
        left -= n - anchor
        anchor = n // block * block
        n += stride
    points = points or [0]
    points[-1] += left
    return points


def forward_iterates(step: Callable[[State, Data], State], state: State, batches: Iterable[Data]) -> Iterator[State]:
    """The states x_1, x_2, ... of forward SGD, for any map ``step(state, batch)``; see :func:`backward_iterates`."""
    state = copy.deepcopy(state)
    for batch in batches:
        state = step(state, batch)
        yield copy.deepcopy(state)


def backward_iterates(
    step: Callable[[State, Data], State],
    state: State,
    batches: Iterable[Data],
    *,
    window: int | None = None,
    at: Sequence[int] | None = None,
) -> Iterator[State]:
    """The states x_n of backward SGD for n in ``at``, for any map ``step(state, batch)``.

    A state holds everything that a step reads and changes: weights, the optimizer's buffers, BatchNorm's statistics,
    generators.  Each replay starts from the anchor's whole state.

    Seed random draws by the batch.  A generator in the state would give its first draw to the batch that comes first,
    which is another one in each replay, and such iterates do not converge.

    States are copied by copy.deepcopy, which keeps references within a state: put a model and its optimizer into one
    tuple.  copy.deepcopy refuses tensors that belong to a graph: detach them.

    ``step`` may work in place: the given ``state`` is never changed, and the caller may change a yielded state.  The
    anchor and a working copy are kept in memory, whatever the window.  ``batches`` are read more than once; if they are
    not a sequence, they are made a list.

    Raises ValueError at the call, as :func:`backward_replays` does.
    """
    sequence = batches if isinstance(batches, Sequence) else list(batches)
    return _iterates(step, state, sequence, backward_replays(len(sequence), window=window, at=at))


def _iterates(
    step: Callable[[State, Data], State], anchor: State, batches: Sequence[Data], replays: Iterable[Replay]
) -> Iterator[State]:
    for replay in replays:
        state = copy.deepcopy(anchor)
        for number in replay.numbers:
            state = step(state, batches[number])
        if replay.moves_anchor:
            anchor = state
        if replay.evaluated:
            yield copy.deepcopy(state) if replay.moves_anchor else state
        # Otherwise the copy for the next replay would be a third state in memory.
        del state


def last_iterate(spec: OrderSpec, *, num_epochs: int, steps_per_epoch: int) -> int:
    """The last n of a training of num_epochs * steps_per_epoch gradient evaluations: with replays n is smaller."""
    begin, points = _phases(spec, num_epochs, steps_per_epoch)
    return begin * steps_per_epoch + (points[-1] if points else 0)


def legs(spec: OrderSpec, *, num_epochs: int, steps_per_epoch: int) -> Iterator[list[Replay]]:
    """The replays before each evaluation of a training of num_epochs * steps_per_epoch gradient evaluations.

    ``n`` and ``numbers`` count from the start of the training.  In the forward phase each epoch is one replay that
    moves the anchor.  :func:`evaluation_points` plans the backward phase, which begins after ``order.start`` of the
    epochs.
    """
    begin, points = _phases(spec, num_epochs, steps_per_epoch)
    for epoch in range(begin):
        numbers = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
        yield [Replay(numbers.stop, numbers, evaluated=True, moves_anchor=True)]
    first = begin * steps_per_epoch
    leg: list[Replay] = []
    for replay in backward_replays(points[-1], window=spec.window or None, at=points) if points else ():
        numbers = range(first + replay.numbers.start, first + replay.numbers.stop, replay.numbers.step)
        leg.append(dataclasses.replace(replay, n=first + replay.n, numbers=numbers))
        if replay.evaluated:
            yield leg
            leg = []


def _phases(spec: OrderSpec, num_epochs: int, steps_per_epoch: int) -> tuple[int, list[int]]:
    """Epochs of the forward phase, and evaluation points of the backward phase, counted from its start."""
    if spec.composition == "forward":
        return num_epochs, []
    begin = min(round(spec.start * num_epochs), num_epochs - 1)
    window = spec.window or None
    return begin, evaluation_points(num_epochs - begin, steps_per_epoch, window=window, interval=spec.interval)
