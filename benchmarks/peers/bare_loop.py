"""A training loop in plain PyTorch, as a careful person writes it, on the same data and model as ours.

Run as a program, it trains one network after another in one process: the floor under any search's wall time.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.optimizer import Optimizer

from search_spaces import SPACES
from tuner.core.serialization import with_settings
from tuner.core.trial_spec import OptimizerSpec, WorkloadSpec
from tuner.optimizers.rules import make_optimizer
from tuner.order import shuffled_batches
from tuner.workloads.data import Data, load_data
from tuner.workloads.models import build_model

CPU = torch.device("cpu")


def new_model(data: Data, workload: WorkloadSpec, device: torch.device, seed: int) -> nn.Module:
    """The workload's model on the device, in channels_last."""
    torch.manual_seed(seed)
    model = build_model(workload, **data.model_arguments)
    return model.to(device)


def train_epoch(
    model: nn.Module, optimizer: Optimizer, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> float:
    """One pass over batches of images (B, C, S, S) and labels (B,); returns the mean loss of the batches."""
    model.train()
    total_loss, num_steps = torch.zeros((), device=device), 0
    for images, labels in batches:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            loss = cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total_loss += loss.detach()
        num_steps += 1
    return total_loss.item() / num_steps


def accuracy(model: nn.Module, data: Data, split: str) -> float:
    """Share of a split's images that the model gets right."""
    model.eval()
    with torch.inference_mode():
        num_correct = sum(
            int((model(images).argmax(1) == labels).sum()) for images, labels in data.evaluation_batches(split)
        )
    return num_correct / data.sizes[split]


def train_digits(optimizer_spec: OptimizerSpec, *, seed: int, epochs: int = 1) -> float:
    """Trains ResNet-8 on the digits in batches of 64 on one CPU; returns the validation accuracy at the end.

    Settings are constant over the training.
    """
    workload = WorkloadSpec()
    data = load_data(workload, CPU)
    model = new_model(data, workload, CPU, seed)
    optimizer = make_optimizer(model.parameters(), optimizer_spec)
    for epoch in range(epochs):
        batches = shuffled_batches(data.sizes["train"], workload.batch_size, seed=seed, epoch=epoch)
        train_epoch(model, optimizer, data.train_batches(batches), CPU)
    return accuracy(model, data, "validation")


def sgd(lr: float, momentum: float, weight_decay: float) -> OptimizerSpec:
    """torch.optim.SGD with these settings."""
    return with_settings(
        OptimizerSpec(),
        {"rule": "sgd", "lr.peak": lr, "momentum.value": momentum, "decay.weight": weight_decay},
    )


def main() -> None:
    """Trains as many networks as asked for, with the variants' default settings in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variants", nargs="+", default=["sgdm"], choices=list(SPACES), help="taken in turn")
    parser.add_argument("--trainings", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed, name in zip(range(options.trainings), itertools.cycle(options.variants), strict=False):
        variant = SPACES[name]
        spec = with_settings(OptimizerSpec(), {**variant.fixed, **variant.default})
        print(f"{name} {train_digits(spec, seed=seed, epochs=options.epochs):.4f}")


if __name__ == "__main__":
    main()
