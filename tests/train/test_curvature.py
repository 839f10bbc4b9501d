from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from tuner.train.curvature import Curvature, estimate_curvature
from tuner.workloads.resnet import Block, ResNet

SIZE = 24
INDEFINITE = torch.linspace(-2, 3, SIZE, dtype=torch.float64)
SPECTRA = {
    "positive": torch.linspace(0.1, 3, SIZE),
    "positive dominant": INDEFINITE,
    "negative dominant": torch.linspace(-10, 3, SIZE),
    "ends of one modulus": torch.tensor([-3.0, 3.0] + [0.0] * (SIZE - 2)),
    "nearly of one modulus": torch.tensor([-2.99, 3.0] + [1.0] * (SIZE - 2)),
    "negative": torch.linspace(-3, -1, SIZE),
    "multiple of -I": torch.full((SIZE,), -2.0),
    "rank one": torch.tensor([3.0] + [0.0] * (SIZE - 1)),
    "rank one, negative": torch.tensor([-3.0] + [0.0] * (SIZE - 1)),
    "zero": torch.zeros(SIZE),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def derivatives(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each derivative that is taken."""
    taken: list[int] = []
    grad = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        taken.append(1)
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    return taken


def symmetric(eigenvalues: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    basis, _ = torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator))
    h: Tensor = basis * eigenvalues @ basis.T
    return h.to(dtype)


def quadratic(h: Tensor) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """x^T H x / 2 + sum x with x in two parameters, away from 0."""
    parameters = [torch.ones(4, 2, dtype=h.dtype), torch.full((SIZE - 8,), 2.0, dtype=h.dtype)]
    for parameter in parameters:
        parameter.requires_grad_()

    def loss() -> Tensor:
        x = torch.cat([parameter.flatten() for parameter in parameters])
        value: Tensor = x @ h @ x / 2 + x.sum()
        return value

    return loss, parameters


def estimate(loss: Callable[[], Tensor], parameters: Sequence[Tensor], *, seed: int = 0, **settings: Any) -> Curvature:
    curvature = estimate_curvature(loss, parameters, seed=seed, **settings)
    assert curvature is not None
    return curvature


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_top_is_the_largest_eigenvalue_whatever_the_others_are(name: str, dtype: torch.dtype) -> None:
    eigenvalues = SPECTRA[name].double()
    largest, rounding = float(eigenvalues.max()), 30 * torch.finfo(dtype).eps
    for seed in range(3):
        curvature = estimate(*quadratic(symmetric(eigenvalues, dtype)), seed=seed, max_iterations=300)
        assert curvature.top == pytest.approx(largest, rel=1e-2, abs=rounding)
        assert curvature.top <= largest + rounding
        assert curvature.residual <= 1e-2 * abs(curvature.top) + rounding
        assert float((eigenvalues - curvature.top).abs().min()) <= curvature.residual + rounding


def test_a_smaller_tolerance_takes_longer_and_comes_closer() -> None:
    loss, parameters = quadratic(symmetric(SPECTRA["positive"]))
    rough, fine = (estimate(loss, parameters, tolerance=tolerance, max_iterations=2000) for tolerance in (1e-1, 1e-6))
    assert rough.num_products < fine.num_products
    assert rough.top < fine.top == pytest.approx(3, rel=1e-10)


def test_products_are_counted_and_bounded(derivatives: list[int]) -> None:
    curvature = estimate(*quadratic(symmetric(INDEFINITE)), max_iterations=3, num_probes=5)
    assert curvature.residual > 1e-2 * curvature.top
    # one more for the gradient itself
    assert curvature.num_products == len(derivatives) - 1 == 5 + 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_ends_where_no_direction_is_new(dtype: torch.dtype) -> None:
    """Three distinct eigenvalues span three directions; what comes after them is rounding, and may be anything."""
    h = symmetric(torch.tensor([-3.0, -2.0] + [0.0] * (SIZE - 2), dtype=torch.float64), dtype)
    for seed in range(5):
        curvature = estimate(*quadratic(h), seed=seed, tolerance=1e-12, num_probes=1)
        assert curvature.num_products <= 1 + 4 and curvature.top == pytest.approx(0, abs=1e-5)


def test_squares_beyond_float32_do_no_harm() -> None:
    x = torch.zeros(3, requires_grad=True)
    scales = torch.tensor([1e12, 2e12, 1e12])
    assert estimate(lambda: (scales * x).square().sum(), [x]).top == pytest.approx(8e24, rel=1e-2)


def test_mean_of_a_diagonal_hessian_is_exact_with_one_probe() -> None:
    loss, parameters = quadratic(torch.diag(INDEFINITE))
    assert estimate(loss, parameters, num_probes=1).mean == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("num_probes", [1, 4])
def test_mean_is_unbiased_and_spreads_as_hutchinson_says(num_probes: int) -> None:
    h = symmetric(INDEFINITE)
    loss, parameters = quadratic(h)
    num_seeds = 500
    once = {"num_probes": num_probes, "max_iterations": 1}
    means = torch.tensor([estimate(loss, parameters, seed=seed, **once).mean for seed in range(num_seeds)])
    variance = float(2 * (h.square().sum() - h.diagonal().square().sum())) / (num_probes * SIZE**2)
    assert abs(float(means.mean()) - 0.5) < 4 * math.sqrt(variance / num_seeds)
    # the variance of a variance is about 2/n of its square
    assert float(means.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / num_seeds))


def small_network(kind: str) -> nn.Module:
    torch.manual_seed(3)
    if kind == "perceptron":
        network = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Tanh(), nn.Linear(5, 3))
    else:
        network = nn.Sequential(Block(1, 2, 2), nn.Flatten(), nn.Linear(18, 3))
    return network.double().to(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", ["perceptron", "residual block"])
def test_agrees_with_the_whole_hessian_of_a_network(kind: str) -> None:
    network = small_network(kind)
    images, labels = torch.randn(12, 1, 6, 6, dtype=torch.float64), torch.arange(12) % 3
    parameters = dict(network.named_parameters())

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([parameter.numel() for parameter in parameters.values()])
        values = {name: part.view_as(parameters[name]) for name, part in zip(parameters, parts, strict=True)}
        return cross_entropy(functional_call(network, values, (images,)), labels)

    whole = hessian(loss, torch.cat([parameter.detach().reshape(-1) for parameter in parameters.values()]))
    eigenvalues = torch.linalg.eigvalsh(whole)
    assert eigenvalues[0] < -1e-3 < 1e-3 < eigenvalues[-1]
    curvature = estimate(
        lambda: cross_entropy(network(images), labels), list(network.parameters()), tolerance=1e-4, max_iterations=5000
    )
    assert curvature.top == pytest.approx(float(eigenvalues[-1]), rel=1e-6)
    spread = math.sqrt(2 * float(whole.square().sum() - whole.diagonal().square().sum()) / 4) / len(whole)
    assert abs(curvature.mean - float(eigenvalues.mean())) < 4 * spread


def test_a_seed_gives_the_same_bits_and_another_seed_others() -> None:
    torch.manual_seed(0)
    network = ResNet(8, num_classes=10, channels=1)
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)

    def curvature(seed: int) -> Curvature:
        settings = {"seed": seed, "num_probes": 2, "max_iterations": 8}
        return estimate(lambda: cross_entropy(network(images), labels), list(network.parameters()), **settings)

    first = curvature(1)
    torch.rand(5)
    assert curvature(1) == first
    other = curvature(2)
    assert other.mean != first.mean and other.top != first.top


def test_nothing_changes_but_what_one_call_of_the_loss_changes() -> None:
    torch.manual_seed(0)
    network = ResNet(8, num_classes=10, channels=1)
    images, labels = torch.randn(8, 1, 8, 8), torch.arange(8)
    parameters = list(network.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    before = [parameter.detach().clone() for parameter in parameters]
    generator = torch.get_rng_state()
    with torch.no_grad():
        estimate(lambda: cross_entropy(network(images), labels), parameters, num_probes=1, max_iterations=3)
    assert all(map(torch.equal, parameters, before))
    assert torch.equal(torch.get_rng_state(), generator)
    assert parameters[0].grad is not None and bool((parameters[0].grad == 1).all())
    assert all(parameter.grad is None for parameter in parameters[1:])
    assert network.norm.num_batches_tracked == 1


def test_parameters_without_curvature_count_as_zeros() -> None:
    used, linear, unused = (torch.ones(2, requires_grad=True) for _ in range(3))
    curvature = estimate(lambda: 3 * used.square().sum() + linear.sum(), [linear, used, unused])
    assert curvature.top == pytest.approx(6, rel=1e-6) and curvature.mean == pytest.approx(2, rel=1e-6)
    flat = estimate(linear.sum, [linear, unused])
    assert (flat.top, flat.mean, flat.residual) == (0, 0, 0)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: x.sum() * math.nan,
        lambda x: x.square().sum() + math.inf,
        lambda x: x.square().sum() + math.nan,
        lambda x: x.sqrt().sum(),
        lambda x: x.abs().pow(1.5).sum(),
        lambda x: ((1 + x).square() * torch.tensor([1.0, 1e38, 1.0])).sum() * 3,
        lambda x: (1e19 * x).sum().square(),
    ],
)
def test_what_is_not_finite_gives_none_and_soon(loss: Callable[[Tensor], Tensor], derivatives: list[int]) -> None:
    x = torch.zeros(3, requires_grad=True)
    assert estimate_curvature(lambda: loss(x), [x], seed=0) is None
    assert len(derivatives) < 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_iterations": 0}, "max_iterations = 0: must be at least 1"),
        ({"num_probes": 0}, "num_probes = 0: must be at least 1"),
        ({"tolerance": 0.0}, "tolerance = 0.0: must be above 0 and finite"),
        ({"tolerance": math.nan}, "tolerance = nan: must be above 0 and finite"),
    ],
)
def test_bad_settings_are_refused_by_message(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_curvature(*quadratic(symmetric(SPECTRA["zero"])), seed=0, **settings)
