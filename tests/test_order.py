from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tuner.core.optimizer_spec import OrderSpec
from tuner.order import backward_iterates, backward_replays, evaluation_points, forward_iterates, last_iterate, legs

WINDOWS = [None, 1, 2, 3, 4, 7, 50]

Names = tuple[int, ...]
START: Names = ()


def append(applied: Names, batch: int) -> Names:
    """A step of which no two compositions are equal."""
    return (*applied, batch)


def blocks(n: int, window: int | None) -> Names:
    """Batches 1 to n cut into blocks, each reversed: the order in which block-backward SGD applies them."""
    width = window or n
    return tuple(itertools.chain(*(range(min(c + width, n), c, -1) for c in range(0, n, width))))


def subsets(num_batches: int) -> list[list[int]]:
    return [[n for n in range(1, num_batches + 1) if bits >> n & 1] for bits in range(0, 2 << num_batches, 2)]


@pytest.mark.parametrize("window", WINDOWS)
def test_composition(window: int | None) -> None:
    for num_batches in range(7):
        for at in [None, *subsets(num_batches)]:
            iterates = list(backward_iterates(append, START, range(1, num_batches + 1), window=window, at=at))
            points = range(1, num_batches + 1) if at is None else at
            assert iterates == [blocks(n, window) for n in points]


def test_first_iterates() -> None:
    assert list(forward_iterates(append, START, [1, 2, 3])) == [(1,), (1, 2), (1, 2, 3)]
    assert list(backward_iterates(append, START, [1, 2, 3])) == [(1,), (2, 1), (3, 2, 1)]
    assert list(backward_iterates(append, START, range(1, 6), window=2))[2:] == [
        (2, 1, 3),
        (2, 1, 4, 3),
        (2, 1, 4, 3, 5),
    ]


def test_limits_in_which_the_orders_agree() -> None:
    forward = list(forward_iterates(append, START, range(9)))
    assert list(backward_iterates(append, START, range(9), window=1)) == forward
    alike = [5] * 9
    for window in WINDOWS:
        assert list(backward_iterates(append, START, alike, window=window)) == list(
            forward_iterates(append, START, alike)
        )


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("at", [None, [1], [12], [3, 4, 11], []])
def test_steps_taken_are_those_planned(window: int | None, at: list[int] | None) -> None:
    taken: list[int] = []

    def step(state: None, batch: int) -> None:
        taken.append(batch)

    points = list(range(1, 13)) if at is None else at
    assert len(list(backward_iterates(step, None, range(12), window=window, at=at))) == len(points)
    plan = list(backward_replays(12, window=window, at=at))
    assert taken == [number for replay in plan for number in replay.numbers]
    assert [replay.n for replay in plan if replay.evaluated] == points
    for replay in plan:
        assert replay.moves_anchor == (window is not None and replay.n % window == 0)


def cost(num_batches: int, *, window: int | None, at: Sequence[int] | None = None) -> int:
    return sum(len(replay.numbers) for replay in backward_replays(num_batches, window=window, at=at))


@pytest.mark.parametrize("num_blocks", [1, 2, 5])
@pytest.mark.parametrize("window", [1, 2, 3, 8])
def test_cost(window: int, num_blocks: int) -> None:
    n = window * num_blocks
    assert cost(n, window=None) == n * (n + 1) // 2
    assert cost(n, window=window) == n * (window + 1) // 2
    anchors = range(window, n + 1, window)
    assert cost(n, window=window, at=anchors) == n
    assert cost(n, window=window, at=[n]) == n
    assert cost(n, window=None, at=anchors) == sum(anchors)
    assert cost(10 * n, window=window, at=[1]) == 1


def test_plan_is_lazy() -> None:
    first, second, third = itertools.islice(backward_replays(10**12, window=2), 3)
    assert [first.numbers, second.numbers, third.numbers] == [range(0, -1, -1), range(1, -1, -1), range(2, 1, -1)]


