"""Trains one network: ``for metrics in train(spec): ...``.

It is pure PyTorch.  A training that is interrupted after any epoch and continued from its checkpoint gives the same
weights and metrics, bit for bit on a CPU; only measured seconds differ.  Batches, augmentation, dropout and random step
lengths are seeded by position.  So a checkpoint needs only the weights and buffers, their average, the optimizer's
state, the anchor of replays and the history.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tuner.core.damping import damping_ratio
from tuner.core.errors import InvalidInput
from tuner.core.metrics import EpochMetrics, is_finished
from tuner.core.serialization import digest, from_dict
from tuner.core.store import Store
from tuner.core.trial_spec import TrialSpec
from tuner.optimizers.hyperparameters import Hyperparameters, hyperparameters_at, switch_step
from tuner.order import Batch, Replay, last_iterate, legs, shuffled_batches
from tuner.train.checkpoints import Checkpoints
from tuner.train.critical_lr import cached_prediction
from tuner.train.data_parallel import SINGLE_PROCESS, Replicas
from tuner.train.final_weights import save_weights
from tuner.train.train_state import NORM_BATCHES, TrainState
from tuner.workloads.data import Data, cached_data

CUDA_CHECK_INTERVAL = 16
"""Steps between two checks of the loss on a GPU, where each check waits for the device."""


def train(
    spec: TrialSpec,
    *,
    store: Store | None = None,
    checkpoint_seconds: float | None = None,
    keep_weights: bool = False,
    device: torch.device | None = None,
    replicas: Replicas = SINGLE_PROCESS,
) -> Iterator[EpochMetrics]:
    """Yields the metrics of each evaluation.

    The training ends at the end of its budget, at a divergence or, with ``spec.stop_at_target``, at its highest target.
    Seeds torch's global generators.

    With ``store``, a checkpoint is written there before an epoch is yielded.  Two checkpoints are at least
    ``checkpoint_seconds`` apart; 0 writes one every epoch, and None lets them cost at most 5% of the time.  If the
    store has a checkpoint already, its epochs are yielded again and the training continues after them.  A checkpoint
    that cannot be read is ignored, which does not change the numbers.  With ``keep_weights``, the final weights are
    written to the store before the last metrics are yielded, unless the training diverged.

    With several ``replicas``, each calls this function in a process of its own.  All have to ask for the same number of
    epochs.  All yield the same numbers, except seconds and curvature.  Only rank 0 uses its store.

    Raises :class:`InvalidInput` for a workload that cannot be loaded and for a checkpoint of another spec, and
    :class:`StorageFailed` if the store stays unreachable.
    """
    training = Trainer(spec, device or torch.device("cuda" if torch.cuda.is_available() else "cpu"), replicas)
    store = store if replicas.rank == 0 else None
    checkpoints = store and Checkpoints(store, spec_digest=digest(spec), interval=checkpoint_seconds)
    if content := replicas.broadcast(checkpoints and checkpoints.newest()):
        training.restore(content)
    yield from training.history
    while not is_finished(spec, training.history):
        metrics = training.train_to_evaluation()
        if store and keep_weights and is_finished(spec, training.history) and not metrics.diverged:
            save_weights(training.network, store)
        if checkpoints and checkpoints.is_due():
            checkpoints.save(metrics.epoch, training.state())
        yield metrics


class Trainer:
    """A training and its state so far."""

    def __init__(self, spec: TrialSpec, device: torch.device, replicas: Replicas = SINGLE_PROCESS) -> None:
        """Raises :class:`InvalidInput` if a batch cannot be split into equal parts, one per replica."""
        if spec.workload.batch_size % replicas.world_size:
            raise InvalidInput(
                f"batch_size = {spec.workload.batch_size}: must be a multiple of {replicas.world_size} replicas"
            )
        self.spec = spec
        self.device = device
        self.replicas = replicas
        self.data: Data = cached_data(spec.workload, device)
        self.steps_per_epoch = self.data.sizes["train"] // spec.workload.batch_size
        order, lengths = spec.optimizer.order, {"num_epochs": spec.epochs, "steps_per_epoch": self.steps_per_epoch}
        self.num_steps = last_iterate(order, **lengths)
        """Number of the last iterate, which is the length of every schedule.  With replays it is below the budget."""
        self.network = TrainState(spec, self.data, device, num_steps=self.num_steps, replicas=replicas)
        self._legs = legs(order, **lengths)
        self.history: list[EpochMetrics] = []
        self.anchor: dict[str, Any] | None = None
        """The state from which replays start; None while the network itself is in that state."""
        warms_up = spec.compile or device.type == "cuda"
        self._unreported_compile_seconds = self.network.warm_up(next(self._batches(range(1)))) if warms_up else 0.0

    def train_to_evaluation(self) -> EpochMetrics:
        """Trains up to the next evaluation, evaluates on the validation split and adds to the history."""
        before = self.history[-1] if self.history else None
        critical_lr, predicting_seconds = (before.critical_lr, 0.0) if before else self._predicted_critical_lr()
        switch = switch_step(self.spec.optimizer, self.num_steps, self.history)
        started, loading = time.perf_counter(), self.data.loading_seconds
        losses: list[Tensor] = []
        scores: list[Tensor] = []
        if self.network.needs_closure:
            num_steps, spent = self._spend_epoch(before, switch, losses, scores)
            last = (before.gradient_evaluations if before else 0) + spent - 1  # the schedules' time counts gradients
            # A divergence may come before the epoch's worth of gradients is spent; no epoch is reported twice.
            epoch = max((last + 1) // self.steps_per_epoch, before.epoch + 1 if before else 1)
        else:
            leg = next(self._legs)
            num_steps, last = self._replay(leg, switch, losses, scores)
            epoch, spent = leg[-1].n // self.steps_per_epoch, len(losses)
        train_loss = self._mean_loss(losses)
        # All batches have the same size, so the mean over them is the mean over the samples.
        num_samples = len(losses) * self.spec.workload.batch_size
        train_accuracy = self.data.task.score(float(torch.stack(scores).sum()), num_samples)
        trained, loading = time.perf_counter(), self.data.loading_seconds - loading
        newest = self._batches(range(max(0, num_steps - NORM_BATCHES), num_steps))
        validation_loss, validation_accuracy = self.network.evaluate("validation", newest)
        evaluated = time.perf_counter()
        compile_seconds, self._unreported_compile_seconds = self._unreported_compile_seconds, 0.0
        hyperparameters = self._hyperparameters(last, switch)
        has_own_momentum = self.spec.optimizer.momentum.schedule == "own"
        metrics = EpochMetrics(
            epoch=epoch,
            gradient_evaluations=(before.gradient_evaluations if before else 0) + spent,
            steps=num_steps,
            budget=self.steps_per_epoch * self.spec.epochs,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            lr=hyperparameters.lr,
            momentum=self.network.momentum if has_own_momentum else hyperparameters.momentum,
            p=hyperparameters.p,
            seconds=(before.seconds if before else 0.0) + trained - started,
            evaluation_seconds=(before.evaluation_seconds if before else 0.0) + evaluated - trained,
            compile_seconds=(before.compile_seconds if before else 0.0) + compile_seconds,
            loading_seconds=(before.loading_seconds if before else 0.0) + loading,
            images_per_second=spent * self.spec.workload.batch_size / (trained - started),
            diverged=math.isinf(train_loss) or math.isinf(validation_loss),
            finished_at=time.time(),
            chance=self.data.chance,
            curvature_seconds=(before.curvature_seconds if before else 0.0) + predicting_seconds,
            critical_lr=critical_lr,
            lr_over_critical=critical_lr and self.spec.optimizer.lr.peak / critical_lr,
        )
        self.history.append(self._with_curvature(metrics, before))
        return self.history[-1]

    def _replay(
        self, leg: Sequence[Replay], switch: int | None, losses: list[Tensor], scores: list[Tensor]
    ) -> tuple[int, int]:
        """Takes the steps of a leg up to its evaluation.

        Returns the number of the iterate that was reached, and the number of the last step of its replay.
        """
        steps = self._load(itertools.chain.from_iterable(replay.numbers for replay in leg))
        for replay in leg:
            self._to_anchor(replay)
            num_applied = self._apply(itertools.islice(steps, len(replay.numbers)), switch, losses, scores)
            num_steps = replay.n - len(replay.numbers) + num_applied
            if num_applied < len(replay.numbers):
                break
        else:
            assert next(steps, None) is None  # ends the iterator, so that streamed data knows that all was read
        return num_steps, replay.n - 1

    def _spend_epoch(
        self, before: EpochMetrics | None, switch: int | None, losses: list[Tensor], scores: list[Tensor]
    ) -> tuple[int, int]:
        """Takes steps that compute several gradients each, up to the next whole epoch's worth of gradients.

        Returns the number of steps of the whole training so far, and the gradients computed here.  The last step may
        exceed the epoch's worth.
        """
        taken, start = (before.steps, before.gradient_evaluations) if before else (0, 0)
        left = self.steps_per_epoch - start % self.steps_per_epoch
        spent = 0
        for number, batch, (inputs, labels) in self._load(range(taken, taken + left)):
            taken = number + 1
            hyperparameters = self._hyperparameters(start + spent, switch)
            # Random scaling counts as the schedules do.
            loss, score, gradients = self.network.step(start + spent, batch, inputs, labels, hyperparameters)
            losses.append(loss)
            scores.append(score)
            spent += gradients
            if spent >= left or self._is_divergent(losses[-1:]):
                break
        return taken, spent

    def _to_anchor(self, replay: Replay) -> None:
        """Puts the network into a replay's first state; the anchor is copied only if it is needed again."""
        if self.anchor is not None:
            self.network.load(self.anchor)
        elif not replay.moves_anchor:
            self.anchor = self.network.frozen_state()
        if replay.moves_anchor:
            self.anchor = None

    def _apply(
        self,
        steps: Iterator[tuple[int, Batch, tuple[Tensor, Tensor]]],
        switch: int | None,
        losses: list[Tensor],
        scores: list[Tensor],
    ) -> int:
        """Takes the steps and adds their losses and scores to the lists.

        Returns the number of steps taken, which is smaller than that of ``steps`` after a divergence.
        """
        num_before = len(losses)
        check_interval = 1 if self.device.type == "cpu" else CUDA_CHECK_INTERVAL
        for number, batch, (inputs, labels) in steps:
            loss, score, _ = self.network.step(number, batch, inputs, labels, self._hyperparameters(number, switch))
            losses.append(loss)
            scores.append(score)
            if len(losses) % check_interval == 0 and self._is_divergent(losses[-check_interval:]):
                break
        return len(losses) - num_before

    def _load(self, numbers: Iterable[int]) -> Iterator[tuple[int, Batch, tuple[Tensor, Tensor]]]:
        """The numbers with their batches, inputs and labels; streamed data is read ahead."""
        ours, theirs, read_ahead = itertools.tee(numbers, 3)
        return zip(ours, self._batches(theirs), self.network.train_batches(self._batches(read_ahead)), strict=True)

    def _batches(self, numbers: Iterable[int]) -> Iterator[Batch]:
        """The batches of these numbers, in their order; numbers count from 0 over all epochs."""
        for epoch, group in itertools.groupby(numbers, lambda number: number // self.steps_per_epoch):
            batches = shuffled_batches(
                self.data.sizes["train"], self.spec.workload.batch_size, seed=self.spec.seed, epoch=epoch
            )
            for number in group:
                yield batches[number % self.steps_per_epoch]

    def _hyperparameters(self, number: int, switch: int | None) -> Hyperparameters:
        # A last step by closure may exceed the budget.
        number = min(number, self.num_steps - 1)
        return hyperparameters_at(self.spec.optimizer, number, self.num_steps, self.steps_per_epoch, switch)

    def _mean_loss(self, losses: list[Tensor]) -> float:
        return math.inf if self._is_divergent(losses) else float(torch.stack(losses).double().mean())

    def _is_divergent(self, losses: list[Tensor]) -> bool:
        # max() returns NaN if there is one, and a comparison with NaN is false: so "not <=" and not ">".
        return not float(torch.stack(losses).max()) <= self.spec.max_loss

    def _with_curvature(self, metrics: EpochMetrics, before: EpochMetrics | None) -> EpochMetrics:
        """The metrics with the newest curvature and its damping ratio, if the spec asks for them; on rank 0 only."""
        if not self.spec.curvature or metrics.diverged or self.replicas.rank > 0:
            return metrics
        top, mean = (before.curvature_top, before.curvature_mean) if before else (None, None)
        seconds = metrics.curvature_seconds
        if len(self.history) % self.spec.curvature == 0:
            started = time.perf_counter()
            estimate = self.network.curvature()
            top, mean = (estimate.top, estimate.mean) if estimate else (None, None)
            seconds += time.perf_counter() - started
        ratio = None
        if top is not None and self.spec.optimizer.rule == "sgd" and not self.spec.optimizer.momentum.nesterov:
            ratio = damping_ratio(metrics.lr, metrics.momentum, top + self.spec.optimizer.decay.weight)
        return dataclasses.replace(
            metrics, curvature_top=top, curvature_mean=mean, curvature_seconds=seconds, damping_ratio=ratio
        )

    def _predicted_critical_lr(self) -> tuple[float | None, float]:
        """The prediction at the first weights, if the spec asks for it, and the seconds it took; on rank 0 only."""
        if not self.spec.predict_critical_lr or self.replicas.rank > 0:
            return None, 0.0
        started, network, place = time.perf_counter(), self.network, (self.device, self.replicas.world_size)
        critical_lr = cached_prediction(self.spec, network.curvature, network.num_parameters, self.num_steps, place)
        return critical_lr, time.perf_counter() - started

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint needs; the tensors are the live ones."""
        return {
            "history": [dataclasses.asdict(metrics) for metrics in self.history],
            "state": self.network.state(),
            "anchor": self.anchor,
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Continues from what :meth:`state` returned."""
        self.network.load(content["state"])
        self.anchor = content["anchor"]
        self.history = [from_dict(EpochMetrics, metrics) for metrics in content["history"]]
        for _ in () if self.network.needs_closure else self.history:
            next(self._legs)
