from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from tests.optimizers.test_lp_sgd import DEVICES, gradient
from tuner.optimizers.lion import Lion
from tuner.optimizers.lp_sgd import LPSGD

FORMS = [False, True]


def trajectory(make: Callable[[list[Tensor]], Optimizer], *, device: str = "cpu", num_steps: int = 15) -> list[Tensor]:
    """Two parameters after each step, under gradients that depend on the step alone."""
    params = [torch.ones(3, 4, dtype=torch.float64, device=device), torch.full((5,), -2.0, device=device)]
    optimizer = make(params)
    path = []
    for step in range(num_steps):
        for index, param in enumerate(params):
            param.grad = gradient(*param.shape, seed=100 * step + index, dtype=param.dtype).to(device)
        optimizer.step()
        path.append(torch.cat([param.flatten().double() for param in params]))
    return path


@pytest.mark.parametrize("foreach", FORMS)
def test_the_recursion_of_the_paper_under_changing_settings(foreach: bool) -> None:
    """The equations once more, number by number in plain Python."""
    theta = torch.tensor([1.5], dtype=torch.float64)
    optimizer = Lion([theta], weight_decay=0.1, foreach=foreach)
    expected, m = 1.5, 0.0
    for step, (lr, beta_1, beta_2) in enumerate([(0.1, 0.9, 0.99), (0.05, 0.0, 0.9), (0.01, 0.8, 0.5)] * 5):
        optimizer.param_groups[0].update(lr=lr, betas=(beta_1, beta_2))
        g = gradient(1, seed=step).item()
        theta.grad = torch.tensor([g], dtype=torch.float64)
        optimizer.step()
        expected = (1 - lr * 0.1) * expected - lr * math.copysign(1, beta_1 * m + (1 - beta_1) * g)
        m = beta_2 * m + (1 - beta_2) * g
        assert theta.item() == pytest.approx(expected, rel=1e-13)
        assert optimizer.state[theta]["exp_avg"].item() == pytest.approx(m, rel=1e-13)


@pytest.mark.parametrize("foreach", FORMS)
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_equal_betas_are_lpsgd_at_p_infinity(foreach: bool, beta: float) -> None:
    settings: dict[str, Any] = {"weight_decay": 0.1, "foreach": foreach}
    lion = trajectory(lambda params: Lion(params, 0.05, betas=(beta, beta), **settings))
    lp_sgd = trajectory(lambda params: LPSGD(params, 0.05, p=math.inf, momentum=beta, eps=1e-30, **settings))
    torch.testing.assert_close(lion, lp_sgd, rtol=1e-13, atol=0)


@pytest.mark.parametrize("foreach", FORMS)
def test_betas_of_zero_are_sign_descent(foreach: bool) -> None:
    theta = torch.zeros(64, dtype=torch.float64)
    optimizer = Lion([theta], 0.5, betas=(0.0, 0.0), foreach=foreach)
    expected = torch.zeros(64, dtype=torch.float64)
    for step in range(5):
        theta.grad = gradient(64, seed=step)
        optimizer.step()
        expected -= 0.5 * gradient(64, seed=step).sign()
    assert torch.equal(theta, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weight_decay": 0.1, "maximize": True, "betas": (0.95, 0.6)},
        {"lr": torch.tensor(0.01, dtype=torch.float64), "weight_decay": 0.1},
    ],
    ids=["plain", "decay-maximize", "tensor-lr"],
)
@pytest.mark.parametrize("device", DEVICES)
def test_both_forms_agree_at_every_step(settings: dict[str, Any], device: str) -> None:
    single, multi = (
        trajectory(lambda params, form=form: Lion(params, **{"lr": 0.01, **settings}, foreach=form), device=device)  # type: ignore[misc]
        for form in FORMS
    )
    torch.testing.assert_close([path[:12] for path in single], [path[:12] for path in multi], rtol=1e-13, atol=0)
    torch.testing.assert_close(single, multi, rtol=1e-6, atol=0)


@pytest.mark.parametrize("foreach", FORMS)
def test_a_learning_rate_in_a_tensor_is_read_at_each_step_and_left_as_it_is(foreach: bool) -> None:
    rate = torch.tensor(0.05, dtype=torch.float64)
    tensor = trajectory(lambda params: Lion(params, rate, weight_decay=0.1, foreach=foreach))
    torch.testing.assert_close(
        tensor, trajectory(lambda params: Lion(params, 0.05, weight_decay=0.1)), rtol=1e-7, atol=0
    )
    assert rate.item() == 0.05
    theta = torch.zeros(1, dtype=torch.float64)
    optimizer = Lion([theta], rate, foreach=foreach)
    for value in (1.0, 0.5):
        rate.fill_(value)
        theta.grad = -torch.ones_like(theta)
        optimizer.step()
    assert theta.item() == 1.5


