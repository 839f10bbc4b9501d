"""Data of the user's own: what the function that ``--workload package.module:function`` names has to return.

::

    def data():
        return tensors(train=(x, y), validation=(x, y), test=(x, y), task="classification")

Everything is held in memory.  numpy arrays are not copied, so processes that map one file share its memory.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tuner.core.errors import InvalidInput, first_line
from tuner.core.import_path import said
from tuner.core.trial_spec import WorkloadSpec
from tuner.workloads.decoding import free_memory
from tuner.workloads.functions import arguments_of, find_function, required
from tuner.workloads.task import CLASSIFICATION, OwnTask, Regression, Task, adapted

CHUNK_BYTES = 2**24
"""Bytes that are read, checked or evaluated at once, as far as samples are smaller."""

WIDER = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}
"""Types of numpy that torch hardly computes with -> the types that they become."""

Splits: TypeAlias = Mapping[str, tuple[Tensor, Tensor]]
"""``train``, ``validation``, ``test`` -> inputs (N, ...) and labels (N, ...)."""


@dataclass(frozen=True, slots=True, eq=False)
class OwnData:
    """Three splits, checked and on the CPU, with their task."""

    splits: Splits
    task: Task
    num_classes: int | None
    """One more than the largest label of all splits; None for labels that are no classes."""
    num_outputs: int | None
    """``num_classes``, or the number of components of a label that is a float; None where neither is known."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.splits["train"][0].shape[1:])

    @property
    def num_bytes(self) -> int:
        return sum(values.nbytes for pair in self.splits.values() for values in pair)

    @property
    def rows_at_once(self) -> int:
        """Number of samples, at least 1, whose inputs and whose outputs have about :data:`CHUNK_BYTES` at most."""
        inputs, labels = self.splits["train"]
        # Classes have an output per class and label, of a language model the largest tensor there is.
        num_outputs = labels[0].numel() * (self.num_classes or 1)
        return max(1, CHUNK_BYTES // max(inputs[0].nbytes, 4 * num_outputs))

    @property
    def digest(self) -> str:
        """SHA-256 over the name of the score, and the shapes, types and values of all splits."""
        state = hashlib.sha256(f"{self.task.name} ".encode())
        for name, pair in sorted(self.splits.items()):
            for values in pair:
                state.update(f"{name} {tuple(values.shape)} {values.dtype} ".encode())
                for rows in _chunks(values):
                    state.update(rows.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return state.hexdigest()


def tensors(
    *,
    train: tuple[Any, Any],
    validation: tuple[Any, Any],
    test: tuple[Any, Any],
    task: Literal["classification", "regression"] | OwnTask,
) -> OwnData:
    """Data from pairs of inputs (N, ...) and labels (N, ...): tensors, numpy arrays, or what numpy makes one of.

    ===============  ==========================  =======================  ==================================
    task             labels                      outputs of the model     score
    ===============  ==========================  =======================  ==================================
    classification   integers (N, ...), from 0   (B, num_classes, ...)    accuracy, over all labels
    regression       numbers (N, ...)            those of the labels      R^2, by the variance of ``train``
    object           whatever its loss takes     whatever its loss takes  its ``score``, called ``name``
    ===============  ==========================  =======================  ==================================

    An object is an :class:`tuner.workloads.task.OwnTask`.  Floating inputs are converted to the precision of the
    training, and integers stay integers.

    Raises :class:`InvalidInput` for data that cannot be meant: splits that are empty, of different lengths, shapes or
    types, values that are not finite, labels that do not fit the task.
    """
    given = {"train": train, "validation": validation, "test": test}
    splits = {name: _pair(name, pair) for name, pair in given.items()}
    for name, pair in splits.items():
        for part, values, first in zip(("inputs", "labels"), pair, splits["train"], strict=True):
            if (values.shape[1:], values.dtype) != (first.shape[1:], first.dtype):
                raise InvalidInput(
                    f"{part} of {name} are {_described(values)}, and those of train are {_described(first)}"
                )
    if task == "classification":
        return _classified(splits)
    if task == "regression":
        return _regressed(splits)
    labels = splits["train"][1]
    own, components = adapted(task), labels[0].numel()
    if labels.is_floating_point():
        return OwnData(splits, own, None, components)
    least, largest = _range_of_labels(splits)
    num_classes = largest + 1 if least >= 0 else None
    return OwnData(splits, own, num_classes, num_classes)


def map_style(
    *, train: Any, validation: Any, test: Any, task: Literal["classification", "regression"] | OwnTask
) -> OwnData:
    """Data from map-style datasets, whose items are pairs (input, label); every item is read once, into memory.

    Inputs have one shape and type, labels too.  The rest is as for :func:`tensors`.  Raises :class:`InvalidInput` for a
    dataset without a length and for data that is larger than the free memory.
    """
    given = {"train": train, "validation": validation, "test": test}
    return tensors(**{name: _read(name, dataset) for name, dataset in given.items()}, task=task)


def read_own(spec: WorkloadSpec) -> OwnData:
    """Calls the function that ``spec.data`` names, with ``data_dir`` if it names that.

    Raises :class:`InvalidInput`, in a sentence that begins with ``--workload``, for a function that cannot be found or
    called, that raises, or that returns something else.
    """
    place = f"--workload {spec.data}"
    function = find_function("--workload", spec.data)
    if spec.data_dir is None and "data_dir" in required(function):
        raise InvalidInput(f"{place}: needs --data-dir, the folder that its data_dir is")
    offered = {} if spec.data_dir is None else {"data_dir": spec.data_dir}
    arguments = arguments_of(function, offered, place)
    if offered and not arguments:
        raise InvalidInput(f"--data-dir {spec.data_dir}: {spec.data} has no parameter data_dir")
    try:
        made = function(**arguments)
    except InvalidInput as error:
        raise InvalidInput(f"{place}: {error}") from None
    except (Exception, SystemExit) as error:
        raise InvalidInput(f"{place}: raised {said(error, function)}") from None
    if not isinstance(made, OwnData):
        raise InvalidInput(
            f"{place}: returned a {type(made).__name__}, and must return what tuner.workloads.tensors or map_style "
            "makes"
        )
    return made


def _chunks(values: Tensor) -> Iterator[Tensor]:
    """Consecutive samples, of about :data:`CHUNK_BYTES` or one; none if there are none."""
    if len(values):
        yield from torch.split(values, max(1, CHUNK_BYTES // values[0].nbytes))


def _pair(name: str, pair: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise InvalidInput(f"{name} is a {type(pair).__name__}: must be a pair (inputs, labels)")
    inputs, labels = _tensor(f"inputs of {name}", pair[0]), _tensor(f"labels of {name}", pair[1])
    if len(inputs) != len(labels):
        raise InvalidInput(f"{name} has {len(inputs)} inputs and {len(labels)} labels: must be equally many")
    if not len(inputs):
        raise InvalidInput(f"{name} is empty: must have at least one sample")
    return inputs, labels


def _tensor(what: str, given: Any) -> Tensor:
    """The values as a tensor on the CPU, which shares the memory of an array where it can."""
    if isinstance(given, Tensor):
        values = given.detach().cpu()
    else:
        try:
            array = np.asarray(given)
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"{what}: no array can be made of a {type(given).__name__} ({first_line(error)})"
            ) from None
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise InvalidInput(f"{what} have the type {array.dtype}: must be numbers")
        array = np.ascontiguousarray(array, WIDER.get(array.dtype.name, array.dtype.newbyteorder("=")))
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # a file may be mapped for reading alone
            values = torch.from_numpy(array.reshape(np.shape(given)))
    if values.layout != torch.strided or values.is_complex():
        raise InvalidInput(f"{what} have the type {values.dtype} in the layout {values.layout}: must be plain numbers")
    if not values.ndim:
        raise InvalidInput(f"{what} are one number: must have a first dimension, of samples")
    if len(values) and not values[0].numel():
        raise InvalidInput(f"{what} have the shape {tuple(values.shape)}: a sample must have at least one number")
    _require_finite(what, values)
    return values


def _require_finite(what: str, values: Tensor) -> None:
    first = 0
    for rows in _chunks(values) if values.is_floating_point() else ():
        # As a training takes them: in single precision, larger numbers are infinite.
        rows = rows.float() if rows.is_floating_point() else rows
        finite = torch.isfinite(rows).reshape(len(rows), -1).all(1)
        if not bool(finite.all()):
            raise InvalidInput(f"{what}: sample {first + int(finite.int().argmin())} is not finite")
        first += len(rows)


def _classified(splits: Splits) -> OwnData:
    labels = splits["train"][1]
    if labels.is_floating_point():
        raise InvalidInput(f"labels are {_described(labels)}: classification needs integers")
    least, largest = _range_of_labels(splits)
    if least < 0:
        raise InvalidInput(f"the smallest label is {least}: classification needs labels from 0")
    if largest < 1:
        raise InvalidInput("all labels are 0: classification needs two classes or more")
    numbered = {name: (inputs, labels.long()) for name, (inputs, labels) in splits.items()}
    return OwnData(numbered, CLASSIFICATION, largest + 1, largest + 1)


def _regressed(splits: Splits) -> OwnData:
    floats = {
        name: (inputs, labels if labels.is_floating_point() else labels.double())
        for name, (inputs, labels) in splits.items()
    }
    labels = floats["train"][1].double()
    variance = float((labels - labels.mean(0)).square().mean())
    if not variance > 0:
        raise InvalidInput("all labels of train are equal: R^2 is not defined")
    return OwnData(floats, Regression(variance), None, labels[0].numel())


def _range_of_labels(splits: Splits) -> tuple[int, int]:
    ends = [labels.aminmax() if labels.dtype != torch.bool else labels.int().aminmax() for _, labels in splits.values()]
    return min(int(low) for low, _ in ends), max(int(high) for _, high in ends)


def _described(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} of shape {tuple(values.shape[1:])}"


def _read(name: str, dataset: Any) -> tuple[Tensor, Tensor]:
    """All items of a map-style dataset, in order."""
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InvalidInput(f"{name} is a {type(dataset).__name__} without a length: must be a map-style dataset")
    size = len(dataset)
    if not size:
        raise InvalidInput(f"{name} is empty: must have at least one sample")
    columns: list[Tensor] = []
    for index in range(size):
        item = dataset[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise InvalidInput(f"{name}[{index}] is a {type(item).__name__}: must be a pair (input, label)")
        arrays = (part if isinstance(part, Tensor) else np.asarray(part) for part in item)
        values = [_tensor(f"item {index} of {name}", array[None]) for array in arrays]
        if not columns:
            needed, free = size * sum(value.nbytes for value in values), free_memory()
            if needed > free:
                raise InvalidInput(f"{name} needs {needed:.3g} bytes of memory: {free:.3g} are free")
            columns = [torch.empty((size, *value.shape[1:]), dtype=value.dtype) for value in values]
        for column, value in zip(columns, values, strict=True):
            if (value.shape[1:], value.dtype) != (column.shape[1:], column.dtype):
                raise InvalidInput(
                    f"item {index} of {name} has {_described(value)}, and item 0 has {_described(column)}"
                )
            column[index] = value[0]
    inputs, labels = columns
    return inputs, labels