@pytest.mark.parametrize("window", [None, 1, 2, 3, 4, 6, 7, 8, 12, 16, 1000])
def test_evaluation_points_spend_the_budget(window: int | None) -> None:
    for num_epochs, steps, interval in itertools.product(range(1, 9), range(1, 7), range(1, 5)):
        budget = num_epochs * steps
        points = evaluation_points(num_epochs, steps, window=window, interval=interval)
        assert cost(budget, window=window, at=points) == budget
        multiples = [interval * steps * k for k in range(1, budget + 1)]
        affordable = [k for k in range(budget + 1) if cost(multiples[-1], window=window, at=multiples[:k]) <= budget]
        num_points = max(affordable[-1], 1)
        assert len(points) == num_points
        assert points[:-1] == multiples[: num_points - 1]
        assert points[-1] >= multiples[num_points - 1] or points == [budget]


def test_evaluation_points_by_hand() -> None:
    assert evaluation_points(10, 16, window=None, interval=1) == [16, 32, 48, 64]
    assert evaluation_points(11, 16, window=None, interval=1) == [16, 32, 48, 80]
    assert evaluation_points(3, 10, window=None, interval=4) == [30]
    for window in [1, 4, 8, 16]:
        assert evaluation_points(10, 16, window=window, interval=1) == list(range(16, 161, 16))
    # Each second point is an anchor: 32 for it, 16 for the one after it.
    assert evaluation_points(10, 16, window=32, interval=1) == list(range(16, 113, 16))


def test_bad_arguments_are_refused_at_the_call() -> None:
    for at in [[0, 1], [1, 1], [2, 1], [4], [-1]]:
        with pytest.raises(ValueError, match=r"at has -?\d after \d: must increase strictly within \[1, 3\]"):
            backward_replays(3, at=at)
        with pytest.raises(ValueError, match="must increase strictly"):
            backward_iterates(append, START, [1, 2, 3], at=at)
    for window in [0, -1]:
        with pytest.raises(ValueError, match=f"window = {window}: must be at least 1"):
            backward_iterates(append, START, [1, 2, 3], window=window)
    with pytest.raises(ValueError, match="window = 0: must be at least 1"):
        evaluation_points(1, 1, window=0, interval=1)
    for name in ["num_epochs", "steps_per_epoch", "interval"]:
        sizes = {"num_epochs": 1, "steps_per_epoch": 1, "interval": 1, name: 0}
        with pytest.raises(ValueError, match=f"{name} = 0: must be at least 1"):
            evaluation_points(**sizes, window=None)


def test_nothing_is_computed_before_it_is_asked_for() -> None:
    taken: list[int] = []

    def step(state: None, batch: int) -> None:
        taken.append(batch)

    iterates = backward_iterates(step, None, iter(range(3)))
    assert taken == []
    next(iterates)
    assert taken == [0]
    # An endless stream of batches will do for forward SGD.
    assert list(itertools.islice(forward_iterates(append, START, itertools.count()), 2)) == [(0,), (0, 1)]


