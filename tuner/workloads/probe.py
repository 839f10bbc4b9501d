"""Loads a workload and tries its model, in a process of its own that may import torch and the user's code.

:mod:`tuner.workloads.check` asks :func:`found` for digest, sizes, number of classes and score of the data.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from tuner.core.errors import InvalidInput
from tuner.core.import_path import said
from tuner.core.serialization import from_dict
from tuner.core.trial_spec import WorkloadSpec, is_own
from tuner.order import Batch
from tuner.workloads.data import Data, load_data, with_precision
from tuner.workloads.models import build_model, find_model
from tuner.workloads.task import CLASSIFICATION, AdaptedTask

NUM_TRIED = 4
"""Most samples on which the model is tried; with one, BatchNorm would refuse a model that takes larger batches."""
CPU = torch.device("cpu")


def probe(spec: WorkloadSpec, *, data_alone: bool = False) -> dict[str, Any]:
    """Properties of the data, from loading it.  Downloads missing data if ``download`` is set.

    Unless ``data_alone`` is set, the model is built too, and takes one step without an update on data of the user's
    own.  Raises :class:`InvalidInput` for what does not work.
    """
    if not data_alone:
        find_model(spec.model)  # a name that is wrong is found before the data is read
    data = load_data(spec, CPU)
    if not data_alone:
        model = _built(spec, data)
        if is_own(spec.data):
            _try(spec, data, model)
    return {
        "digest": data.digest,
        "sizes": dict(data.sizes),
        "num_classes": data.model_arguments.get("num_classes"),
        "score": data.task.name,
    }


def _built(spec: WorkloadSpec, data: Data) -> nn.Module:
    try:
        model = build_model(spec, **data.model_arguments)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InvalidInput(f"--model {spec.model}: has no parameter to train")
        return model
    except InvalidInput:
        raise
    except (Exception, SystemExit) as error:
        reason = said(error, find_model(spec.model))
        raise InvalidInput(f"--model {spec.model}: cannot be built for this data: {reason}") from None


def _try(spec: WorkloadSpec, data: Data, model: nn.Module) -> None:
    """One forward and backward pass, and a score, on the first samples of the training split."""
    place = f"--model {spec.model}"
    indices = torch.arange(min(spec.batch_size, NUM_TRIED))
    ((inputs, labels),) = data.train_batches([Batch(indices, 0)])
    inputs = with_precision(inputs, torch.float32)
    try:
        outputs = model(inputs)
    except (Exception, SystemExit) as error:
        reason = said(error, find_model(spec.model))
        raise InvalidInput(f"{place}: cannot take {inputs.dtype} of shape {tuple(inputs.shape)}: {reason}") from None
    try:
        with torch.no_grad():
            model.eval()(inputs)
        model.train()
    except (Exception, SystemExit) as error:
        raise InvalidInput(f"{place}: fails in evaluation: {said(error, find_model(spec.model))}") from None
    if not isinstance(outputs, Tensor):
        raise InvalidInput(f"{place}: its outputs are a {type(outputs).__name__}, and must be one tensor")
    num_classes = data.model_arguments.get("num_classes")
    num_outputs = outputs.shape[1] if outputs.ndim > 1 and data.task is CLASSIFICATION else num_classes
    if isinstance(num_classes, int) and isinstance(num_outputs, int) and num_outputs < num_classes:
        raise InvalidInput(f"{place}: gives {num_outputs} outputs, and labels reach {num_classes - 1}")
    try:
        _try_task(data, outputs, labels)
        if not any(parameter.grad is not None for parameter in model.parameters()):
            raise InvalidInput("its loss gives no parameter a gradient")
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error}") from None


def _try_task(data: Data, outputs: Tensor, labels: Tensor) -> None:
    task = data.task
    if not isinstance(task, AdaptedTask):
        task.loss(outputs, labels).backward()
        return
    given = type(task.given)
    try:
        loss = task.loss(outputs, labels)
        score = float(task.given.score(outputs.detach(), labels))
    except (Exception, SystemExit) as error:
        raise InvalidInput(f"the task {task.name!r} raised {said(error, given)}") from None
    if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
        shown = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        kind = f"{shown} without a gradient" if isinstance(loss, Tensor) and not loss.ndim else shown
        raise InvalidInput(f"the loss of the task {task.name!r} is {kind}: must be one number with a gradient")
    if not math.isfinite(float(loss.detach())) and math.isfinite(float(outputs.detach().sum())):
        raise InvalidInput(f"the loss of the task {task.name!r} is {float(loss.detach())} on the first samples")
    if not 0 <= score <= 1 and math.isfinite(float(outputs.detach().sum())):
        raise InvalidInput(f"the score {task.name!r} is {score:g}: must be in [0, 1]")
    loss.backward()


def found(spec: str, *options: str) -> str:
    """:func:`probe` of a :class:`WorkloadSpec` in JSON, as JSON; with the option ``--data-alone`` no model is built."""
    return json.dumps(probe(from_dict(WorkloadSpec, json.loads(spec)), data_alone="--data-alone" in options))