@pytest.mark.parametrize("foreach", FORMS)
def test_maximize_is_the_descent_of_the_negated_gradient(foreach: bool) -> None:
    up, down = torch.zeros(20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)
    optimizers = Lion([up], 0.1, maximize=True, foreach=foreach), Lion([down], 0.1, foreach=foreach)
    for step in range(3):
        up.grad, down.grad = gradient(20, seed=step), -gradient(20, seed=step)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(up, down) and (up != 0).any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("foreach", FORMS)
def test_one_buffer_of_the_parameters_kind_and_zero_gradients_stay(dtype: torch.dtype, foreach: bool) -> None:
    theta = torch.ones(2, 3, 4, 4, dtype=dtype).to(memory_format=torch.channels_last)
    theta.grad = torch.zeros_like(theta)
    optimizer = Lion([theta], 0.1, foreach=foreach)
    optimizer.step()
    assert torch.equal(theta, torch.ones_like(theta))
    assert set(optimizer.state[theta]) == {"exp_avg"}
    average = optimizer.state[theta]["exp_avg"]
    assert (average.shape, average.stride(), average.dtype) == (theta.shape, theta.stride(), theta.dtype)


@pytest.mark.parametrize("foreach", FORMS)
def test_gradients_are_left_as_they_are_and_missing_ones_are_skipped(foreach: bool) -> None:
    params = [torch.ones(4, dtype=torch.float64), torch.ones(2)]
    params[0].grad = gradient(4)
    optimizer = Lion(params, 0.1, weight_decay=0.1, maximize=True, foreach=foreach)
    optimizer.step()
    assert torch.equal(params[0].grad, gradient(4))
    assert torch.equal(params[1], torch.ones(2)) and not optimizer.state[params[1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"betas": (1.0, 0.9)}, r"beta_1 = 1.0: must be in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, r"beta_2 = -0.1: must be in \[0, 1\)"),
        ({"betas": (0.9, math.nan)}, r"beta_2 = nan: must be in \[0, 1\)"),
        ({"lr": -0.1}, "lr = -0.1: must be at least 0"),
        ({"lr": math.inf}, "lr = inf: must be at least 0"),
        ({"lr": torch.ones(1)}, r"lr is a tensor of shape \(1,\)"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0: must be at least 0"),
    ],
)
def test_bad_settings_are_refused_by_message(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Lion([torch.ones(1)], **settings)
    optimizer = Lion([torch.ones(1)])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.ones(1)], **settings})
    assert len(optimizer.param_groups) == 1


def test_a_bad_scheduled_value_is_refused_before_any_parameter_moves() -> None:
    params = [torch.ones(1), torch.ones(1)]
    optimizer = Lion([{"params": [param]} for param in params], 0.1)
    for param in params:
        param.grad = torch.ones(1)
    optimizer.param_groups[1]["betas"] = (1.5, 0.9)
    with pytest.raises(ValueError, match=r"beta_1 = 1\.5"):
        optimizer.step()
    assert torch.equal(torch.cat(params), torch.ones(2))


def test_complex_parameters_and_sparse_gradients_are_refused() -> None:
    optimizer = Lion([torch.ones(1)])
    with pytest.raises(ValueError, match="complex"):
        optimizer.add_param_group({"params": torch.ones(1, dtype=torch.complex64)})
    assert len(optimizer.param_groups) == 1
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        Lion(embedding.parameters()).step()


def test_step_returns_the_loss_of_its_closure() -> None:
    theta = torch.nn.Parameter(torch.tensor(3.0))
    optimizer = Lion([theta], 0.5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = theta.square() / 2
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.5
    assert theta.item() == 2.5
    assert optimizer.step() is None


def reloaded(optimizer: Lion) -> Lion:
    """A new one over copies of the parameters, with the state dict of the old through a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    new = Lion([param.clone() for param in optimizer.param_groups[0]["params"]], lr=7.0)
    new.load_state_dict(torch.load(file, weights_only=True))
    return new


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing)), reloaded])
def test_a_copied_optimizer_goes_on_alike(copy_of: Callable[[Lion], Lion]) -> None:
    theta = torch.ones(40, dtype=torch.float64)
    optimizer = Lion([theta], 0.1, betas=(0.7, 0.9))
    theta.grad = gradient(40)
    optimizer.step()
    twin = copy_of(optimizer)
    (other,) = twin.param_groups[0]["params"]
    for step in range(1, 4):
        for each, parameter in ((optimizer, theta), (twin, other)):
            parameter.grad = gradient(40, seed=step)
            each.step()
    assert other is not theta and torch.equal(other, theta)


def test_a_state_without_later_settings_takes_the_defaults() -> None:
    state = Lion([torch.ones(1)], 0.1).state_dict()
    del state["param_groups"][0]["maximize"]
    optimizer = Lion([torch.ones(1)], 0.1, maximize=True)
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["maximize"] is True
