"""What a training changes: a model, its optimizer and, if the spec asks for it, the average of its weights.

A step is a map of this state.  It depends only on the batch, the step's number and the hyperparameters, so that it can
be repeated: augmentation, dropout and random scaling are seeded by the batch.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from tuner.core.errors import InvalidInput
from tuner.core.trial_spec import TrialSpec
from tuner.optimizers import RandomScaling
from tuner.optimizers.hyperparameters import Hyperparameters
from tuner.optimizers.rules import (
    averages_weights,
    current_momentum,
    inner,
    make_optimizer,
    needs_closure,
    set_hyperparameters,
)
from tuner.order import Batch
from tuner.train.curvature import Curvature, estimate_curvature
from tuner.train.data_parallel import SINGLE_PROCESS, Replicas
from tuner.train.recipe import Recipe
from tuner.train.sync_batch_norm import taken_alone
from tuner.workloads.data import Data, with_precision
from tuner.workloads.models import build_model

NORM_BATCHES = 32
"""Number of training batches from which BatchNorm's statistics of averaged weights are computed."""
CURVATURE_IMAGES = 256
"""Number of images of the fixed batch on which curvature is estimated; all, if the training split has fewer."""

SCALE_STREAM = 0x5CA1E
"""Changes a batch's seed for its step's random scale: augmentation and dropout use the seed itself."""