def affine_step(x: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
    matrix, shift = batch
    return (matrix @ x[..., None])[..., 0] + shift


def test_affine_identity() -> None:
    """x_{n+1} - x_n = A_1 ... A_n (T_{n+1} x_0 - x_0)."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        (
            torch.randn(3, 3, generator=generator, dtype=torch.float64),
            torch.randn(3, generator=generator, dtype=torch.float64),
        )
        for _ in range(8)
    ]
    start = torch.randn(3, generator=generator, dtype=torch.float64)
    product = torch.eye(3, dtype=torch.float64)
    path = [start, *backward_iterates(affine_step, start, batches)]
    for before, after, batch in zip(path[:-1], path[1:], batches, strict=True):
        torch.testing.assert_close(after, before + product @ (affine_step(start, batch) - start))
        product = product @ batch[0]


def least_squares(num_batches: int, *, noise: float = 1.0) -> list[tuple[Tensor, Tensor]]:
    """The affine maps of SGD, lr .1, on 4 rows y = a w + noise a batch, d = 3, for 40 seeds side by side."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(40, 3, 1, generator=generator, dtype=torch.float64)
    batches = []
    for _ in range(num_batches):
        rows = torch.randn(40, 4, 3, generator=generator, dtype=torch.float64)
        labels = rows @ weights + noise * torch.randn(40, 4, 1, generator=generator, dtype=torch.float64)
        gram, moment = rows.mT @ rows / 4, rows.mT @ labels / 4
        batches.append((torch.eye(3, dtype=torch.float64) - 0.1 * gram, 0.1 * moment[..., 0]))
    return batches


ORIGIN = torch.zeros(40, 3, dtype=torch.float64)


def test_backward_converges_where_forward_does_not() -> None:
    for noise in [0.1, 1.0]:
        batches = least_squares(200, noise=noise)
        before, after = itertools.islice(forward_iterates(affine_step, ORIGIN, batches), 196, 198)
        forward = (after - before).norm(dim=1)
        assert 0.04 < forward.median() / noise < 0.16
        before, after = backward_iterates(affine_step, ORIGIN, batches, at=[197, 198])
        backward = (after - before).norm(dim=1)
        assert backward.quantile(0.95) < 1e-8
        # It is the oldest batches that decide the point.
        (limit,) = backward_iterates(
            affine_step, ORIGIN, batches[:100] + least_squares(400, noise=noise)[300:], at=[200]
        )
        assert (limit - after).norm(dim=1).median() < 1e-2 * forward.median()


def test_windowed_converges_within_a_block_and_jumps_at_the_next() -> None:
    path = torch.stack(list(backward_iterates(affine_step, ORIGIN, least_squares(130), window=64)))
    lengths = path.diff(dim=0).norm(dim=2).median(dim=1).values
    for first in [0, 64]:
        # lengths[n - 1] is that of the step from x_n to x_{n+1}
        assert (lengths[first + 16 : first + 63] < 0.5 * lengths[first : first + 47]).all()
        assert lengths[first + 63] > 20 * lengths[first + 62]


def test_two_starting_points_come_together_in_either_order() -> None:
    batches = least_squares(198)
    start = torch.cat([ORIGIN[None], ORIGIN[None] + 1])
    *_, forward = forward_iterates(affine_step, start, batches)
    (backward,) = backward_iterates(affine_step, start, batches, at=[198])
    for end in [forward, backward]:
        assert (end[0] - end[1]).norm(dim=1).quantile(0.95) < 1e-6


def test_draws_must_belong_to_their_batches() -> None:
    """With random step lengths the backward iterates converge if, and only if, a batch keeps its length."""

    def scaled_step(x: Tensor, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Tensor:
        return x + float(torch.rand((), generator=generator)) * (affine_step(x, batch) - x)

    def step_of_position(state: tuple[Tensor, torch.Generator], number: int) -> tuple[Tensor, torch.Generator]:
        x, generator = state
        return scaled_step(x, batches[number], generator), generator

    def step_of_batch(x: Tensor, number: int) -> Tensor:
        return scaled_step(x, batches[number], torch.Generator().manual_seed(number))

    batches = least_squares(400)
    before, after = backward_iterates(step_of_batch, ORIGIN, range(400), at=[399, 400])
    assert (after - before).norm(dim=1).median() < 1e-7
    start = (ORIGIN, torch.Generator())
    (before, _), (after, _) = backward_iterates(step_of_position, start, range(400), at=[399, 400])
    assert (after - before).norm(dim=1).median() > 1e-3


Training = tuple[nn.Sequential, torch.optim.SGD, torch.Generator]


def train_in_place(training: Training, batch: tuple[Tensor, Tensor]) -> Training:
    """A step with momentum whose length is drawn from a generator."""
    model, optimizer, generator = training
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.param_groups[0]["lr"] = 0.1 * float(torch.rand((), generator=generator))
    optimizer.step()
    return training


def new_training() -> Training:
    model = nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), torch.Generator()


def contents(training: Training) -> list[Tensor]:
    """Everything in it: weights, BatchNorm's statistics, momentum buffers, the generator."""
    model, optimizer, generator = training
    buffers = [state["momentum_buffer"] for state in optimizer.state_dict()["state"].values()]
    assert len(buffers) == 5 and len(model.state_dict()) == 8
    return [x.clone() for x in (*model.state_dict().values(), *buffers, generator.get_state())]


def copy_by_hand(training: Training) -> Training:
    twin = new_training()
    twin[0].load_state_dict(training[0].state_dict())
    twin[1].load_state_dict(copy.deepcopy(training[1].state_dict()))
    twin[2].set_state(training[2].get_state())
    return twin


@pytest.mark.parametrize("window", [None, 1, 3])
def test_modules_and_optimizers_as_states(window: int | None) -> None:
    """Bit for bit as trained by hand, when yielded and when all are drawn."""
    torch.manual_seed(0)
    batches = [(torch.randn(6, 4), torch.arange(6) % 3) for _ in range(7)]
    # Two steps before the anchor, so that no buffer of it is empty.
    start = train_in_place(train_in_place(new_training(), batches[0]), batches[1])
    before = contents(start)
    iterates = backward_iterates(train_in_place, start, batches, window=window)
    yielded = [(iterate, contents(iterate)) for iterate in iterates]
    for n, (iterate, when_yielded) in enumerate(yielded, 1):
        expected = copy_by_hand(start)
        for number in blocks(n, window):
            train_in_place(expected, batches[number - 1])
        assert all(map(torch.equal, contents(iterate), contents(expected)))
        assert all(map(torch.equal, contents(iterate), when_yielded))
    assert all(map(torch.equal, contents(start), before))


def append_in_place(applied: list[int], batch: int) -> list[int]:
    applied.append(batch)
    return applied


@pytest.mark.parametrize("iterates", [forward_iterates, *(partial(backward_iterates, window=w) for w in WINDOWS)])
def test_what_is_done_to_an_iterate_changes_no_other(iterates: Callable[..., Iterator[list[int]]]) -> None:
    start = [-1]
    kept = list(iterates(append_in_place, start, range(9)))
    spoiled = []
    for iterate in iterates(append_in_place, start, range(9)):
        spoiled.append(iterate.copy())
        iterate.clear()
    assert kept == spoiled
    assert kept[0] == [-1, 0]
    assert start == [-1]


class Counted:
    """A state that counts how many of its kind there are, and the most there have been."""

    now = most = 0

    def __init__(self) -> None:
        Counted.now += 1
        Counted.most = max(Counted.most, Counted.now)

    def __deepcopy__(self, memo: object) -> Counted:
        return Counted()

    def __del__(self) -> None:
        Counted.now -= 1


@pytest.mark.parametrize("at", [None, [1, 2, 9]])
@pytest.mark.parametrize("window", WINDOWS)
def test_two_states_are_in_memory(window: int | None, at: list[int] | None) -> None:
    """The anchor and a working copy, where the caller keeps none."""

    def step(state: Counted, batch: int) -> Counted:
        return state

    Counted.most = 0
    iterates = backward_iterates(step, Counted(), range(9), window=window, at=at)
    # A for statement would keep the last iterate while the next is made.
    while next(iterates, None):
        pass
    assert Counted.most == 2
    assert Counted.now == 0


@pytest.mark.parametrize("interval", [1, 2, 5])
@pytest.mark.parametrize("window", [0, 1, 7, 16, 40])
@pytest.mark.parametrize("start", [0.0, 0.33, 0.5, 0.99])
def test_the_legs_of_a_training_cost_its_budget_and_no_batch_is_left_out(
    start: float, window: int, interval: int
) -> None:
    spec = OrderSpec(composition="backward", start=start, window=window, interval=interval)
    planned = list(legs(spec, num_epochs=9, steps_per_epoch=16))
    replays = list(itertools.chain(*planned))
    assert sum(len(replay.numbers) for replay in replays) == 9 * 16
    assert all(leg[-1].evaluated and not any(replay.evaluated for replay in leg[:-1]) for leg in planned)
    assert last_iterate(spec, num_epochs=9, steps_per_epoch=16) == planned[-1][-1].n
    num_forward = min(round(9 * start), 8)
    assert [leg[0].numbers for leg in planned[:num_forward]] == [range(16 * e, 16 * e + 16) for e in range(num_forward)]
    # What the weights are the result of: everything up to n, each batch once, through the anchors.
    anchored: list[int] = []
    for replay in replays:
        reached = [*anchored, *replay.numbers]
        assert sorted(reached) == list(range(replay.n))
        anchored = reached if replay.moves_anchor else anchored
    backward = list(itertools.chain(*planned[num_forward:]))
    assert all(list(replay.numbers) == sorted(replay.numbers, reverse=True) for replay in backward)


def test_forward_training_is_one_leg_an_epoch() -> None:
    planned = list(legs(OrderSpec(), num_epochs=3, steps_per_epoch=5))
    assert [[list(replay.numbers) for replay in leg] for leg in planned] == [
        [[0, 1, 2, 3, 4]],
        [[5, 6, 7, 8, 9]],
        [[10, 11, 12, 13, 14]],
    ]
