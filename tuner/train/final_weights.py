"""The final weights of a confirmed run, and the only place where the test split is opened."""

from __future__ import annotations

import dataclasses
import io
import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tuner.core.errors import InvalidInput, first_line
from tuner.core.metrics import FinalScore
from tuner.core.retry import retry
from tuner.core.serialization import digest
from tuner.core.store import WEIGHTS, Store
from tuner.core.trial_spec import OptimizerSpec, TrialSpec
from tuner.train.train_state import TrainState
from tuner.workloads.data import Data, cached_data

FORMAT = 1


def save_weights(network: TrainState, store: Store) -> None:
    """Writes the weights and buffers that evaluation uses, with the digests of the spec and of the data and its splits.

    The tensors are written as CPU tensors.  Raises :class:`StorageFailed` if the storage stays unreachable.
    """
    content = {
        "format": FORMAT,
        "spec": digest(network.spec),
        "data": network.data.digest,
        "model": network.evaluated_state(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    retry(f"{store.place}/{WEIGHTS}", lambda: store.write(WEIGHTS, buffer.getvalue()))


def load_weights(store: Store, spec: TrialSpec) -> dict[str, Any]:
    """What :func:`save_weights` wrote: ``model`` and ``data``.

    Raises :class:`InvalidInput` for weights that do not exist, cannot be read or are of another training, and
    :class:`StorageFailed` if the storage stays unreachable.
    """
    path = f"{store.place}/{WEIGHTS}"

    def read() -> bytes:
        try:
            return store.read(WEIGHTS)
        except FileNotFoundError:
            raise InvalidInput(f"{path} is not there") from None

    stored = io.BytesIO(retry(path, read))
    try:
        content: dict[str, Any] = torch.load(stored, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise InvalidInput(f"{path} cannot be read ({first_line(error)[:100]})") from None
    if content.get("format") != FORMAT or content.get("spec") != digest(spec):
        raise InvalidInput(f"{path} has the weights of another training")
    return content


def score_on_test(spec: TrialSpec, store: Store, device: torch.device | None = None) -> FinalScore:
    """The loss and accuracy of the final weights on the test split.

    Raises :class:`InvalidInput` if the data is not what the weights were trained on, and the errors of
    :func:`load_weights`.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    content = load_weights(store, spec)
    data = unsealed_data(spec, device)
    if data.digest != content["data"]:
        raise InvalidInput(f"{store.place}: the data is not what these weights were trained on")
    loss, accuracy = trained_network(spec, content["model"], data, device).evaluate("test")
    return FinalScore(loss, accuracy, data.digest)


def unsealed_data(spec: TrialSpec, device: torch.device) -> Data:
    """A training's data with the test split open."""
    return cached_data(spec.workload, device, sealed=False)


def trained_network(spec: TrialSpec, state: Mapping[str, Tensor], data: Data, device: torch.device) -> TrainState:
    """A network with these weights and buffers, for evaluation.

    Raises :class:`InvalidInput` if they do not fit the spec's model for this data.
    """
    # The weights are those that are evaluated.  An optimizer that averages would put others in their place.
    plain = OptimizerSpec(contiguous=spec.optimizer.contiguous)
    network = TrainState(dataclasses.replace(spec, optimizer=plain), data, device, num_steps=1)
    try:
        network.model.load_state_dict(state)
    except RuntimeError as error:
        difference = " ".join(str(error).split("\n\t")[-1].split())[:200]
        raise InvalidInput(
            f"the weights are not those of {spec.workload.model} on {spec.workload.data}: {difference}"
        ) from None
    return network
