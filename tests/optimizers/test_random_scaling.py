"""The probabilities here are of fixed seeds; tolerances are 4 standard errors of what they are compared with."""

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
from torch.optim import SGD, AdamW, lr_scheduler
from torch.optim.optimizer import Optimizer

from tests.optimizers.test_lp_sgd import gradient
from tuner.optimizers.lion import Lion
from tuner.optimizers.lp_sgd import LPSGD
from tuner.optimizers.random_scaling import LAWS, Law, RandomScaling, draw_scale

Make = Callable[[list[Tensor]], Optimizer]

RULES: dict[str, Make] = {
    "sgd": lambda params: SGD(params, 0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda params: SGD(params, 0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "sgd, tensor lr": lambda params: SGD(params, torch.tensor(0.1), momentum=0.9),
    "adamw": lambda params: AdamW(params, 0.1, weight_decay=0.1),
    "lp-sgd": lambda params: LPSGD(params, 0.1, p=4.0, momentum=0.9, weight_decay=0.1, nesterov=True),
    "lion": lambda params: Lion(params, 0.1, weight_decay=0.1),
}


def two_params() -> list[Tensor]:
    return [torch.ones(3, 4, dtype=torch.float64), torch.full((5,), -2.0, dtype=torch.float64)]


def take_step(optimizer: Optimizer, step: int) -> None:
    """A step under gradients that depend on its number alone."""
    for number, group in enumerate(optimizer.param_groups):
        for index, param in enumerate(group["params"]):
            param.grad = gradient(*param.shape, seed=100 * step + 10 * number + index)
    optimizer.step()


def values(optimizer: Optimizer) -> list[Tensor]:
    return [param.clone() for group in optimizer.param_groups for param in group["params"]]


def draws(law: Law, shape: float = 2.0, *, num: int = 20_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.tensor([draw_scale(law, shape, generator) for _ in range(num)], dtype=torch.float64)


def agrees(samples: Tensor, expected: float | Tensor) -> bool:
    """Whether their mean is the expected one, to 4 standard errors."""
    return bool(((samples - expected).mean(0).abs() < 4 * samples.std(0) / math.sqrt(len(samples))).all())


@pytest.mark.parametrize(
    ("law", "shape", "variance", "median"),
    [
        ("exponential", 2.0, 1.0, math.log(2)),
        ("uniform", 2.0, 1 / 3, 1.0),
        ("gamma", 1.0, 1.0, math.log(2)),
        ("gamma", 0.5, 2.0, 0.45494),
        ("gamma", 4.0, 1 / 4, 0.91802),
        ("gamma", 16.0, 1 / 16, 0.97923),
    ],
)
def test_moments_and_medians_of_the_laws(law: Law, shape: float, variance: float, median: float) -> None:
    s = draws(law, shape)
    assert agrees(s, 1.0) and agrees(s.square(), 1 + variance)
    assert agrees((s < median).double(), 0.5)
    assert (s > 0).all()


def test_none_draws_nothing_and_the_least_scale_leaves_room_to_divide_by_it() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    assert draw_scale("none", 2.0, generator) == 1.0 and torch.equal(generator.get_state(), before)
    assert draws("gamma", 0.01, num=200).min().item() == 1e-30


def displaced(law: Law, x: list[float], d: list[float], *, num: int = 4000, shared: bool = True) -> Tensor:
    """x + s d by steps of the class, shape (num, len(x)); with ``shared`` false every coordinate has its own."""
    params = [torch.tensor([value], dtype=torch.float64) for value in x]
    starts = [param.clone() for param in params]
    for param, value in zip(params, d, strict=True):
        param.grad = torch.tensor([-value], dtype=torch.float64)
    groups: list[dict[str, Any]] = [{"params": [param]} for param in params]
    parts = [groups] if shared else [[group] for group in groups]
    optimizers = [RandomScaling(SGD(part, lr=1.0), law, seed=seed) for seed, part in enumerate(parts)]
    rows = []
    for _ in range(num):
        for param, start in zip(params, starts, strict=True):
            param.copy_(start)
        for optimizer in optimizers:
            optimizer.step()
        rows.append(torch.cat(params))
    return torch.stack(rows)


@pytest.mark.parametrize("law", ["exponential", "uniform"])
def test_the_expectation_identity_of_a_kink_holds_for_the_exponential_law_alone(law: Law) -> None:
    x, d = 1.0, -0.7
    y = displaced(law, [x], [d])[:, 0]
    left, right = y.abs() - abs(x), d * y.sign()
    both = d * (1 - 2 * math.exp(-x / abs(d)))
    assert agrees(left, both) == agrees(right, both) == agrees(left - right, 0.0) == (law == "exponential")


@pytest.mark.parametrize("shared", [True, False])
def test_the_expectation_identity_of_a_product_needs_one_scalar_for_all_parameters(shared: bool) -> None:
    x, d = [0.5, -0.3], [1.0, 0.8]
    y = displaced("exponential", x, d, shared=shared)
    left, right = y.prod(1) - x[0] * x[1], y[:, 1] * d[0] + y[:, 0] * d[1]
    both = x[0] * d[1] + x[1] * d[0] + 2 * d[0] * d[1]
    assert agrees(right, both)
    assert agrees(left, both) == agrees(left - right, 0.0) == shared
    # without the cross moment of the two scalars
    assert shared or agrees(left, both - d[0] * d[1])


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
def test_given_its_scalars_it_is_the_wrapped_optimizer_with_those_learning_rates(make: Make, law: Law) -> None:
    scaled, plain = RandomScaling(make(two_params()), law), make(two_params())
    lr = plain.param_groups[0]["lr"]
    for step in range(10):
        take_step(scaled, step)
        plain.param_groups[0]["lr"] = lr * scaled.last_scale
        take_step(plain, step)
        assert all(map(torch.equal, values(scaled), values(plain)))
        for mine, theirs in zip(scaled.state.values(), plain.state.values(), strict=True):
            assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    # the learning rate was put back, and a tensor never written to
    assert scaled.param_groups[0]["lr"] == 0.1 and lr == 0.1


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
def test_without_a_law_it_is_the_wrapped_optimizer(make: Make) -> None:
    scaled, plain = RandomScaling(make(two_params()), "none"), make(two_params())
    for step in range(5):
        for optimizer in (scaled, plain):
            take_step(optimizer, step)
        assert scaled.last_scale == 1.0
        assert all(map(torch.equal, values(scaled), values(plain)))
    assert torch.equal(scaled.generator.get_state(), torch.Generator().manual_seed(0).get_state())


def test_the_mean_iterate_of_a_quadratic_is_the_run_without_scaling() -> None:
    curvature = torch.tensor([1.0, 0.3], dtype=torch.float64)

    def run(optimizer: Optimizer) -> Tensor:
        x: Tensor = optimizer.param_groups[0]["params"][0]
        path = []
        for _ in range(6):
            x.grad = curvature * x
            optimizer.step()
            path.append(x.clone())
        return torch.stack(path)

    def start(law: Law, seed: int = 0) -> Tensor:
        x = torch.tensor([1.0, -2.0], dtype=torch.float64)
        return run(RandomScaling(SGD([x], lr=0.2, momentum=0.7), law, seed=seed))

    paths = torch.stack([start("exponential", seed) for seed in range(1500)])
    assert agrees(paths, start("none"))
    assert (paths.std(0)[1:] > 0.05).all()


@pytest.mark.parametrize(("law", "shape", "second"), [("none", 1, 1), ("uniform", 1, 4 / 3), ("exponential", 1, 2)])
@pytest.mark.parametrize(("zeta", "a"), [(0.0, 1.0), (0.5, 1.0), (0.9, 4.0)])
def test_mean_square_stability_ends_at_the_stated_learning_rate(
    law: Law, shape: float, second: float, zeta: float, a: float
) -> None:
    """The second moments of (x, v) go on by E[M kron M], where M = A + s B is the map of a step on x^2 a/2."""

    def radius(lr: float) -> float:
        maps = []
        for scale in (1.0, None):
            columns = []
            for x0, v0 in ((1.0, 0.0), (0.0, 1.0)):
                x = torch.tensor([x0], dtype=torch.float64)
                optimizer = RandomScaling(SGD([x], lr=lr, momentum=zeta), "none" if scale else "exponential")
                optimizer.state[x]["momentum_buffer"] = torch.tensor([v0], dtype=torch.float64)
                x.grad = a * x
                optimizer.step()
                columns.append(torch.cat([x, optimizer.state[x]["momentum_buffer"] if zeta else a * x0 + 0 * x]))
            maps.append(torch.stack(columns, 1))
        b = (maps[1] - maps[0]) / (optimizer.last_scale - 1)
        step = maps[0] - b
        moments = torch.kron(step, step) + torch.kron(step, b) + torch.kron(b, step) + second * torch.kron(b, b)
        return float(torch.linalg.eigvals(moments).abs().max())

    limit = 2 * (1 - zeta) * (1 + zeta) / (second * (1 + zeta) - 2 * zeta) / a
    if law == "exponential":
        assert limit * a == pytest.approx(1 - zeta**2)
    assert radius(0.999 * limit) < 1 < radius(1.001 * limit)
    assert radius(limit) == pytest.approx(1, abs=1e-9)


def test_scaling_ends_at_the_given_step() -> None:
    optimizer = RandomScaling(SGD(two_params(), 0.1), num_active_steps=3)
    scales = []
    for step in range(6):
        take_step(optimizer, step)
        scales.append(optimizer.last_scale)
    state = optimizer.generator.get_state()
    assert all(scale != 1.0 for scale in scales[:3]) and scales[3:] == [1.0] * 3
    take_step(optimizer, 6)
    assert torch.equal(optimizer.generator.get_state(), state)


@pytest.mark.parametrize("name", ["adamw", "lp-sgd", "lion"])
@pytest.mark.parametrize("scale_decay", [True, False])
def test_decoupled_decay_takes_the_scalar_or_not(name: str, scale_decay: bool) -> None:
    """Under zero gradients a step is its decay alone."""
    params = two_params()
    optimizer = RandomScaling(RULES[name](params), scale_decay=scale_decay)
    for param in params:
        param.grad = torch.zeros_like(param)
    expected = two_params()
    for _ in range(3):
        optimizer.step()
        factor = 1 - 0.1 * optimizer.param_groups[0]["weight_decay"] * (optimizer.last_scale if scale_decay else 1)
        expected = [param * factor for param in expected]
        torch.testing.assert_close(params, expected, rtol=1e-14, atol=0)
    assert optimizer.param_groups[0]["weight_decay"] in (0.1, 0.01)


def test_coupled_decay_cannot_be_left_out() -> None:
    message = "scale_decay = False: weight decay in {} is not decoupled, so it must be 0"
    for wrapped in (SGD(two_params(), 0.1, weight_decay=0.1), torch.optim.Adam(two_params(), 0.1, weight_decay=0.1)):
        with pytest.raises(ValueError, match=message.format(type(wrapped).__name__)):
            RandomScaling(wrapped, scale_decay=False)
    optimizer = RandomScaling(SGD(two_params(), 0.1), scale_decay=False)
    with pytest.raises(ValueError, match=message.format("SGD")):
        optimizer.add_param_group({"params": [torch.ones(1)], "weight_decay": 0.1})
    assert len(optimizer.param_groups) == 1
    take_step(optimizer, 0)
    # a schedule's value, before anything is drawn or moved
    optimizer.param_groups[0]["weight_decay"] = 0.1
    before = values(optimizer), optimizer.generator.get_state()
    with pytest.raises(ValueError, match=message.format("SGD")):
        take_step(optimizer, 1)
    assert all(map(torch.equal, values(optimizer), before[0])) and optimizer.next_step == 1
    assert torch.equal(optimizer.generator.get_state(), before[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"law": "normal"}, "law = 'normal': must be one of none, exponential, uniform, gamma"),
        ({"shape": 0.0}, "shape = 0.0: must be above 0 and finite"),
        ({"shape": math.nan}, "shape = nan: must be above 0 and finite"),
        ({"num_active_steps": -1}, "num_active_steps = -1: must be at least 0"),
    ],
)
def test_bad_settings_are_refused_by_message(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RandomScaling(SGD(two_params(), 0.1), **settings)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "one-cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=12),
    "cosine": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=10),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
}