class TrainState:
    """The state of a training and the maps of it.  Seeds torch's global generators.

    All replicas hold the same state, and all have to call the methods that change or evaluate it.  Except for rounding
    their steps are those of one process on the whole batches if the model treats each input by itself or by BatchNorm.
    Dropout is an exception: replicas draw other masks than one process.
    """

    def __init__(
        self, spec: TrialSpec, data: Data, device: torch.device, *, num_steps: int, replicas: Replicas = SINGLE_PROCESS
    ) -> None:
        self.spec = spec
        self.data = data
        self.device = device
        self.replicas = replicas
        self.dtype = torch.float64 if spec.precision == "float64" else torch.float32
        torch.manual_seed(spec.seed)
        model = build_model(spec.workload, **data.model_arguments)
        model = model.to(device=device, dtype=self.dtype)
        if spec.optimizer.contiguous:
            model = model.to(memory_format=torch.contiguous_format)
        self.model = replicas.sync_batch_norm(model)
        self.optimizer = make_optimizer(self.model, spec.optimizer, num_steps=num_steps)
        self.needs_closure = needs_closure(self.optimizer)
        """Whether a step may compute the gradient several times."""
        self._averages = averages_weights(self.optimizer)
        """Whether the optimizer trains and evaluates different weights."""
        if self._averages:
            inner(self.optimizer).train()  # type: ignore[attr-defined]
        self._recipe = Recipe(spec.optimizer.recipe, data)
        decay = spec.optimizer.average.decay
        self._require_compatible(decay)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay > 0 else None
        self.forward: nn.Module = torch.compile(self.model) if spec.compile else self.model  # type: ignore[assignment]
        self.train_forward = replicas.wrap_ddp(self.forward)
        self._frozen: tuple[nn.Module, ...] = ()

    def _require_compatible(self, decay: float) -> None:
        rule = self.spec.optimizer.rule
        if self._averages and decay > 0:
            raise InvalidInput(f"average.decay = {decay:g}: must be 0 for {rule}, which averages its weights itself")
        if self.spec.optimizer.create_graph and self.replicas.world_size > 1:
            raise InvalidInput(
                "--workers-per-trial: must be 1 for create_graph, which the replicas' sum has no graph for"
            )
        if self.needs_closure and self.spec.optimizer.order.composition != "forward":
            raise InvalidInput(f"order.composition = backward: must be forward for {rule}, whose step takes a closure")

    def freeze(self, parameters: Iterable[str], modules: Iterable[str]) -> None:
        """Freezes everything but the named ``parameters`` and the buffers of the ``modules``, which are paths.

        Steps leave what is frozen unchanged, without weight decay, and frozen modules stay in evaluation mode.  Raises
        ValueError for a network with averaged weights, because all their BatchNorm statistics are computed anew.
        """
        if self.average or self._averages:
            raise ValueError("average.decay > 0: the statistics of averaged weights cannot be frozen")
        parameters, opened = set(parameters), [self.model.get_submodule(path) for path in modules]
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in parameters)
        trained = {id(part) for module in opened for part in module.modules()}
        self._frozen = tuple(module for module in self.model.modules() if id(module) not in trained)
        self._to_training()

    def _to_training(self) -> None:
        self.model.train()
        for module in self._frozen:
            # eval() would also change submodules that are trained.
            module.training = False

    def state(self) -> dict[str, Any]:
        """Everything that a step changes; the tensors are the live ones."""
        average = {"average": self.average.state_dict()} if self.average else {}
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), **average}

    def frozen_state(self) -> dict[str, Any]:
        """A copy of :meth:`state` that no step changes."""
        return copy.deepcopy(self.state())

    def load(self, state: dict[str, Any]) -> None:
        """Loads a copy of a state that :meth:`state` or :meth:`frozen_state` returned."""
        self.model.load_state_dict(state["model"])
        # Clearing first saves memory.  The copy is needed because torch's optimizers keep the tensors they are given.
        self.optimizer.state.clear()
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        if self.average:
            self.average.load_state_dict(state["average"])

    def evaluated_state(self) -> dict[str, Tensor]:
        """A copy, on the CPU, of the weights and buffers that the last evaluation used: the averaged ones, if any."""
        model = self.average.module if self.average else self.model
        with self._evaluated_weights():
            return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}

    def step(
        self, number: int, batch: Batch, inputs: Tensor, labels: Tensor, hyperparameters: Hyperparameters
    ) -> tuple[Tensor, Tensor, int]:
        """Takes step ``number`` (from 0) on its batch.

        Returns the mean loss before it, the sum of the task's score, and the number of gradients that it computed.
        The sum for images is the number of correct ones.  ``inputs`` and ``labels`` are this replica's part of the
        batch.  The results are those of the whole batch.
        """
        momentum = self.spec.optimizer.momentum
        set_hyperparameters(
            self.optimizer,
            lr=hyperparameters.lr,
            momentum=None if momentum.schedule == "own" else hyperparameters.momentum,
            p=hyperparameters.p,
            rescale=momentum.rescale,
        )
        if isinstance(self.optimizer, RandomScaling):
            self.optimizer.seek(number, batch.seed ^ SCALE_STREAM)

        def gradient() -> tuple[Tensor, Tensor]:
            self._seed(batch.seed)
            taken, wanted = self._recipe.mix(inputs, labels)
            with self._autocast():
                outputs = self.train_forward(with_precision(taken, self.dtype))
                loss = self._recipe.loss(outputs, wanted)
            self.optimizer.zero_grad(set_to_none=True)
            self._differentiate(loss)
            self._recipe.clip(self.model.parameters())
            return loss, outputs

        loss, outputs = gradient()
        evaluations = 1
        if self.needs_closure:
            evaluations = self._step_by_closure(loss, lambda: gradient()[0])
        else:
            self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.model)
        mean, score = loss.detach(), self.data.task.score_sum(outputs.detach(), labels)
        if self.replicas.world_size > 1:
            mean, score = self.replicas.all_reduce(mean / self.replicas.world_size, score)
        return mean, score, evaluations

    def _differentiate(self, loss: Tensor) -> None:
        if not self.spec.optimizer.create_graph:
            loss.backward()
            return
        # Not by backward(), which would keep the graph alive in a circle of references.
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    def _step_by_closure(self, loss: Tensor, gradient: Callable[[], Tensor]) -> int:
        """Takes a step of an optimizer that asks for gradients itself; returns how many were computed, the first too.

        Some optimizers expect a gradient before the step, and others ask for it at once: a first call that finds
        weights and gradients unchanged gets the loss that is known.
        """
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        versions = [parameter.grad._version if parameter.grad is not None else 0 for parameter in parameters]
        weights = [parameter.detach().clone() for parameter in parameters]
        known = [parameter.grad for parameter in parameters]
        evaluations, num_calls = 1, 0

        def closure() -> Tensor:
            nonlocal evaluations, num_calls
            num_calls += 1
            if num_calls == 1 and all(
                parameter.grad is grad and (grad is None or grad._version == version) and torch.equal(parameter, before)
                for parameter, grad, version, before in zip(parameters, known, versions, weights, strict=True)
            ):
                return self._of_whole_batch(loss)
            evaluations += 1
            with torch.enable_grad():
                return self._of_whole_batch(gradient())

        self.optimizer.step(closure)  # type: ignore[arg-type]
        return evaluations

    def _of_whole_batch(self, loss: Tensor) -> Tensor:
        """The mean loss of all replicas: optimizers that decide by it must decide alike."""
        if self.replicas.world_size == 1:
            return loss
        (mean,) = self.replicas.all_reduce(loss.detach() / self.replicas.world_size)
        return mean.to(loss.dtype)

    def evaluate(self, split: str, newest: Iterable[Batch] = ()) -> tuple[float, float]:
        """Mean loss (inf if it is not finite) and mean score over a whole split, in evaluation mode.

        Each replica evaluates a part of the split.  With averaging the averaged weights are evaluated.  Their BatchNorm
        statistics are computed anew from ``newest``, the last batches of the training.
        """
        with self._evaluated_weights():
            forward = self.forward
            if self.average:
                forward = self.average
                self._recompute_statistics(self.average, newest)
                self.average.eval()
            elif self._averages and (batches := list(newest)):
                self._recompute_statistics(self.model, batches)
            self.model.eval()
            total_loss = torch.zeros((), dtype=torch.float64, device=self.device)
            total_score = torch.zeros((), dtype=torch.float64, device=self.device)
            with torch.inference_mode():
                for inputs, labels in self.data.evaluation_batches(split, self.replicas.part(self.data.sizes[split])):
                    with self._autocast():
                        outputs = forward(with_precision(inputs, self.dtype))
                    total_loss += self.data.task.loss_sum(outputs.to(self.dtype), labels)
                    total_score += self.data.task.score_sum(outputs, labels)
        self._to_training()
        loss, score = map(float, self.replicas.all_reduce(total_loss, total_score))
        size = self.data.sizes[split]
        return loss / size if math.isfinite(loss) else math.inf, self.data.task.score(score, size)

    def _recompute_statistics(self, model: nn.Module, newest: Iterable[Batch]) -> None:
        """BatchNorm's statistics of weights that were never trained as they are, from the newest batches."""
        self._seed(self.spec.seed)
        with self._autocast():
            # A generator frees each batch before the next is loaded.
            update_bn((with_precision(inputs, self.dtype) for inputs, _ in self.train_batches(newest)), model)

    @contextmanager
    def _evaluated_weights(self) -> Iterator[None]:
        """Puts the evaluated weights into the model, where the optimizer trains others, and the trained ones back.

        They are put back as copies, since the optimizer's own way back rounds: evaluations would change the training.
        """
        if not self._averages:
            yield
            return
        optimizer: Any = inner(self.optimizer)
        trained = [parameter.detach().clone() for parameter in self.model.parameters()]
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()
            with torch.no_grad():
                for parameter, before in zip(self.model.parameters(), trained, strict=True):
                    parameter.copy_(before)

    @property
    def momentum(self) -> float:
        """The momentum of the last step, or beta_1; 0 if the optimizer has neither."""
        return current_momentum(self.optimizer)

    def logits(self, images: Tensor) -> Tensor:
        """The logits (B, num_classes) of images under the last weights, at the precision of the evaluations.

        The model stays in the mode, training or evaluation, that it is in.
        """
        with self._autocast():
            logits: Tensor = self.model(images.to(self.dtype))
        return logits.to(self.dtype)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def curvature(self, tolerance: float = 1e-2) -> Curvature | None:
        """The curvature of the training loss at the last weights on a fixed batch, with BatchNorm in training mode.

        It is computed in full precision, with a residual of at most ``tolerance`` relative to the top eigenvalue if
        Lanczos converges.  Returns None if it is not finite.  A replica computes it alone.
        """
        generator = torch.Generator().manual_seed(self.spec.seed)
        indices = torch.randperm(self.data.sizes["train"], generator=generator)[:CURVATURE_IMAGES]
        (inputs, labels), *_ = self.data.train_batches([Batch(indices, self.spec.seed)])
        inputs = with_precision(inputs, self.dtype)

        def loss() -> Tensor:
            self._seed(self.spec.seed)
            return self.data.task.loss(self.model(inputs), labels)

        # Fused attention has no second derivative.
        with self._buffers_kept(), taken_alone(self.model), sdpa_kernel(SDPBackend.MATH):
            return estimate_curvature(loss, list(self.model.parameters()), seed=self.spec.seed, tolerance=tolerance)

    def train_batches(self, batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
        """This replica's part of the inputs and labels of each batch."""
        return self.data.train_batches(batches, self.replicas.part(self.spec.workload.batch_size))

    def warm_up(self, batch: Batch) -> float:
        """Seconds to compile and load the kernels of a training and an evaluation step; leaves the state as it was."""
        started = time.perf_counter()
        with self._buffers_kept():
            for inputs, labels in self.train_batches([batch]):
                with self._autocast():
                    self.data.task.loss(self.train_forward(with_precision(inputs, self.dtype)), labels).backward()
            for parameter in self.model.parameters():
                parameter.grad = None
            self.evaluate("validation", [batch])
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    @contextmanager
    def _buffers_kept(self) -> Iterator[None]:
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        yield
        for buffer, saved in zip(self.model.buffers(), buffers, strict=True):
            buffer.copy_(saved)

    def _seed(self, seed: int) -> None:
        seed += self.replicas.rank
        # torch.manual_seed asks every kind of device there might be, at each step.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _autocast(self) -> AbstractContextManager[None]:
        bfloat16 = self.spec.precision == "bfloat16" or (self.spec.precision == "auto" and self.device.type == "cuda")
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if bfloat16 else nullcontext()
