"""Time of step() on ResNet-18's parameters: torch's SGD and AdamW against LPSGD, Lion and random scaling.

All have the same float32 gradients and their usual weight decay.  They take turns in one process, on one thread of a
CPU.  A turn is the mean over several steps; on a GPU it ends with a synchronization.  LPSGD has momentum.
RandomScaling is also compared with the optimizer that it wraps.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.optimizer import Optimizer
from torchvision.models import resnet18

from benchmarks.recording import conditions, parser, record, show, spread
from tuner.optimizers.lion import Lion
from tuner.optimizers.lp_sgd import LPSGD, Scale, Scope
from tuner.optimizers.random_scaling import RandomScaling

SGD_FOREACH, REFERENCE, LP_SGD = "SGD, foreach", "AdamW, foreach", "LPSGD, p = 6"
Parameters = list[nn.Parameter]


def sgd(parameters: Parameters) -> Optimizer:
    """SGD in torch's foreach form, which torch does not choose by itself on a CPU."""
    return SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4, foreach=True)


def lp_sgd(parameters: Parameters, p: float, scope: Scope | None = None) -> Optimizer:
    """LPSGD with momentum; if a scope is given, with ``scale="rms"``."""
    scale: Scale = "rms" if scope else "none"
    return LPSGD(parameters, lr=1e-3, p=p, momentum=0.9, weight_decay=1e-2, scale=scale, scope=scope or "tensor")


OPTIMIZERS: dict[str, Callable[[Parameters], Optimizer]] = {
    SGD_FOREACH: sgd,
    "SGD, fused": lambda parameters: SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True),
    REFERENCE: lambda parameters: AdamW(parameters, lr=1e-3, weight_decay=1e-2, foreach=True),
    "AdamW, fused": lambda parameters: AdamW(parameters, lr=1e-3, weight_decay=1e-2, fused=True),
    "Lion": lambda parameters: Lion(parameters, lr=1e-4, weight_decay=1e-2),
    "LPSGD, p = 2": lambda parameters: lp_sgd(parameters, 2),
    LP_SGD: lambda parameters: lp_sgd(parameters, 6),
    "LPSGD, p = 6, rms": lambda parameters: lp_sgd(parameters, 6, "tensor"),
    "LPSGD, p = 6, rms, global": lambda parameters: lp_sgd(parameters, 6, "global"),
    f"RandomScaling({SGD_FOREACH})": lambda parameters: RandomScaling(sgd(parameters)),
    f"RandomScaling({LP_SGD})": lambda parameters: RandomScaling(lp_sgd(parameters, 6)),
}
WRAPPED = {f"RandomScaling({name})": name for name in (SGD_FOREACH, LP_SGD)}


def parameters_with_gradients(device: torch.device) -> Parameters:
    """The parameters of ResNet-18 for 10 classes, with gradients of the order of a real network's."""
    torch.manual_seed(0)
    parameters = list(resnet18(num_classes=10).to(device, memory_format=torch.channels_last).parameters())
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return parameters


def turn(optimizer: Optimizer, steps: int, device: torch.device) -> float:
    """Mean milliseconds per step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started) / steps


def ratio_of(times: list[float], others: list[float]) -> float:
    """Median over the turns of the ratio of two times."""
    return statistics.median(own / other for own, other in zip(times, others, strict=True))


def main() -> None:
    """Times all optimizers and prints the table."""
    options = parser(__doc__, "optimizer_step")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--repeats", type=int, default=15, help="turns of each optimizer")
    options.add_argument("--steps", type=int, default=10, help="steps per turn")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    before, device = conditions(chosen.device), torch.device(chosen.device)
    optimizers = {name: make(parameters_with_gradients(device)) for name, make in OPTIMIZERS.items()}
    for optimizer in optimizers.values():
        turn(optimizer, 3, device)
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for first in range(chosen.repeats):
        for name in itertools.islice(itertools.cycle(optimizers), first, first + len(optimizers)):
            times[name].append(turn(optimizers[name], chosen.steps, device))
    ratio = {name: ratio_of(times[name], times[REFERENCE]) for name in times}
    wrapped = {name: ratio_of(times[name], times[WRAPPED[name]]) for name in WRAPPED}
    num_parameters = sum(parameter.numel() for parameter in optimizers[REFERENCE].param_groups[0]["params"])
    show(
        f"step() on ResNet-18's {num_parameters / 1e6:.1f} million parameters, {chosen.device}",
        ["", "milliseconds", f"over {REFERENCE}", "over what it wraps"],
        [
            [name, spread(values), f"{ratio[name]:.2f}", f"{wrapped[name]:.2f}" if name in wrapped else ""]
            for name, values in times.items()
        ],
    )
    record(chosen.out, before, {"milliseconds": times, f"over {REFERENCE}": ratio, "over what it wraps": wrapped})


if __name__ == "__main__":
    main()