@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_torch_scheduler_drives_it_as_it_drives_the_wrapped_optimizer(name: str, tensor_lr: bool) -> None:
    lrs = [torch.tensor(0.1, dtype=torch.float64) if tensor_lr else 0.1 for _ in range(2)]
    plain, wrapped = (SGD(two_params(), lr, momentum=0.9) for lr in lrs)
    scaled = RandomScaling(wrapped)
    schedulers = SCHEDULERS[name](plain), SCHEDULERS[name](scaled)
    paths: tuple[list[Any], list[Any]] = [], []
    for step in range(10):
        for optimizer, scheduler, path in zip((plain, scaled), schedulers, paths, strict=True):
            take_step(optimizer, step)
            scheduler.step(*([1.0] if name == "plateau" else []))
            path.append([(float(group["lr"]), group["momentum"]) for group in optimizer.param_groups])
    assert paths[0] == paths[1] and len({lr for ((lr, _),) in paths[0]}) > 1


@pytest.mark.parametrize("make", [RULES["sgd"], lambda params: AdamW(params, 0.1, fused=True)], ids=["sgd", "fused"])
def test_a_step_that_the_gradient_scaler_skips_draws_nothing(make: Make) -> None:
    plain, scaled = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizers = [RandomScaling(make([theta])) for theta in (plain, scaled)]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    weights = torch.tensor([1.0, -2.0, 0.5])
    for overflow in (False, True, False, True):
        if not overflow:
            optimizers[0].zero_grad()
            (plain * weights).sum().backward()
            optimizers[0].step()
        optimizers[1].zero_grad()
        scaler.scale((scaled * weights * (math.inf if overflow else 1.0)).sum()).backward()
        scaler.step(optimizers[1])
        scaler.update()
        assert torch.equal(scaled, plain)
        assert optimizers[0].state_dict()["random_scaling"]["next_step"] == optimizers[1].next_step
        assert torch.equal(optimizers[0].generator.get_state(), optimizers[1].generator.get_state())
    assert scaler.get_scale() == 2.0**8


