"""Trains one network: ``for metrics in train(spec): ...``.

Pure PyTorch.  A training interrupted after any epoch and continued from its checkpoint gives the same weights and
metrics, seconds apart, bit for bit on a CPU: batches, augmentation and dropout are seeded by position, so the weights,
the optimizer's state and the history are all there is to keep.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pickle
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tuner.convergence import is_over
from tuner.errors import InvalidInput
from tuner.optimizers import make_optimizer, set_knobs
from tuner.order import shuffled_batches
from tuner.schedules import critical_momentum, learning_rate, norm_exponent
from tuner.settings import digest, from_dict
from tuner.spec import EpochMetrics, OptimizerSpec, TrialSpec
from tuner.workloads.data import Images, load_data
from tuner.workloads.models import build_model

CHECKPOINT_FORMAT = 1
CUDA_CHECK_INTERVAL = 16
"""Steps between two looks at the loss on a GPU, where each look waits for the device."""


def train(
    spec: TrialSpec, *, checkpoint: Path | None = None, device: torch.device | None = None
) -> Iterator[EpochMetrics]:
    """Yields the metrics of each epoch, up to the budget, a divergence, or the highest target if asked.

    With ``checkpoint``, everything needed to continue is written there before an epoch is yielded; where the file
    exists already, its epochs are yielded again and the training goes on after them.  A file that cannot be read is
    taken as absent: the numbers come out the same.  Seeds torch's global generators.

    Raises :class:`InvalidInput` for a workload that cannot be loaded and for a checkpoint of another spec.
    """
    training = Training(spec, device or torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    history = training.restore(checkpoint) if checkpoint else []
    yield from history
    while not is_over(spec, history):
        history.append(training.run_epoch(history[-1] if history else None))
        if checkpoint:
            training.save(checkpoint, history)
        yield history[-1]


def knobs_at(spec: OptimizerSpec, step: int, num_steps: int, epochs: int) -> tuple[float, float, float]:
    """Learning rate, momentum and p of a step counted from 0; the momentum follows the learning rate."""
    lr = learning_rate(
        step, num_steps, peak=spec.lr.peak, schedule=spec.lr.schedule, warmup=spec.lr.warmup, end=spec.lr.end
    )
    momentum = spec.momentum.value
    if spec.momentum.schedule == "critical":
        momentum = critical_momentum(
            lr,
            zeta=spec.momentum.zeta,
            form=spec.momentum.form,
            floor=spec.momentum.floor,
            cap=spec.momentum.cap,
        )
    position, length = (step, num_steps) if spec.norm.interval == "step" else (step * epochs // num_steps, epochs)
    p = norm_exponent(
        position,
        length,
        p_max=spec.norm.p_max,
        p_end=spec.norm.p_end,
        shape=spec.norm.shape,
        hold=spec.norm.hold,
        variable=spec.norm.variable,
    )
    return lr, momentum, p


# A worker trains many trials on the same data.
_load_data = functools.lru_cache(maxsize=1)(load_data)


class Training:
    """The state of one training: weights, optimizer, position."""

    def __init__(self, spec: TrialSpec, device: torch.device) -> None:
        self.spec = spec
        self.device = device
        self.data: Images = _load_data(spec.workload, device)
        self.steps_per_epoch = self.data.sizes["train"] // spec.workload.batch_size
        self.num_steps = self.steps_per_epoch * spec.epochs
        self.dtype = torch.float64 if spec.precision == "float64" else torch.float32
        torch.manual_seed(spec.seed)
        model = build_model(
            spec.workload,
            num_classes=self.data.num_classes,
            channels=self.data.channels,
            image_size=self.data.image_size,
        )
        self.model: nn.Module = model.to(device=device, dtype=self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.model.parameters(), spec.optimizer)
        self.forward = torch.compile(self.model) if spec.compile else self.model
        self.unreported_compile_seconds = self._warm_up() if spec.compile or device.type == "cuda" else 0.0
        self.steps_done = 0

    def run_epoch(self, before: EpochMetrics | None) -> EpochMetrics:
        """Trains one epoch and evaluates on the validation split."""
        epoch = before.epoch if before else 0
        started, loading = time.perf_counter(), self.data.loading_seconds
        train_loss, train_accuracy, diverged, knobs = self._train_epoch(epoch)
        trained, loading = time.perf_counter(), self.data.loading_seconds - loading
        validation_loss, validation_accuracy = self.evaluate("validation")
        evaluated = time.perf_counter()
        compile_seconds, self.unreported_compile_seconds = self.unreported_compile_seconds, 0.0
        num_images = (self.steps_done - epoch * self.steps_per_epoch) * self.spec.workload.batch_size
        return EpochMetrics(
            epoch=epoch + 1,
            gradient_evaluations=self.steps_done,
            steps=self.steps_done,
            budget=self.num_steps,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            lr=knobs[0],
            momentum=knobs[1],
            p=knobs[2],
            seconds=(before.seconds if before else 0.0) + trained - started,
            evaluation_seconds=(before.evaluation_seconds if before else 0.0) + evaluated - trained,
            compile_seconds=(before.compile_seconds if before else 0.0) + compile_seconds,
            loading_seconds=(before.loading_seconds if before else 0.0) + loading,
            images_per_second=num_images / (trained - started),
            diverged=diverged or math.isinf(validation_loss),
            finished_at=time.time(),
        )

    def _train_epoch(self, epoch: int) -> tuple[float, float, bool, tuple[float, float, float]]:
        self.model.train()
        batches = shuffled_batches(
            self.data.sizes["train"], self.spec.workload.batch_size, seed=self.spec.seed, epoch=epoch
        )
        losses: list[Tensor] = []
        num_correct: list[Tensor] = []
        check_interval = 1 if self.device.type == "cpu" else CUDA_CHECK_INTERVAL
        knobs = (0.0, 0.0, 0.0)
        for batch, (images, labels) in zip(batches, self.data.train_batches(batches), strict=True):
            knobs = knobs_at(self.spec.optimizer, self.steps_done, self.num_steps, self.spec.epochs)
            set_knobs(self.optimizer, lr=knobs[0], momentum=knobs[1], p=knobs[2])
            self._seed(batch.seed)
            with self._autocast():
                logits = self.forward(images.to(self.dtype))
                loss = cross_entropy(logits, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            self.steps_done += 1
            losses.append(loss.detach())
            num_correct.append((logits.detach().argmax(1) == labels).sum())
            if len(losses) % check_interval == 0 and self._is_divergent(losses[-check_interval:]):
                break
        # All batches are of one size, so the mean over them is the mean over the images.
        accuracy = float(torch.stack(num_correct).sum()) / (len(losses) * self.spec.workload.batch_size)
        diverged = self._is_divergent(losses)
        mean_loss = math.inf if diverged else float(torch.stack(losses).double().mean())
        return mean_loss, accuracy, diverged, knobs

    def _seed(self, seed: int) -> None:
        # torch.manual_seed asks every kind of device there might be, at each step.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _is_divergent(self, losses: list[Tensor]) -> bool:
        # Not "above": a comparison with NaN, which max() hands on, is false.
        return not float(torch.stack(losses).max()) <= self.spec.max_loss

    def evaluate(self, split: str) -> tuple[float, float]:
        """Mean loss (inf where it is not finite) and accuracy over a whole split, in evaluation mode."""
        self.model.eval()
        total_loss = torch.zeros((), dtype=torch.float64, device=self.device)
        total_correct = torch.zeros((), dtype=torch.int64, device=self.device)
        with torch.inference_mode():
            for images, labels in self.data.evaluation_batches(split):
                with self._autocast():
                    logits = self.forward(images.to(self.dtype))
                total_loss += cross_entropy(logits.to(self.dtype), labels, reduction="sum")
                total_correct += (logits.argmax(1) == labels).sum()
        size = self.data.sizes[split]
        mean_loss = float(total_loss) / size
        return mean_loss if math.isfinite(mean_loss) else math.inf, float(total_correct) / size

    def save(self, path: Path, history: list[EpochMetrics]) -> None:
        """Writes the checkpoint beside its place and then moves it there, so that a kill leaves the old or the new."""
        content = {
            "format": CHECKPOINT_FORMAT,
            "spec": digest(self.spec),
            "history": [dataclasses.asdict(metrics) for metrics in history],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        # A worker that outlives its driver may still write while the next one does.
        draft = path.with_name(f"{path.name}.{os.getpid()}.new")
        torch.save(content, draft)
        draft.replace(path)

    def restore(self, path: Path) -> list[EpochMetrics]:
        """Takes up the state of a checkpoint and returns the epochs it holds; none where there is no readable file."""
        try:
            content: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError):
            return []
        if content.get("format") != CHECKPOINT_FORMAT or content.get("spec") != digest(self.spec):
            raise InvalidInput(f"{path} is the checkpoint of another training")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        history = [from_dict(EpochMetrics, metrics) for metrics in content["history"]]
        self.steps_done = history[-1].gradient_evaluations
        return history

    def _autocast(self) -> AbstractContextManager[None]:
        bfloat16 = self.spec.precision == "bfloat16" or (self.spec.precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext()

    def _warm_up(self) -> float:
        """Seconds to compile and load the kernels of a training and an evaluation step; leaves the state as it was."""
        started = time.perf_counter()
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        batch = shuffled_batches(self.data.sizes["train"], self.spec.workload.batch_size, seed=0, epoch=0)[:1]
        for images, labels in self.data.train_batches(batch):
            with self._autocast():
                cross_entropy(self.forward(images.to(self.dtype)), labels).backward()
        for parameter in self.model.parameters():
            parameter.grad = None
        self.evaluate("validation")
        for buffer, saved in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(saved)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started


if __name__ == "__main__":
    from tuner.train_command import main

    sys.exit(main())
