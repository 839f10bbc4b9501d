from __future__ import annotations

import copy
import gc
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tuner.optimizers import LPSGD, lp_direction

EXPONENTS = [2.0, 2.5, 3.0, 6.0, 100.0, math.inf]
SCALES = ["none", "dual", "rms"]
SCOPES = ["tensor", "global"]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
    ),
]


def gradient(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Entries of either sign whose magnitudes spread over several decades."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return (normal * 10 ** torch.empty(*shape, dtype=torch.float64).uniform_(-4, 1, generator=generator)).to(dtype)


def dual(p: float) -> float:
    return 1 / (1 - 1 / p)


def trajectory(optimizer_of: Callable[[list[Tensor]], Any], *, num_steps: int = 20, **settings: Any) -> list[Tensor]:
    """Two parameters after each step, under gradients that depend on the step alone."""
    params = [torch.ones(3, 4, dtype=torch.float64), torch.full((5,), -2.0, dtype=torch.float64)]
    optimizer = optimizer_of(params)
    path = []
    for step in range(num_steps):
        for index, param in enumerate(params):
            param.grad = gradient(*param.shape, seed=100 * step + index)
        optimizer.step()
        path.append(torch.cat([param.flatten() for param in params]))
    return path


@pytest.mark.parametrize("p", EXPONENTS)
def test_duality_of_the_direction(p: float) -> None:
    g, q = gradient(50), dual(p)
    u = lp_direction(g, p, eps=0.0)
    norm = torch.linalg.vector_norm(g, q)
    torch.testing.assert_close(g @ u, norm**q)
    torch.testing.assert_close(torch.linalg.vector_norm(u, p), norm ** (q - 1))


@pytest.mark.parametrize("p", EXPONENTS)
def test_dual_scale_is_the_steepest_descent_of_the_norm(p: float) -> None:
    """u maximizes <m, d> - ||d||_p^2 / 2, where it is ||m||_q^2 / 2."""
    m = gradient(6)
    u = lp_direction(m, p, eps=0.0, scale="dual")

    def gain(d: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(d, p, dim=-1)
        return d @ m - norm.square() / 2

    torch.testing.assert_close(gain(u), torch.linalg.vector_norm(m, dual(p)) ** 2 / 2)
    others = u * (1 + 0.1 * torch.randn(1000, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert (gain(others) <= gain(u)).all()


@pytest.mark.parametrize("p", EXPONENTS)
def test_rms_scale_keeps_the_root_mean_square(p: float) -> None:
    m = gradient(4, 5)
    u = lp_direction(m, p, scale="rms")
    torch.testing.assert_close(u.square().mean(), m.square().mean())
    # a rescaling, and nothing else
    ratio = u / lp_direction(m, p)
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("scale", ["dual", "rms"])
def test_scaled_directions_are_homogeneous(p: float, scale: Any) -> None:
    m = gradient(20)
    torch.testing.assert_close(
        lp_direction(1e-3 * m, p, eps=0.0, scale=scale), 1e-3 * lp_direction(m, p, eps=0.0, scale=scale)
    )


@pytest.mark.parametrize("p", EXPONENTS)
def test_direction_is_odd_monotone_and_permutation_equivariant(p: float) -> None:
    g = gradient(64)
    u = lp_direction(g, p)
    assert torch.equal(lp_direction(-g, p), -u)
    assert (lp_direction(g.sort().values, p).diff() >= 0).all()
    permutation = torch.randperm(64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(lp_direction(g[permutation], p), u[permutation], rtol=1e-14, atol=0)


@pytest.mark.parametrize("p", EXPONENTS)
def test_ratios_are_compressed_to_the_power_of_alpha(p: float) -> None:
    g = gradient(64)
    u = lp_direction(g, p, eps=0.0)
    torch.testing.assert_close((u / u[0]).abs(), (g / g[0]).abs() ** (1 / (p - 1)))


@pytest.mark.parametrize("scale", SCALES)
def test_two_is_the_gradient_and_infinity_its_sign(scale: Any) -> None:
    g = gradient(64)
    assert lp_direction(g, 2.0, scale=scale) is g
    torch.testing.assert_close(lp_direction(g, math.inf, eps=0.0), g.sign())
    assert torch.equal(lp_direction(g, math.inf, eps=0.5), g / (g.abs() + 0.5))


@pytest.mark.parametrize("foreach", [False, True])
def test_the_recursion_of_the_paper_under_a_changing_p(foreach: bool) -> None:
    """The equations once more, number by number in plain Python."""
    lr, beta, decay, eps = 0.05, 0.9, 0.1, 1e-3
    theta = torch.tensor([1.5], dtype=torch.float64)
    optimizer = LPSGD([theta], lr, momentum=beta, weight_decay=decay, eps=eps, foreach=foreach)
    expected, m = 1.5, 0.0
    for step, p in enumerate([6.0, 5.0, 3.5, 2.5, 2.0]):
        optimizer.param_groups[0]["p"] = p
        theta.grad = gradient(1, seed=step)
        optimizer.step()
        m = beta * m + (1 - beta) * theta.grad.item()
        expected = (1 - lr * decay) * expected - lr * m / (abs(m) + eps) ** ((p - 2) / (p - 1))
        assert theta.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "weight_decay": 0.1, "maximize": True},
        {"lr": torch.tensor(0.01, dtype=torch.float64), "momentum": 0.5, "weight_decay": 0.1},
        {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True, "maximize": True},
        {"momentum": 0.9, "scope": "global"},
        {"lr": torch.tensor(0.01), "momentum": 0.9, "scope": "global", "nesterov": True, "weight_decay": 0.1},
    ],
    ids=["plain", "momentum", "decay-maximize", "tensor-lr", "nesterov", "global", "global-nesterov"],
)
@pytest.mark.parametrize("device", DEVICES)
def test_both_forms_agree_at_every_step(p: float, scale: Any, settings: dict[str, Any], device: str) -> None:
    forms = []
    for foreach in (False, True):
        params = [torch.ones(3, 4, device=device, dtype=torch.float64), torch.zeros(5, device=device)]
        optimizer = LPSGD(params, **{"lr": 0.01, "p": p, "scale": scale, **settings}, foreach=foreach)
        path = []
        for step in range(10):
            for index, param in enumerate(params):
                param.grad = gradient(*param.shape, seed=10 * step + index, dtype=param.dtype).to(device)
            optimizer.step()
            path.append([param.clone() for param in params])
        forms.append(path)
    torch.testing.assert_close(forms[0], forms[1])
    # the default tolerance is for float32; the float64 parameter must agree to its own rounding, unless its factor is
    # shared with the other
    rtol = 1e-9 if "scope" in settings else 1e-12
    for single, multi in zip(*forms, strict=True):
        torch.testing.assert_close(single[0], multi[0], rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("scale", SCALES)
def test_independent_of_the_split_into_tensors_unless_norms_are_each_tensors_own(
    scale: Any, p: float, foreach: bool
) -> None:
    whole = [gradient(12, seed=1)]
    parts = [part.clone() for part in whole[0].split([5, 1, 6])]
    settings: dict[str, Any] = {"p": p, "momentum": 0.9, "weight_decay": 0.1, "foreach": foreach, "scale": scale}
    optimizers = [LPSGD(params, 0.1, scope="global", **settings) for params in (whole, parts)]
    for step in range(10):
        whole[0].grad = gradient(12, seed=step)
        for part, grad in zip(parts, whole[0].grad.split([5, 1, 6]), strict=True):
            part.grad = grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(torch.cat(parts), whole[0], rtol=1e-12, atol=1e-14)
    optimizers[1].param_groups[0]["scope"] = "tensor"
    for optimizer in optimizers:
        optimizer.step()
    same = torch.allclose(torch.cat(parts), whole[0], rtol=1e-6, atol=0)
    assert same == (scale == "none" or p == 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("foreach", [False, True, None])
@pytest.mark.parametrize("scale", ["dual", "rms"])
def test_global_norms_span_kinds_of_tensors_but_not_groups(scale: Any, foreach: bool | None, device: str) -> None:
    """Half, single and double precision, two devices where there are two: the oracle is one tensor of them all."""
    m = gradient(4, 3).to(torch.float16).double()
    kinds: list[tuple[Any, str]] = [(torch.float16, "cpu"), (torch.float32, device), (torch.float64, "cpu")]
    params = [torch.zeros(3, dtype=dtype, device=where) for dtype, where in kinds]
    idle, apart = torch.ones(2), torch.zeros(3, dtype=torch.float64)
    for param, grad in zip([*params, apart], m, strict=True):
        param.grad = grad.to(param)
    optimizer = LPSGD([{"params": [idle, *params]}, {"params": [apart]}], 1.0, p=4.0, scale=scale, foreach=foreach)
    for group in optimizer.param_groups:
        group["scope"] = "global"
    optimizer.step()
    together = lp_direction(m[:3].flatten(), 4.0, scale=scale).view(3, 3)
    for param, expected, tolerance in zip(params, together, (1e-3, 1e-6, 1e-6), strict=True):
        torch.testing.assert_close(param.cpu().double(), -expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(apart, -lp_direction(m[3], 4.0, scale=scale))
    assert torch.equal(idle, torch.ones(2))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("p", EXPONENTS)
def test_nesterov_takes_the_direction_of_the_average_that_the_next_step_would_see(p: float, foreach: bool) -> None:
    """The equations once more, on a whole vector."""
    theta, beta = torch.zeros(6, dtype=torch.float64), 0.8
    optimizer = LPSGD([theta], 0.1, p=p, momentum=beta, nesterov=True, scale="rms", foreach=foreach)
    expected, m = torch.zeros(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    for step in range(5):
        theta.grad = gradient(6, seed=step)
        optimizer.step()
        m = beta * m + (1 - beta) * gradient(6, seed=step)
        expected -= 0.1 * lp_direction(beta * m + (1 - beta) * gradient(6, seed=step), p, scale="rms")
        torch.testing.assert_close(theta, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("foreach", [False, True])
def test_nesterov_at_p_two_is_torchs(foreach: bool) -> None:
    ours = trajectory(lambda params: LPSGD(params, 0.05, momentum=0.9, nesterov=True, foreach=foreach))
    sgd = trajectory(lambda params: torch.optim.SGD(params, 0.05 * 0.1, momentum=0.9, nesterov=True))
    torch.testing.assert_close(ours, sgd, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("foreach", [False, True])
def test_nesterov_at_a_scheduled_momentum_of_zero_follows_the_gradient(foreach: bool) -> None:
    theta = torch.zeros(4, dtype=torch.float64)
    optimizer = LPSGD([theta], 1.0, momentum=0.9, nesterov=True, foreach=foreach)
    theta.grad = gradient(4)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.0
    before, theta.grad = theta.clone(), gradient(4, seed=1)
    optimizer.step()
    assert torch.equal(theta, before - gradient(4, seed=1))


@pytest.mark.parametrize("foreach", [False, True])
def test_p_two_is_sgd_with_the_learning_rate_times_one_minus_momentum(foreach: bool) -> None:
    ours = trajectory(lambda params: LPSGD(params, 0.05, momentum=0.9, foreach=foreach))
    sgd = trajectory(lambda params: torch.optim.SGD(params, 0.05 * 0.1, momentum=0.9, dampening=0))
    torch.testing.assert_close(ours, sgd, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("foreach", [False, True])
def test_p_infinity_is_adamw_without_memory(foreach: bool) -> None:
    ours = trajectory(lambda params: LPSGD(params, 0.05, p=math.inf, weight_decay=0.1, foreach=foreach))
    adamw = trajectory(lambda params: torch.optim.AdamW(params, 0.05, betas=(0.0, 0.0), weight_decay=0.1))
    torch.testing.assert_close(ours, adamw, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("foreach", [False, True])
def test_maximize_is_the_descent_of_the_negated_gradient(foreach: bool) -> None:
    up, down = torch.zeros(20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)
    up.grad, down.grad = gradient(20), -gradient(20)
    settings: dict[str, Any] = {"p": 4.0, "momentum": 0.9, "foreach": foreach}
    LPSGD([up], 0.1, maximize=True, **settings).step()
    LPSGD([down], 0.1, **settings).step()
    assert torch.equal(up, down) and torch.equal(up.sign(), gradient(20).sign())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("p", EXPONENTS)
@pytest.mark.parametrize("foreach", [False, True])
def test_a_tensor_of_zero_gradients_stays(dtype: torch.dtype, scale: Any, scope: Any, p: float, foreach: bool) -> None:
    theta, moving = torch.ones(3, dtype=dtype), torch.ones(3, dtype=dtype)
    theta.grad, moving.grad = torch.zeros_like(theta), torch.tensor([1.0, 0.0, -1.0], dtype=dtype)
    optimizer = LPSGD([theta, moving], 0.1, p=p, momentum=0.9, scale=scale, scope=scope, foreach=foreach)
    optimizer.step()
    assert torch.equal(theta, torch.ones_like(theta))
    assert moving[0] < 1 and moving[1] == 1 and moving[2] > 1
    # all of them zero
    optimizer = LPSGD([theta], 0.1, p=p, momentum=0.9, scale=scale, scope=scope, foreach=foreach)
    optimizer.step()
    assert torch.equal(theta, torch.ones_like(theta))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_half_precision_is_transformed_in_float32(dtype: torch.dtype, foreach: bool, scale: Any) -> None:
    grad = torch.tensor([6e-8, 1e-4, -2e-3, 0.0, 1.0]).to(dtype)
    theta = torch.zeros(5, dtype=dtype)
    theta.grad = grad
    LPSGD([theta], 1.0, p=6.0, scale=scale, foreach=foreach).step()
    assert theta.dtype == dtype
    torch.testing.assert_close(theta, (-lp_direction(grad.float(), 6.0, scale=scale)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("foreach", [False, True])
def test_nesterov_in_half_precision_looks_ahead_in_float32(dtype: torch.dtype, foreach: bool) -> None:
    theta, grad = torch.zeros(50, dtype=dtype), gradient(50, dtype=dtype)
    theta.grad = grad
    LPSGD([theta], 1.0, momentum=0.9, nesterov=True, foreach=foreach).step()
    m = torch.zeros_like(grad).lerp_(grad, 1 - 0.9).float()
    assert torch.equal(theta, -m.lerp(grad.float(), 1 - 0.9).to(dtype))


@pytest.mark.parametrize("foreach", [False, True])
def test_gradients_are_left_as_they_are_and_missing_ones_are_skipped(foreach: bool) -> None:
    params = [torch.ones(4, dtype=torch.float64), torch.ones(2)]
    params[0].grad = gradient(4)
    optimizer = LPSGD(params, 0.1, p=5.0, weight_decay=0.1, maximize=True, foreach=foreach)
    optimizer.step()
    assert torch.equal(params[0].grad, gradient(4))
    assert torch.equal(params[1], torch.ones(2)) and not optimizer.state[params[1]]
    optimizer.zero_grad()
    before = params[0].clone()
    optimizer.step()
    assert torch.equal(params[0], before)


def test_one_buffer_with_momentum_and_none_without() -> None:
    for momentum, names in ((0.0, set()), (0.9, {"momentum_buffer"})):
        theta = torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last)
        theta.grad = torch.ones_like(theta)
        optimizer = LPSGD([theta], 0.1, momentum=momentum, p=4.0)
        optimizer.step()
        assert set(optimizer.state[theta]) == names
        for buffer in optimizer.state[theta].values():
            assert (buffer.shape, buffer.stride(), buffer.dtype) == (theta.shape, theta.stride(), theta.dtype)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_outlives_the_step_but_the_buffers(foreach: bool, scope: Any, dtype: torch.dtype) -> None:
    params = [torch.ones(4, dtype=dtype), torch.ones(3, 2, dtype=dtype)]
    settings: dict[str, Any] = {"p": 4.0, "momentum": 0.9, "nesterov": True, "scale": "rms", "maximize": True}
    optimizer = LPSGD(params, 0.1, scope=scope, foreach=foreach, **settings)
    for param in params:
        param.grad = torch.ones_like(param)

    def tensors() -> set[int]:
        return {id(thing) for thing in gc.get_objects() if type(thing) is Tensor}

    gc.collect()
    gc.disable()  # what only a collection would free counts as alive
    try:
        before = tensors()
        optimizer.step()
        first = tensors()
        optimizer.step()
        assert tensors() == first
    finally:
        gc.enable()
    assert first - before == {id(state["momentum_buffer"]) for state in optimizer.state.values()}


def test_the_buffer_is_kept_up_at_momentum_zero() -> None:
    theta = torch.zeros(1, dtype=torch.float64)
    optimizer = LPSGD([theta], 0.1, momentum=0.9)
    for momentum in (0.9, 0.0):
        optimizer.param_groups[0]["momentum"] = momentum
        theta.grad = gradient(1, seed=round(10 * momentum))
        optimizer.step()
    assert torch.equal(optimizer.state[theta]["momentum_buffer"], gradient(1, seed=0))


@pytest.mark.parametrize("foreach", [False, True])
def test_tensors_with_and_without_a_buffer_share_a_group(foreach: bool) -> None:
    late, early = torch.zeros(3, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    optimizer = LPSGD([late, early], 1.0, momentum=0.5, foreach=foreach)
    early.grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.0
    late.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.5
    optimizer.step()
    assert early.tolist() == [-0.5 - 1 - 1] * 2
    # the momentum of the first began at its third step, from 0
    assert late.tolist() == [-1 - 0.5] * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.9}, r"p = 1.9: must be in \[2, inf\]"),
        ({"p": math.nan}, r"p = nan: must be in \[2, inf\]"),
        ({"momentum": 1.0}, r"momentum = 1.0: must be in \[0, 1\)"),
        ({"momentum": -0.1}, r"momentum = -0.1: must be in \[0, 1\)"),
        ({"lr": -0.1}, "lr = -0.1: must be at least 0"),
        ({"lr": math.nan}, "lr = nan: must be at least 0"),
        ({"lr": torch.tensor(-1.0)}, "lr = -1.0: must be at least 0"),
        ({"lr": torch.ones(1)}, r"lr is a tensor of shape \(1,\)"),
        ({"weight_decay": -1.0}, "weight_decay = -1.0: must be at least 0"),
        ({"eps": 0.0}, "eps = 0.0: must be above 0"),
        ({"scale": "l2"}, "scale = 'l2': must be one of none, dual, rms"),
        ({"scope": "group"}, "scope = 'group': must be one of tensor, global"),
        ({"nesterov": True}, "nesterov = True: needs a momentum above 0"),
    ],
)
def test_bad_settings_are_refused_by_message(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LPSGD([torch.ones(1)], **{"lr": 0.1, **settings})
    optimizer = LPSGD([torch.ones(1)], 0.1)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.ones(1)], **settings})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(("name", "value"), [("p", 1.0), ("momentum", 1.5)])
def test_a_bad_scheduled_value_is_refused_before_any_parameter_moves(name: str, value: float) -> None:
    params = [torch.ones(1), torch.ones(1)]
    optimizer = LPSGD([{"params": [param]} for param in params], 0.1, p=3.0)
    for param in params:
        param.grad = torch.ones(1)
    optimizer.param_groups[1][name] = value
    with pytest.raises(ValueError, match=f"{name} = {value}"):
        optimizer.step()
    assert torch.equal(torch.cat(params), torch.ones(2))


def test_complex_parameters_and_sparse_gradients_are_refused() -> None:
    optimizer = LPSGD([torch.ones(1)], 0.1)
    with pytest.raises(ValueError, match="complex"):
        optimizer.add_param_group({"params": torch.ones(1, dtype=torch.complex64)})
    assert len(optimizer.param_groups) == 1
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        LPSGD(embedding.parameters(), 0.1).step()


def test_step_returns_the_loss_of_its_closure() -> None:
    theta = torch.nn.Parameter(torch.tensor(3.0))
    optimizer = LPSGD([theta], 0.5)

    def closure() -> float:
        optimizer.zero_grad()
        loss = theta.square() / 2
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.5
    assert theta.item() == 1.5
    assert optimizer.step() is None


def test_a_step_under_the_gradient_scaler_is_skipped_on_overflow_and_exact_otherwise() -> None:
    plain, scaled = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizers = [LPSGD([theta], 0.1, p=4.0, momentum=0.9) for theta in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    weights = torch.tensor([1.0, -2.0, 0.5])
    for overflow in (False, True, False):
        if not overflow:
            optimizers[0].zero_grad()
            (plain * weights).sum().backward()
            optimizers[0].step()
        optimizers[1].zero_grad()
        scaler.scale((scaled * weights * (math.inf if overflow else 1.0)).sum()).backward()
        scaler.step(optimizers[1])
        scaler.update()
        assert torch.equal(scaled, plain)
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("tensor_lr", [False, True])
def test_a_torch_scheduler_moves_the_learning_rate(tensor_lr: bool) -> None:
    theta = torch.nn.Parameter(torch.tensor(0.0, dtype=torch.float64))
    optimizer = LPSGD([theta], torch.tensor(1.0, dtype=torch.float64) if tensor_lr else 1.0, p=math.inf, eps=1e-30)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    for _ in range(4):
        theta.grad = torch.tensor(-3.0, dtype=torch.float64)
        optimizer.step()
        scheduler.step()
    assert theta.item() == 1 + 0.5 + 0.25 + 0.125


def saved_and_loaded(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing)), saved_and_loaded])
def test_a_copied_optimizer_goes_on_alike(copy_of: Callable[[Any], Any]) -> None:
    theta = torch.nn.Parameter(torch.ones(4))
    optimizer = LPSGD([theta], 0.1, p=5.0, momentum=0.9)
    theta.grad = gradient(4, dtype=torch.float32)
    optimizer.step()
    twin = copy_of(optimizer)
    (other,) = twin.param_groups[0]["params"]
    for each, parameter in ((optimizer, theta), (twin, other)):
        parameter.grad = gradient(4, seed=1, dtype=torch.float32)
        each.step()
    assert other is not theta and torch.equal(other, theta)


def test_a_state_without_later_settings_takes_the_defaults() -> None:
    theta = torch.ones(1)
    state = LPSGD([theta], 0.1).state_dict()
    for name in ("scale", "eps", "scope", "nesterov"):
        del state["param_groups"][0][name]
    optimizer = LPSGD([theta], 0.1, scale="rms", scope="global")
    optimizer.load_state_dict(state)
    group = optimizer.param_groups[0]
    assert (group["scale"], group["eps"], group["scope"], group["nesterov"]) == ("rms", 1e-8, "global", False)
