"""BatchNorm over a batch in two processes is torch's on the whole batch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.processes import Processes
from tuner.train.data_parallel import SINGLE_PROCESS, Replicas
from tuner.train.sync_batch_norm import SyncBatchNorm, convert, taken_alone


@pytest.fixture(scope="module")
def two() -> Iterator[Processes]:
    with Processes(2) as processes:
        yield processes


CASES: dict[str, tuple[type[nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "images": (nn.BatchNorm2d, (6, 5, 4, 3), {}),
    "vectors": (nn.BatchNorm1d, (6, 5), {"momentum": None}),
    "one vector each": (nn.BatchNorm1d, (2, 5), {"eps": 0.1}),
    "sequences": (nn.BatchNorm1d, (6, 5, 3), {"affine": False}),
    "volumes": (nn.BatchNorm3d, (2, 5, 2, 3, 4), {"track_running_stats": False}),
    "without a bias": (nn.BatchNorm2d, (6, 5, 4, 3), {"bias": False}),
}


def two_steps(
    replicas: Replicas, case: str, dtype: torch.dtype = torch.float64
) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """Outputs and gradients of the inputs, a part each; gradients of the weights; the state at the end."""
    layer, shape, settings = CASES[case]
    torch.manual_seed(0)
    norm = layer(shape[1], dtype=torch.promote_types(dtype, torch.float32), **settings)
    for parameter in norm.parameters():
        nn.init.uniform_(parameter)
    model = replicas.sync_batch_norm(norm)
    parts, weights = [], []
    for _ in range(2):
        x, target = (1e3 + torch.randn(shape, dtype=dtype))[replicas.part(shape[0])], torch.randn(shape, dtype=dtype)
        x.requires_grad_()
        y = model(x)
        model.zero_grad()
        (y * target[replicas.part(shape[0])]).sum().backward()
        assert x.grad is not None and y.dtype == x.grad.dtype == dtype
        parts += [y.detach(), x.grad]
        weights += [p.grad for p in model.parameters() if p.grad is not None]
    return parts, weights, model.state_dict()


@pytest.mark.parametrize("case", CASES)
def test_outputs_gradients_and_statistics_are_those_of_the_whole_batch(two: Processes, case: str) -> None:
    parts, weights, state = two_steps(SINGLE_PROCESS, case)
    first, second = two(two_steps, case)
    for whole, *halves in zip(parts, first[0], second[0], strict=True):
        torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-9, atol=1e-9)
    for whole, *halves in zip(weights, first[1], second[1], strict=True):
        torch.testing.assert_close(halves[0] + halves[1], whole, rtol=1e-9, atol=1e-9)
    for its_state in (first[2], second[2]):
        assert list(its_state) == list(state)
        for name, tensor in state.items():
            torch.testing.assert_close(its_state[name], tensor, rtol=1e-12, atol=0)


def test_half_precision_adds_in_single(two: Processes) -> None:
    """Means near 1000 have no place in bfloat16, whose neighbors there are 4 apart."""
    _, _, state = two_steps(SINGLE_PROCESS, "images", torch.bfloat16)
    for _, _, its_state in two(two_steps, "images", torch.bfloat16):
        for name, tensor in state.items():
            torch.testing.assert_close(its_state[name], tensor, rtol=1e-4, atol=0)


def test_names_weights_and_evaluation_stay_what_they_were() -> None:
    norm, other = nn.BatchNorm1d(3), nn.InstanceNorm1d(3)
    model = nn.Sequential(nn.Linear(5, 5), nn.Sequential(norm, other))
    before, parameters = copy.deepcopy(model), list(model.parameters())
    assert convert(model) is model
    assert isinstance(norm, SyncBatchNorm) and type(other) is nn.InstanceNorm1d
    assert list(model.state_dict()) == list(before.state_dict())
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    x = torch.randn(4, 3, 5)
    assert torch.equal(model.eval()(x), before.eval()(x))


def test_taken_alone_it_asks_nobody_and_has_second_derivatives() -> None:
    """No processes are connected here, so that to ask would raise."""
    norm = convert(nn.BatchNorm1d(3, dtype=torch.float64))
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    with taken_alone(norm):
        assert torch.autograd.gradgradcheck(norm, (x,))
    with pytest.raises(ValueError, match="process group"):
        norm(x)