def reloaded(optimizer: RandomScaling) -> RandomScaling:
    """A new one of other settings over copies of the parameters, with the state dict through a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    new = RandomScaling(SGD(values(optimizer), lr=7.0), "uniform", shape=9.0, seed=5)
    new.load_state_dict(torch.load(file, weights_only=True))
    return new


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing)), reloaded])
def test_a_copied_optimizer_goes_on_with_the_same_bits(copy_of: Callable[[RandomScaling], RandomScaling]) -> None:
    optimizer = RandomScaling(RULES["sgd"](two_params()), "gamma", shape=0.7, num_active_steps=7)
    # replaces the step by one of the scheduler's, which is not to be copied
    lr_scheduler.StepLR(optimizer, step_size=1)
    for step in range(5):
        take_step(optimizer, step)
    twin = copy_of(optimizer)
    for step in range(5, 10):
        for each in (optimizer, twin):
            take_step(each, step)
        assert twin.last_scale == optimizer.last_scale and (twin.last_scale == 1) == (step >= 7)
    assert all(map(torch.equal, values(twin), values(optimizer)))
    assert values(twin)[0] is not values(optimizer)[0] and twin.next_step == 10
    twin.load_state_dict(optimizer.state_dict())


def test_a_state_without_a_generator_is_refused_and_the_wrapped_takes_either() -> None:
    plain, scaled = SGD(two_params(), 0.1), RandomScaling(SGD(two_params(), 0.2))
    with pytest.raises(ValueError, match="no 'random_scaling': load it into the wrapped optimizer"):
        scaled.load_state_dict(plain.state_dict())
    plain.load_state_dict(scaled.state_dict())
    assert plain.param_groups[0]["lr"] == 0.2


def test_a_step_sought_again_is_the_same_step() -> None:
    optimizer = RandomScaling(SGD(two_params(), 0.1), num_active_steps=2)
    maps = []
    for step, seed in ((0, 11), (1, 12), (2, 13), (1, 12), (0, 11), (0, 12)):
        optimizer.seek(step, seed)
        take_step(optimizer, step)
        maps.append(optimizer.last_scale)
        assert optimizer.next_step == step + 1
    assert maps[:2] == maps[4:2:-1] and maps[5] == maps[1] != maps[0] and maps[2] == 1.0


def test_workers_with_one_seed_draw_the_same_scalars_whatever_else_is_drawn() -> None:
    params = two_params(), two_params()[:1]
    workers = [RandomScaling(SGD(own, 0.1), seed=4) for own in params]
    other = RandomScaling(SGD(two_params(), 0.1), seed=5)
    for step in range(3):
        torch.rand(step)
        for optimizer in (*workers, other):
            take_step(optimizer, step)
        assert workers[0].last_scale == workers[1].last_scale != other.last_scale


def test_all_groups_have_the_same_scalar_and_one_can_be_added() -> None:
    params = two_params()
    optimizer = RandomScaling(SGD([params[0]], 0.5))
    optimizer.add_param_group({"params": [params[1]], "lr": 0.25})
    for param in params:
        param.grad = -torch.ones_like(param)
    optimizer.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
    for param, start, lr in zip(params, two_params(), (0.5, 0.25), strict=True):
        torch.testing.assert_close(param - start, torch.full_like(param, lr * optimizer.last_scale))


def test_it_shares_everything_with_the_wrapped_optimizer_also_after_loading() -> None:
    wrapped = SGD(two_params(), 0.1, momentum=0.9)
    optimizer = RandomScaling(wrapped)
    take_step(optimizer, 0)
    wrapped.load_state_dict(wrapped.state_dict())
    assert optimizer.param_groups is wrapped.param_groups and optimizer.state is wrapped.state
    assert optimizer.defaults is wrapped.defaults
    optimizer.zero_grad()
    assert all(param.grad is None for param in wrapped.param_groups[0]["params"])
    assert isinstance(optimizer, Optimizer) and repr(wrapped) in repr(optimizer) and "exponential" in repr(optimizer)


def test_hooks_are_called_once() -> None:
    optimizer = RandomScaling(SGD(two_params(), 0.1))
    calls: list[str] = []
    for kind, target in (("outer", optimizer), ("wrapped", optimizer.optimizer)):
        target.register_step_pre_hook(lambda *_, kind=kind: calls.append(f"{kind} before"))
        target.register_step_post_hook(lambda *_, kind=kind: calls.append(f"{kind} after"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("loaded"))
    take_step(optimizer, 0)
    assert calls == ["outer before", "wrapped before", "wrapped after", "outer after"]
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls[4:] == ["saved", "loaded"]


def test_learning_rates_are_put_back_when_a_step_raises() -> None:
    optimizer = RandomScaling(LPSGD(two_params(), 0.1, weight_decay=0.3), scale_decay=False)
    optimizer.param_groups[0]["p"] = 1.0
    with pytest.raises(ValueError, match=r"p = 1\.0"):
        take_step(optimizer, 0)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]) == (0.1, 0.3)
    assert optimizer.last_scale != 1.0


def test_step_returns_the_loss_of_its_closure() -> None:
    theta = torch.nn.Parameter(torch.tensor(3.0))
    optimizer = RandomScaling(SGD([theta], 0.5))

    def closure() -> float:
        optimizer.zero_grad()
        loss = theta.square() / 2
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.5
    assert theta.item() == pytest.approx(3 - 0.5 * optimizer.last_scale * 3)
    assert optimizer.step() is None
